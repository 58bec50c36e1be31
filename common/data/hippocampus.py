# SPDX-License-Identifier: Apache-2.0
"""Hippocampus, Medical Segmentation Decathlon Task04: T1 MR crops, registered between subjects.

Layout, as published::

    dataset_dir/[Task04_Hippocampus/]imagesTr/hippocampus_001.nii.gz    image, 1 mm
                                     labelsTr/hippocampus_001.nii.gz    labels: 1 anterior, 2 posterior

``imagesTs`` has no labels and is not read. Files are read by their headers (``common.data.reading``): axes brought to
RAS, voxels to 1 mm, labels laid where their affine places them.

Volumes differ in shape. Each is laid with its geometric centre on that of one working grid, not corner on corner: the
identity's Dice is 0.55 then, and 0.46 with aligned corners. What a volume lacks is padded, what is too large cut off.

Pairs follow from the sorted names s_0 … s_{n-1} of a split, and from nothing else: the k-th partner of s_i lies
1 + (k + 3) mod (n - 1) further in cyclic order, so the first one five further; moving the partner, fixed s_i. Direct
neighbours come last, as consecutive numbers resemble each other (identity's Dice 0.63, else 0.55: perhaps both sides of
one person). With one partner every subject is fixed once and moving once.

Reference: Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13, 2022.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..checks import known_name
from ..transforms.crop import centre_on_grid
from ..transforms.intensity import clipped
from .layout import DatasetLayoutError
from .reading import read_case

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "all")
LABELS = range(3)
ORIENTATION, SPACING = "RAS", (1.0, 1.0, 1.0)  # mm
LAYOUT = (
    "expected DIR/imagesTr/hippocampus_001.nii.gz, … and DIR/labelsTr/hippocampus_001.nii.gz, …; get "
    "Task04_Hippocampus from the Medical Segmentation Decathlon and unpack it there unchanged"
)


def find_subjects(dataset_dir: str | Path, split: str = "all") -> list[str]:
    """Names (``hippocampus_001``) of the labelled subjects of a split, sorted.

    Numbers ending in 4 or 9 are validation, the rest train.

    Raises:
        DatasetLayoutError: when the folder is missing or holds no subject of the split.
        ValueError: for an unknown split.
    """
    known_name("split", split, SPLITS)
    folder = _folder(dataset_dir)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "imagesTr").glob("hippocampus_*.nii.gz"))
    chosen = [name for name in names if split in ("all", _split_of(name))]
    if not chosen:
        raise DatasetLayoutError(f"split: no subject of {split!r} among the {len(names)} in {folder}; {LAYOUT}.")
    return chosen


def image_files(dataset_dir: str | Path, moving: str, fixed: str) -> tuple[Path, Path]:
    """Image files of two subjects. Raises ``DatasetLayoutError`` where one is absent."""
    names = find_subjects(dataset_dir)
    absent = [name for name in (moving, fixed) if name not in names]
    if absent:
        raise DatasetLayoutError(f"expected subjects of {dataset_dir}, {names[:3]}, …; {absent} is not among them.")
    moving_file, fixed_file = (_folder(dataset_dir) / "imagesTr" / f"{name}.nii.gz" for name in (moving, fixed))
    return moving_file, fixed_file


def pair_names(names: Sequence[str], partners: int) -> list[tuple[str, str]]:
    """The documented list of (moving, fixed): each subject fixed, its first partners moving (see the module).

    Args:
        names: sorted subjects, at least two.
        partners: of each subject, from 1; all others where there are fewer.

    Raises:
        ValueError: for fewer than two subjects or no partners.
    """
    count = len(names)
    if count < 2:
        raise ValueError(f"names: expected at least two subjects to pair, got {list(names)}.")
    if partners < 1:
        raise ValueError(f"partners: expected at least 1, got {partners}.")
    distances = [1 + (k + 3) % (count - 1) for k in range(1, min(partners, count - 1) + 1)]
    return [(names[(i + distance) % count], names[i]) for distance in distances for i in range(count)]


def read_pairs(path: str | Path, names: Sequence[str]) -> list[tuple[str, str]]:
    """Read a list of pairs: CSV with the columns ``moving`` and ``fixed``, names or numbers of subjects.

    Args:
        path: the file; subjects as ``hippocampus_001``, ``hippocampus_001.nii.gz`` (with any folder before) or ``1``.
        names: the subjects that there are.

    Raises:
        DatasetLayoutError: for an absent file, one without these columns or without rows, for a row without both, for
            a pair that is listed twice, and naming the absent subjects.
    """
    if not Path(path).is_file():
        raise DatasetLayoutError(f"pairs: expected a CSV file, {path} is none. Check the path's spelling.")
    with Path(path).open(
        newline="", encoding="utf-8-sig", errors="replace"
    ) as stream:  # spreadsheets write a byte order mark
        reader = csv.DictReader(stream)
        rows, columns = list(reader), reader.fieldnames
    if not rows or not all(row.get("moving") and row.get("fixed") for row in rows):
        raise DatasetLayoutError(
            f"pairs: expected the columns moving and fixed, separated by a comma, and a subject in both in every row; "
            f"{path} has the columns {columns} and {len(rows)} rows. Mend the list."
        )
    pairs = [(_name(row["moving"]), _name(row["fixed"])) for row in rows]
    absent = sorted({name for pair in pairs for name in pair} - set(names))
    if absent:
        raise DatasetLayoutError(
            f"pairs: {path} names {absent}, which the data set does not hold (there are {len(names)} subjects, "
            f"{names[0]} … {names[-1]}); mend the list or the data."
        )
    twice = sorted({f"{moving}, {fixed}" for moving, fixed in pairs if pairs.count((moving, fixed)) > 1})
    if twice:
        raise DatasetLayoutError(f"pairs: {path} lists a pair twice: {'; '.join(twice)}. Keep one row of each.")
    return pairs


def load_pairs(
    dataset_dir: str | Path,
    split: str = "train",
    spatial_size: Sequence[int] = (40, 56, 40),
    partners: int = 1,
    pairs: str | Path | None = None,
    percentiles: Sequence[float] | None = (1, 99),
) -> list[dict[str, Any]]:
    """Read a split into memory, each file once, and pair its subjects.

    Args:
        dataset_dir: see the module's layout.
        split: 'train', 'validation' or 'all'; see ``find_subjects``.
        spatial_size: working grid in voxels, three numbers; every volume is centred on it.
        partners: of each subject; see ``pair_names``.
        pairs: file with a list of pairs to take instead (``read_pairs``); it may name any subject of the data set.
        percentiles: lower and upper, in per cent, to which the intensities of each volume are clipped, as single voxels
            several times brighter than all tissue would set its range; None leaves them.

    Returns:
        A dict a pair, volumes shared between them. ``moving_image``, ``fixed_image``: float32 ``(1, *S)``;
        ``moving_label``, ``fixed_label``: uint8 ``(1, *S)``; ``centre``: float32 ``(3,)``, of the grid; ``subject``:
        the fixed one; ``case``: 'hippocampus_007_to_hippocampus_003'; ``spacing``: float32 ``(3,)`` in mm.

    Raises:
        DatasetLayoutError: for missing folders or files, labels of another field of view or with other values, or an
            absent subject or a repeated pair in ``pairs``.
        ValueError: for an unknown split, a size that is not three numbers, no partners, or percentiles that are not two
            in order.
    """
    if len(spatial_size) != 3:
        raise ValueError(
            f"spatial_size: expected three numbers for the volumes of this data set, got {list(spatial_size)}."
        )
    if pairs is None:
        listed = pair_names(find_subjects(dataset_dir, split), partners)
    else:
        listed = read_pairs(pairs, find_subjects(dataset_dir))
    folder = _folder(dataset_dir)
    names = sorted({name for pair in listed for name in pair})
    clipped(torch.zeros(1), percentiles)  # before anything is read
    volumes = {name: _volume(folder, name, spatial_size, percentiles) for name in names}
    cut = [name for name, volume in volumes.items() if volume["cut"]]
    if cut:
        logger.warning(
            "%d of %d volumes are larger than spatial_size %s and lose their border: %s. Raise spatial_size.",
            len(cut), len(volumes), list(spatial_size), ", ".join(cut[:5]) + (" …" if len(cut) > 5 else ""),
        )  # fmt: skip
    centre = (torch.tensor([float(n) for n in spatial_size]) - 1) / 2
    return [
        {
            "moving_image": volumes[moving]["image"],
            "fixed_image": volumes[fixed]["image"],
            "moving_label": volumes[moving]["label"],
            "fixed_label": volumes[fixed]["label"],
            "centre": centre,
            "subject": fixed,
            "case": f"{moving}_to_{fixed}",
            "spacing": volumes[fixed]["spacing"],
        }
        for moving, fixed in listed
    ]


def _folder(dataset_dir: str | Path) -> Path:
    base = Path(dataset_dir)
    for folder in (base, base / "Task04_Hippocampus"):
        if (folder / "imagesTr").is_dir():
            return folder
    raise DatasetLayoutError(f"dataset_dir: no folder imagesTr in {str(base)!r}; {LAYOUT}.")


def _split_of(name: str) -> str:
    return "validation" if name[-1] in "49" else "train"


def _name(text: str) -> str:
    stem = Path(text.strip()).name.removesuffix(".gz").removesuffix(".nii")
    number = re.fullmatch(r"(?:hippocampus_)?(\d+)", stem)
    return f"hippocampus_{int(number[1]):03d}" if number else stem


def _volume(folder: Path, name: str, size: Sequence[int], percentiles: Sequence[float] | None) -> dict[str, Any]:
    image_file, label_file = (folder / part / f"{name}.nii.gz" for part in ("imagesTr", "labelsTr"))
    if not label_file.is_file():
        raise DatasetLayoutError(f"{name}: there is {image_file}, but no labels {label_file}; {LAYOUT}.")
    try:
        image, label = read_case(image_file, label_file, LABELS, orientation=ORIENTATION, spacing=SPACING)
    except DatasetLayoutError as error:
        raise DatasetLayoutError(f"{name}: {error}") from error
    return {
        "image": centre_on_grid(clipped(image.array[None], percentiles), size),
        "label": centre_on_grid(label.array[None].byte(), size, label=True),
        "spacing": torch.tensor(image.spacing),
        "cut": any(n > s for n, s in zip(image.array.shape, size, strict=True)),
    }
