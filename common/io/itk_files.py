# SPDX-License-Identifier: Apache-2.0
"""Images that ITK reads: NRRD, MetaImage, and folders that hold one DICOM series."""

from __future__ import annotations

import locale
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .affine import is_orthonormal
from .itk_geometry import ras_affine
from .nifti import is_dicom

NRRD, META = (".nrrd", ".nhdr"), (".mha", ".mhd")
# Slices of a series whose distances differ by more than this share are no volume.
UNEVEN = 0.02


class ItkFile(NamedTuple):
    """The header of a file or series.

    files: what is read; several of a series.
    shape: voxels an axis, the first axis fastest.
    affine: (4, 4), voxels to mm, RAS.
    """

    files: tuple[str, ...]
    shape: tuple[int, ...]
    affine: np.ndarray


def is_for_itk(path: Path) -> bool:
    """Whether a file is in one of these formats, by its suffix or its first bytes; of a folder, whether it holds DICOM.

    Args:
        path: an existing file or folder.

    Returns:
        True or False.
    """
    if path.is_dir():
        return any(file.is_file() and is_dicom(file) for file in path.iterdir())
    if path.suffix.lower() in NRRD + META or is_dicom(path):
        return True
    with path.open("rb") as stream:
        return stream.read(16).startswith((b"NRRD0", b"ObjectType", b"NDims"))


@contextmanager
def own_locale() -> Iterator[None]:
    """Keep the locale: GDCM, by which ITK reads DICOM, sets the process's to "C", by which text is read as ASCII.

    Returns:
        A context, or a decorator.
    """
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@own_locale()
def open_with_itk(path: Path, argument: str = "path") -> ItkFile:
    """Read a header with ITK.

    Args:
        path: a file, or a folder with the files of one DICOM series.
        argument: what errors call it.

    Returns:
        The header.

    Raises:
        ValueError: if ITK cannot read it, it holds several values a voxel, several series, or unevenly spaced slices,
            its axes are sheared, or a voxel has no size.
    """
    files = _series(path, argument) if path.is_dir() else (str(path),)
    header = _header(files[0], path, argument)
    axes = header.GetNumberOfDimensions()
    shape, spacing, origin = ([get(axis) for axis in range(axes)]
                              for get in (header.GetDimensions, header.GetSpacing, header.GetOrigin))  # fmt: skip
    direction = np.array([list(header.GetDirection(axis)) for axis in range(axes)]).T
    if header.GetNumberOfComponents() != 1:
        raise ValueError(
            f"{argument}: expected one value a voxel; {path} holds {header.GetNumberOfComponents()}, colours or "
            "vectors. Convert it to grey values; a displacement field is read as a transform."
        )
    while axes > 3 and shape[-1] == 1:
        axes, shape = axes - 1, shape[:-1]
    if axes > 3 or axes < 2:
        raise ValueError(
            f"{argument}: expected an image of shape (X, Y) or (X, Y, Z); {path} has shape {tuple(shape)}. Extract one "
            "frame of a sequence."
        )
    spacing, origin, direction = spacing[:axes], origin[:axes], direction[:axes, :axes]
    if len(files) > 1:
        direction, spacing[2] = _stacked(files, direction, origin, path, argument)
        shape[2] = len(files)
    return ItkFile(
        files, tuple(shape), _checked(ras_affine(direction, np.array(spacing), np.array(origin)), path, argument)
    )


@own_locale()
def read_with_itk(opened: ItkFile, path: Path, argument: str = "path") -> np.ndarray:
    """All values, in the type that ITK gives them.

    Args:
        opened: the header.
        path: what errors call it.
        argument: the option that gave the path.

    Returns:
        Array of the header's shape.

    Raises:
        ValueError: if the values cannot be read, for example where the file is cut short.
    """
    import itk

    try:
        slices = [itk.array_from_image(itk.imread(file)) for file in opened.files]
    except (RuntimeError, TypeError, KeyError) as error:
        raise ValueError(_unreadable(path, error, argument)) from error
    values = slices[0] if len(slices) == 1 else np.stack([plane.reshape(plane.shape[-2:]) for plane in slices])
    return np.ascontiguousarray(values.transpose().reshape(opened.shape))


def _header(file: str, path: Path, argument: str) -> Any:
    import itk

    try:
        reader = itk.ImageIOFactory.CreateImageIO(file, itk.CommonEnums.IOFileMode_ReadMode)
        if reader is None:
            raise RuntimeError("no reader of ITK knows the format")
        reader.SetFileName(file)
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(_unreadable(path, error, argument)) from error
    return reader


def _unreadable(path: Path, error: Exception, argument: str) -> str:
    reason = " ".join(str(error).split())[-200:]
    return (
        f"{argument}: expected a readable image (NIfTI, NRRD, MetaImage, or a DICOM series); ITK cannot read {path} "
        f"({reason}). It may be cut short, or lack the file of its values: copy it again."
    )


def _checked(affine: np.ndarray, path: Path, argument: str) -> np.ndarray:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    volume = abs(np.linalg.det(affine[:3, :3]))
    if not np.isfinite(affine).all() or not lengths.all() or volume < 1e-9 * lengths.prod():
        raise ValueError(
            f"{argument}: expected an invertible affine, voxels of a size above 0; {path} has {affine.tolist()}. "
            "Repair its spacing and directions."
        )
    if not is_orthonormal(affine):
        raise ValueError(
            f"{argument}: expected orthogonal axes, the only ones that ITK, ANTs and 3D Slicer know; {path} has a "
            f"sheared affine {affine.tolist()}. Resample it onto an orthogonal grid."
        )
    return affine


def _series(folder: Path, argument: str) -> tuple[str, ...]:
    """The files of the one series in a folder, in the order of their positions."""
    import itk

    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(True)
    names.SetDirectory(str(folder))
    series = {uid: tuple(names.GetFileNames(uid)) for uid in names.GetSeriesUIDs()}
    if len(series) != 1:
        found = "; ".join(f"{len(files)} files like {Path(files[0]).name}" for files in series.values())
        raise ValueError(
            f"{argument}: expected a folder with the files of one DICOM series; {folder} holds {len(series)} "
            f"({found or 'none that ITK knows'}). Put the files of the one to register into a folder of their own."
        )
    return next(iter(series.values()))


def _stacked(
    files: Sequence[str], direction: np.ndarray, origin: Sequence[float], path: Path, argument: str
) -> tuple[np.ndarray, float]:
    """Direction and spacing of a series, from where its slices lie."""
    headers = [_header(file, path, argument) for file in files]
    places = np.array([[header.GetOrigin(axis) for axis in range(3)] for header in headers])
    steps = np.diff(places, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    mean = steps.mean(0)
    if not lengths.min() > 0 or np.linalg.norm(steps - mean, axis=1).max() > UNEVEN * np.linalg.norm(mean):
        raise ValueError(
            f"{argument}: expected evenly spaced slices; those of {path} lie {lengths.min():.4g} to "
            f"{lengths.max():.4g} mm apart. Slices may be missing: put one complete stack into a folder."
        )
    length = float(np.linalg.norm(mean))
    return np.column_stack([direction[:, :2], mean / length]), length
