# SPDX-License-Identifier: Apache-2.0
"""Errors at corresponding points of the two images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..spatial.warp import sample
from .cases import Cases


class LandmarkMeasures:
    """Target registration error at landmarks: mean and quantiles over the points of a case, before and after.

    Reads ``moving_points`` and ``fixed_points``, (B, N, d) in voxels of the grid that is registered; a point with a
    coordinate that is NaN is left out, so that cases of fewer points fit into a batch. In mm, as ``tre_mm``, where the
    spacing is known, else in voxels, as ``tre_voxels``; quantiles are ``tre_mm_q25`` and so on.

    Args:
        quantiles: in [0, 1]; the default are those of the tables on DIR-Lab. Learn2Reg's TRE30 is a quantile over
            cases, not over points.

    Raises:
        ValueError: for a quantile outside [0, 1].
    """

    headlines = ("tre_mm", "tre_voxels")

    def __init__(self, quantiles: Sequence[float] = (0.25, 0.5, 0.75)) -> None:
        if not all(0 <= quantile <= 1 for quantile in quantiles):
            raise ValueError(f"quantiles: expected numbers in [0, 1], got {list(quantiles)}; 0.25 for 25 %.")
        self.quantiles = tuple(float(quantile) for quantile in quantiles)

    def __call__(self, cases: Cases) -> dict[str, Tensor]:
        """Return the columns, each (B,).

        Raises:
            ValueError: where the data hold no landmarks, or their shapes do not fit.
        """
        moving, fixed = cases.of("landmarks", "moving_points", "fixed_points")
        errors = {
            "": landmark_errors(cases.ddf, moving, fixed),
            "_before": landmark_errors(torch.zeros_like(cases.ddf), moving, fixed),
        }
        known = cases.spacing.isfinite().all(1)
        columns: dict[str, Tensor] = {}
        for unit, applies, size in (
            ("mm", known, cases.spacing),
            ("voxels", ~known, torch.ones_like(cases.spacing)),
        ):
            if bool(applies.any()):
                for suffix, error in errors.items():
                    length = torch.where(applies[:, None], (error * size[:, None]).norm(dim=-1), torch.nan)
                    columns |= self._columns(f"tre_{unit}", suffix, length)
        return columns

    def _columns(self, name: str, suffix: str, errors: Tensor) -> dict[str, Tensor]:
        """Mean and quantiles of errors (B, N)."""
        columns = {f"{name}{suffix}": errors.nanmean(1)}
        for quantile in self.quantiles:
            columns[f"{name}_q{100 * quantile:g}{suffix}"] = errors.nanquantile(quantile, dim=1)
        return columns


def landmark_errors(ddf: Tensor, moving_points: Tensor, fixed_points: Tensor) -> Tensor:
    """Where a fixed point is found in the moving image, less where it lies: x + u(x) − y.

    Args:
        ddf: displacement in voxels, (B, d, *S), read (bi/tri)linearly; beyond the grid it goes on with its value at the
            border.
        moving_points: y in voxels, (B, N, d); NaN where there is none.
        fixed_points: the corresponding x in voxels, (B, N, d).

    Returns:
        (B, N, d) in voxels along each axis; NaN where a coordinate of either point is.

    Raises:
        ValueError: if the shapes do not fit.
    """
    expected = (len(ddf), fixed_points.shape[1] if fixed_points.dim() == 3 else "N", ddf.shape[1])
    if tuple(fixed_points.shape) != expected or moving_points.shape != fixed_points.shape:
        raise ValueError(
            f"moving_points and fixed_points: expected both of the shape (B, N, d) = {expected}, got"
            f" {tuple(moving_points.shape)} and {tuple(fixed_points.shape)}; give points in voxels, one a row, and"
            " fill up cases that have fewer with NaN."
        )
    moving, fixed = moving_points.to(ddf.dtype), fixed_points.to(ddf.dtype)
    known = (moving.isfinite() & fixed.isfinite()).all(-1, keepdim=True)
    displacement = sample(ddf, torch.where(known, fixed, 0.0).transpose(1, 2)).transpose(1, 2)
    return torch.where(known, fixed + displacement - moving, torch.nan)
