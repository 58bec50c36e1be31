# SPDX-License-Identifier: Apache-2.0
"""Images brought to another spacing along their own axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .images import Image


def resample_to_spacing(image: Image, spacing: Sequence[float], mode: str) -> Image:
    """Resample to another voxel size about the same centre of the field of view; borders go on with their values.

    Intensities are smoothed before along axes that become coarser (Gaussian of (factor − 1)/2 voxels).

    Args:
        image: image or label map.
        spacing: mm an axis, one entry an axis of the image.
        mode: "bilinear" (trilinear in 3D) or "nearest" (labels, not smoothed).

    Returns:
        Image of round(size · old / new) voxels an axis, one at least; the image itself where the spacing is met.

    Raises:
        ValueError: for spacings that are not positive or not one an axis, or an unknown mode.
    """
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f"mode: expected 'bilinear' (images) or 'nearest' (labels), got {mode!r}.")
    grid = grid_of_spacing(image, spacing)
    if grid is image:
        return image
    values = image.array.numpy()
    factor = np.array(grid.spacing) / np.array(image.spacing)
    if mode == "bilinear":
        values = ndimage.gaussian_filter(values, np.maximum((factor - 1) / 2, 0), mode="nearest", truncate=3.0)
    return grid._replace(array=resample_axes(torch.from_numpy(values), image, grid, order=int(mode == "bilinear")))


def resample_axes(array: Tensor, source: Image, target: Image, order: int = 1) -> Tensor:
    """Values on another grid whose axes are those of their own, of other spacing or origin.

    Args:
        array: on the grid of ``source``.
        source: grid of the values.
        target: grid whose axes point the same ways; 2D ones lie in one plane.
        order: 1: linear. 0: the nearest voxel's. Beyond the border the border's value.

    Returns:
        On the grid of ``target``, of the type of ``array``.
    """
    dims = array.dim()
    relative = np.linalg.inv(source.affine) @ target.affine
    values = ndimage.affine_transform(
        array.numpy(), np.diag(relative)[:dims], relative[:dims, 3], tuple(target.array.shape), order=order,
        mode="nearest",
    )  # fmt: skip
    return torch.from_numpy(values)


def grid_of_spacing(image: Image, spacing: Sequence[float]) -> Image:
    """The grid of ``resample_to_spacing``, its voxels empty; the image itself where the spacing is met.

    Args:
        image: any.
        spacing: mm along each axis.

    Returns:
        The grid.

    Raises:
        ValueError: for another number of axes, or a spacing that is not above 0.
    """
    dims = image.array.dim()
    if len(spacing) != dims or not all(np.isfinite(mm) and mm > 0 for mm in spacing):
        raise ValueError(f"spacing: expected {dims} numbers above 0 in mm, got {list(spacing)}.")
    if np.allclose(image.spacing, spacing, rtol=1e-4, atol=0):
        return image
    old = np.array(image.array.shape)
    factor = np.array(spacing, dtype=float) / np.array(image.spacing)
    new = np.maximum(np.round(old / factor), 1).astype(int)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :dims] @ ((old - 1) / 2 - factor * (new - 1) / 2)
    affine[:3, :dims] *= factor
    return image._replace(array=torch.empty(*new.tolist()), affine=affine, spacing=tuple(float(mm) for mm in spacing))


def spacing_of_size(image: Image, size: Sequence[int]) -> list[float]:
    """The spacing at which an image's whole field of view has a given size, whatever becomes of its aspect ratio.

    Args:
        image: any.
        size: voxels along its first axes; the others keep their spacing.

    Returns:
        mm, one number an axis of the image.

    Raises:
        ValueError: for more numbers than the image has axes, or such that are not above 0.
    """
    if len(size) > image.array.dim() or any(int(n) != n or n < 1 for n in size):
        raise ValueError(
            f"size: expected at most {image.array.dim()} whole numbers above 0, one an axis of the image, got "
            f"{list(size)}."
        )
    whole = [*size, *image.array.shape[len(size) :]]
    return [mm * n / new for mm, n, new in zip(image.spacing, image.array.shape, whole, strict=True)]
