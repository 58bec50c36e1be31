# SPDX-License-Identifier: Apache-2.0
"""3D echocardiography of the left ventricle at end-diastole (ED) and end-systole (ES), yours, in a plain layout.

Layout::

    dataset_dir/SUBJECT/ED.nii.gz          volume at end-diastole, of any size and spacing
                        ES.nii.gz          at end-systole, on the same grid
                        ED_label.nii.gz    labels: 1 cavity, 2 myocardium (epicardium less endocardium)
                        ES_label.nii.gz
    dataset_dir/train.txt, validation.txt, test.txt    optional: a subject a line

SUBJECT is any name of letters, digits, '.', '-' and '_'. Without split files a hash of the name decides, whatever other
subjects there are. A phantom in this layout adds ``ED_to_ES_ddf.nii.gz``, the true displacement ``(X, Y, Z, 3)`` in
voxels of the file: fixed(x) = moving(x + ddf(x)) with moving = ED, fixed = ES, and ``ES_noise.nii.gz``, the
standard deviation of the noise of ES.

Each subject is a pair. The whole volume is brought to ``spatial_size``, as published, its aspect ratio lost. Voxels of
1 mm all round mean 'unknown spacing', since arrays that are saved without a header come that way; it is NaN then.

The published scans (8 synthetic, 40 canine, 51 porcine) are private. One paper scores at the original size, the
displacement brought to it (``original_labels``, with ``metrics.original.OriginalLabelMeasures``), the other at 64³.

Reference: Zhang et al., Adaptive Correspondence Scoring for Unsupervised Medical Image Registration, ECCV 2024;
Zhang et al., Heteroscedastic Uncertainty Estimation Framework for Unsupervised Registration, MICCAI 2024.
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
from ..io.spacing import resample_to_spacing, spacing_of_size
from .decoded import MEMORY, DecodedPairs
from .echo3d_phantom import PHANTOM, split_by_name
from .layout import DatasetLayoutError, Invalid, dataset_root, present
from .reading import check_phases, read_case, read_displacement, read_noise_level

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test", "all")
NAME = r"[A-Za-z0-9._-]+"
LABELS = {"myocardium": 2, "cavity": 1}
ORIENTATION, SPACING, SPACING_RANGE = "RAS", None, None
SPATIAL_SIZE = (64, 64, 64)  # to which the whole volume is brought
# How inference reads a pair of images; what is not said here is as in training.
INFERENCE = {"align": "physical", "orientation": ORIENTATION, "resize": True, "crop_center": "middle"}
LAYOUT = (
    "expected DIR/SUBJECT/ED.nii.gz, ES.nii.gz, ED_label.nii.gz and ES_label.nii.gz of each subject, labels 1 cavity "
    "and 2 myocardium; put your own volumes there"
)
FILES = {
    "moving_image": "ED.nii.gz", "fixed_image": "ES.nii.gz",
    "moving_label": "ED_label.nii.gz", "fixed_label": "ES_label.nii.gz",
}  # fmt: skip
PHANTOM_FILES = {"true_ddf": "ED_to_ES_ddf.nii.gz", "noise_level": "ES_noise.nii.gz"}


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
    """Split of a subject where no file says it, by a hash of its name: 60 % train, 20 % validation, 20 % test.

    Args:
        subject: 'pig07'.

    Returns:
        Name of the split.

    Raises:
        ValueError: for a name with other signs than letters, digits, '.', '-' and '_'.
    """
    if not re.fullmatch(NAME, subject):
        raise ValueError(
            f"subject: expected a name like 'pig07', of letters, digits, '.', '-' and '_', got {subject!r}."
        )
    return split_by_name(subject)


def subjects(dataset_dir: str | Path, split: str = "all") -> list[str]:
    """Names of the subjects of a split, sorted.

    Args:
        dataset_dir: see ``root``.
        split: one of ``SPLITS``: as the split files say, where there is one, else see ``split_of``. "all" is those of
            the three others; subjects that no split file lists are left out with a warning.

    Returns:
        The names.

    Raises:
        DatasetLayoutError: when the folder is missing or holds no subject of the split, for folders of other names, and
            for split files that list an absent subject or one twice.
        ValueError: for an unknown split.
    """
    known_name("split", split, SPLITS)
    folder = root(dataset_dir)
    names = sorted(path.parent.name for path in folder.glob("*/ED.nii.gz"))
    if not names:
        raise DatasetLayoutError(f"dataset_dir: no subject in {str(folder)!r}; {LAYOUT}.")
    odd = [name for name in names if not re.fullmatch(NAME, name)]
    if odd:
        raise DatasetLayoutError(
            f"dataset_dir: expected names of letters, digits, '.', '-' and '_', got {odd}; rename."
        )
    splits = _listed(folder, names) or {name: split_of(name) for name in names}
    found = [name for name in names if name in splits and split in ("all", splits[name])]
    if not found:
        raise DatasetLayoutError(
            f"split: no subject of {split!r} among the {len(names)} in {folder}; list some in {split}.txt, beside "
            f"files for the other splits. {LAYOUT}."
        )
    return found


def example_pair(dataset_dir: str | Path) -> tuple[Path, Path]:
    """Volumes of the first validation subject, ED and ES.

    Args:
        dataset_dir: see ``root``.

    Returns:
        Paths of moving and fixed.

    Raises:
        DatasetLayoutError: as ``datalist``.
    """
    first = datalist(dataset_dir, "validation")[0]
    return Path(first["moving_image"]), Path(first["fixed_image"])


def datalist(dataset_dir: str | Path, split: str = "train", skip_invalid: bool = False) -> list[dict[str, Any]]:
    """The files of a split, a dictionary a subject, in the order of ``load_pairs``; none is read.

    Args:
        dataset_dir: see ``root``.
        split: see ``subjects``.
        skip_invalid: leave out subjects that lack a file, with a warning each.

    Returns:
        Paths under ``moving_image``, ``fixed_image``, ``moving_label``, ``fixed_label``, and of phantoms ``true_ddf``,
        ``noise_level``; ``subject``. JSON-serialisable.

    Raises:
        DatasetLayoutError: as ``subjects``, and for a subject that lacks a file.
        ValueError: for an unknown split.
    """
    invalid, entries = Invalid(skip_invalid), []
    folder = root(dataset_dir)
    for name in subjects(folder, split):
        with invalid.left_out(name):
            files = {key: folder / name / file for key, file in FILES.items()}
            absent = [str(path) for path in files.values() if not path.is_file()]
            if absent:
                raise DatasetLayoutError(f"{name}: no file {', '.join(absent)}; {LAYOUT}.")
            besides = present({key: folder / name / file for key, file in PHANTOM_FILES.items()})
            entries.append({key: str(path) for key, path in files.items()} | besides | {"subject": name})
    invalid.report(split, dataset_dir, len(entries))
    return entries


def load_pairs(
    dataset_dir: str | Path,
    split: str = "train",
    spatial_size: Sequence[int] = SPATIAL_SIZE,
    skip_invalid: bool = False,
    original_labels: bool = False,
    cache: str | Path = MEMORY,
) -> Sequence[dict[str, Any]]:
    """Read a split: each subject a pair, moving = ED, fixed = ES. Each file is decoded once.

    Args:
        dataset_dir: see ``datalist``.
        split: see ``datalist``.
        spatial_size: voxels to which the whole volume is brought, three numbers.
        skip_invalid: leave out subjects that lack a file or cannot be read, with a warning each.
        original_labels: deliver the labels at their original size besides, for scoring there.
        cache: "memory", or a folder for decoded subjects, see ``data.decoded``.

    Returns:
        A dict a pair, in memory a list of them. ``moving_image``, ``fixed_image``: float32 ``(1, *S)``;
        ``moving_label``, ``fixed_label``: uint8 ``(1, *S)``; ``centre``: float32 ``(3,)``, of the volume; ``subject``;
        ``spacing``: float32 ``(3,)`` in mm, NaN where unknown; for phantoms ``true_ddf``: float32 ``(3, *S)``, voxels,
        and ``noise_level``: float32 ``(1, *S)``, standard deviation of the noise of the fixed image, in its units;
        where asked for ``moving_label_original``, ``fixed_label_original``: uint8 ``(1, *O)``, and
        ``spacing_original``: float32 ``(3,)``.

    Raises:
        DatasetLayoutError: as ``datalist``, and for files that are not as the layout says.
        ValueError: as ``datalist``, and for a size that is not three numbers.
    """
    if len(spatial_size) != 3:
        raise ValueError(
            f"spatial_size: expected three numbers for the volumes of this data set, got {list(spatial_size)}."
        )
    options = {"spatial_size": [int(n) for n in spatial_size], "original": bool(original_labels)}
    invalid = Invalid(skip_invalid)
    pairs = DecodedPairs(
        datalist(dataset_dir, split, skip_invalid),
        parts=lambda entry: [{**entry, **options}],
        read=read_subject,
        join=_pair,
        cache=cache,
        lazily=skip_invalid,
    )
    return pairs.finished(invalid, split, dataset_dir)


def read_subject(part: Mapping[str, Any]) -> dict[str, Any]:
    """Decode a subject, ED and ES.

    Args:
        part: as ``datalist`` returns, and ``spatial_size``, ``original`` of ``load_pairs``.

    Returns:
        The tensors of ``load_pairs``.

    Raises:
        DatasetLayoutError: naming the subject, for files that are not as the layout says.
    """
    try:
        (moving, moving_label), (fixed, fixed_label) = (
            read_case(part[f"{role}_image"], part[f"{role}_label"], (0, *LABELS.values()), orientation=ORIENTATION)
            for role in ("moving", "fixed")
        )
        check_phases(moving, fixed)
        spacing = spacing_of_size(moving, part["spatial_size"])
        resized = [resample_to_spacing(image, spacing, "bilinear") for image in (moving, fixed)]
        small = [resample_to_spacing(label, spacing, "nearest").array for label in (moving_label, fixed_label)]
        reads = {"true_ddf": read_displacement, "noise_level": read_noise_level}
        truths = {key: read(part[key], resized[1], ORIENTATION, 3) for key, read in reads.items() if key in part}
    except DatasetLayoutError as error:
        raise DatasetLayoutError(f"{part['subject']}: {error}") from error
    tensors = {"moving_image": resized[0].array[None], "fixed_image": resized[1].array[None],
               "moving_label": small[0][None].byte(), "fixed_label": small[1][None].byte(),
               "centre": (torch.tensor(part["spatial_size"], dtype=torch.float32) - 1) / 2,
               "spacing": _known(spacing, moving)}  # fmt: skip
    if part["original"]:
        labels = {"moving_label_original": moving_label, "fixed_label_original": fixed_label}
        tensors |= {key: label.array[None].byte() for key, label in labels.items()}
        tensors["spacing_original"] = _known(moving.spacing, moving)
    return tensors | truths


def _pair(entry: Mapping[str, Any], subject: Mapping[str, Any]) -> dict[str, Any]:
    return {**subject, "subject": entry["subject"]}


def _known(spacing: Sequence[float], stored: Image) -> torch.Tensor:
    return torch.tensor([torch.nan] * 3 if spacing_is_unknown(stored) else list(spacing))


def _listed(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Split by subject, from the split files; empty where there is none."""
    splits: dict[str, str] = {}
    files = [folder / f"{split}.txt" for split in SPLITS[:-1] if (folder / f"{split}.txt").is_file()]
    for file in files:
        for name in file.read_text(encoding="utf-8-sig").split():
            if name not in names:
                raise DatasetLayoutError(f"{file} lists {name!r}, which is not in {folder}; mend the list or the data.")
            if name in splits:
                raise DatasetLayoutError(
                    f"{file} lists {name!r}, which {splits[name]}.txt lists too; keep one of them."
                )
            splits[name] = file.stem
    unlisted = [name for name in names if name not in splits]
    if files and unlisted:
        logger.warning("%s list no split for %s, which are left out.", ", ".join(f.name for f in files), unlisted)
    return splits
