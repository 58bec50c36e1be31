# SPDX-License-Identifier: Apache-2.0
"""Pairs with an affine misalignment added, to see which methods need an affine registration first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..spatial.affine import affine_ddf
from ..spatial.warp import warp

MOVED = {"moving_image": "bilinear", "moving_label": "nearest", "moving_mask": "nearest"}
OUTDATED = ("true_ddf", "moving_label_original")  # no longer those of the pair


def misaligned(pairs: Sequence[dict[str, Any]], misalignment: float, seed: int = 0) -> Sequence[dict[str, Any]]:
    """Move the moving image of each pair, with its label and mask, by an affine map of its own.

    The map x -> c + A (x - c) + t of the unit cube about its centre c has the entries of A - I and of t uniform in
    [-m, m], a function of (seed, number of the pair) alone, so that it is the same whatever the method. Images go on at
    their border. What was true of the pair before, a true displacement say, is left out.

    Args:
        pairs: as the data sets' ``load_pairs`` returns.
        misalignment: m; 0 leaves the pairs as they are.
        seed: of the maps.

    Returns:
        As many pairs.

    Raises:
        ValueError: for m outside of [0, 0.4], beyond which A could be singular or mirror.
    """
    if not 0 <= misalignment <= 0.4:
        raise ValueError(f"misalignment: expected a number from 0 to 0.4, got {misalignment!r}; 0.2 is a lot.")
    if misalignment == 0:
        return pairs
    return [_moved(pair, misalignment, seed, number) for number, pair in enumerate(pairs)]


def _moved(pair: dict[str, Any], misalignment: float, seed: int, number: int) -> dict[str, Any]:
    size = list(pair["moving_image"].shape[1:])
    dims = len(size)
    drawn = np.random.default_rng((seed, number)).uniform(-misalignment, misalignment, (dims, dims + 1))
    change = torch.as_tensor(drawn, dtype=torch.float32)[None]
    ddf = affine_ddf(torch.eye(dims) + change[..., :dims], change[..., dims], size)
    own = {key: value for key, value in pair.items() if key not in OUTDATED}
    for key, mode in MOVED.items():
        if key in pair:
            own[key] = warp(pair[key][None], ddf, mode=mode, padding="border")[0]
    return own
