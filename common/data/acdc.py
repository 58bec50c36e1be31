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
fixed(x) = moving(x + ddf(x)) with moving = ED, fixed = ES, and ``patient001_frame12_noise.nii.gz``, the standard
deviation of the noise of ES.

Every short-axis slice is a pair. Files are read by their headers (``common.data.reading``): slices last, wherever they
are stored, the plane's axes as `ORIENTATION` where the header gives one (the release's frames are left-posterior as
stored, their sform's voxels of 1 mm, the true ones in pixdim), labels where their affine places them. Voxels of 1 mm
all round mean 'unknown spacing', since processed copies of the data lose it that way; it is NaN then, and nothing may
be given in millimetres. Known spacing in the plane outside `SPACING_RANGE` is brought to `SPACING`.

Reference: Bernard et al., IEEE Transactions on Medical Imaging 37(11), 2018.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..checks import known_name
from ..io.images import Image
from ..io.orientation import spacing_is_unknown
from ..transforms.intensity import clipped
from .acdc_folder import LAYOUT, patient_files, patient_folders, slice_count
from .acdc_phantom import PHANTOM
from .centres import CROP_CENTERS, slice_centres
from .decoded import MEMORY, DecodedPairs
from .layout import DatasetLayoutError, Invalid, dataset_root
from .reading import check_phases, read_case, read_displacement, read_noise_level, slices_first

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test", "all")
LABELS = {"myocardium": 2, "lv": 3, "rv": 1}
ORIENTATION, SPACING, SPACING_RANGE = "LPS", (1.5, 1.5), (1.2, 2.0)  # mm, in the plane
SPATIAL_SIZE = (128, 128)  # of the network's window
# How inference reads a pair of images; what is not said here is as in training.
INFERENCE = {
    "align": "physical", "orientation": ORIENTATION, "spacing": SPACING, "spacing_range": SPACING_RANGE,
    "crop_center": "auto",
}  # fmt: skip
TENSORS = ("moving_image", "fixed_image", "moving_label", "fixed_label", "true_ddf", "noise_level")


def root(dataset_dir: str | Path) -> Path:
    """Folder of the data set; "phantom" makes the phantom, once.

    Args:
        dataset_dir: see the module's layout, or "phantom".

    Returns:
        The folder.

    Raises:
        DatasetLayoutError: where it is absent.
    """
    return dataset_root(dataset_dir, PHANTOM.folder, LAYOUT)


def split_of(subject: str) -> str:
    """Split of a patient: above number 100 test; of the others those ending in 4 or 9 validation, the rest train.

    With all 150 patients these are the paper's sizes, 80 / 20 / 50.

    Args:
        subject: 'patient001'.

    Returns:
        Name of the split.

    Raises:
        ValueError: for a name of another form.
    """
    number = re.fullmatch(r"patient(\d{3})", subject)
    if number is None:
        raise ValueError(f"subject: expected a name like 'patient001', got {subject!r}.")
    if int(number[1]) > 100:
        return "test"
    return "validation" if subject[-1] in "49" else "train"


def subjects(dataset_dir: str | Path, split: str = "all") -> list[str]:
    """Names (``patient001``) of the patients of a split, sorted.

    Args:
        dataset_dir: see the module's layout, or "phantom".
        split: one of ``SPLITS``; see ``split_of``.

    Returns:
        The names.

    Raises:
        DatasetLayoutError: when the folder is missing, holds no patient of the split, or a patient twice.
        ValueError: for an unknown split.
    """
    return [folder.name for folder in _folders(dataset_dir, split)]


def frame_files(dataset_dir: str | Path, subject: str) -> tuple[Path, Path]:
    """Image files of one patient, moving = ED and fixed = ES.

    Args:
        dataset_dir: see the module's layout, or "phantom".
        subject: 'patient001'.

    Returns:
        Paths of moving and fixed.

    Raises:
        DatasetLayoutError: as ``subjects``, and when the patient or one of its files is missing.
    """
    folders = {folder.name: folder for folder in _folders(dataset_dir, "all")}
    if subject not in folders:
        raise DatasetLayoutError(f"subject: expected one of {dataset_dir}, {sorted(folders)}, got {subject!r}.")
    files = patient_files(folders[subject])
    return Path(files["moving_image"]), Path(files["fixed_image"])


def example_pair(dataset_dir: str | Path) -> tuple[Path, Path]:
    """Image files, ED and ES, of the first validation patient.

    Args:
        dataset_dir: see ``subjects``.

    Returns:
        Paths of moving and fixed.

    Raises:
        DatasetLayoutError: as ``frame_files``.
    """
    folder = root(dataset_dir)
    return frame_files(folder, subjects(folder, "validation")[0])


def datalist(dataset_dir: str | Path, split: str = "train", skip_invalid: bool = False) -> list[dict[str, Any]]:
    """The files of a split, a dictionary a slice, in the order of ``load_pairs``; of images headers alone are read.

    Args:
        dataset_dir: see ``subjects``.
        split: see ``subjects``.
        skip_invalid: leave out patients whose files or headers are not as published, with a warning each.

    Returns:
        What ``acdc_folder.patient_files`` returns, and ``slice``: int. JSON-serialisable.

    Raises:
        DatasetLayoutError: as ``subjects``, and for a patient that is not as published.
        ValueError: for an unknown split.
    """
    invalid = Invalid(skip_invalid)
    entries = _entries(_folders(dataset_dir, split), invalid)
    invalid.report(split, dataset_dir, len(entries))
    return entries


def load_pairs(
    dataset_dir: str | Path,
    split: str = "train",
    crop_center: str = "middle_slice",
    skip_invalid: bool = False,
    percentiles: Sequence[float] | None = (0, 99),
    cache: str | Path = MEMORY,
) -> Sequence[dict[str, Any]]:
    """Read a split: every short-axis slice a pair, moving = ED, fixed = ES. Each file is decoded once.

    Args:
        dataset_dir: see ``subjects``.
        split: see ``subjects``.
        crop_center: 'middle_slice': centroid of the ED myocardium in slice n // 2, for all slices of the patient (the
            nearest slice that has myocardium stands in); 'slice': in the slice itself, else as 'middle_slice';
            'volume': over all slices; 'auto': without labels, ``transforms.crop.auto_centre`` over the patient's stack.
        skip_invalid: leave unreadable patients out, with a logged warning each and their count. All are read at once.
        percentiles: lower and upper, in per cent, to which the intensities of each volume are clipped; None leaves
            them. The processed copies in circulation are clipped at 99, the release is not.
        cache: "memory", or a folder for decoded patients, see ``data.decoded``.

    Returns:
        A dict a slice, in memory a list of them. ``moving_image``, ``fixed_image``: float32 ``(1, X, Y)``, on the data
        set's axes; ``moving_label``, ``fixed_label``: uint8 ``(1, X, Y)``; ``centre``: float32 ``(2,)``, voxels;
        ``subject``: 'patient001'; ``group``: diagnosis, '' where not given; ``slice``: int; ``spacing``: float32
        ``(2,)`` in mm, in the plane, NaN where unknown; for phantoms ``true_ddf``: float32 ``(2, X, Y)``, voxels, and
        ``noise_level``: float32 ``(1, X, Y)``, standard deviation of the noise of the fixed image, in its units.

    Raises:
        DatasetLayoutError: for a missing folder, an empty split, or a patient that is not as published.
        ValueError: for an unknown ``split`` or ``crop_center``, or percentiles that are not two in order.
    """
    clipped(torch.zeros(1), percentiles)  # before anything is read
    known_name("crop_center", crop_center, CROP_CENTERS)
    options = {"crop_center": crop_center, "percentiles": percentiles}
    invalid = Invalid(skip_invalid)
    entries = _entries(_folders(dataset_dir, split), invalid)
    pairs = DecodedPairs(
        entries,
        parts=lambda entry: [{key: entry[key] for key in entry if key != "slice"} | options],
        read=read_patient,
        join=_slice_pair,
        cache=cache,
        lazily=skip_invalid,
    )
    return pairs.finished(invalid, split, dataset_dir)


def read_patient(part: Mapping[str, Any]) -> dict[str, Any]:
    """Decode a patient.

    Args:
        part: as ``acdc_folder.patient_files`` returns, and ``crop_center``, ``percentiles`` of ``load_pairs``.

    Returns:
        The tensors of ``load_pairs``, stacked: ``(Z, …)``; ``spacing`` ``(2,)``.

    Raises:
        DatasetLayoutError: naming the patient, for files that are not as published.
    """
    subject, percentiles = part["subject"], part["percentiles"]
    try:
        (moving, moving_label), (fixed, fixed_label) = (_frame(part, role) for role in ("moving", "fixed"))
        check_phases(moving, fixed)
        stacks = {
            "moving_image": slices_first(clipped(moving.array, percentiles)),
            "fixed_image": slices_first(clipped(fixed.array, percentiles)),
            "moving_label": slices_first(moving_label.array.byte()),
            "fixed_label": slices_first(fixed_label.array.byte()),
        }
        if "true_ddf" in part:
            stacks["true_ddf"] = read_displacement(part["true_ddf"], moving, ORIENTATION)
        if "noise_level" in part:
            stacks["noise_level"] = read_noise_level(part["noise_level"], fixed, ORIENTATION)
        stacks["centre"] = torch.stack(slice_centres(stacks, part["crop_center"], LABELS["myocardium"]))
    except DatasetLayoutError as error:
        raise DatasetLayoutError(f"{subject}: {error}") from error
    if moving.array.shape[2] == 1:
        logger.warning("%s: %s holds one slice.", subject, part["moving_image"])
    return stacks | {"spacing": torch.tensor([torch.nan] * 2 if spacing_is_unknown(moving) else moving.spacing[:2])}


def _folders(dataset_dir: str | Path, split: str) -> list[Path]:
    known_name("split", split, SPLITS)
    folders = patient_folders(root(dataset_dir))
    found = [folder for folder in folders if split in ("all", split_of(folder.name))]
    if not found:
        raise DatasetLayoutError(
            f"split: {split!r} is empty; {dataset_dir} holds {len(folders)} patient(s), {folders[0].name} to "
            f"{folders[-1].name}. Test is patients above 100, validation those ending in 4 or 9, train the rest; add "
            "the missing folders or choose another split."
        )
    return found


def _entries(folders: Sequence[Path], invalid: Invalid) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for folder in folders:
        with invalid.left_out(folder.name):
            files = patient_files(folder)
            entries += [{**files, "slice": number} for number in range(slice_count(files))]
    return entries


def _frame(part: Mapping[str, Any], role: str) -> tuple[Image, Image]:
    """Image and labels of one frame."""
    return read_case(
        part[f"{role}_image"], part[f"{role}_label"], (0, *LABELS.values()), spatial_dims=2, orientation=ORIENTATION,
        spacing=SPACING, spacing_range=SPACING_RANGE,
    )  # fmt: skip


def _slice_pair(entry: Mapping[str, Any], patient: Mapping[str, Any]) -> dict[str, Any]:
    number = entry["slice"]
    tensors = {key: patient[key][number] for key in (*TENSORS, "centre") if key in patient}
    details = {key: entry[key] for key in ("subject", "group", "slice")}
    return tensors | details | {"spacing": patient["spacing"]}
