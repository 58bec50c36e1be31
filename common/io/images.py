# SPDX-License-Identifier: Apache-2.0
"""Images and labels in physical space: read from the formats of ``io.formats``, written as NIfTI files."""

from __future__ import annotations

import io
import logging
import zlib
from itertools import product
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from ..atomic import atomic_path
from .affine import largest_distance
from .formats import OpenedFile, open_file

logger = logging.getLogger(__name__)

NIFTI_SUFFIXES = (".nii", ".nii.gz")


class Image(NamedTuple):
    """An image on its grid.

    array: (X, Y) or (X, Y, Z), float32 for images, an integer type for labels.
    affine: (4, 4) float64, voxels to mm, RAS, for 2D images too.
    spacing: mm an axis, one entry an axis of ``array``.
    form_codes: the NIfTI codes of qform and sform, written back by ``save_image``.
    slice_axis: the file holds a 2D image as (X, Y, 1), and so do files written like it.
    stored: of a label map whose file holds integers, unscaled: their type, to write labels in again; else None.
    """

    array: Tensor
    affine: np.ndarray
    spacing: tuple[float, ...]
    form_codes: tuple[int, int] = (1, 1)
    slice_axis: bool = False
    stored: np.dtype | None = None


def load_image(path: str | Path, argument: str = "path") -> Image:
    """Load a 2D or 3D intensity image.

    The affine is the sform if the file has one, else the qform, else (both codes 0, which is logged) spacing alone in
    ITK's reading: LPS axes and origin 0, so that ITK, ANTs and we place such a file alike. Lengths in metres or microns
    become mm. (X, Y, 1) is a 2D image. What is accepted, ITK opens, and so it does a field written on its grid.

    Args:
        path: a .nii, .nii.gz, .nrrd, .mha or .mhd file, or a folder that holds one DICOM series.
        argument: what errors call it: the option that gave the path, as "moving".

    Returns:
        Image with float32 ``array``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not readable in one of these formats, has several frames or colours, complex values, values
            that are not finite or all equal, or axes that are not orthogonal to ITK's tolerance.
    """
    file, image, shape = _opened(path, argument)
    values = file.values().reshape(shape)
    check_contrast(values, path, argument)
    return image._replace(array=torch.from_numpy(np.ascontiguousarray(values)))


def check_contrast(values: np.ndarray, path: str | Path, argument: str = "path") -> None:
    """Refuse an image that is the same everywhere.

    Args:
        values: of the image.
        path: what the error calls it.
        argument: the option that gave it.

    Raises:
        ValueError: for such an image.
    """
    if values.min() == values.max():
        raise ValueError(
            f"{argument}: expected an image with contrast; {path} is constant ({values.flat[0]:g} everywhere)."
            " Check that the export or crop did not lose its content; load label maps with load_label."
        )


def load_label(path: str | Path, argument: str = "path") -> Image:
    """Load a 2D or 3D label map; as ``load_image``, but values must be whole numbers and may all be equal.

    Args:
        path: as of ``load_image``, of any type; integers are never read as floating-point numbers.
        argument: what errors call it.

    Returns:
        Image with int32 ``array``, int64 where values need it, and ``stored``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as ``load_image``, and if a value is not a whole number or does not fit in 64 bits.
    """
    file, image, shape = _opened(path, argument)
    values, stored = file.whole_numbers()
    return image._replace(array=torch.from_numpy(np.ascontiguousarray(values.reshape(shape))), stored=stored)


def load_grid(path: str | Path, argument: str = "path") -> Image:
    """The grid of an image or label file, of which the header alone is read: ``array`` is on the meta device.

    Args:
        path: as of ``load_image``.
        argument: what errors call it.

    Returns:
        The image without its values.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as ``load_image``, but for what only the values say.
    """
    _, image, shape = _opened(path, argument)
    return image._replace(array=torch.empty(shape, device="meta"))


def save_image(path: str | Path, array: Tensor, like: Image, dtype: np.dtype | type | None = None) -> None:
    """Write an image or label map on the grid of another, atomically, without intensity scaling.

    Args:
        path: a .nii or .nii.gz file to (over)write.
        array: (X, Y) or (X, Y, Z), the shape of ``like.array``.
        like: gives affine, qform and sform codes and, for 2D, the (X, Y) or (X, Y, 1) form of the file.
        dtype: NumPy type in the file; None: float32 for floating ``array``, the smallest of uint8, int16, int32 and
            int64 that holds the values for integer ``array``.

    Raises:
        ValueError: if the path's suffix, the shape or the type do not fit.
    """
    if tuple(array.shape) != tuple(like.array.shape):
        raise ValueError(
            f"save_image: array must have the shape of like, {tuple(like.array.shape)}; got {tuple(array.shape)}."
            " Drop batch and channel axes, or resample first."
        )
    values = array.detach().cpu().numpy()
    target = storage_type(values) if dtype is None else np.dtype(dtype)
    stored = _cast(values, target)
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
    if values.nbytes > 5e7:
        logger.info("Writing %s, %.0f MB before compression.", path, values.nbytes / 1e6)
    nifti = nib.Nifti1Image(values, None, dtype=values.dtype)
    nifti.header.set_intent(intent)
    nifti.header.set_xyzt_units("mm")
    nifti.header["descrip"] = description
    nifti.set_qform(like.affine, code=like.form_codes[0], update_affine=False)
    nifti.set_sform(like.affine, code=like.form_codes[1], update_affine=False)
    with atomic_path(path) as temporary:
        if str(path).endswith(".gz"):
            _save_gzip(nifti, temporary)
        else:
            nib.save(nifti, temporary)


def same_grid(first: Image, second: Image, atol: float | None = None) -> bool:
    """Whether two images have the same shape and voxel positions.

    Args:
        first: image of any size.
        second: image of any size.
        atol: largest distance in mm between corresponding voxels; default 1e-3, for voxels below 0.1 mm 1 % of them.

    Returns:
        True or False.
    """
    if first.array.shape != second.array.shape:
        return False
    atol = min(1e-3, 0.01 * min(first.spacing)) if atol is None else atol
    return largest_distance(first.affine, second.affine, tuple(first.array.shape)) <= atol


def check_plane(moving: Image, fixed: Image, argument: str, moving_name: object, fixed_name: object) -> None:
    """Refuse two 2D images of different planes.

    Args:
        moving: 2D image.
        fixed: 2D image.
        argument: what the error calls the arguments.
        moving_name: what it calls moving.
        fixed_name: what it calls fixed.

    Raises:
        ValueError: where a voxel of moving lies more than half a slice off the plane of fixed.
    """
    off = (np.linalg.inv(fixed.affine) @ moving.affine)[2]
    apart = max(abs(off @ (x, y, 0, 1)) for x, y in product(*((0, n - 1) for n in moving.array.shape)))
    if apart > 0.5:
        raise ValueError(
            f"{argument}: 2D images must lie in one plane; {moving_name} lies up to {apart:.3g} slices off"
            f" {fixed_name}. Pass the volumes that the slices come from."
        )


def _opened(path: str | Path, argument: str) -> tuple[OpenedFile, Image, tuple[int, ...]]:
    """The file, its image without values, and their shape."""
    file = open_file(path, argument)
    # Trailing axes of one frame or channel say nothing; a third axis of one slice makes a 2D image.
    shape = list(file.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(
            f"{argument}: expected an image of shape (X, Y) or (X, Y, Z); {path} has shape {file.shape}. Extract one"
            " frame of a sequence; read displacement fields with load_ddf."
        )
    slice_axis = len(shape) == 3 and shape[2] == 1
    shape = shape[:2] if slice_axis else shape
    affine = file.affine()
    spacing = tuple(float(mm) for mm in np.linalg.norm(affine[:3, :3], axis=0)[: len(shape)])
    return file, Image(torch.empty(0), affine, spacing, file.form_codes, slice_axis), tuple(shape)


def _save_gzip(nifti: nib.Nifti1Image, path: Path) -> None:
    """As nibabel's level 1, but with zlib's run-length strategy, which for images is as small and twice as fast."""
    header = io.BytesIO()
    nifti.header.set_slope_inter(1, 0)
    nifti.header.write_to(header)
    values = np.asanyarray(nifti.dataobj)
    stream = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    with path.open("wb") as file:
        file.write(stream.compress(header.getvalue()))
        for index in np.ndindex(*values.shape[:1:-1]):  # planes, the first axis fastest
            file.write(stream.compress(values[(..., *index[::-1])].tobytes(order="F")))
        file.write(stream.flush())


def _cast(values: np.ndarray, target: np.dtype) -> np.ndarray:
    """Values as ``target``, the same numbers; only from floating to floating they may be rounded."""
    whole = target.kind in "iu"
    fits = not (whole and values.size) or np.iinfo(target).min <= values.min() <= values.max() <= np.iinfo(target).max
    stored = values.astype(target, copy=False) if fits else values
    exact = whole or values.dtype.kind in "iub"
    if not fits or (exact and not np.array_equal(stored.astype(values.dtype, copy=False), values)):
        raise ValueError(
            f"save_image: dtype {target} cannot hold the array's values ({values.min():g} to {values.max():g})"
            " exactly. Use a floating or larger dtype, or warp labels with nearest neighbour."
        )
    return stored


def storage_type(values: np.ndarray) -> np.dtype:
    """The type that values are written in by default: float32, or the smallest integer type that holds them all.

    Args:
        values: to be written.

    Returns:
        The type.
    """
    if not np.issubdtype(values.dtype, np.integer) and values.dtype != bool:
        return np.dtype(np.float32)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    fitting = (np.uint8, np.int16, np.int32, np.int64)
    return next(np.dtype(kind) for kind in fitting if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
