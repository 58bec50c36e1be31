# SPDX-License-Identifier: Apache-2.0
"""ACDC, Automated Cardiac Diagnosis Challenge: short-axis cine MRI at end-diastole (ED) and end-systole (ES).

Layout, as published::

    dataset_dir/[database/]training/patient001/Info.cfg                      ED, ES: frame numbers; Group; ...
                                               patient001_frame01.nii.gz     image at ED
                                               patient001_frame01_gt.nii.gz  labels: 1 RV, 2 myocardium, 3 LV
                                               patient001_frame12.nii.gz, patient001_frame12_gt.nii.gz  at ES
    dataset_dir/[database/]testing/patient101/...

or the patient folders directly under ``dataset_dir``; ``*_4d.nii.gz`` is not read. A phantom in this layout adds
``patient001_frame01_to_frame12_ddf.nii.gz``, the true displacement ``(X, Y, Z, 2)`` in voxels of the slice:
fixed(x) = moving(x + ddf(x)) with moving = ED, fixed = ES.

Spacing: zooms of exactly (1, 1, 1) mean 'unknown', since processed copies of the data lose the spacing that way; it is
NaN then, and nothing may be given in millimetres.

Reference: Bernard et al., IEEE Transactions on Medical Imaging 37(11), 2018.
"""

from __future__ import annotations

import logging
import re
import zlib
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import torch

from ..transforms.crop import auto_centre, centroid
from .layout import DatasetLayoutError

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test", "all")
CROP_CENTERS = ("middle_slice", "slice", "volume", "auto")
MYOCARDIUM = 2
LAYOUT = (
    "expected DIR/training/patient001/{Info.cfg, patient001_frame01.nii.gz, patient001_frame01_gt.nii.gz, ...} and "
    "DIR/testing/patient101/..., or the patient folders directly under DIR. Request the data from the ACDC challenge "
    "of the Human Heart Project (CREATIS, Lyon) and unpack it there unchanged"
)


def find_patients(dataset_dir: str | Path) -> list[Path]:
    """List the patient folders of an ACDC copy, by patient number.

    Raises:
        DatasetLayoutError: when the folder is missing, holds no patient, or holds a patient twice.
    """
    base = Path(dataset_dir)
    if not base.is_dir():
        raise DatasetLayoutError(f"dataset_dir: no folder {str(base)!r}; {LAYOUT}.")
    parents = [base, *(base / top / part for top in ("", "database") for part in ("training", "testing"))]
    found: dict[int, Path] = {}
    for parent in parents:
        for folder in parent.iterdir() if parent.is_dir() else ():
            if not (folder.is_dir() and re.fullmatch(r"patient\d{3}", folder.name)):
                continue
            other = found.setdefault(_number(folder), folder)
            if other != folder:
                raise DatasetLayoutError(f"dataset_dir: {folder.name} is there twice, {other} and {folder}; keep one.")
    if not found:
        raise DatasetLayoutError(f"dataset_dir: no patient folder in {str(base)!r}; {LAYOUT}.")
    return [found[number] for number in sorted(found)]


def split_of(number: int) -> str:
    """Split of a patient number: above 100 test; of the others those ending in 4 or 9 validation, the rest train.

    With all 150 patients these are the paper's sizes, 80 / 20 / 50.
    """
    if number > 100:
        return "test"
    return "validation" if number % 10 in (4, 9) else "train"


def subjects(dataset_dir: str | Path, split: str = "all") -> list[str]:
    """Names (``patient001``) of the patients of a split, by number. Raises as ``find_patients``; see ``split_of``."""
    return [folder.name for folder in _folders(dataset_dir, split)]


def frame_files(dataset_dir: str | Path, subject: str) -> tuple[Path, Path]:
    """Image files of one patient, moving = ED and fixed = ES.

    Args:
        dataset_dir: see the module's layout.
        subject: 'patient001'.

    Raises:
        DatasetLayoutError: as ``find_patients``, and when the patient or its frame numbers are missing.
    """
    folders = {folder.name: folder for folder in find_patients(dataset_dir)}
    if subject not in folders:
        raise DatasetLayoutError(f"subject: expected one of {dataset_dir}, {sorted(folders)}, got {subject!r}.")
    folder = folders[subject]
    ed, es = (folder / f"{subject}_{frame}.nii.gz" for frame in _frames(folder, _info(folder)))
    return ed, es


def load_pairs(
    dataset_dir: str | Path, split: str = "train", crop_center: str = "middle_slice", skip_invalid: bool = False
) -> list[dict[str, Any]]:
    """Read a split into memory: every short-axis slice a pair, moving = ED, fixed = ES. Each file is decoded once.

    Args:
        dataset_dir: see the module's layout.
        split: 'train', 'validation', 'test' or 'all'; see ``split_of``.
        crop_center: 'middle_slice': centroid of the ED myocardium in slice n // 2, for all slices of the patient (the
            nearest slice that has myocardium stands in); 'slice': in the slice itself, else as 'middle_slice';
            'volume': over all slices; 'auto': without labels, ``transforms.crop.auto_centre`` over the patient's stack.
        skip_invalid: leave unreadable patients out, with a logged warning each and their count.

    Returns:
        A dict a slice. ``moving_image``, ``fixed_image``: float32 ``(1, X, Y)``, intensities and axes as stored;
        ``moving_label``, ``fixed_label``: uint8 ``(1, X, Y)``; ``centre``: float32 ``(2,)``, voxels; ``subject``:
        'patient001'; ``group``: diagnosis, '' where not given; ``slice``: int; ``spacing``: float32 ``(2,)`` in mm, in
        the plane, NaN where unknown; ``true_ddf``: float32 ``(2, X, Y)``, voxels, for phantoms.

    Raises:
        DatasetLayoutError: for a missing folder, an empty split, or a patient that is not as published.
        ValueError: for an unknown ``split`` or ``crop_center``.
    """
    if crop_center not in CROP_CENTERS:
        raise ValueError(f"crop_center: expected one of {CROP_CENTERS}, got {crop_center!r}.")
    pairs: list[dict[str, Any]] = []
    skipped = []
    for folder in _folders(dataset_dir, split):
        try:
            pairs += _patient(folder, crop_center)
        except DatasetLayoutError as error:
            if not skip_invalid:
                raise
            skipped.append(folder.name)
            logger.warning("skipping %s: %s", folder.name, error)
    if skipped:
        logger.warning("skipped %d invalid patient(s) of split %r: %s", len(skipped), split, ", ".join(skipped))
    if not pairs:
        raise DatasetLayoutError(f"split {split!r}: no valid patient is left in {dataset_dir}; skipped {skipped}.")
    return pairs


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("patient"))


def _folders(dataset_dir: str | Path, split: str) -> list[Path]:
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {SPLITS}, got {split!r}.")
    folders = find_patients(dataset_dir)
    chosen = [folder for folder in folders if split in ("all", split_of(_number(folder)))]
    if not chosen:
        raise DatasetLayoutError(
            f"split: {split!r} is empty; {dataset_dir} holds {len(folders)} patient(s), {folders[0].name} to "
            f"{folders[-1].name}. Test is patients above 100, validation those ending in 4 or 9, train the rest; add "
            "the missing folders or choose another split."
        )
    return chosen


def _patient(folder: Path, crop_center: str) -> list[dict[str, Any]]:
    info = _info(folder)
    ed, es = _frames(folder, info)
    stem = f"{folder.name}_"
    header = _open(folder / f"{stem}{ed}.nii.gz")
    other = _open(folder / f"{stem}{es}.nii.gz")
    if header.shape != other.shape or not np.allclose(header.affine, other.affine, atol=1e-3):
        raise DatasetLayoutError(
            f"{folder.name}: expected ED and ES on one grid, got shapes {header.shape} and {other.shape} with affines "
            f"{header.affine.tolist()} and {other.affine.tolist()}; resample ES to ED."
        )
    stacks = {
        "moving_image": _image(header, folder.name),
        "fixed_image": _image(other, folder.name),
        "moving_label": _label(folder / f"{stem}{ed}_gt.nii.gz", header.shape),
        "fixed_label": _label(folder / f"{stem}{es}_gt.nii.gz", header.shape),
    }
    truth = folder / f"{stem}{ed}_to_{es}_ddf.nii.gz"
    if truth.is_file():
        stacks["true_ddf"] = _displacement(truth, header.shape)
    centres = _centres(stacks, crop_center, folder.name)
    shared = {"subject": folder.name, "group": info.get("Group", ""), "spacing": _spacing(header)}
    return [
        {key: stack[z] for key, stack in stacks.items()} | {"centre": centres[z], "slice": z} | shared
        for z in range(header.shape[2])
    ]


def _info(folder: Path) -> dict[str, str]:
    path = folder / "Info.cfg"
    if not path.is_file():
        raise DatasetLayoutError(f"{folder.name}: no file {path}; {LAYOUT}.")
    lines = [line.partition(":") for line in path.read_text().splitlines() if ":" in line]
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


def _open(path: Path) -> nibabel.Nifti1Image:
    if not path.is_file():
        raise DatasetLayoutError(f"{path.parent.name}: no file {path}; {LAYOUT}.")
    try:
        volume = nibabel.load(path)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, zlib.error) as error:
        raise DatasetLayoutError(f"{path.parent.name}: cannot read {path} ({error}); copy it anew.") from error
    return cast(nibabel.Nifti1Image, volume)


def _array(volume: nibabel.Nifti1Image, subject: str) -> np.ndarray:
    try:
        return np.asanyarray(volume.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DatasetLayoutError(
            f"{subject}: cannot decode {volume.get_filename()} ({error}); copy it anew."
        ) from error


def _stack(array: np.ndarray, dtype: Any) -> torch.Tensor:
    """(X, Y, Z) -> (Z, 1, X, Y), contiguous, so that each slice is."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)[:, None], dtype=dtype))


def _image(volume: nibabel.Nifti1Image, subject: str) -> torch.Tensor:
    name = volume.get_filename()
    array = _array(volume, subject)
    if array.ndim != 3:
        raise DatasetLayoutError(f"{subject}: expected (X, Y, Z) in {name}, got the shape {array.shape}.")
    stack = _stack(array, np.float32)
    if not torch.isfinite(stack).all():
        raise DatasetLayoutError(
            f"{subject}: expected finite intensities in {name}, got NaN or infinity; copy it anew."
        )
    if stack.min() == stack.max():
        raise DatasetLayoutError(f"{subject}: expected an image in {name}, got the constant {float(stack.min())}.")
    return stack


def _label(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    array = _array(_open(path), path.parent.name)
    if array.shape != shape:
        raise DatasetLayoutError(
            f"{path.parent.name}: expected the images' shape {shape} in {path}, got {array.shape}; resample the labels "
            "to the images' grid (nearest neighbour)."
        )
    if not np.isin(array, (0, 1, 2, 3)).all():
        raise DatasetLayoutError(
            f"{path.parent.name}: expected the labels 0 to 3 in {path}, got {np.unique(array)[:8].tolist()}; restore "
            "the published file."
        )
    return _stack(array, np.uint8)


def _displacement(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    array = _array(_open(path), path.parent.name)
    if array.shape != (*shape, 2) or not np.isfinite(array).all():
        raise DatasetLayoutError(
            f"{path.parent.name}: expected finite displacements of shape {(*shape, 2)} in {path}, got {array.shape}; "
            "generate the phantom anew."
        )
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 3, 0, 1), dtype=np.float32))


def _spacing(volume: nibabel.Nifti1Image) -> torch.Tensor:
    zooms = [float(zoom) for zoom in volume.header.get_zooms()[:3]]
    return torch.full((2,), torch.nan) if zooms == [1.0, 1.0, 1.0] else torch.tensor(zooms[:2])


def _centres(stacks: dict[str, torch.Tensor], crop_center: str, subject: str) -> list[torch.Tensor]:
    """One centre (2,) a slice."""
    count = len(stacks["moving_image"])
    if crop_center == "auto":
        return [auto_centre(stacks["moving_image"], stacks["fixed_image"])] * count
    myocardium = stacks["moving_label"][:, 0] == MYOCARDIUM
    own = [centroid(mask) for mask in myocardium]
    present = {z: point for z, point in enumerate(own) if point is not None}
    whole = centroid(myocardium)
    if whole is None:
        raise DatasetLayoutError(
            f"{subject}: expected myocardium (label {MYOCARDIUM}) at ED to centre the crop on, got none; use "
            "crop_center='auto'."
        )
    if crop_center == "volume":
        return [whole[1:]] * count
    middle = present[min(present, key=lambda z: abs(z - count // 2))]
    return [present.get(z, middle) if crop_center == "slice" else middle for z in range(count)]
