# SPDX-License-Identifier: Apache-2.0
"""The random changes of training pairs that the released GradICON networks were trained with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable, Transform
from monai.utils import convert_to_tensor
from torch import Tensor

from ..spatial.affine import affine_ddf
from ..spatial.warp import warp

ROLES, KINDS = ("moving", "fixed"), ("image", "label", "mask")  # of a pair's keys


class RandomSwap(Randomizable, Transform):
    """Exchange the moving and the fixed image at random, with their labels and masks.

    Args:
        probability: of a swap.

    Reference:
        Tian et al., GradICON, CVPR 2023, A.3.3 (LapIRN's training).
    """

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = float(probability)

    def __call__(self, pair: dict[str, Any]) -> dict[str, Any]:
        """Return the pair, or the pair the other way round.

        Args:
            pair: by key, "moving_image", "fixed_image", …
        """
        if not self.R.random() < self.probability:
            return dict(pair)
        other = {ROLES[0]: ROLES[1], ROLES[1]: ROLES[0]}
        return {f"{other[key.partition('_')[0]]}_{key.partition('_')[2]}": value for key, value in pair.items()}


class ReleasedAugmentation(Randomizable, Transform):
    """Permute and mirror the axes of a pair, both images alike; then change each by an affine map of its own.

    One signed permutation matrix P is drawn for the pair, and for each image N(0, ``deviation``²) noise on the numbers
    of its affine map, d × (d + 1) of them, in coordinates from -1 to 1: x -> (P + E) x + e. Images keep their grid: on
    one that is no cube a permutation stretches them, as published. They are sampled once, linearly, and go on at their
    border; labels and masks move with their image, at the nearest voxel. Last, the pair is swapped with probability
    1/2.
    Departure: the published code swaps two views of one tensor in place, which makes half of its pairs a pair of one
    image with itself.

    Args:
        deviation: of the noise (published 0.05).

    Reference:
        The released training of GradICON's lung networks (Tian et al., CVPR 2023; uncbiag/ICON, cvpr_clean).
    """

    def __init__(self, deviation: float = 0.05) -> None:
        if not deviation >= 0:
            raise ValueError(f"deviation: expected at least 0, got {deviation!r}; 0.05 is published.")
        self.deviation = float(deviation)
        self.swap = RandomSwap()

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> Any:
        """Fix the draws.

        Args:
            seed: of a new random state.
            state: that random state instead.

        Returns:
            This transform.
        """
        super().set_random_state(seed, state)
        self.swap.R = self.R
        return self

    def __call__(self, pair: dict[str, Any]) -> dict[str, Any]:
        """Return the changed pair.

        Args:
            pair: ``moving_image`` and ``fixed_image``, (C, *S), and optionally ``moving_label``, ``fixed_label``,
                ``moving_mask``, ``fixed_mask``, (1, *S).
        """
        dims = pair["moving_image"].dim() - 1
        permutation = np.zeros((dims, dims))
        permutation[np.arange(dims), self.R.permutation(dims)] = self.R.choice((-1.0, 1.0), dims)
        moved = dict(pair)
        for role in ROLES:
            noise = self.deviation * self.R.standard_normal((dims, dims + 1))
            matrix, translation = permutation + noise[:, :dims], noise[:, dims] / 2  # the cube has half that extent
            for kind in KINDS:
                key = f"{role}_{kind}"
                if key in pair:
                    moved[key] = _moved(convert_to_tensor(pair[key]), matrix, translation, kind == "image")
        return self.swap(moved)


def _moved(image: Tensor, matrix: np.ndarray, translation: np.ndarray, linear: bool) -> Tensor:
    own, shift = (torch.as_tensor(values, dtype=torch.float32)[None] for values in (matrix, translation))
    ddf = affine_ddf(own, shift, list(image.shape[1:]))
    return warp(image[None], ddf, mode="bilinear" if linear else "nearest", padding="border")[0]
