# SPDX-License-Identifier: Apache-2.0
"""Images in memory, of NumPy, PyTorch, MONAI, nibabel, ITK and SimpleITK: taken in, and given back as they came."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from .affine import file_affine, is_orthonormal
from .images import Image, check_contrast, check_plane, load_image, load_label
from .itk_geometry import image_affine, ras_affine, set_geometry
from .nifti import check_finite, whole_numbers
from .resampling import share_within

FORMS = (
    "a path, a nibabel, ITK or SimpleITK image, a MetaTensor, an array or tensor (X, Y) or (X, Y, Z), or the two in a "
    "tuple (array, affine), the affine (4, 4) from voxels to mm, RAS"
)


def as_image(given: Any, argument: str, label: bool = False) -> Image:
    """An image of any form.

    Args:
        given: a path (``io.images.load_image``); a nibabel, ``itk.Image`` or ``SimpleITK.Image``; a MetaTensor, whose
            affine is RAS; an array or tensor (X, Y) or (X, Y, Z), of voxels of 1 mm, or a tuple of it and its (4, 4)
            affine, voxels to mm, RAS; or an ``io.images.Image``. A tensor may have a first axis of one channel beside
            three others.
        argument: what errors call it.
        label: whether it is a label map, of whole numbers.

    Returns:
        The image, float32, of a label map int32 or int64.

    Raises:
        FileNotFoundError, ValueError: as ``io.images.load_image`` and ``load_label``; for anything else than these
            forms.
    """
    if isinstance(given, Image):
        return given
    if isinstance(given, (str, Path)):
        return load_label(given, argument) if label else load_image(given, argument)
    values, affine, codes = _parts(given, argument)
    return _image(values, affine, codes, argument, label)


def as_label(given: Any, image: Image, argument: str) -> Image:
    """The label map of an image, on any grid of as many axes in its field of view.

    Args:
        given: in a form of ``as_image``.
        image: whose label map it is; its voxels are not read.
        argument: what errors call the label map.

    Returns:
        The label map, int32 or int64.

    Raises:
        FileNotFoundError, ValueError: as ``as_image``; for another number of axes, or where the two lie apart in space.
    """
    label = as_image(given, argument, label=True)
    dims = image.array.dim()
    if label.array.dim() != dims:
        raise ValueError(
            f"{argument}: expected {dims} axes, as its image has, got the shape {tuple(label.array.shape)}. Pass the "
            "label map of this image."
        )
    if dims == 2:
        check_plane(label, image, argument, "the label map", "its image")
    if max(share_within(label, image), share_within(image, label)) == 0:
        raise ValueError(
            f"{argument}: expected a label map in the field of view of its image, the two do not overlap in space. "
            "Pass the label map of this image, or repair its header."
        )
    return label


def as_given(image: Image, like: Any) -> Any:
    """An image in the form of another.

    Args:
        image: with values.
        like: what came in, in one of the forms of ``as_image``.

    Returns:
        In the form of ``like``: a tuple of array and affine for such a tuple. For a path an ``io.images.Image``.
    """
    array = image.array[..., None] if image.slice_axis else image.array
    if isinstance(like, (Image, str, Path)):
        return image
    if isinstance(like, tuple):
        return as_given(image, like[0]), image.affine
    if isinstance(like, MetaTensor):
        return MetaTensor(array[None] if like.dim() == 4 else array, affine=torch.from_numpy(image.affine))
    if isinstance(like, torch.Tensor):
        return array[None] if like.dim() == 4 else array
    if isinstance(like, np.ndarray):
        return array.numpy()
    if isinstance(like, nib.spatialimages.SpatialImage):
        values = array.numpy()
        return nib.Nifti1Image(values, image.affine, dtype=values.dtype)
    return _of_itk(image, like)


def _parts(given: Any, argument: str) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Values (X, Y[, Z]), affine and NIfTI's form codes."""
    if isinstance(given, tuple) and len(given) == 2:
        values, _, codes = _parts(given[0], argument)
        affine = np.asarray(given[1], dtype=np.float64)
        if affine.shape != (4, 4):
            raise ValueError(f"{argument}: expected an affine (4, 4), voxels to mm, RAS, got the shape {affine.shape}.")
        return values, affine, codes
    if isinstance(given, torch.Tensor):
        affine = np.eye(4)
        if isinstance(given, MetaTensor):
            affine = given.affine.detach().cpu().numpy().astype(np.float64)
        values = given.as_subclass(torch.Tensor).detach().cpu().numpy()
        return values[0] if values.ndim == 4 and len(values) == 1 else values, affine, (1, 1)
    if isinstance(given, np.ndarray):
        return given, np.eye(4), (1, 1)
    if isinstance(given, nib.Nifti1Pair):
        codes = int(given.header["qform_code"]), int(given.header["sform_code"])
        return np.asanyarray(given.dataobj), file_affine(given, "the image in memory", argument), codes
    if isinstance(given, nib.spatialimages.SpatialImage):
        return np.asanyarray(given.dataobj), np.asarray(given.affine, dtype=np.float64), (1, 1)
    origin = type(given).__module__.split(".")[0]
    if origin == "itk":
        import itk

        return itk.array_from_image(given).T, image_affine(given), (1, 1)
    if origin == "SimpleITK":
        values = sys.modules["SimpleITK"].GetArrayFromImage(given)
        dims = given.GetDimension()
        if values.ndim != dims or dims not in (2, 3):
            raise ValueError(f"{argument}: expected an image of one value a voxel in 2D or 3D, got {values.shape}.")
        direction = np.array(given.GetDirection()).reshape(dims, dims)
        return values.T, ras_affine(direction, np.array(given.GetSpacing()), np.array(given.GetOrigin())), (1, 1)
    raise ValueError(f"{argument}: expected {FORMS}; got {type(given).__name__}.")


def _image(values: np.ndarray, affine: np.ndarray, codes: tuple[int, int], argument: str, label: bool) -> Image:
    name = Path("the image in memory")
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(
            f"{argument}: expected an image of shape (X, Y) or (X, Y, Z), got {values.shape}. Pass one frame, without "
            "channels."
        )
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 1e-9 * lengths.prod():
        raise ValueError(f"{argument}: expected an invertible affine, got {affine.tolist()}; correct it.")
    if not is_orthonormal(affine):
        raise ValueError(
            f"{argument}: expected an affine with orthogonal axes, got {affine.tolist()}; resample the image onto an "
            "orthogonal grid."
        )
    slice_axis = values.ndim == 3 and values.shape[2] == 1
    values = values[:, :, 0] if slice_axis else values
    stored = None
    if label:
        raw, plain = whole_numbers(values.astype(np.uint8) if values.dtype == bool else values, 1, 0, name, argument)
        values, stored = raw, values.dtype if plain else None
    else:
        values = values.astype(np.float32)
        check_finite(values, name, argument)
        check_contrast(values, name, argument)
    spacing = tuple(float(mm) for mm in lengths[: values.ndim])
    return Image(torch.from_numpy(np.ascontiguousarray(values)), affine, spacing, codes, slice_axis, stored)


def _of_itk(image: Image, like: Any) -> Any:
    values = (image.array[..., None] if image.slice_axis else image.array).numpy()
    ordered = np.ascontiguousarray(values.T)
    if type(like).__module__.split(".")[0] == "SimpleITK":
        result = sys.modules["SimpleITK"].GetImageFromArray(ordered)
    else:
        import itk

        result = itk.image_from_array(ordered)
    set_geometry(result, image.affine)
    return result
