# SPDX-License-Identifier: Apache-2.0
"""Intensity normalisation."""

from __future__ import annotations

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
