# SPDX-License-Identifier: Apache-2.0
"""Composition and resizing of displacement fields."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .warp import warp


def lengths(vectors: Tensor, dim: int = 1) -> Tensor:
    """Euclidean lengths; four times as fast as torch's norm along an axis that is not the last. Not for gradients at 0.

    Args:
        vectors: (B, d, *S).
        dim: axis of the components.

    Returns:
        Without that axis, (B, *S).
    """
    return vectors.square().sum(dim=dim).sqrt_()


def all_finite(values: Tensor) -> bool:
    """Whether nothing is NaN or infinite, found without as much memory again as the values take.

    Args:
        values: at least one, of any shape.

    Returns:
        True or False.
    """
    return all(bool(extreme.isfinite()) for extreme in torch.aminmax(values.detach()))


def compose(outer: Tensor, inner: Tensor, padding: str = "border") -> Tensor:
    """Displacement of the map (id + outer) ∘ (id + inner): x -> x + inner(x) + outer(x + inner(x)).

    Pulling an image through the result equals pulling it through ``outer`` first and the outcome through ``inner``:
    warp(image, compose(outer, inner)) = warp(warp(image, outer), inner).

    Args:
        outer: (B, d, *S) in voxels, the map applied last to points.
        inner: (B, d, *S) in voxels, the map applied first to points.
        padding: continuation of ``outer`` beyond the grid ("border", "zeros" or "reflection").

    Returns:
        (B, d, *S) in voxels.
    """
    return inner + warp(outer, inner, padding=padding)


def resized(ddf: Tensor, size: Sequence[int]) -> Tensor:
    """The displacement on another grid over the same field of view, in voxels of that grid.

    Fields of view reach half a voxel beyond their outer voxels' centres: x' + ½ = (x + ½) n' / n along each axis.
    Between voxels u is linear, in the outer half voxel constant; each component is multiplied by n' / n of its axis.
    That is how volumes are brought to one size; ``integrate.resize_field`` keeps the outer voxels' centres instead.

    Args:
        ddf: (B, d, *S) in voxels.
        size: voxels n' of the other grid, d numbers.

    Returns:
        (B, d, *size) in voxels of the other grid.

    Raises:
        ValueError: for a size that is not d numbers above 0.
    """
    dims = ddf.shape[1]
    if len(size) != dims or min(size) < 1:
        raise ValueError(f"size: expected {dims} numbers above 0, one an axis of the field, got {list(size)}.")
    field = F.interpolate(ddf, list(size), mode="bilinear" if dims == 2 else "trilinear", align_corners=False)
    scale = torch.tensor([new / old for new, old in zip(size, ddf.shape[2:], strict=True)])
    return field * scale.to(ddf).reshape(1, dims, *[1] * dims)
