# SPDX-License-Identifier: Apache-2.0
"""Displacement networks by name: the builders hold the published constants."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..checks import known_name
from .affine import AffineVoxelMorph
from .composition import build_icon
from .diffusemorph import DiffuseMorph
from .lapirn import LUNG, LapIRN
from .transmorph import TransMorph
from .tvf import PRESETS, TransMorphTVF
from .unet import PixelEstimator
from .voxelmorph import COMPARED, VoxelMorph, VoxelMorphDiff

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "voxelmorph": VoxelMorph,
    "voxelmorph_2": functools.partial(VoxelMorph, **COMPARED["voxelmorph_2"]),
    "voxelmorph_diff": VoxelMorphDiff,
    "affine_voxelmorph": AffineVoxelMorph,
    "icon": build_icon,
    "lapirn": LapIRN,
    **{name: functools.partial(LapIRN, **preset) for name, preset in LUNG.items()},
    "clapirn": functools.partial(LapIRN, conditional=True),
    "diffusemorph": DiffuseMorph,
    "transmorph": TransMorph,
    "transmorph_tvf": TransMorphTVF,
    "tmspr": functools.partial(TransMorphTVF, **PRESETS["paper"]),
}
UNCERTAINTY = "displacement_uncertainty"


def build(name: str, spatial_dims: int, seed: int | None = None, **parameters: Any) -> nn.Module:
    """Build a displacement network.

    Args:
        name: a key of ``ARCHITECTURES``.
        spatial_dims: 2 or 3.
        seed: of the initial weights, which are then drawn on the CPU whatever else has been drawn, and leave torch's
            random state as it was; None draws them from that state.
        parameters: further arguments of the builder.

    Returns:
        A module that keeps ``contract.DisplacementNetwork``.

    Raises:
        ValueError: for an unknown name, with the nearest known one; for ``displacement_uncertainty`` of a network that
            has no such parameter.
    """
    builder = ARCHITECTURES[known_name("architecture", name, ARCHITECTURES)]
    if UNCERTAINTY in parameters and UNCERTAINTY not in inspect.signature(builder).parameters:
        able = [key for key, other in ARCHITECTURES.items() if UNCERTAINTY in inspect.signature(other).parameters]
        raise ValueError(
            f"architectures#{name}: {UNCERTAINTY} is a layer beside the one that predicts the displacement, expected "
            f"{' or '.join(able)}: icon, lapirn, clapirn, transmorph_tvf and tmspr combine several "
            "predictions, diffusemorph's follows from a noise that is random already, and voxelmorph_diff has a "
            "variance of its own. Leave it out."
        )
    with _seeded(seed):
        return builder(spatial_dims=spatial_dims, **parameters)


def build_estimator(spatial_dims: int, seed: int | None = None, **parameters: Any) -> PixelEstimator:
    """Build a ``PixelEstimator``: a score or a log variance a pixel.

    Args:
        spatial_dims: 2 or 3.
        seed: as ``build``; of one seed the estimator's draws differ from the network's.
        parameters: further arguments of ``PixelEstimator``.

    Returns:
        The estimator.
    """
    if seed is not None:
        seed = int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])
    with _seeded(seed):
        return PixelEstimator(spatial_dims, **parameters)


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    # torch.manual_seed would seed the accelerators as well, whose states are not kept here.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield
