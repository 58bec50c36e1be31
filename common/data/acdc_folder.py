# SPDX-License-Identifier: Apache-2.0
"""Where an ACDC copy has its patients, and the files of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..io.images import load_grid
from ..io.orientation import slice_axis
from .layout import DatasetLayoutError, present, subject_folders

LAYOUT = (
    "expected DIR/training/patient001/{Info.cfg, patient001_frame01.nii.gz, patient001_frame01_gt.nii.gz, ...} and "
    "DIR/testing/patient101/..., or the patient folders directly under DIR. Request the data from the ACDC challenge "
    "of the Human Heart Project (CREATIS, Lyon) and unpack it there unchanged"
)


def patient_folders(base: Path) -> list[Path]:
    """List the patient folders of an ACDC copy, by patient number.

    Args:
        base: where a copy of the data set lies.

    Returns:
        Their paths.

    Raises:
        DatasetLayoutError: when the folder holds no patient, or a patient twice.
    """
    parents = [base, *(base / top / part for top in ("", "database") for part in ("training", "testing"))]
    return subject_folders(base, parents, r"patient\d{3}", LAYOUT)


def patient_files(folder: Path) -> dict[str, str]:
    """Files of a patient, moving = ED and fixed = ES, and what Info.cfg says of the patient.

    Args:
        folder: of the patient.

    Returns:
        Paths under ``moving_image``, ``fixed_image``, ``moving_label``, ``fixed_label`` and, of phantoms, ``true_ddf``,
        ``noise_level``; ``subject``: 'patient001'; ``group``: diagnosis, '' where not given.

    Raises:
        DatasetLayoutError: for a file that is missing, or an Info.cfg without the frames' numbers.
    """
    info = read_info(folder)
    frames = _frames(folder, info)
    files = {}
    for role, frame in zip(("moving", "fixed"), frames, strict=True):
        for kind, end in (("image", ""), ("label", "_gt")):
            path = folder / f"{folder.name}_{frame}{end}.nii.gz"
            if not path.is_file():
                raise DatasetLayoutError(f"{folder.name}: no file {path}; {LAYOUT}.")
            files[f"{role}_{kind}"] = str(path)
    moving, fixed = frames
    phantom = {"true_ddf": f"{moving}_to_{fixed}_ddf", "noise_level": f"{fixed}_noise"}
    files |= present({key: folder / f"{folder.name}_{end}.nii.gz" for key, end in phantom.items()})
    return files | {"subject": folder.name, "group": info.get("Group", "")}


def slice_count(files: Mapping[str, str]) -> int:
    """Number of short-axis slices, of which the header alone is read.

    Args:
        files: as ``patient_files`` returns.

    Returns:
        At least 1.

    Raises:
        DatasetLayoutError: for a stack whose slices cannot be told.
    """
    try:
        grid = load_grid(files["moving_image"], "image")
        return 1 if grid.array.dim() == 2 else grid.array.shape[slice_axis(grid)]
    except ValueError as error:
        raise DatasetLayoutError(f"{files['subject']}: {error}") from error


def read_info(folder: Path) -> dict[str, str]:
    """What Info.cfg says of a patient.

    Args:
        folder: of the patient.

    Returns:
        Text by key.

    Raises:
        DatasetLayoutError: where there is none.
    """
    path = folder / "Info.cfg"
    if not path.is_file():
        raise DatasetLayoutError(f"{folder.name}: no file {path}; {LAYOUT}.")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")  # accents in names of groups
    lines = [line.partition(":") for line in text.splitlines() if ":" in line]
    return {key.strip(): value.strip() for key, _, value in lines}


def _frames(folder: Path, info: dict[str, str]) -> tuple[str, str]:
    """Names of the ED and ES frames."""
    try:
        return f"frame{int(info['ED']):02d}", f"frame{int(info['ES']):02d}"
    except (KeyError, ValueError):
        raise DatasetLayoutError(
            f"{folder.name}: expected lines 'ED: <frame>' and 'ES: <frame>' in {folder / 'Info.cfg'}, got the keys "
            f"{sorted(info)}; restore the published file."
        ) from None
