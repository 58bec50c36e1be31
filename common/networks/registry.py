# SPDX-License-Identifier: Apache-2.0
"""Displacement networks by name: the builders hold the published constants."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from torch import nn

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
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"architecture must be one of {sorted(ARCHITECTURES)}, got '{name}'.{hint}")
    return ARCHITECTURES[name](spatial_dims=spatial_dims, **parameters)
