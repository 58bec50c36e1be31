# SPDX-License-Identifier: Apache-2.0
"""Displacement networks by name: the builders hold the published constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..checks import known_name
from .icon import build_icon
from .voxelmorph import VoxelMorph

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"voxelmorph": VoxelMorph, "icon": build_icon}


def build(name: str, spatial_dims: int, **parameters: Any) -> nn.Module:
    """Build a displacement network.

    Args:
        name: a key of ``ARCHITECTURES``.
        spatial_dims: 2 or 3.
        parameters: further arguments of the builder.

    Returns:
        A module whose ``forward(image, fixed=None, condition=None)`` returns the ddf, (B, d, *S) in voxels.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    return ARCHITECTURES[known_name("architecture", name, ARCHITECTURES)](spatial_dims=spatial_dims, **parameters)
