# SPDX-License-Identifier: Apache-2.0
"""COPDGene: CT of the chest at inspiration and expiration; and DIR-Lab's cases with landmarks to test on.

Layout, as GradICON's training scripts read it::

    dataset_dir/splits/train.txt, test.txt                 a name a line; test.txt is the split "validation" here
                12345X/12345X_INSP_STD*_COPD_img.nii.gz    CT at inspiration, HU, 1 mm
                       12345X_INSP_STD*_COPD_label.nii.gz  lungs, above 0 inside
                       12345X_EXP_STD*_COPD_img.nii.gz, …  at expiration
                copd1/…, Case1Pack/…                       DIR-Lab, see ``common.data.dirlab``: the split "test"

The folder may hold COPDGene, DIR-Lab, or both. Without ``splits`` one name of ten is validation (by SHA-256). Where
there is no lung mask, as in DIR-Lab, one is made from the CT (``transforms.lungs.lung_mask``); the log says so. A
phantom in this layout adds ``12345X/12345X_INSP_to_EXP_ddf.nii.gz``, the true displacement.

Expiration is moving, inspiration fixed. HU are limited to -1000 to 0, brought to [0, 1], and 0 outside the lungs. Files
are read by their headers: axes to LPS, voxels to 2 mm. Both volumes are centred on one working grid; the published
one has 175 voxels a side. DIR-Lab's two volumes share one grid, so that centring does not move them against each other.

Departures from the published code: volumes are smoothed and resampled, not averaged over 2 x 2 x 2 voxels, masks by the
nearest voxel, not by the largest; centring is needed only where volumes are not of one size.

Reference: Regan et al., COPD 7(1), 2010 (COPDGene); Tian et al., GradICON, CVPR 2023, Sec. 8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import known_name
from ..io.images import save_image
from . import dirlab
from .chest import ORIENTATION, SPACING, read_pair
from .copdgene_folder import LAYOUT, PHASES, find_pairs
from .copdgene_phantom import PHANTOM
from .decoded import MEMORY, DecodedPairs
from .layout import DatasetLayoutError, dataset_root
from .phantom_cache import cache_folder

SPLITS = ("train", "validation", "test", "all")
LABELS = {"lungs": 1}
SPACING_RANGE = None
SPATIAL_SIZE = (175, 175, 175)  # of the working grid and the network's window
# How inference reads a pair of images; what is not said here is as in training.
INFERENCE = {
    "align": "centres", "orientation": ORIENTATION, "spacing": SPACING, "spacing_range": SPACING_RANGE,
    "crop_center": "middle", "intensities": {"_target_": "common.transforms.lungs.LungIntensities"},
}  # fmt: skip
NAME = r"(train|validation)_[\w-]+|(copd|case)\d+"


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
    """Split of a subject, which its name here says.

    Args:
        subject: 'train_12345X', 'validation_12346X', 'copd1' or 'case1'.

    Returns:
        Name of the split.

    Raises:
        ValueError: for a name of another form.
    """
    match = re.fullmatch(NAME, subject)
    if match is None:
        raise ValueError(f"subject: expected a name like 'train_12345X', 'copd1' or 'case1', got {subject!r}.")
    return match[1] or "test"


def subjects(dataset_dir: str | Path, split: str = "all") -> list[str]:
    """Names of the subjects of a split, sorted: 'train_12345X', 'copd1'.

    Args:
        dataset_dir: see the module's layout, or "phantom".
        split: one of ``SPLITS``.

    Returns:
        The names.

    Raises:
        DatasetLayoutError: when the folder is missing or holds no subject of the split.
        ValueError: for an unknown split.
    """
    return sorted(entry["subject"] for entry in datalist(dataset_dir, split))


def datalist(dataset_dir: str | Path, split: str = "train") -> list[dict[str, Any]]:
    """The files of a split, a dictionary a pair, in the order of ``load_pairs``; none is read.

    Args:
        dataset_dir: see ``subjects``.
        split: see ``subjects``.

    Returns:
        Paths under ``moving_image``, ``fixed_image``; where there are any ``moving_label``, ``fixed_label``,
        ``true_ddf``; of DIR-Lab ``moving_points``, ``fixed_points`` and ``grid``; ``subject``, ``case``.
        JSON-serialisable.

    Raises:
        DatasetLayoutError: as ``subjects``, and for a subject that lacks an image or has two.
        ValueError: for an unknown split.
    """
    known_name("split", split, SPLITS)
    base = root(dataset_dir)
    entries = [entry for own in ("train", "validation") if split in ("all", own) for entry in find_pairs(base, own)]
    entries += dirlab.find_cases(base) if split in ("all", "test") else []
    if not entries:
        raise DatasetLayoutError(f"dataset_dir: no subject of {split!r} in {str(base)!r}; {LAYOUT}.")
    return entries


def load_pairs(
    dataset_dir: str | Path,
    split: str = "train",
    spatial_size: Sequence[int] = SPATIAL_SIZE,
    cache: str | Path = MEMORY,
) -> Sequence[dict[str, Any]]:
    """Read a split. 899 pairs of 175³ take 46 GB: name a folder as ``cache`` for them.

    Args:
        dataset_dir: see ``subjects``.
        split: see ``subjects``.
        spatial_size: working grid in voxels of 2 mm, three numbers; every volume is centred on it.
        cache: "memory", or a folder for decoded pairs, see ``data.decoded``.

    Returns:
        A dict a pair, in memory a list of them. ``moving_image``, ``fixed_image``: float32 ``(1, *S)``;
        ``moving_label``, ``fixed_label``: uint8 ``(1, *S)``, 1 in the lungs; ``centre``: float32 ``(3,)``, of the grid;
        ``subject``, ``case``; ``spacing``: float32 ``(3,)``, mm; of DIR-Lab ``moving_points``, ``fixed_points``:
        float32 ``(N, 3)``, voxels (of split "all" everywhere, NaN where there are none); of phantoms ``true_ddf``:
        float32 ``(3, *S)``, voxels (not of split "all").

    Raises:
        DatasetLayoutError: as ``datalist``, and for files that are not as published.
        ValueError: as ``datalist``, and for a size that is not three numbers.
    """
    if len(spatial_size) != 3:
        raise ValueError(f"spatial_size: expected three numbers for these volumes, got {list(spatial_size)}.")
    options = {"spatial_size": [int(n) for n in spatial_size]}
    entries = datalist(dataset_dir, split)
    if not all("true_ddf" in entry for entry in entries):
        entries = [{key: value for key, value in entry.items() if key != "true_ddf"} for entry in entries]
    mixed = any("grid" in entry for entry in entries)
    pairs = DecodedPairs(
        entries,
        parts=lambda entry: [{**entry, **options}],
        read=read_pair,
        join=lambda entry, pair: _joined(entry, pair, mixed),
        cache=cache,
    )
    return list(pairs) if str(cache) == MEMORY else pairs


def example_pair(dataset_dir: str | Path) -> tuple[Path, Path]:
    """Image files of the first validation subject; of DIR-Lab alone the first case, written as NIfTI into the cache.

    Args:
        dataset_dir: see ``subjects``.

    Returns:
        Paths of moving and fixed.

    Raises:
        DatasetLayoutError: as ``subjects``.
    """
    base = root(dataset_dir)
    cases = [] if find_pairs(base, "validation") else dirlab.find_cases(base)
    if cases:
        files = [cache_folder() / f"dirlab_example_{cases[0]['case']}" / f"{role}.nii.gz" for role in PHASES]
        for role, file in zip(PHASES, files, strict=True):
            image = dirlab.read_image(cases[0][f"{role}_image"], cases[0]["grid"])
            file.parent.mkdir(parents=True, exist_ok=True)
            save_image(file, image.array, image)
        return files[0], files[1]
    first = datalist(base, "validation")[0]
    return Path(first["moving_image"]), Path(first["fixed_image"])


def _joined(entry: Mapping[str, Any], pair: Mapping[str, Tensor], mixed: bool) -> dict[str, Any]:
    """A pair with its names; where others have landmarks, with one that is NaN."""
    none = {f"{role}_points": torch.full((1, 3), torch.nan) for role in PHASES} if mixed else {}
    return none | dict(pair) | {"subject": entry["subject"], "case": entry["case"]}
