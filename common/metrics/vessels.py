# SPDX-License-Identifier: Apache-2.0
"""Overlap of vessels of the retina."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spatial.warp import warp
from .cases import Cases
from .overlap import count_overlap


class VesselMeasures:
    """``dice_vessels`` and ``dice_vessels_before`` of vessel maps that are thresholded after warping.

    Unlike a label, a map may hold shares of a pixel (segmentations that were averaged to a coarser grid).

    Args:
        key: the data hold ``moving_<key>`` and ``fixed_<key>``, (B, 1, *S), 1 on vessels.
        threshold: what counts as vessel, from this value on.
        mask: key of the data whose non-zero voxels count, (B, 1, *S) on the fixed grid, such as the field of view of
            the camera; None counts all.
    """

    headlines = ("dice_vessels",)

    def __init__(self, key: str = "vessels", threshold: float = 0.5, mask: str | None = None) -> None:
        self.keys, self.threshold, self.mask = (f"moving_{key}", f"fixed_{key}"), float(threshold), mask

    def __call__(self, cases: Cases) -> dict[str, Tensor]:
        """Return the columns, each (B,); NaN where fixed has no vessel.

        Raises:
            ValueError: where the data hold no vessel maps, or no mask.
        """
        moving, fixed = cases.of("vessels", *self.keys)
        counted = torch.ones_like(fixed, dtype=torch.bool)
        if self.mask is not None:
            counted = cases.of("vessels", self.mask)[0] > 0
        moving = moving.to(cases.ddf.dtype)
        reference = (fixed >= self.threshold) & counted
        maps = {"dice_vessels": warp(moving, cases.ddf), "dice_vessels_before": moving}
        return {n: count_overlap((m >= self.threshold) & counted, reference).dice() for n, m in maps.items()}
