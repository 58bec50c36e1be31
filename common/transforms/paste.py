# SPDX-License-Identifier: Apache-2.0
"""Slices to the batch axis and back, and a crop's displacement back into the full grid and onto that of fixed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..io.images import Image
from ..io.orientation import Axes, reoriented
from ..io.resampling import SLAB, grid_only, relative_affine
from ..io.spacing import resample_axes
from ..spatial.fields import lengths
from ..spatial.jacobian import jacobian_determinant


def to_stack(image: Tensor, dims: int) -> Tensor:
    """(C, *S) -> (1, C, *S), or (C, *S, Z) -> (Z, C, *S): slices on the batch axis.

    Args:
        image: with ``dims`` axes after the channels, or one more for slices.
        dims: d, the axes that a network sees.

    Returns:
        (Z, C, *S), Z = 1 without slices.

    Raises:
        ValueError: for another number of axes.
    """
    if image.dim() == dims + 1:
        return image[None]
    if image.dim() == dims + 2:
        return image.movedim(-1, 0)
    raise ValueError(
        f"image: expected {dims} axes, or {dims + 1} for a stack of slices, got the shape {tuple(image.shape[1:])}; "
        f"the network is for {dims}D."
    )


def from_stack(stack: Tensor, sliced: bool) -> Tensor:
    """Inverse of ``to_stack``.

    Args:
        stack: (Z, C, *S).
        sliced: whether there are slices.

    Returns:
        (C, *S, Z) where there are, else (C, *S).
    """
    return stack.movedim(0, -1).contiguous() if sliced else stack[0]


def overlap(start: Sequence[int], size: Sequence[int], shape: Sequence[int]) -> tuple[list[int], list[int]]:
    """First and last voxel, along each axis, of the part of a crop that lies in the image.

    Args:
        start: voxel coordinates of the crop's first voxel, negative where it was padded.
        size: of the crop.
        shape: of the image.

    Returns:
        Voxel coordinates of first and last.
    """
    first = [max(s, 0) for s in start]
    return first, [min(s + w, n) - 1 for s, w, n in zip(start, size, shape, strict=True)]


def paste_field(ddf: Tensor, start: Sequence[int], shape: Sequence[int], falloff: float = 10.0) -> Tensor:
    """Put the displacement of a crop back into the full grid.

    Unchanged inside the crop; outside, the nearest value of its border times cos²(π t / 2 L) along each axis, t the
    distance in voxels and 0 from L on. L = max(falloff, π max |u|) over the border keeps the slope of the falloff
    below 1/2, so that it folds nothing by itself. What of the crop lies outside the image is dropped.

    Args:
        ddf: (N, d, *crop) in voxels.
        start: d voxel coordinates of the crop's first voxel, negative where it was padded.
        shape: S, the full grid.
        falloff: smallest L, in voxels.

    Returns:
        (N, d, *S).

    Raises:
        ValueError: when the crop does not meet the image, or the lengths differ.
    """
    kept, first, last = _part_inside(ddf, start, shape)
    return _faded(kept, first, last, shape, falloff)


def paste_map(values: Tensor, start: Sequence[int], shape: Sequence[int], margin: int = 0) -> Tensor:
    """Put a map of a crop back into the full grid: as it is inside the crop, 0 outside.

    Args:
        values: (N, C, *crop).
        start: d voxel coordinates of the crop's first voxel, negative where it was padded.
        shape: S, the full grid.
        margin: voxels for which the values of the crop's border go on outside, for an interpolation to follow.

    Returns:
        (N, C, *S).

    Raises:
        ValueError: as ``paste_field``.
    """
    kept, first, last = _part_inside(values, start, shape)
    part, low, high = _continued(kept, first, last, shape, margin)
    return _laid(part, low, high, shape)


def _part_inside(crop: Tensor, start: Sequence[int], shape: Sequence[int]) -> tuple[Tensor, list[int], list[int]]:
    """The part of a crop (N, C, *crop) that lies in the image, and the voxels of the image between which it does."""
    first, last = overlap(start, crop.shape[2:], shape)
    if any(a > b for a, b in zip(first, last, strict=True)):
        raise ValueError(
            f"start: expected a crop of {tuple(crop.shape[2:])} that meets the image {tuple(shape)}, got "
            f"{list(start)}; give the start that the crop was taken from."
        )
    window = [slice(a - s, b + 1 - s) for a, b, s in zip(first, last, start, strict=True)]
    return crop[(slice(None), slice(None), *window)], first, last


def _continued(
    kept: Tensor, first: Sequence[int], last: Sequence[int], shape: Sequence[int], far: int
) -> tuple[Tensor, list[int], list[int]]:
    """A part of the grid with its border's values around it, ``far`` voxels at most, and where that begins and ends."""
    low = [max(a - far, 0) for a in first]
    high = [min(b + far, n - 1) for b, n in zip(last, shape, strict=True)]
    # torch pads from the last axis on
    amounts = [(a - l, h - b) for a, b, l, h in zip(first, last, low, high, strict=True)]
    flat = [amount for pair in reversed(amounts) for amount in pair]
    return (F.pad(kept, flat, mode="replicate") if any(flat) else kept), low, high


def _laid(part: Tensor, low: Sequence[int], high: Sequence[int], shape: Sequence[int]) -> Tensor:
    """(N, C, *part) between two voxels of the grid in zeros, (N, C, *shape)."""
    whole = part.new_zeros(*part.shape[:2], *shape)
    whole[(slice(None), slice(None), *(slice(l, h + 1) for l, h in zip(low, high, strict=True)))] = part
    return whole


def _faded(kept: Tensor, first: Sequence[int], last: Sequence[int], shape: Sequence[int], falloff: float) -> Tensor:
    """(N, d, *part) between two voxels of the grid, continued around them and faded to 0, (N, d, *shape)."""
    length = lengths(kept)
    faces = [length.select(axis + 1, end) for axis in range(len(shape)) for end in (0, -1)]
    reach = max(falloff, math.pi * max(float(face.max()) for face in faces))
    # Nothing reaches further than the falloff: the rest of the grid is zeros that are never touched.
    part, low, high = _continued(kept, first, last, shape, math.ceil(reach))
    for axis, (a, b, l, h) in enumerate(zip(first, last, low, high, strict=True)):
        index = torch.arange(l, h + 1, device=kept.device, dtype=kept.dtype)
        distance = torch.maximum(a - index, index - b).clamp(0, reach)
        weight = 0.5 * (1 + torch.cos(math.pi * distance / reach))  # cos² of half the angle, and exactly 0 at its end
        part = part * weight.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return _laid(part, low, high, shape)


def resampled_field(field: Tensor, working: Image, turned: Image) -> Tensor:
    """Bring a field to another grid with the same axes; the field itself where the grid is the same.

    Args:
        field: (d, *S[, Z]) in voxels of the working grid.
        working: that grid.
        turned: the other grid.

    Returns:
        (d, *S'[, Z']) in voxels of the other grid.
    """
    if _coincide(working, turned):
        return field
    channels = [
        resample_axes(channel, working, turned) * (mm / own)
        for channel, mm, own in zip(field, working.spacing, turned.spacing, strict=False)
    ]
    return torch.stack(channels)


def map_on_fixed(window: Tensor, start: Sequence[int], working: Image, fixed: Image, axes: Axes) -> Tensor:
    """Bring a map of the window to the grid of fixed, as that is stored; 0 outside the window.

    Args:
        window: (1, *size[, Z]), on the window of the working grid.
        start: d voxel coordinates of the window's first voxel on the working grid.
        working: that grid.
        fixed: the grid of fixed.
        axes: lead from the stored axes of fixed to those of the working grid.

    Returns:
        (*F): copied where grids differ in the order and direction of axes alone, else interpolated linearly.
    """
    dims, turned = len(start), reoriented(grid_only(fixed), axes)
    crop = to_stack(window, dims)
    first, last = window_on(turned, working, start, crop.shape[2:])
    coarser = max(own / mm for mm, own in zip(working.spacing, turned.spacing, strict=False))
    margin = 0 if _coincide(working, turned) else math.ceil(coarser) + 1
    pasted = paste_map(crop, start, working.array.shape[:dims], margin)
    whole = from_stack(pasted, working.array.dim() > dims)[0]
    if margin:
        whole = resample_axes(whole, working, turned)
    box = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
    values = torch.zeros_like(whole)
    values[box] = whole[box]
    return axes.restore(values)


def _coincide(working: Image, turned: Image) -> bool:
    """Whether two grids of the same axes and field of view are the same."""
    return working.array.shape == turned.array.shape and np.allclose(working.spacing, turned.spacing, rtol=1e-6)


def determinant_of(field: Tensor, dims: int) -> Tensor:
    """Jacobian determinant of a field, 1 far from where anything is displaced.

    Args:
        field: (d, *S[, Z]) in voxels.
        dims: d, the axes along which it is differentiated.

    Returns:
        (*S[, Z]).
    """
    determinant = field.new_ones(field.shape[1:])
    moved = (field != 0).any(0)
    box = []
    for axis in range(dims):
        planes = moved.any(tuple(other for other in range(moved.dim()) if other != axis)).nonzero()
        if not len(planes):
            return determinant
        # two voxels more: central differences reach one further, and end in zeros
        box.append(slice(max(int(planes[0]) - 2, 0), int(planes[-1]) + 3))
    part = field[(slice(None), *box)]
    if field.dim() > dims + 1:
        slices = [jacobian_determinant(plane[None])[0] for plane in part.unbind(-1)]
        determinant[tuple(box)] = torch.stack(slices, dim=-1)
        return determinant
    length, done = part.shape[-1], []
    for first in range(0, length, SLAB):
        # with a neighbour on either side, so that differences are central
        a, b = max(min(first, length - 2) - 1, 0), min(first + SLAB + 1, length)
        slab = jacobian_determinant(part[None, ..., a:b])[0]
        done.append(slab[..., first - a : min(first + SLAB, length) - a])
    determinant[tuple(box)] = torch.cat(done, dim=-1)
    return determinant


def window_on(turned: Image, working: Image, start: Sequence[int], size: Sequence[int]) -> tuple[list[int], list[int]]:
    """First and last voxel of the window on the grid of fixed, its axes in the order of the working grid.

    Args:
        turned: the grid of fixed, its axes in the order of the working grid.
        working: the grid of the crop.
        start: first voxel of the crop.
        size: of the crop.

    Returns:
        Voxel coordinates of first and last.
    """
    dims = len(start)
    relative = relative_affine(turned, working)
    first, last = overlap(start, size, working.array.shape[:dims])
    ends = [np.round(np.diag(relative)[:dims] * end + relative[:dims, -1]).astype(int) for end in (first, last)]
    limit = np.array(turned.array.shape[:dims]) - 1
    return np.clip(ends[0], 0, limit).tolist(), np.clip(ends[1], 0, limit).tolist()


def stored_field(field: Tensor, axes: Axes) -> Tensor:
    """Bring a field to the axes that fixed is stored with.

    Args:
        field: (d, *S[, Z]) in voxels of reoriented axes.
        axes: how they were reoriented.

    Returns:
        (axes of F, *F) in voxels of the stored axes F.
    """
    if axes.order == tuple(range(len(field))) and not any(axes.flipped):
        return field
    stored = [axes.restore(channel) * (-1 if flip else 1) for channel, flip in zip(field, axes.flipped, strict=False)]
    if len(stored) < len(axes.order):
        stored.append(torch.zeros_like(stored[0]))
    return torch.stack([stored[axes.order.index(axis)] for axis in range(len(axes.order))])
