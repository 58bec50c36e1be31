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

Files are read by their headers (``common.data.reading``): slices last, wherever they are stored, the plane's axes as
`ORIENTATION` where the header gives one (the release's frames are left-posterior as stored, their sform's voxels of
1 mm, the true ones in pixdim), labels where their affine places them. Voxels of 1 mm all round mean 'unknown spacing',
since processed copies of the data lose it that way; it is NaN then, and nothing may be given in millimetres.
Known spacing in the plane outside `SPACING_RANGE` is brought to `SPACING`.

Reference: Bernard et al., IEEE Transactions on Medical Imaging 37(11), 2018.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checks import known_name
from ..io.images import Image, same_grid
from ..io.nifti import file_affine, open_nifti, read_values
from ..io.orientation import resample_to_spacing, spacing_is_unknown
from ..transforms.crop import auto_centre, centroid
from ..transforms.intensity import clipped
from .layout import DatasetLayoutError
from .reading import read_case, slices_first

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test", "all")
CROP_CENTERS = ("middle_slice", "slice", "volume", "auto")
LABELS, MYOCARDIUM = range(4), 2
ORIENTATION, SPACING, SPACING_RANGE = "LPS", (1.5, 1.5), (1.2, 2.0)  # mm, in the plane
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
    dataset_dir: str | Path,
    split: str = "train",
    crop_center: str = "middle_slice",
    skip_invalid: bool = False,
    percentiles: Sequence[float] | None = (0, 99),
) -> list[dict[str, Any]]:
    """Read a split into memory: every short-axis slice a pair, moving = ED, fixed = ES. Each file is decoded once.

    Args:
        dataset_dir: see the module's layout.
        split: 'train', 'validation', 'test' or 'all'; see ``split_of``.
        crop_center: 'middle_slice': centroid of the ED myocardium in slice n // 2, for all slices of the patient (the
            nearest slice that has myocardium stands in); 'slice': in the slice itself, else as 'middle_slice';
            'volume': over all slices; 'auto': without labels, ``transforms.crop.auto_centre`` over the patient's stack.
        skip_invalid: leave unreadable patients out, with a logged warning each and their count.
        percentiles: lower and upper, in per cent, to which the intensities of each volume are clipped; None leaves
            them. The processed copies in circulation are clipped at 99, the release is not.

    Returns:
        A dict a slice. ``moving_image``, ``fixed_image``: float32 ``(1, X, Y)``, on the data set's axes;
        ``moving_label``, ``fixed_label``: uint8 ``(1, X, Y)``; ``centre``: float32 ``(2,)``, voxels; ``subject``:
        'patient001'; ``group``: diagnosis, '' where not given; ``slice``: int; ``spacing``: float32 ``(2,)`` in mm, in
        the plane, NaN where unknown; ``true_ddf``: float32 ``(2, X, Y)``, voxels, for phantoms.

    Raises:
        DatasetLayoutError: for a missing folder, an empty split, or a patient that is not as published.
        ValueError: for an unknown ``split`` or ``crop_center``, or percentiles that are not two in order.
    """
    clipped(torch.zeros(1), percentiles)  # before anything is read
    known_name("crop_center", crop_center, CROP_CENTERS)
    pairs: list[dict[str, Any]] = []
    skipped = []
    for folder in _folders(dataset_dir, split):
        try:
            pairs += _patient(folder, crop_center, percentiles)
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
    known_name("split", split, SPLITS)
    folders = find_patients(dataset_dir)
    chosen = [folder for folder in folders if split in ("all", split_of(_number(folder)))]
    if not chosen:
        raise DatasetLayoutError(
            f"split: {split!r} is empty; {dataset_dir} holds {len(folders)} patient(s), {folders[0].name} to "
            f"{folders[-1].name}. Test is patients above 100, validation those ending in 4 or 9, train the rest; add "
            "the missing folders or choose another split."
        )
    return chosen


def _patient(folder: Path, crop_center: str, percentiles: Sequence[float] | None) -> list[dict[str, Any]]:
    info = _info(folder)
    frames = _frames(folder, info)
    (moving, moving_label), (fixed, fixed_label) = (_frame(folder, frame) for frame in frames)
    if not same_grid(moving, fixed):
        raise DatasetLayoutError(
            f"{folder.name}: expected ED and ES on one grid, got shapes {tuple(moving.array.shape)} and "
            f"{tuple(fixed.array.shape)} with affines {moving.affine.tolist()} and {fixed.affine.tolist()}; resample ES"
            " to ED."
        )
    stacks = {
        "moving_image": slices_first(clipped(moving.array, percentiles)),
        "fixed_image": slices_first(clipped(fixed.array, percentiles)),
        "moving_label": slices_first(moving_label.array.byte()),
        "fixed_label": slices_first(fixed_label.array.byte()),
    }
    truth = folder / f"{folder.name}_{frames[0]}_to_{frames[1]}_ddf.nii.gz"
    if truth.is_file():
        stacks["true_ddf"] = _displacement(truth, moving)
    centres = _centres(stacks, crop_center, folder.name)
    spacing = torch.tensor([torch.nan] * 2 if spacing_is_unknown(moving) else moving.spacing[:2])
    shared = {"subject": folder.name, "group": info.get("Group", ""), "spacing": spacing}
    return [
        {key: stack[z] for key, stack in stacks.items()} | {"centre": centres[z], "slice": z} | shared
        for z in range(moving.array.shape[2])
    ]


def _frame(folder: Path, frame: str) -> tuple[Image, Image]:
    """Image and labels of one frame."""
    image, label = (folder / f"{folder.name}_{frame}{kind}.nii.gz" for kind in ("", "_gt"))
    for path in (image, label):
        if not path.is_file():
            raise DatasetLayoutError(f"{folder.name}: no file {path}; {LAYOUT}.")
    try:
        read = read_case(
            image, label, LABELS, spatial_dims=2, orientation=ORIENTATION, spacing=SPACING, spacing_range=SPACING_RANGE
        )
    except DatasetLayoutError as error:
        raise DatasetLayoutError(f"{folder.name}: {error}") from error
    if read[0].array.shape[2] == 1:
        logger.warning("%s: %s holds one slice.", folder.name, image)
    return read


def _info(folder: Path) -> dict[str, str]:
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


def _displacement(path: Path, image: Image) -> torch.Tensor:
    """True displacement (Z, 2, X, Y) in voxels of the image, which is reoriented and of the data set's spacing."""
    subject = path.parent.name
    try:
        nifti = open_nifti(path, "true displacement")
        values, affine = read_values(nifti, path, "true displacement"), file_affine(nifti, path, "true displacement")
    except ValueError as error:
        raise DatasetLayoutError(f"{subject}: {error}") from error
    if (
        values.ndim != 4
        or values.shape[2:] != (image.array.shape[2], 2)
        or (np.diag(affine) * (-1, -1, 1, 1) <= 0).any()
    ):
        raise DatasetLayoutError(
            f"{subject}: expected displacements of shape (X, Y, {image.array.shape[2]}, 2) along axes that point left,"
            f" posterior and superior in {path}, got {values.shape} with the affine {affine.tolist()}; generate the "
            "phantom anew."
        )
    field = torch.from_numpy(np.ascontiguousarray(values))
    if field.shape[:2] != image.array.shape[:2]:  # the images were brought to the data set's spacing
        parts = []
        for axis in range(2):
            own = Image(field[..., axis], affine, tuple(np.linalg.norm(affine[:3, :3], axis=0)))
            part = resample_to_spacing(own, image.spacing, "bilinear")
            parts.append(part.array * (own.spacing[axis] / image.spacing[axis]))
        field = torch.stack(parts, dim=-1)
    if field.shape[:3] != image.array.shape:
        raise DatasetLayoutError(
            f"{subject}: expected the images' shape {tuple(image.array.shape)} in {path}, got {tuple(field.shape[:3])};"
            " generate the phantom anew."
        )
    return field.permute(2, 3, 0, 1).contiguous()


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
