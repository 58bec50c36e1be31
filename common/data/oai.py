# SPDX-License-Identifier: Apache-2.0
"""OAI knees: DESS MR with labels of the cartilages, registered between people.

Two layouts. That of the ICON repository's lists::

    dataset_dir/splits/train/pair_path_list.txt     imageA imageB segmentationA segmentationB, separated by blanks
                       val/…, test/…                paths from dataset_dir, or absolute ones
                *_image.nii.gz, *_label_all.nii.gz  where the lists say

and, without ``splits``, plain NIfTI::

    dataset_dir/[images/]NAME_image.nii.gz          MR
                         NAME_label_all.nii.gz      1 femoral, 2 tibial cartilage

NAME is ``9000001_20050101_SAG_3D_DESS_LEFT_016600000001`` in the data set: where it holds ``RIGHT``, the volume is
mirrored between left and right (array axis 0), so that all knees lie as left ones. Files are read by their headers:
axes to LPS, voxels to 1.4 x 0.73 x 0.73 mm, half the resolution of the scans (160 x 384 x 384), as in the paper. Each
volume is centred on one working grid.

In the lists A is moving, B fixed, for validation and testing; training pairs any two of the training images, as the
published code does, by the rule of ``common.data.pairing``. In plain folders all pairs are by that rule, and subjects
whose first number ends in 4 or 9 are validation.

Departures from the published code: volumes are smoothed and resampled, not averaged over 2 x 2 x 2 voxels, labels by
the nearest voxel.

Reference: Osteoarthritis Initiative, nda.nih.gov/oai; Greer et al., ICON, ICCV 2021; Tian et al., GradICON, CVPR 2023.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..checks import known_name
from ..transforms.crop import centre_on_grid
from ..transforms.intensity import clipped
from .decoded import MEMORY, DecodedPairs
from .layout import DatasetLayoutError, dataset_root
from .oai_folder import ENDING, LAYOUT, find_knees, listed_pairs
from .oai_phantom import PHANTOM
from .pairing import pair_names
from .reading import read_case
from .volumes import joined, parts_of

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test", "all")
LABELS = {"femoral_cartilage": 1, "tibial_cartilage": 2}
LABEL_SETS = ("cartilages", "merged")
ORIENTATION, SPACING, SPACING_RANGE = "LPS", (1.4, 0.73, 0.73), None  # mm
SPATIAL_SIZE = (80, 192, 192)  # of the working grid and the network's window
# How inference reads a pair of images; what is not said here is as in training.
INFERENCE = {
    "align": "centres", "orientation": ORIENTATION, "spacing": SPACING, "spacing_range": SPACING_RANGE,
    "crop_center": "middle",
}  # fmt: skip


def root(dataset_dir: str | Path) -> Path:
    """Folder of the data set; "phantom" makes the phantom, once.

    Args:
        dataset_dir: see the module's layouts, or "phantom".

    Returns:
        The folder.

    Raises:
        DatasetLayoutError: where it is absent.
    """
    return dataset_root(dataset_dir, PHANTOM.folder, LAYOUT)


def split_of(subject: str) -> str:
    """Split of a subject, which its name here says.

    Args:
        subject: 'train_9000001_…'.

    Returns:
        Name of the split.

    Raises:
        ValueError: for a name of another form.
    """
    match = re.fullmatch(r"(train|validation|test)_[\w-]+", subject)
    if match is None:
        raise ValueError(f"subject: expected a name like 'train_9000001_…', got {subject!r}.")
    return match[1]


def subjects(dataset_dir: str | Path, split: str = "all") -> list[str]:
    """Names ('train_9000001_…') of the knees of a split, sorted.

    Args:
        dataset_dir: see the module's layouts, or "phantom".
        split: one of ``SPLITS``.

    Returns:
        The names.

    Raises:
        DatasetLayoutError: when the folder is missing or holds no knee of the split, and for damaged lists.
        ValueError: for an unknown split.
    """
    known_name("split", split, SPLITS)
    base = root(dataset_dir)
    names = sorted(name for own in SPLITS[:-1] if split in ("all", own) for name in find_knees(base, own))
    if not names:
        raise DatasetLayoutError(f"dataset_dir: no knee of {split!r} in {str(base)!r}; {LAYOUT}.")
    return names


def datalist(
    dataset_dir: str | Path, split: str = "train", partners: int = 1, label_set: str = "cartilages"
) -> list[dict[str, Any]]:
    """The files of a split, a dictionary a pair, in the order of ``load_pairs``; no image is read.

    Args:
        dataset_dir: see ``subjects``.
        split: see ``subjects``.
        partners: of each knee, where pairs are by the rule; see ``data.pairing.pair_names``.
        label_set: "cartilages": femoral and tibial; "merged": 1 in both, as in the published evaluation.

    Returns:
        Paths under ``moving_image``, ``fixed_image``, ``moving_label``, ``fixed_label``; ``subject``: the fixed one;
        ``case``: 'validation_A_to_validation_B'. JSON-serialisable.

    Raises:
        DatasetLayoutError: as ``subjects``, and for a missing file.
        ValueError: for an unknown split or label set, or no partners.
    """
    known_name("label_set", label_set, LABEL_SETS)
    subjects(dataset_dir, split)
    base, entries = root(dataset_dir), []
    for own in (name for name in SPLITS[:-1] if split in ("all", name)):
        knees = find_knees(base, own)
        if not knees:
            continue
        pairs = None if own == "train" else listed_pairs(base, own)
        for moving, fixed in pair_names(sorted(knees), partners) if pairs is None else pairs:
            both = {"moving": knees[moving], "fixed": knees[fixed]}
            files = {f"{role}_{key}": str(path) for role, knee in both.items() for key, path in knee.items()}
            entries.append(files | {"subject": fixed, "case": f"{moving}_to_{fixed}"})
    return entries


def load_pairs(
    dataset_dir: str | Path,
    split: str = "train",
    spatial_size: Sequence[int] = SPATIAL_SIZE,
    partners: int = 1,
    label_set: str = "cartilages",
    percentiles: Sequence[float] | None = (1, 99),
    cache: str | Path = MEMORY,
) -> Sequence[dict[str, Any]]:
    """Read a split, each file once, and pair its knees. 2,532 knees take 37 GB: name a folder as ``cache`` for them.

    Args:
        dataset_dir: see ``datalist``.
        split: see ``datalist``.
        spatial_size: working grid in voxels, three numbers; every volume is centred on it.
        partners: see ``datalist``.
        label_set: see ``datalist``.
        percentiles: lower and upper, in per cent, to which the intensities of each volume are clipped; None leaves
            them.
        cache: "memory", or a folder for decoded volumes, see ``data.decoded``.

    Returns:
        A dict a pair, in memory a list of them, volumes shared between them. ``moving_image``, ``fixed_image``: float32
        ``(1, *S)``; ``moving_label``, ``fixed_label``: uint8 ``(1, *S)``; ``centre``: float32 ``(3,)``, of the grid;
        ``subject``, ``case``; ``spacing``: float32 ``(3,)``, mm.

    Raises:
        DatasetLayoutError: as ``datalist``, and for labels of another field of view or with other values.
        ValueError: as ``datalist``, and for a size that is not three numbers, or percentiles that are not two in order.
    """
    if len(spatial_size) != 3:
        raise ValueError(f"spatial_size: expected three numbers for these volumes, got {list(spatial_size)}.")
    clipped(torch.zeros(1), percentiles)  # before anything is read
    options = {"spatial_size": [int(n) for n in spatial_size], "percentiles": percentiles, "label_set": label_set}
    decoded = DecodedPairs(
        datalist(dataset_dir, split, partners, label_set),
        parts=lambda entry: parts_of(entry, options),
        read=read_knee,
        join=joined,
        cache=cache,
    )
    return list(decoded) if str(cache) == MEMORY else decoded


def example_pair(dataset_dir: str | Path) -> tuple[Path, Path]:
    """Image files of two validation knees of one side.

    Args:
        dataset_dir: see ``subjects``.

    Returns:
        Paths of moving and fixed.

    Raises:
        DatasetLayoutError: as ``subjects``.
    """
    knees = find_knees(root(dataset_dir), "validation")
    images = [knees[name]["image"] for name in subjects(dataset_dir, "validation")]
    left = [path for path in images if "RIGHT" not in path.name]
    moving, fixed = left[:2] if len(left) > 1 else (images * 2)[:2]
    return moving, fixed


def read_knee(part: Mapping[str, Any]) -> dict[str, Any]:
    """Decode a knee and its labels, as a left one, centred on the working grid.

    Args:
        part: ``image``, ``label``: paths; ``spatial_size``, ``percentiles``, ``label_set`` of ``load_pairs``.

    Returns:
        ``image``, ``label``: ``(1, *S)``; ``spacing``: ``(3,)`` in mm.

    Raises:
        DatasetLayoutError: naming the knee, for files that are not as published.
    """
    name, size = Path(part["image"]).name.removesuffix(ENDING), part["spatial_size"]
    try:
        image, label = read_case(
            part["image"], part["label"], (0, *LABELS.values()), orientation=ORIENTATION, spacing=SPACING,
            spacing_range=SPACING_RANGE,
        )  # fmt: skip
    except DatasetLayoutError as error:
        raise DatasetLayoutError(f"{name}: {error}") from error
    if any(n > s for n, s in zip(image.array.shape, size, strict=True)):
        logger.warning(
            "%s, %s voxels, is larger than spatial_size %s and loses its border. Raise spatial_size.",
            name, list(image.array.shape), size,
        )  # fmt: skip
    both = [clipped(image.array[None], part["percentiles"]), label.array[None].byte()]
    if part["label_set"] == "merged":
        both[1] = (both[1] > 0).byte()
    if "RIGHT" in name:
        both = [array.flip(1) for array in both]
    grid = [centre_on_grid(array, size, label=bool(index)).contiguous() for index, array in enumerate(both)]
    return {"image": grid[0], "label": grid[1], "spacing": torch.tensor(SPACING)}
