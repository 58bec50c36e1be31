# SPDX-License-Identifier: Apache-2.0
"""NIfTI files as they lie on disk: opening them, and their values."""

from __future__ import annotations

import logging
import math
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

logger = logging.getLogger(__name__)

DAMAGED = (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, OSError, EOFError, ValueError)
DCM2NIIX = "convert the series with 'dcm2niix -z y -o OUT FOLDER' or 3D Slicer"
WITH_ITK = "convert it with 3D Slicer or python -c \"import itk; itk.imwrite(itk.imread('IN'), 'OUT.nii.gz')\""
WITH_NIBABEL = "convert it with FreeSurfer's 'mri_convert IN OUT.nii.gz' or 3D Slicer"
PHOTOGRAPH = (
    "it has no voxel size and perhaps colours: read its grey values, and write them with nibabel.Nifti1Image and the "
    "voxel size as (X, Y)"
)
# What a file that is not NIfTI begins with, and how to make NIfTI of it.
FORMATS = (
    (b"\x89PNG", "a PNG picture", PHOTOGRAPH),
    (b"\xff\xd8\xff", "a JPEG picture", PHOTOGRAPH),
    (b"GIF8", "a GIF picture", PHOTOGRAPH),
    (b"BM", "a BMP picture", PHOTOGRAPH),
    (b"II*\x00", "a TIFF picture", PHOTOGRAPH),
    (b"MM\x00*", "a TIFF picture", PHOTOGRAPH),
    (b"NRRD", "in the NRRD format", WITH_ITK),
    (b"ObjectType", "in the MetaImage format (.mha, .mhd)", WITH_ITK),
    (b"\x89HDF", "an HDF5 file", WITH_ITK),
    (b"\x93NUMPY", "a NumPy array", "write it with nibabel.Nifti1Image and its affine"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
)
SUFFIXES = {
    ".mgz": ("in FreeSurfer's MGH format", WITH_NIBABEL),
    ".mgh": ("in FreeSurfer's MGH format", WITH_NIBABEL),
    ".nhdr": ("in the NRRD format", WITH_ITK),
    ".mhd": ("in the MetaImage format (.mha, .mhd)", WITH_ITK),
    ".mha": ("in the MetaImage format (.mha, .mhd)", WITH_ITK),
    ".dcm": ("a DICOM file", DCM2NIIX),
}


class _Lenient:
    """Takes a quaternion that is longer than 1, by rounding, for a unit one, as ITK does; nibabel refuses 1e-6."""

    def get_qform_quaternion(self) -> np.ndarray:
        b, c, d = (float(self[f"quatern_{axis}"]) for axis in "bcd")  # type: ignore[index]
        rest = 1 - b * b - c * c - d * d
        return np.array([math.sqrt(rest) if rest >= 1e-7 else 0.0, b, c, d])  # its users scale it to 1

    @staticmethod
    def _chk_pixdims(hdr: Any, fix: bool = False) -> Any:
        """As nibabel, but a size of 0 along an axis of several voxels stays 0, not 1 mm: ``file_affine`` refuses it."""
        absent = (hdr["pixdim"][1:4] == 0) & (hdr["dim"][1:4] > 1)
        checked = nib.Nifti1Header._chk_pixdims(hdr, fix)
        hdr["pixdim"][1:4][absent] = 0
        return checked


class _Header1(_Lenient, nib.Nifti1Header):
    pass


class _Header2(_Lenient, nib.Nifti2Header):
    pass


class _Nifti1(nib.Nifti1Image):
    header_class = _Header1


class _Nifti2(nib.Nifti2Image):
    header_class = _Header2


def open_nifti(path: str | Path, argument: str = "path") -> nib.Nifti1Pair:
    """Open a NIfTI file, values not read yet.

    Args:
        path: the file.
        argument: what errors call it: the option that gave the path.

    Returns:
        The opened file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is a folder, or not a NIfTI file: naming the format and how to convert it.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{argument}: expected a NIfTI file (.nii, .nii.gz); {path} is a folder. {_of_folder(path)}")
    if not path.is_file():
        raise FileNotFoundError(
            f"{argument}: expected a NIfTI file (.nii, .nii.gz); {path} does not exist. Check the path's spelling."
        )
    try:
        for kind in (_Nifti1, _Nifti2):
            if kind.path_maybe_image(path)[0]:
                return kind.from_filename(path)
        image = nib.load(path)
    except (*DAMAGED, zlib.error) as error:
        raise ValueError(_unreadable(path, error, argument)) from error
    if not isinstance(image, nib.Nifti1Pair):
        raise ValueError(_unreadable(path, TypeError(f"it is {type(image).__name__}"), argument))
    return image


def read_values(nifti: nib.Nifti1Pair, path: str | Path, argument: str = "path") -> np.ndarray:
    """All values of an opened file as float32, scaled as its header says.

    Args:
        nifti: the opened file.
        path: what errors call it.
        argument: the option that gave the path.

    Returns:
        Values in the file's shape.

    Raises:
        ValueError: if the file is cut short, or holds colours, complex numbers, NaN or infinite values.
    """
    raw, slope, inter = _stored(nifti, Path(path), argument)
    if (slope, inter) == (1, 0):
        values = raw.astype(np.float32, copy=False)
    else:
        values = np.empty(raw.shape, np.float32, order="F")
        for last in range(raw.shape[-1]):  # float64 for a part of the values at a time
            values[..., last] = raw[..., last] * slope + inter
    check_finite(values, Path(path), argument)
    return values


def read_whole_numbers(nifti: nib.Nifti1Pair, path: str | Path, argument: str = "path") -> tuple[np.ndarray, bool]:
    """All values of an opened file as integers, which never pass through float32.

    Args:
        nifti: the opened file.
        path: what errors call it.
        argument: the option that gave the path.

    Returns:
        int32 where the values fit, else int64; and whether the file holds just these values, as integers unscaled.

    Raises:
        ValueError: as ``read_values``, and for values that are not whole numbers (scaled ones may be off by the
            rounding of the header's float32 slope) or do not fit in 64 bits.
    """
    raw, slope, inter = _stored(nifti, Path(path), argument)
    return whole_numbers(raw, slope, inter, Path(path), argument)


def whole_numbers(
    raw: np.ndarray, slope: float, inter: float, path: Path, argument: str = "path"
) -> tuple[np.ndarray, bool]:
    """Values of a label map as integers; see ``read_whole_numbers``.

    Args:
        raw: as they lie in the file.
        slope: by which they are multiplied.
        inter: what is then added.
        path: what errors call it.
        argument: the option that gave the path.

    Returns:
        As there.

    Raises:
        ValueError: as there.
    """
    unscaled = (slope, inter) == (1, 0)
    values, limit = raw, 2**63 - 1
    if raw.dtype.kind == "f" or not unscaled:
        scaled = raw.astype(np.float64) * slope + inter
        check_finite(scaled, path, argument)
        values, limit = np.rint(scaled), 2**53
        slack = 0 if unscaled else np.minimum(np.abs(values) * 2.0**-23, 0.01)
        off = np.abs(scaled - values) > slack
        if off.any():
            raise ValueError(
                f"{argument}: expected whole numbers, labels; {path} holds {scaled[off][0]:g}. Was it resampled with "
                "linear interpolation? Export the labels again with nearest neighbour."
            )
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if max(-low, high) > limit:
        raise ValueError(
            f"{argument}: expected labels of at most {limit} (beyond, its type is not exact); {path} holds {low} to "
            f"{high}. Renumber the labels."
        )
    small = np.iinfo(np.int32).min <= low and high <= np.iinfo(np.int32).max
    return values.astype(np.int32 if small else np.int64, copy=False), unscaled and raw.dtype.kind in "iu"


def _stored(nifti: nib.Nifti1Pair, path: Path, argument: str) -> tuple[np.ndarray, float, float]:
    """Values as they lie in the file, slope and intercept."""
    stored = nifti.get_data_dtype()
    if stored.fields is not None:
        raise ValueError(
            f"{argument}: expected one value a voxel; {path} is a colour image. Convert it to grey values."
        )
    if stored.kind == "c":
        raise ValueError(
            f"{argument}: expected real values; {path} holds complex numbers. Write their magnitude (numpy.abs) first."
        )
    proxy: Any = nifti.dataobj
    try:
        raw = np.asanyarray(proxy.get_unscaled())
    except (*DAMAGED, zlib.error) as error:
        raise ValueError(_unreadable(path, error, argument)) from error
    return raw, float(proxy.slope), float(proxy.inter)


def check_finite(values: np.ndarray, path: Path, argument: str) -> None:
    """Refuse values that are NaN or infinite.

    Args:
        values: of an image.
        path: what errors call it.
        argument: the option that gave the path.

    Raises:
        ValueError: with their number.
    """
    if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
        raise ValueError(
            f"{argument}: expected finite values; {path} holds {int(np.isnan(values).sum())} NaN and"
            f" {int(np.isinf(values).sum())} infinite values. Replace them first, for example with numpy.nan_to_num."
        )


def _of_folder(folder: Path) -> str:
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    if any(is_dicom(file) for file in files[:20]):
        return f"It holds DICOM files: {DCM2NIIX.replace('FOLDER', str(folder))}, and give the .nii.gz that it writes."
    inside = [file.name for file in files if file.name.endswith((".nii", ".nii.gz"))]
    return f"Give a file in it: {', '.join(inside[:5])}." if inside else "It holds no NIfTI file and no DICOM."


def is_dicom(path: Path) -> bool:
    """Whether a file is in the DICOM format, by its suffix or its first bytes.

    Args:
        path: of the file.

    Returns:
        True or False.
    """
    with path.open("rb") as stream:
        return path.suffix.lower() in (".dcm", ".ima") or stream.read(132)[128:] == b"DICM"


def _unreadable(path: Path, error: Exception, argument: str) -> str:
    with path.open("rb") as stream:
        start = stream.read(132)
    known = [(name, remedy) for magic, name, remedy in FORMATS if start.startswith(magic)]
    if start[128:] == b"DICM":
        known = [SUFFIXES[".dcm"]]
    elif path.suffix.lower() in SUFFIXES:
        known = [SUFFIXES[path.suffix.lower()]]
    elif start[:2] == b"\x1f\x8b" and path.suffix == ".nii":
        known = [("gzipped", "rename it to end in .nii.gz")]
    if known:
        name, remedy = known[0]
        return f"{argument}: expected a NIfTI file (.nii, .nii.gz); {path} is {name}: {remedy}."
    reason = " ".join(str(error).split())
    return (
        f"{argument}: expected a readable NIfTI file (.nii, .nii.gz); {path} is not ({reason}). It may be cut short:"
        " copy it again; convert other formats with dcm2niix or 3D Slicer."
    )
