# SPDX-License-Identifier: Apache-2.0
"""Images and labels in physical space, as NIfTI files."""

from __future__ import annotations

import warnings
import zlib
from itertools import product
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from torch import Tensor

from ..atomic import atomic_path

NIFTI_SUFFIXES = (".nii", ".nii.gz")


class Image(NamedTuple):
    """An image on its grid.

    array: (X, Y) or (X, Y, Z), float32 for images, an integer type for labels.
    affine: (4, 4) float64, voxels to mm, RAS, for 2D images too.
    spacing: mm an axis, one entry an axis of ``array``.
    form_codes: the NIfTI codes of qform and sform, written back by ``save_image``.
    slice_axis: the file holds a 2D image as (X, Y, 1), and so do files written like it.
    """

    array: Tensor
    affine: np.ndarray
    spacing: tuple[float, ...]
    form_codes: tuple[int, int] = (1, 1)
    slice_axis: bool = False


def load_image(path: str | Path) -> Image:
    """Load a 2D or 3D intensity image.

    The affine is the sform if the file has one, else the qform, else (both codes 0) spacing alone in ITK's reading:
    LPS axes and origin 0, so that ITK, ANTs and we place such a file alike. (X, Y, 1) is a 2D image.

    Args:
        path: a .nii or .nii.gz file.

    Returns:
        Image with float32 ``array``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not readable as NIfTI, has several frames or colours, or values that are not finite or
            all equal.
    """
    image, values = _read(Path(path))
    if values.min() == values.max():
        raise ValueError(
            f"load_image: expected an image with contrast; {path} is constant ({values.flat[0]:g} everywhere)."
            " Check that the export or crop did not lose its content; load label maps with load_label."
        )
    return image._replace(array=torch.from_numpy(np.ascontiguousarray(values)))


def load_label(path: str | Path) -> Image:
    """Load a 2D or 3D label map; as ``load_image``, but values must be whole numbers and may all be equal.

    Args:
        path: a .nii or .nii.gz file.

    Returns:
        Image with int32 ``array``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as ``load_image``, and if a value is not a whole number.
    """
    image, values = _read(Path(path))
    if not np.array_equal(values, np.round(values)):
        raise ValueError(
            f"load_label: expected whole numbers; {path} holds {values[values != np.round(values)][0]:g}."
            " Was it resampled with linear interpolation? Export the labels again with nearest neighbour."
        )
    return image._replace(array=torch.from_numpy(np.ascontiguousarray(values)).to(torch.int32))


def open_nifti(path: Path) -> nib.Nifti1Pair:
    """Open a NIfTI file, values not read yet.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a NIfTI file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a NIfTI file; {path} does not exist. Check the path's spelling.")
    try:
        image = nib.load(path)
    except (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        OSError,
        EOFError,
        zlib.error,
    ) as error:
        raise ValueError(_unreadable(path, error)) from error
    if not isinstance(image, nib.Nifti1Pair):
        raise ValueError(_unreadable(path, TypeError(f"it is {type(image).__name__}")))
    return image


def read_values(nifti: nib.Nifti1Pair, path: Path) -> np.ndarray:
    """All values of an opened file as float32, scaled as its header says.

    Raises:
        ValueError: if the file is cut short or holds NaN or infinite values.
    """
    try:
        values = nifti.get_fdata(dtype=np.float32)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(_unreadable(path, error)) from error
    if not np.isfinite(values).all():
        raise ValueError(
            f"path: expected finite values; {path} holds {int(np.isnan(values).sum())} NaN and"
            f" {int(np.isinf(values).sum())} infinite values. Replace them first, for example with numpy.nan_to_num."
        )
    return values


def file_affine(nifti: nib.Nifti1Pair, path: Path) -> np.ndarray:
    """The (4, 4) float64 RAS affine of an opened file, as ``load_image`` documents it.

    Raises:
        ValueError: if the affine is not invertible.
    """
    header = nifti.header
    qform_code, sform_code = int(header["qform_code"]), int(header["sform_code"])
    if qform_code == 0 and sform_code == 0:
        spacing = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
        # Files written in 2D may leave the third spacing at 0.
        spacing[spacing == 0] = 1.0
        return np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine = np.array(nifti.affine, dtype=np.float64)
    if nifti.ndim == 2 and not affine[:3, 2].any():
        affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1]) / np.linalg.norm(affine[:3, 0])
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ValueError(
            f"path: expected an invertible affine; {path} has {affine.tolist()}. Repair its qform and sform."
        )
    if qform_code > 0 and sform_code > 0:
        apart = _largest_distance(nifti.get_qform(), affine, nifti.shape[:3])
        if apart > 1e-2:
            warnings.warn(
                f"{path}: qform and sform disagree by up to {apart:.3g} mm; the sform is used. ITK and ANTs may use the"
                " qform: make them equal before exchanging transforms with them.",
                stacklevel=3,
            )
    return affine


def save_image(path: str | Path, array: Tensor, like: Image, dtype: np.dtype | type | None = None) -> None:
    """Write an image or label map on the grid of another, atomically, without intensity scaling.

    Args:
        path: a .nii or .nii.gz file to (over)write.
        array: (X, Y) or (X, Y, Z), the shape of ``like.array``.
        like: gives affine, qform and sform codes and, for 2D, the (X, Y) or (X, Y, 1) form of the file.
        dtype: NumPy type in the file; None: float32 for floating ``array``, the smallest of uint8, int16 and int32
            that holds the values for integer ``array``.

    Raises:
        ValueError: if the path's suffix, the shape or the type do not fit.
    """
    if tuple(array.shape) != tuple(like.array.shape):
        raise ValueError(
            f"save_image: array must have the shape of like, {tuple(like.array.shape)}; got {tuple(array.shape)}."
            " Drop batch and channel axes, or resample first."
        )
    values = array.detach().cpu().numpy()
    target = _storage_type(values) if dtype is None else np.dtype(dtype)
    stored = values.astype(target)
    if np.issubdtype(target, np.integer) and not np.array_equal(stored, values):
        raise ValueError(
            f"save_image: dtype {target} cannot hold the array's values ({values.min():g} to {values.max():g})"
            " exactly. Use a floating or larger dtype, or warp labels with nearest neighbour."
        )
    write_nifti(path, stored[..., None] if like.slice_axis and stored.ndim == 2 else stored, like)


def write_nifti(path: str | Path, values: np.ndarray, like: Image, intent: int = 0, description: str = "") -> None:
    """Write values with the affine and codes of ``like``, atomically.

    Args:
        path: a .nii or .nii.gz file.
        values: array as it lies in the file.
        like: gives affine and form codes.
        intent: NIfTI intent code.
        description: NIfTI free text, at most 79 characters.

    Raises:
        ValueError: if the suffix is not that of a NIfTI file.
    """
    if not str(path).endswith(NIFTI_SUFFIXES):
        raise ValueError(f"path: expected a name that ends in .nii or .nii.gz; got {path}. Rename the output.")
    nifti = nib.Nifti1Image(values, None, dtype=values.dtype)
    nifti.header.set_intent(intent)
    nifti.header.set_xyzt_units("mm")
    nifti.header["descrip"] = description
    nifti.set_qform(like.affine, code=like.form_codes[0], update_affine=False)
    nifti.set_sform(like.affine, code=like.form_codes[1], update_affine=False)
    with atomic_path(path) as temporary:
        nib.save(nifti, temporary)


def same_grid(first: Image, second: Image, atol: float = 1e-3) -> bool:
    """Whether two images have the same shape and voxel positions.

    Args:
        first, second: images of any size.
        atol: largest distance in mm between corresponding voxels.
    """
    if first.array.shape != second.array.shape:
        return False
    return _largest_distance(first.affine, second.affine, tuple(first.array.shape)) <= atol


def resample_like(moving: Image, fixed: Image, mode: str) -> Image:
    """Bring ``moving`` onto the grid of ``fixed`` by their affines (MONAI's SpatialResample); zeros outside.

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
        corners = [relative[2] @ (x, y, 0, 1) for x, y in product(*((0, n - 1) for n in moving.array.shape))]
        if np.abs(corners).max() > 0.5:
            raise ValueError(
                "resample_like: 2D images must lie in one plane; moving lies up to"
                f" {np.abs(corners).max():.3g} slices off fixed. Pass the volumes that the slices come from."
            )
        relative = relative[np.ix_([0, 1, 3], [0, 1, 3])]
    source = MetaTensor(moving.array[None].double(), affine=torch.from_numpy(relative))
    resampler = SpatialResample(mode=mode, padding_mode="zeros", align_corners=True, dtype=np.float64)
    output = resampler(source, dst_affine=torch.eye(dims + 1).double(), spatial_size=tuple(fixed.array.shape))
    array = output.as_subclass(Tensor)[0]
    array = array.to(moving.array.dtype) if moving.array.is_floating_point() else array.round().to(moving.array.dtype)
    return fixed._replace(array=array)


def _read(path: Path) -> tuple[Image, np.ndarray]:
    nifti = open_nifti(path)
    if nifti.get_data_dtype().fields is not None:
        raise ValueError(f"path: expected one value a voxel; {path} is a colour image. Convert it to grey values.")
    # Trailing axes of one frame or channel say nothing; a third axis of one slice makes a 2D image.
    shape = list(nifti.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(
            f"path: expected an image of shape (X, Y) or (X, Y, Z); {path} has shape {nifti.shape}. Extract one"
            " frame of a sequence; read displacement fields with load_ddf."
        )
    values = read_values(nifti, path).reshape(shape)
    slice_axis = len(shape) == 3 and shape[2] == 1
    values = values[..., 0] if slice_axis else values
    affine = file_affine(nifti, path)
    codes = (int(nifti.header["qform_code"]), int(nifti.header["sform_code"]))
    spacing = tuple(float(mm) for mm in np.linalg.norm(affine[:3, :3], axis=0)[: values.ndim])
    return Image(torch.empty(0), affine, spacing, codes, slice_axis), values


def _unreadable(path: Path, error: Exception) -> str:
    return (
        f"path: expected a readable NIfTI file (.nii, .nii.gz); {path} is not ({error}). Copy it again if it"
        " is cut short; convert other formats with dcm2niix or 3D Slicer."
    )


def _largest_distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    # The distance is convex in the position, hence largest at a corner of the grid.
    sizes = (list(shape) + [1, 1])[:3]
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in sizes))])
    return float(np.linalg.norm(corners @ (first - second).T, axis=1).max())


def _storage_type(values: np.ndarray) -> np.dtype:
    if not np.issubdtype(values.dtype, np.integer) and values.dtype != bool:
        return np.dtype(np.float32)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for candidate in (np.uint8, np.int16, np.int32):
        if np.iinfo(candidate).min <= low and high <= np.iinfo(candidate).max:
            return np.dtype(candidate)
    raise ValueError(f"save_image: labels must fit in 32 bits; got {low} to {high}. Renumber the labels.")
