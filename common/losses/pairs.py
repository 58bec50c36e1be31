# SPDX-License-Identifier: Apache-2.0
"""The check of an image pair that similarities share."""

from __future__ import annotations

import torch
from torch import Tensor


def paired(warped: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
    """Check that two images have one shape, and bring them to one floating type.

    Args:
        warped: (B, C, *S).
        fixed: (B, C, *S).

    Returns:
        Both in float32, or in float64 where one of them has it.

    Raises:
        ValueError: for other shapes.
    """
    if warped.shape != fixed.shape:
        raise ValueError(
            f"warped and fixed: expected one shape (B, C, *S), got {tuple(warped.shape)} and {tuple(fixed.shape)}; "
            "warp the moving image onto the grid of the fixed one first"
        )
    if warped.ndim < 3:
        raise ValueError(f"warped: expected (B, C, *S), got {tuple(warped.shape)}; add batch and channel axes")
    dtype = torch.float64 if torch.float64 in (warped.dtype, fixed.dtype) else torch.float32
    return warped.to(dtype), fixed.to(dtype)
