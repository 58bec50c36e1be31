# SPDX-License-Identifier: Apache-2.0
"""What every data set's reader takes from files, by their headers as inference does: images, labels, displacements."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from ..io.affine import file_affine
from ..io.images import Image, load_image, load_label, same_grid
from ..io.nifti import open_nifti, read_values
from ..io.orientation import reorient, training_spacing
from ..io.resampling import WHOLE, extent_in, resample_like
from ..io.spacing import resample_to_spacing
from .layout import DatasetLayoutError

logger = logging.getLogger(__name__)

# How far the borders of the labels' and the image's field of view may lie apart, in voxels of the coarser.
APART = 0.51


def read_case(
    image_file: str | Path,
    label_file: str | Path,
    labels: Collection[int],
    *,
    spatial_dims: int = 3,
    orientation: str = "RAS",
    spacing: Sequence[float] | None = None,
    spacing_range: tuple[float, float] | None = None,
    resize: Sequence[int] | None = None,
) -> tuple[Image, Image]:
    """Read a volume or stack and its labels, on one grid of the data set's orientation and spacing.

    Labels go onto the image's grid where their affine places them: exactly where only the axes' order and direction
    differ, else by the nearest voxel. Where one of the two files gives no orientation and the shapes are equal, voxels
    correspond by their indices.

    Args:
        image_file: NIfTI file, three axes; (X, Y) or (X, Y, 1) is a stack of one slice where ``spatial_dims`` is 2.
        label_file: likewise.
        labels: all values that labels may have.
        spatial_dims: 3, or 2 for a stack: its slices are found and come last.
        orientation: of the volume, or of the plane of a stack; see ``io.orientation.reorient``.
        spacing: mm along each of the ``spatial_dims`` axes; None leaves the files'.
        spacing_range: lowest and highest spacing in mm that is left as it is; None: 1 % around ``spacing``. A stack of
            1 mm all round counts as of unknown spacing and is left as well.
        resize: voxels to which the whole field of view is brought, one number an axis of the volume or plane, its
            aspect ratio lost, in place of ``spacing``; None for none.

    Returns:
        Image, float32, and labels, integers.

    Raises:
        DatasetLayoutError: for files that are missing or refused by ``common.io``, labels of another field of
            view or with other values.
    """
    try:
        image, label = load_image(image_file, "image"), load_label(label_file, "labels")
        if spatial_dims == 2:
            image, label = _as_stack(image), _as_stack(label)
        if image.array.dim() != 3 or label.array.dim() != 3:
            raise ValueError(
                f"expected an image and labels of one shape (X, Y, Z), got {tuple(image.array.shape)} in {image_file} "
                f"and {tuple(label.array.shape)} in {label_file}; replace the damaged file."
            )
        shared = _on_grid_of(image, label, image_file, label_file)
        image = reorient(image, orientation, spatial_dims)
        shared = None if shared is None else reorient(shared, orientation, spatial_dims)
    except (ValueError, FileNotFoundError) as error:
        raise DatasetLayoutError(str(error)) from error
    if not np.isin(label.array.numpy(), list(labels)).all():
        raise DatasetLayoutError(
            f"expected the labels {', '.join(map(str, sorted(labels)))} in {label_file}, got "
            f"{label.array.unique().tolist()[:8]}; restore the published file."
        )
    wanted = training_spacing(image, spatial_dims, spacing, spacing_range, resize)
    image = resample_to_spacing(image, wanted, "bilinear")
    if shared is None:  # straight to the final grid: the nearest of the nearest voxel may be another
        return image, resample_like(label, image, "nearest")
    return image, resample_to_spacing(shared, wanted, "nearest")


def read_image(
    image_file: str | Path,
    orientation: str = "RAS",
    spacing: Sequence[float] | None = None,
    spacing_range: tuple[float, float] | None = None,
) -> Image:
    """Read a volume without labels, as ``read_case`` reads one with labels.

    Args:
        image_file: see ``read_case``.
        orientation: see ``read_case``.
        spacing: see ``read_case``.
        spacing_range: see ``read_case``.

    Returns:
        Image, float32.

    Raises:
        DatasetLayoutError: for a file that is missing, refused by ``common.io`` or no volume.
    """
    try:
        image = load_image(image_file, "image")
        if image.array.dim() != 3:
            raise ValueError(f"expected the shape (X, Y, Z) in {image_file}, got {tuple(image.array.shape)}.")
        image = reorient(image, orientation)
    except (ValueError, FileNotFoundError) as error:
        raise DatasetLayoutError(str(error)) from error
    return resample_to_spacing(image, training_spacing(image, 3, spacing, spacing_range), "bilinear")


def check_phases(moving: Image, fixed: Image) -> None:
    """Refuse ED and ES on different grids.

    Args:
        moving: at end-diastole.
        fixed: at end-systole.

    Raises:
        DatasetLayoutError: naming both grids.
    """
    if not same_grid(moving, fixed):
        raise DatasetLayoutError(
            f"expected ED and ES on one grid, got shapes {tuple(moving.array.shape)} and {tuple(fixed.array.shape)} "
            f"with affines {moving.affine.tolist()} and {fixed.affine.tolist()}; resample ES to ED."
        )


def _as_stack(image: Image) -> Image:
    if image.array.dim() != 2:
        return image
    thickness = float(np.linalg.norm(image.affine[:3, 2]))
    return image._replace(array=image.array[..., None], spacing=(*image.spacing, thickness), slice_axis=False)


def _on_grid_of(image: Image, label: Image, image_file: str | Path, label_file: str | Path) -> Image | None:
    """The labels on the image's grid where voxel lies on voxel, in any order and direction of axes; else None."""
    same_shape = image.array.shape == label.array.shape
    if same_grid(image, label) or (same_shape and (0, 0) in (image.form_codes, label.form_codes)):
        return image._replace(array=label.array)
    lowest, highest = extent_in(label, image)
    apart = np.maximum(np.abs(lowest + 0.5), np.abs(highest + 0.5 - image.array.shape))
    coarser = np.abs((np.linalg.inv(image.affine) @ label.affine)[:3, :3]).sum(1)
    if (apart > APART * np.maximum(coarser, 1)).any():
        raise ValueError(
            f"expected labels of the image's field of view; the borders of {label_file}, shape "
            f"{tuple(label.array.shape)}, lie up to {apart.max():.3g} voxels from those of {image_file}, shape "
            f"{tuple(image.array.shape)}, where their affines place them; restore the published file, or resample the "
            "labels to the image's grid (nearest neighbour)."
        )
    relative = np.linalg.inv(label.affine) @ image.affine
    steps = np.abs(relative[:3, :3].round())
    if np.abs(relative - relative.round()).max() < WHOLE and np.array_equal(steps @ steps.T, np.eye(3)):
        return resample_like(label, image, "nearest")  # a copy
    logger.info("%s lies on another grid than its image and is read where its affine places it.", label_file)
    return None


def read_displacement(path: str | Path, image: Image, orientation: str, spatial_dims: int = 2) -> torch.Tensor:
    """True displacement of a phantom's stack or volume, on the grid of its image.

    Args:
        path: NIfTI file (X, Y, Z, d): displacement in the plane of a stack, d = 2, or in a volume, d = 3, in voxels of
            the file's own grid.
        image: the stack or volume, of the data set's orientation and spacing, over the same field of view.
        orientation: of the data set; the file's axes point that way.
        spatial_dims: 2 for a stack, 3 for a volume.

    Returns:
        (Z, 2, X, Y) or (3, X, Y, Z) in voxels of the image.

    Raises:
        DatasetLayoutError: for a file that cannot be read, or of another shape or orientation.
    """
    try:
        nifti = open_nifti(path, "true displacement")
        values, affine = read_values(nifti, path, "true displacement"), file_affine(nifti, path, "true displacement")
    except ValueError as error:
        raise DatasetLayoutError(str(error)) from error
    codes = "".join(nib.orientations.aff2axcodes(affine))
    expected = (*("X", "Y", "Z")[:spatial_dims], *map(str, image.array.shape[spatial_dims:]), str(spatial_dims))
    if (
        values.ndim != 4
        or values.shape[spatial_dims:] != (*image.array.shape[spatial_dims:], spatial_dims)
        or (codes != orientation)
    ):
        raise DatasetLayoutError(
            f"expected displacements of shape ({', '.join(expected)}) along axes {orientation} in {path}, got "
            f"{values.shape} along {codes}; generate the phantom anew."
        )
    own = Image(torch.empty(0), affine, tuple(np.linalg.norm(affine[:3, :3], axis=0)))
    parts = [
        own._replace(array=torch.from_numpy(np.ascontiguousarray(values[..., axis]))) for axis in range(spatial_dims)
    ]
    if parts[0].array.shape[:spatial_dims] != image.array.shape[:spatial_dims]:  # the image was brought to a spacing
        scale = np.array(own.spacing) / np.array(image.spacing)
        parts = [resample_to_spacing(part, image.spacing, "bilinear") for part in parts]
        parts = [part._replace(array=part.array * scale[axis]) for axis, part in enumerate(parts)]
    field = torch.stack([part.array for part in parts])
    if field.shape[1:] != image.array.shape:
        raise DatasetLayoutError(
            f"expected the images' shape {tuple(image.array.shape)} in {path}, got {tuple(field.shape[1:])}; generate "
            "the phantom anew."
        )
    return field.permute(3, 0, 1, 2).contiguous() if spatial_dims == 2 else field


def read_noise_level(path: str | Path, image: Image, orientation: str, spatial_dims: int = 2) -> torch.Tensor:
    """Standard deviation of the noise of a phantom's image, on the grid that the image was brought to.

    Resampled as the image; it stays that of the file's voxels: what interpolation averages out is not taken off.

    Args:
        path: NIfTI file (X, Y, Z), in the units of the image.
        image: the stack or volume, of the data set's orientation and spacing, over the same field of view.
        orientation: of the data set.
        spatial_dims: 2 for a stack, 3 for a volume.

    Returns:
        (Z, 1, X, Y) or (1, X, Y, Z).

    Raises:
        DatasetLayoutError: for a file that cannot be read, or of another field of view.
    """
    try:
        level = load_image(path, "noise level")
        level = reorient(_as_stack(level) if spatial_dims == 2 else level, orientation, spatial_dims)
    except (ValueError, FileNotFoundError) as error:
        raise DatasetLayoutError(str(error)) from error
    if level.array.shape != image.array.shape:
        level = resample_to_spacing(level, image.spacing, "bilinear")
    if not same_grid(level, image):
        raise DatasetLayoutError(
            f"expected the grid of its image, {tuple(image.array.shape)}, in {path}, got {tuple(level.array.shape)} "
            "placed elsewhere; generate the phantom anew."
        )
    return slices_first(level.array) if spatial_dims == 2 else level.array[None]


def slices_first(array: torch.Tensor) -> torch.Tensor:
    """(X, Y, Z) -> (Z, 1, X, Y), contiguous, so that each slice is.

    Args:
        array: a stack.

    Returns:
        Its slices, each with a channel.
    """
    return array.movedim(-1, 0)[:, None].contiguous()
