# SPDX-License-Identifier: Apache-2.0
"""Errors of a displacement against the true one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spatial.fields import lengths
from ..spatial.units import voxel_to_unit
from .cases import Cases
from .folding import check_mask, masked_mean


class DisplacementMeasures:
    """``epe`` and ``epe_before``: mean distance in voxels from the true displacement, ``true_ddf`` of the data.

    Args:
        mask: key of the data whose non-zero voxels count, (B, 1, *S); None counts all.
        required: False leaves the columns out where the data hold no truth (real images of a set with a phantom).
        unit: also in units of the image's extent, (n − 1) voxels along each axis: ``epe_unit``, ``epe_unit_before``,
            as GradICON's Fig. 4 has them.
    """

    headlines = ("epe",)

    def __init__(self, mask: str | None = "fixed_label", required: bool = True, unit: bool = False) -> None:
        self.mask, self.required, self.unit = mask, bool(required), bool(unit)

    def __call__(self, cases: Cases) -> dict[str, Tensor]:
        """Return the columns, each (B,).

        Raises:
            ValueError: where the data hold no truth and it is required, or no mask.
        """
        if not self.required and "true_ddf" not in cases.batch:
            return {}
        (truth,) = cases.of("displacement", "true_ddf")
        mask = None if self.mask is None else cases.of("displacement", self.mask)[0][:, 0] > 0
        still = torch.zeros_like(cases.ddf)
        columns = {"epe": end_point_error(cases.ddf, truth, mask), "epe_before": end_point_error(still, truth, mask)}
        if self.unit:
            found, true = voxel_to_unit(cases.ddf), voxel_to_unit(truth)
            columns |= {
                "epe_unit": end_point_error(found, true, mask),
                "epe_unit_before": end_point_error(still, true, mask),
            }
        return columns


class MagnitudeMeasures:
    """``magnitude_unit``: mean length of the displacement, in shares of the image's extent along each axis.

    Reference:
        Tian et al., GradICON, CVPR 2023, Fig. 4c.
    """

    headlines = ("magnitude_unit",)

    def __call__(self, cases: Cases) -> dict[str, Tensor]:
        """Return the column, (B,)."""
        return {"magnitude_unit": lengths(voxel_to_unit(cases.ddf)).flatten(1).mean(dim=1)}


def end_point_error(ddf: Tensor, true_ddf: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over voxels of the Euclidean distance ‖u(x) − u_true(x)‖, in the unit of both.

    Args:
        ddf: estimated displacement, (B, d, *S).
        true_ddf: true displacement, (B, d, *S).
        mask: (B, *S), non-zero where voxels count; None for all.

    Returns:
        (B,); NaN where the mask is empty.

    Raises:
        ValueError: if the fields' shapes differ or are not (B, d, *S), or the mask is not (B, *S).
    """
    if ddf.shape != true_ddf.shape or ddf.dim() not in (4, 5) or ddf.shape[1] != ddf.dim() - 2:
        raise ValueError(
            "ddf and true_ddf: expected displacements of one shape (B, d, *S) with d axes,"
            f" got {tuple(ddf.shape)} and {tuple(true_ddf.shape)}; move the components to the channel axis."
        )
    distance = lengths(ddf - true_ddf)
    return masked_mean(distance, check_mask(mask, distance, "field"))
