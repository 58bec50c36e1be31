# SPDX-License-Identifier: Apache-2.0
"""Errors at corresponding points of the two images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..spatial.warp import sample
from .cases import Cases


class LandmarkMeasures:
    """Target registration error at landmarks: mean and quantiles over the points of a case, before and after.

    Reads ``moving_points`` and ``fixed_points``, (B, N, d) in voxels of the grid that is registered; a point with a
    coordinate that is NaN is left out, so that cases of fewer points fit into a batch. In mm, as ``tre_mm``, where the
    spacing is known, else in voxels, as ``tre_voxels``; quantiles are ``tre_mm_q25`` and so on. The table
    ``landmarks.csv`` has the same of the points of all cases together, and their number.

    A fixed point x belongs at x + u(x) in the moving image. The other direction, a moving point in the fixed image, has
    columns of its own, ``tre_mm_reverse``.

    Args:
        quantiles: in [0, 1]; the default are those of the tables on DIR-Lab. Learn2Reg's TRE30 is a quantile over
            cases, not over points.
        required: False leaves the columns out where the data hold no landmarks (the training's validation).
        both_ways: the other direction too, where the evaluation registers both ways; not in the quick variant.

    Raises:
        ValueError: for a quantile outside [0, 1].
    """

    headlines = ("tre_mm", "tre_mm_reverse", "tre_voxels", "tre_voxels_reverse")

    def __init__(
        self, quantiles: Sequence[float] = (0.25, 0.5, 0.75), required: bool = True, both_ways: bool = False
    ) -> None:
        if not all(0 <= quantile <= 1 for quantile in quantiles):
            raise ValueError(f"quantiles: expected numbers in [0, 1], got {list(quantiles)}; 0.25 for 25 %.")
        self.quantiles = tuple(float(quantile) for quantile in quantiles)
        self.required, self.both_ways = bool(required), bool(both_ways)

    def __call__(self, cases: Cases) -> dict[str, Tensor]:
        """Return the columns, each (B,).

        Raises:
            ValueError: where the data hold no landmarks and they are required, or their shapes do not fit.
        """
        if not self.required and "moving_points" not in cases.batch:
            return {}
        moving, fixed = cases.of("landmarks", "moving_points", "fixed_points")
        errors = {
            "": landmark_errors(cases.ddf, moving, fixed),
            "_before": landmark_errors(torch.zeros_like(cases.ddf), moving, fixed),
        }
        if self.both_ways and cases.thorough and cases.reverse_ddf is not None:
            errors["_reverse"] = landmark_errors(cases.reverse_ddf, fixed, moving)
        known = cases.spacing.isfinite().all(1)
        columns: dict[str, Tensor] = {}
        for unit, applies, size in (
            ("mm", known, cases.spacing),
            ("voxels", ~known, torch.ones_like(cases.spacing)),
        ):
            if bool(applies.any()):
                for suffix, error in errors.items():
                    length = torch.where(applies[:, None], (error * size[:, None]).norm(dim=-1), torch.nan)
                    cases.pools[f"tre_{unit}{suffix}"] = length
                    columns |= self._columns(f"tre_{unit}{suffix}", length)
        return columns

    def of_pool(self, pools: Mapping[str, Tensor]) -> dict[str, list[dict[str, float]]]:
        """The columns over the points of all cases together.

        Args:
            pools: errors by the name of their column, (N,).

        Returns:
            One row of the table ``landmarks``, with ``points``, their number; no table where there are none.
        """
        own = {name: errors[None] for name, errors in pools.items() if name.startswith("tre_") and len(errors)}
        if not own:
            return {}
        row = {"points": float(max(errors.shape[1] for errors in own.values()))}
        for name, errors in own.items():
            row |= {column: float(value) for column, value in self._columns(name, errors).items()}
        return {"landmarks": [row]}

    def _columns(self, name: str, errors: Tensor) -> dict[str, Tensor]:
        """Mean and quantiles of errors (B, N)."""
        stem, before, _ = name.partition("_before")
        columns = {name: errors.nanmean(1)}
        for quantile in self.quantiles:
            columns[f"{stem}_q{100 * quantile:g}{before}"] = errors.nanquantile(quantile, dim=1)
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
