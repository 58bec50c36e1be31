# SPDX-License-Identifier: Apache-2.0
"""Intensity normalisation."""

from __future__ import annotations

import numpy as np
import torch


def min_max(image: torch.Tensor, eps: float = 1e-8, batched: bool = False) -> torch.Tensor:
    """Scale each image linearly to [0, 1].

    ``y = (x - min x) / max(max x - min x, eps)``; a constant image becomes zeros. All channels of an image share one
    range.

    Args:
        image: ``(C, *S)``, or ``(B, C, *S)`` with ``batched=True``; integer images become float32. Finite values:
            the loaders refuse NaN.
        eps: smallest range that is stretched to 1, in units of the image.
        batched: whether the first axis is a batch, each of whose images has its own range.

    Returns:
        The scaled image, same shape.
    """
    image = image if image.is_floating_point() else image.float()
    if not batched:
        low, high = torch.aminmax(image)
        return (image - low) / (high - low).clamp_min(eps)
    axes = tuple(range(1, image.ndim))
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    return (image - low) / (high - low).clamp_min(eps)


def clip_percentiles(image: torch.Tensor, lower: float = 1.0, upper: float = 99.0) -> torch.Tensor:
    """Clip an image to two of its own percentiles, so that a few extreme voxels do not set its range.

    Args:
        image: ``(C, *S)``, floating point; all channels share the percentiles.
        lower, upper: in per cent, 0 <= lower < upper <= 100.

    Returns:
        The clipped image, same shape; one whose percentiles coincide (nearly all background) is returned as it is.

    Raises:
        ValueError: for percentiles out of order.
    """
    if not 0 <= lower < upper <= 100:
        raise ValueError(f"lower, upper: expected 0 <= lower < upper <= 100 per cent, got {lower} and {upper}.")
    low, high = (float(value) for value in np.percentile(image.cpu().numpy(), [lower, upper]))
    return image.clamp(low, high) if low < high else image
