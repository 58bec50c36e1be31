# SPDX-License-Identifier: Apache-2.0
"""Images read at the voxels of another grid, and how far two fields of view overlap."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..spatial.warp import identity_grid, sample
from .images import Image, check_plane, same_grid

# Positions this near to whole numbers, in voxels, are whole: headers hold float32.
WHOLE = 1e-3
# Planes that are worked on at a time: memory in proportion to the images.
SLAB = 16


def grid_only(image: Image) -> Image:
    """The image without its values: geometry that costs no memory.

    Args:
        image: any.

    Returns:
        The same grid, its array on the meta device.
    """
    return image._replace(array=image.array.to("meta"))


def relative_affine(image: Image, grid: Image) -> np.ndarray:
    """Voxels of one grid to voxels of another; of 2D images the two axes of their one plane.

    Args:
        image: the grid that the coordinates lead to.
        grid: the grid that they come from.

    Returns:
        (d + 1, d + 1).
    """
    relative = np.linalg.inv(image.affine) @ grid.affine
    return relative if image.array.dim() == 3 else relative[np.ix_([0, 1, 3], [0, 1, 3])]


def sampled_onto(image: Image, grid: Image) -> tuple[Tensor, Tensor]:
    """Read an image at the voxels of a grid.

    Where the grids' voxels coincide, axes in any order and direction, values are copied. Else the image is smoothed
    along axes that become coarser (Gaussian of (factor − 1)/2 voxels) and interpolated linearly; up to half a voxel
    outside it has its border's value.

    Args:
        image: float32, with as many axes as ``grid``; 2D ones in one plane.
        grid: its voxels are not read.

    Returns:
        Values, 0 outside the image, and whether a voxel lies in it; both of the shape of ``grid``.
    """
    relative = relative_affine(image, grid)
    whole = relative.round()
    shape = tuple(grid.array.shape)
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in shape))])
    steps = np.abs(whole[:-1, :-1])
    if np.abs(corners @ (relative - whole).T).max() < WHOLE and np.array_equal(steps @ steps.T, np.eye(len(shape))):
        return _copied(image.array, whole, shape)
    return _interpolated(image.array, relative, shape, (corners @ relative.T)[:, :-1])


def _copied(array: Tensor, whole: np.ndarray, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    order = [int(axis) for axis in np.abs(whole[:-1, :-1]).argmax(0)]  # axis of the image for each of the grid
    source, target, backwards = [], [], []
    for axis, (own, size) in enumerate(zip(order, shape, strict=True)):
        step, first, length = int(whole[own, axis]), int(whole[own, -1]), array.shape[own]
        # grid voxels a to b, b excluded, lie in the image
        a, b = (-first, length - first) if step > 0 else (first - length + 1, first + 1)
        a, b = max(a, 0), min(b, size)
        b = max(a, b)
        ends = sorted((first + step * a, first + step * (b - 1)))
        source.append(slice(ends[0], ends[1] + 1) if b > a else slice(0, 0))
        target.append(slice(a, b))
        if step < 0:
            backwards.append(axis)
    part = array.permute(order)[tuple(source)].flip(backwards)
    values, inside = array.new_zeros(shape), torch.zeros(shape, dtype=torch.bool)
    values[tuple(target)], inside[tuple(target)] = part, True
    return values, inside


def _interpolated(
    array: Tensor, relative: np.ndarray, shape: tuple[int, ...], corners: np.ndarray
) -> tuple[Tensor, Tensor]:
    factor = np.linalg.norm(relative[:-1, :-1], axis=1)
    sigma = np.where(factor > 1.01, (factor - 1) / 2, 0)
    margin = np.ceil(3 * sigma) + 1
    first = np.clip(np.floor(corners.min(0) - margin), 0, None).astype(int)
    last = np.minimum(np.ceil(corners.max(0) + margin), np.array(array.shape) - 1).astype(int)
    if (last < first).any():
        return array.new_zeros(shape), torch.zeros(shape, dtype=torch.bool)
    part = array[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))].numpy()
    matrix, offset = relative[:-1, :-1], relative[:-1, -1] - first
    # Ones beyond the border count down to 0 over one voxel: half of that is half a voxel.
    inside = ndimage.affine_transform(
        np.ones(part.shape, np.float32), matrix, offset, shape, order=1, mode="grid-constant", cval=0.0
    )
    inside = torch.from_numpy(inside >= 0.5 - WHOLE)
    smooth = ndimage.gaussian_filter(part, sigma, mode="nearest", truncate=3.0)
    values = ndimage.affine_transform(smooth, matrix, offset, shape, order=1, mode="nearest")
    return torch.from_numpy(values) * inside, inside


def points_in(image: Image, fixed: Image, ddf: Tensor, first: int = 0) -> Tensor:
    """Where x + ddf(x) lies in an image, in its voxels.

    Args:
        image: another grid.
        fixed: the grid of ``ddf``.
        ddf: (axes, *S) in voxels of ``fixed``, all of its axes, or only the planes from ``first`` on of the first one.
        first: number of the first plane in ``ddf``.

    Returns:
        (axes, *S).
    """
    points = identity_grid(list(ddf.shape[1:]), ddf.device, ddf.dtype)
    points[0] += first
    points += ddf
    axes = len(points)
    relative = torch.from_numpy(relative_affine(image, fixed)).to(ddf.dtype)
    moved = torch.einsum("ij,j...->i...", relative[:axes, :axes], points)
    return moved + relative[:axes, -1].reshape([-1] + [1] * axes)


def warped_values(image: Image, points: Tensor) -> Tensor:
    """Linear interpolation at points of an image; 0 outside.

    Args:
        image: what is sampled.
        points: (axes, *S) in its voxels.

    Returns:
        (*S).
    """
    values = sample(image.array[None, None].to(points.dtype), points[None], padding="zeros")[0, 0]
    for axis, size in enumerate(image.array.shape):
        if size == 1:  # which has no extent for the sampler: everything would lie in it
            values = values * (points[axis].abs() <= 0.5)
    return values


def nearest_values(label: Image, points: Tensor) -> Tensor:
    """The label at the nearest voxel, of its own type; 0 outside.

    Args:
        label: what is sampled.
        points: (axes, *S) in its voxels.

    Returns:
        (*S).
    """
    index = points.round().long()
    limit = torch.tensor(label.array.shape).reshape([-1] + [1] * label.array.dim())
    inside = ((index >= 0) & (index < limit)).all(0)
    return label.array[tuple(index.clamp_min(0).minimum(limit - 1))] * inside


def warped_by(image: Image, fixed: Image, ddf: Tensor, read: Callable[[Image, Tensor], Tensor]) -> Tensor:
    """An image warped onto the grid of fixed, a few planes at a time.

    Args:
        image: with values, on any grid.
        fixed: the grid of ``ddf``.
        ddf: (axes, *S) in voxels of ``fixed``, all of its axes.
        read: ``warped_values`` for intensities, ``nearest_values`` for labels.

    Returns:
        (*S), of the type of ``image``.
    """
    warped = image.array.new_empty(ddf.shape[1:])
    aligned = same_grid(image, fixed)
    for first in range(0, len(warped), SLAB):
        part = slice(first, first + SLAB)
        if aligned and not ddf[:, part].any():
            warped[part] = image.array[part]
        else:
            warped[part] = read(image, points_in(image, fixed, ddf[:, part], first))
    return warped


def share_within(image: Image, other: Image) -> float:
    """Share of an image's voxels that lie in the field of view of another, to a few per cent.

    Args:
        image: whose voxels are counted.
        other: whose field of view it is.

    Returns:
        From 0 to 1.
    """
    axes = [np.linspace(0, n - 1, min(n, 33)) for n in image.array.shape]
    points = np.stack([*np.meshgrid(*axes, indexing="ij"), np.ones([len(axis) for axis in axes])], -1)
    points = (points @ relative_affine(other, image).T)[..., :-1]
    limit = np.array(other.array.shape) - 0.5 + WHOLE
    return float(((points >= -0.5 - WHOLE) & (points <= limit)).all(-1).mean())


def extent_in(image: Image, grid: Image) -> tuple[np.ndarray, np.ndarray]:
    """The box around an image's field of view, half a voxel beyond its outer voxels' centres, on another grid.

    Args:
        image: its voxels are not read.
        grid: of as many axes; 2D ones lie in one plane.

    Returns:
        Lowest and highest coordinate along each axis of ``grid``, (d,) each, in its voxels. The field of view of
        ``grid`` itself reaches from -0.5 to n - 0.5.
    """
    edges = np.array([(*corner, 1) for corner in product(*((-0.5, n - 0.5) for n in image.array.shape))])
    corners = (edges @ relative_affine(grid, image).T)[:, :-1]
    return corners.min(0), corners.max(0)


def excess_voxels(image: Image, other: Image) -> float:
    """How far the field of view of an image reaches beyond that of another; 0 if nowhere.

    Args:
        image: the one.
        other: the other.

    Returns:
        In voxels of the other.
    """
    lowest, highest = extent_in(image, other)
    beyond = np.maximum(-0.5 - lowest, highest - (np.array(other.array.shape) - 0.5)).max()
    return max(float(beyond), 0.0) if math.isfinite(beyond) else math.inf


def resample_like(moving: Image, fixed: Image, mode: str) -> Image:
    """Bring ``moving`` onto the grid of ``fixed`` by their affines; zeros outside.

    Args:
        moving: image or label map.
        fixed: gives the grid; as many axes as ``moving``. 2D images must lie in one plane.
        mode: "bilinear" (trilinear in 3D) for images, "nearest" for labels.

    Returns:
        Image on the grid of ``fixed``, of the type of ``moving``.

    Raises:
        ValueError: if the mode is unknown, the dimensions differ, or 2D images lie in different planes.
    """
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f"resample_like: mode must be 'bilinear' (images) or 'nearest' (labels); got {mode!r}.")
    dims = moving.array.dim()
    if dims != fixed.array.dim():
        raise ValueError(
            f"resample_like: moving must be {fixed.array.dim()}D as fixed; got {dims}D. Choose a slice, or a volume."
        )
    # Moving voxels to fixed voxels: the frame in which two slices of one (tilted) plane differ in the plane only.
    relative = np.linalg.inv(fixed.affine) @ moving.affine
    if dims == 2:
        check_plane(moving, fixed, "resample_like", "moving", "fixed")
        relative = relative[np.ix_([0, 1, 3], [0, 1, 3])]
    backward = np.linalg.inv(relative)
    array, values = moving.array, torch.empty(0)
    if array.dtype == torch.int64:  # numbers that float64 does not hold: resample their ranks, 0 outside
        values, ranks = array.unique(return_inverse=True)
        array = (ranks + 1).int()
    order = 1 if mode == "bilinear" else 0
    resampled = torch.from_numpy(
        ndimage.affine_transform(
            array.numpy(), backward[:-1, :-1], backward[:-1, -1], tuple(fixed.array.shape), order=order,
            mode="grid-constant",
        )
    )  # fmt: skip
    if len(values):
        resampled = torch.cat([values.new_zeros(1), values])[resampled.long()]
    return fixed._replace(array=resampled, stored=moving.stored)
