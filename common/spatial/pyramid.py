# SPDX-License-Identifier: Apache-2.0
"""Images on coarser grids over the same extent. TorchScript-compatible."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .warp import sampling_grid


def halved(image: Tensor) -> Tensor:
    """Means over 3^d voxels around every second voxel, without what lies outside the image (the pyramid of LapIRN).

    Args:
        image: (B, C, *S).

    Returns:
        (B, C, *ceil(S/2)).
    """
    if image.dim() == 4:
        return F.avg_pool2d(image, 3, stride=2, padding=1, count_include_pad=False)
    if min(image.shape[2:]) >= 3:
        return F.avg_pool3d(image, 3, stride=2, padding=1, count_include_pad=False)
    # Thinner volumes torch refuses, unless the padding is part of the image.
    inside = F.pad(torch.ones_like(image[:1, :1]), [1] * 6)
    return F.avg_pool3d(F.pad(image, [1] * 6), 3, stride=2) / F.avg_pool3d(inside, 3, stride=2)


def warp_onto(image: Tensor, ddf: Tensor) -> Tensor:
    """As ``spatial.warp.warp``, for a field on another grid over the image's extent: the image is sampled there.

    Corners lie on corners (align_corners=True); beyond the border the image goes on as at the border.

    Args:
        image: (B, C, *S).
        ddf: displacement in voxels of its own grid, (B, d, *S').

    Returns:
        (B, C, *S').
    """
    return F.grid_sample(
        image.to(ddf.dtype), sampling_grid(ddf), mode="bilinear", padding_mode="border", align_corners=True
    )
