# SPDX-License-Identifier: Apache-2.0
"""Errors of a displacement against known displacements."""

from __future__ import annotations

from torch import Tensor

from .folding import check_mask, masked_mean


def end_point_error(ddf: Tensor, true_ddf: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over voxels of the Euclidean distance ‖u(x) − u_true(x)‖.

    Args:
        ddf: estimated displacement in voxels, (B, d, *S).
        true_ddf: true displacement in voxels, (B, d, *S).
        mask: (B, *S), non-zero where voxels count; None for all.

    Returns:
        (B,) in voxels; NaN where the mask is empty.

    Raises:
        ValueError: if the fields' shapes differ or are not (B, d, *S), or the mask is not (B, *S).
    """
    if ddf.shape != true_ddf.shape or ddf.dim() not in (4, 5) or ddf.shape[1] != ddf.dim() - 2:
        raise ValueError(
            "ddf and true_ddf: expected displacements of one shape (B, d, *S) with d axes,"
            f" got {tuple(ddf.shape)} and {tuple(true_ddf.shape)}; move the components to the channel axis."
        )
    distance = (ddf - true_ddf).norm(dim=1)
    return masked_mean(distance, check_mask(mask, distance, "field"))
