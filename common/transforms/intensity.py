# SPDX-License-Identifier: Apache-2.0
"""Intensity normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

SAMPLE = 4_000_000  # voxels: percentiles of more than twice as many are those of every third, fifth, … voxel


def min_max(
    image: torch.Tensor, eps: float = 1e-6, batched: bool = False, inside: torch.Tensor | None = None
) -> torch.Tensor:
    """Scale each image linearly to [0, 1].

    ``y = (x - min x) / (max x - min x)``, whatever the unit; a constant image becomes zeros. All channels of an image
    share one range.

    Args:
        image: ``(C, *S)``, or ``(B, C, *S)`` with ``batched=True``; integer images become float32. Finite values:
            the loaders refuse NaN.
        eps: smallest range that is stretched to 1, in parts of the largest magnitude: below, it is rounding.
        batched: whether the first axis is a batch, each of whose images has its own range.
        inside: bool, the same shape: what lies outside has no meaning and becomes 0, as does an image of which nothing
            lies inside. None: all has. A crop that is padded with its smallest value (``transforms.crop``) gives the
            same.

    Returns:
        The scaled image, same shape.
    """
    image = image if image.is_floating_point() else image.float()
    if inside is not None:
        axes = tuple(range(1 if batched else 0, image.ndim))
        least = torch.where(inside, image, torch.inf).amin(axes, keepdim=True)
        image = torch.where(inside, image, torch.where(least.isfinite(), least, 0.0))
    low, contrast = offset_and_scale(image, eps, batched)
    return (image - low) / contrast


def offset_and_scale(
    image: torch.Tensor, eps: float = 1e-6, batched: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``min_max`` subtracts from each image, and what it then divides by.

    Args:
        image: as there, floating point.
        eps: as there.
        batched: as there.

    Returns:
        Smallest value and range, infinite of a constant image: ``(1, …, 1)``, or ``(B, 1, …, 1)`` with ``batched``.
    """
    axes = tuple(range(1 if batched else 0, image.ndim))
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    contrast = high - low
    constant = contrast <= eps * torch.maximum(low.abs(), high.abs())
    return low, torch.where(constant, torch.inf, contrast)


def clipped(image: torch.Tensor, percentiles: Sequence[float] | None) -> torch.Tensor:
    """The image clipped to two of its own percentiles, or as it is; see ``clip_percentiles``.

    Args:
        image: ``(C, *S)``, the whole file's values.
        percentiles: lower and upper, in per cent; None leaves the image.

    Returns:
        The image, of the same shape.

    Raises:
        ValueError: for percentiles that are not two, or out of order.
    """
    if percentiles is None:
        return image
    if isinstance(percentiles, str) or not isinstance(percentiles, Sequence) or len(percentiles) != 2:
        raise ValueError(f"percentiles: expected two numbers like [1, 99], or None, got {percentiles!r}.")
    lower, upper = percentiles
    return clip_percentiles(image, lower, upper)


def clip_percentiles(
    image: torch.Tensor, lower: float = 1.0, upper: float = 99.0, inside: torch.Tensor | None = None
) -> torch.Tensor:
    """Clip an image to two of its own percentiles, so that a few extreme voxels do not set its range.

    Where more than half of the voxels hold one value, a masked image's background, the percentiles are those of the
    other voxels; the background is kept.

    Args:
        image: ``(C, *S)``, floating point; all channels share the percentiles.
        lower: in per cent, from 0.
        upper: in per cent, above lower, to 100.
        inside: bool, the same shape: the percentiles are those of its voxels; None, or one without any: of all.

    Returns:
        The clipped image, same shape; one whose percentiles coincide is returned as it is.

    Raises:
        ValueError: for percentiles out of order.
    """
    if not 0 <= lower < upper <= 100:
        raise ValueError(
            f"percentiles: expected 0 <= lower < upper <= 100 per cent, like [1, 99], got {lower} and {upper}."
        )
    counted = image if inside is None or not inside.any() else image[inside]
    values = counted.detach().cpu().numpy().reshape(-1)
    values = values[:: (values.size // SAMPLE) | 1]
    low, middle, high = (float(value) for value in np.percentile(values, [lower, 50, upper]))
    others = values[values != middle]
    if 0 < others.size < values.size / 2:
        inner = [float(value) for value in np.percentile(others, [lower, upper])]
        low, high = min(middle, inner[0]), max(middle, inner[1])
    return image.clamp(low, high) if low < high else image
