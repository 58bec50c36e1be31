# SPDX-License-Identifier: Apache-2.0
"""Displacement fields as NIfTI files that ITK, SimpleITK, ANTs and 3D Slicer read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..spatial.fields import all_finite
from ..spatial.units import flip_ras_lps, physical_to_voxel, plane_affine, voxel_to_physical
from .affine import file_affine, is_orthonormal
from .images import Image, write_nifti
from .nifti import open_nifti, read_values

INTENT_VECTOR = 1007
# ITK reads a field of one slice as 2D and drops its tilt, but an image of one slice as 3D: the slice is written twice.
ONE_SLICE = "displacement field of one slice, written twice"
SLAB = 16  # voxels along the first axis whose units are changed at a time, to save memory


def save_ddf(path: str | Path, ddf: Tensor, like: Image, stack: bool = False) -> None:
    """Write a displacement field that resamples in ITK and ANTs as ``warp`` does here, atomically.

    ``itk.DisplacementFieldTransform`` of the file, with the fixed image as reference grid, maps a fixed point p to
    p + D(p) in the moving image: D is the ddf in mm, LPS. ANTs: antsApplyTransforms -d 3 -i moving -r fixed -t file.
    Moving and fixed must be on one grid (``resample_like``), the grid of ``like``. Files of 2D images depend on how
    ITK reads the image: (X, Y) is 2D (-d 2), (X, Y, 1) is 3D (-d 3).

    Args:
        path: a .nii or .nii.gz file to (over)write, float32 with intent 1007: (X, Y, Z, 1, 3) for volumes,
            (X, Y, 1, 1, 2) for images of the form (X, Y), (X, Y, 2, 1, 3) for images of the form (X, Y, 1).
        ddf: (d, *S) in voxels of ``like``, channel i along array axis i.
        like: the fixed image.
        stack: ``ddf`` (2, X, Y, Z) holds in-plane displacements of a stack registered slice by slice; the component
            across the slices is written as zero voxels.

    Raises:
        ValueError: if the shapes do not fit, a value is not finite, or ITK cannot express the grid: sheared axes, or a
            tilted plane of the form (X, Y).
    """
    ddf_mm = field_mm(ddf, like, stack)
    values = ddf_mm.movedim(0, -1).numpy()
    values = values[:, :, None, None] if len(ddf_mm) == 2 else values[:, :, :, None]
    write_nifti(path, values, like, INTENT_VECTOR, ONE_SLICE if like.slice_axis else "")


def field_mm(ddf: Tensor, like: Image, stack: bool = False) -> Tensor:
    """A displacement field as ITK takes it.

    Args:
        ddf: (axes, *S) in voxels, see ``save_ddf``.
        like: the fixed image.
        stack: whether it holds slices that were registered one by one.

    Returns:
        (axes, *S) float32 in mm, LPS, on the CPU. Of images of the form (X, Y, 1): (3, X, Y, 2), the slice twice.

    Raises:
        ValueError: as ``save_ddf``.
    """
    _check_field(ddf, like, stack)
    check_grid(like)
    field = ddf.detach().cpu()
    if stack or like.slice_axis:
        field = torch.cat([field, torch.zeros_like(field[:1])])
    if like.slice_axis:
        field = field[..., None].expand(-1, -1, -1, 2)
    affine = plane_affine(like.affine) if len(field) == 2 else like.affine
    return _slabwise(lambda part: flip_ras_lps(voxel_to_physical(part, affine), channel=0), field)


def check_grid(like: Image, argument: str = "save_ddf: like") -> None:
    """Make sure, before any work, that a field on the grid of an image can be written for ITK.

    Args:
        like: the fixed image.
        argument: what the error calls it.

    Raises:
        ValueError: for sheared axes, or a tilted plane of the form (X, Y), whose file has no place for the tilt.
    """
    if like.array.dim() == 2 and not like.slice_axis:
        try:
            plane_affine(like.affine)
        except ValueError as error:
            raise ValueError(f"{argument}: {error}") from error
    if not is_orthonormal(like.affine):
        raise ValueError(
            f"{argument} must have orthogonal axes, the only grids that ITK knows; got a sheared affine"
            f" {like.affine.tolist()}. Resample the fixed image onto an orthogonal grid first."
        )


def load_ddf(path: str | Path, argument: str = "path") -> tuple[Tensor, np.ndarray]:
    """Read a displacement field in mm, LPS, as ``save_ddf``, ITK and ANTs write it.

    A header in metres or microns is converted for the grid; the vectors are mm all the same, as ITK reads them.

    Args:
        path: a .nii or .nii.gz file of shape (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2) with intent 1007.
        argument: what errors call it: the option that gave the path.

    Returns:
        ddf (d, *S) float32 in voxels of the file's own grid, and its affine (4, 4), voxels to mm, RAS. A field that
        ``save_ddf`` wrote for one slice comes back as (2, X, Y).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a field, is cut short, or holds values that are not finite.
    """
    path = Path(path)
    nifti = open_nifti(path, argument)
    shape, intent = nifti.shape, int(nifti.header["intent_code"])
    planar = len(shape) == 5 and shape[2:] == (1, 1, 2)
    if not planar and (len(shape) != 5 or shape[3:] != (1, 3)):
        raise ValueError(
            f"{argument}: expected a field of shape (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2); {path} has shape {shape}."
            " Images are read with load_image; convert affine and B-spline transforms to a displacement field first."
        )
    if intent != INTENT_VECTOR:
        raise ValueError(
            f"{argument}: expected intent code {INTENT_VECTOR} (vectors in mm, LPS, as ITK and ANTs write); {path} has"
            f" {intent}, whose convention differs between tools. Export the field again from ITK, ANTs or 3D Slicer."
        )
    affine = file_affine(nifti, path, argument)
    values = read_values(nifti, path, argument)
    vectors = torch.from_numpy(values[:, :, 0, 0] if planar else values[:, :, :, 0]).movedim(-1, 0)
    ddf = field_voxels(vectors, affine)
    if not planar and bytes(nifti.header["descrip"].item()).decode("latin1") == ONE_SLICE:
        ddf = ddf[:2, :, :, 0].contiguous()
    return ddf, affine


def field_voxels(ddf_mm: Tensor, affine: np.ndarray) -> Tensor:
    """Inverse of ``field_mm``.

    Args:
        ddf_mm: (axes, *S) in mm, LPS.
        affine: (4, 4) of the grid, RAS.

    Returns:
        (axes, *S) in voxels of the grid.
    """
    grid = plane_affine(affine) if len(ddf_mm) == 2 else affine
    return _slabwise(lambda part: physical_to_voxel(flip_ras_lps(part, channel=0), grid), ddf_mm)


def _check_field(ddf: Tensor, like: Image, stack: bool) -> None:
    shape = tuple(like.array.shape)
    if stack and len(shape) != 3:
        raise ValueError(f"save_ddf: stack=True needs a 3D image as like; got shape {shape}. Leave stack out in 2D.")
    if len(shape) == 3 and shape[2] == 1:
        raise ValueError(
            f"save_ddf: like must be 2D or have several slices; got shape {shape}. Load it with load_image, which takes"
            " a file of one slice as 2D."
        )
    expected = (2 if stack else len(shape), *shape)
    if tuple(ddf.shape) != expected:
        raise ValueError(
            f"save_ddf: ddf must have shape {expected}, channels first over the grid of like; got {tuple(ddf.shape)}."
            " Drop the batch axis; pass stack=True for, and only for, in-plane fields of a stack of slices."
        )
    if not all_finite(ddf):
        raise ValueError("save_ddf: ddf must be finite; got NaN or infinite values. Check the registration's loss.")


def _slabwise(change: Callable[[Tensor], Tensor], field: Tensor) -> Tensor:
    """Apply a change of units to (d, *S), calculating in float64 for a slab of the first spatial axis at a time."""
    changed = torch.empty(field.shape, dtype=torch.float32)
    for part, result in zip(field.split(SLAB, dim=1), changed.split(SLAB, dim=1), strict=True):
        result.copy_(change(part.double()))
    return changed
