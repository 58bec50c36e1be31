# SPDX-License-Identifier: Apache-2.0
"""Registered cases for tests of single measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from common.metrics.cases import Cases
from common.spatial.warp import warp

SHAPES = [(14, 17), (8, 11, 9)]


def shifted(shape: Sequence[int], shift: Sequence[float], count: int = 2, thorough: bool = True, **batch: Any) -> Cases:
    """Cases of random moving images, a constant displacement ``shift``, and of what else the batch holds."""
    moving = torch.rand(count, 1, *shape, generator=torch.Generator().manual_seed(0))
    ddf = torch.zeros(count, len(shape), *shape) + torch.tensor(shift).reshape(1, -1, *[1] * len(shape))
    images = {"moving_image": moving, "fixed_image": warp(moving, ddf)}
    return Cases(images | batch, ddf, warp(moving, ddf), thorough=thorough)
