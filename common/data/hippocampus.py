# SPDX-License-Identifier: Apache-2.0
"""Hippocampus, Medical Segmentation Decathlon Task04: T1 MR crops, registered between subjects.

Layout, as published::

    dataset_dir/[Task04_Hippocampus/]imagesTr/hippocampus_001.nii.gz    image, 1 mm
                                     labelsTr/hippocampus_001.nii.gz    labels: 1 anterior, 2 posterior

A phantom in this layout adds ``noiseTr/hippocampus_001.nii.gz``, the standard deviation of the image's noise.

``imagesTs`` has no labels and is not read. Files are read by their headers (``common.data.reading``): axes brought to
RAS, voxels to 1 mm, labels where their affine places them.

Volumes differ in shape. Each is centred on one working grid: the identity's Dice is 0.55 then, and 0.46 with aligned
corners. Small volumes are padded, large ones cut.

Pairs follow from the sorted names of a split, and from nothing else (``common.data.pairing``): consecutive numbers,
which resemble each other (identity's Dice 0.63, else 0.55: perhaps both sides of one person), are paired last.

Reference: Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13, 2022.
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
from .hippocampus_phantom import NOISE, PHANTOM
from .layout import DatasetLayoutError, dataset_root
from .pairing import pair_names, read_pairs
from .reading import read_case, read_noise_level

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "all")
NAME = r"hippocampus_\d+"
LABELS = {"anterior": 1, "posterior": 2}
ORIENTATION, SPACING, SPACING_RANGE = "RAS", (1.0, 1.0, 1.0), None  # mm; every other spacing is brought to it
SPATIAL_SIZE = (40, 56, 40)  # of the network's window
# How inference reads a pair of images; what is not said here is as in training.
INFERENCE = {
    "align": "centres", "orientation": ORIENTATION, "spacing": SPACING, "spacing_range": SPACING_RANGE,
    "crop_center": "middle",
}  # fmt: skip
PARTS = {"image": "imagesTr", "label": "labelsTr", "noise_level": NOISE}  # of a subject, and their folders
LAYOUT = (
    "expected DIR/imagesTr/hippocampus_001.nii.gz, … and DIR/labelsTr/hippocampus_001.nii.gz, …; get "
    "Task04_Hippocampus from the Medical Segmentation Decathlon and unpack it there unchanged"
)


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
    """Split of a subject: numbers ending in 4 or 9 are validation, the rest train.

    Args:
        subject: 'hippocampus_001'.

    Returns:
        Name of the split.

    Raises:
        ValueError: for a name of another form.
    """
    if not re.fullmatch(NAME, subject):
        raise ValueError(f"subject: expected a name like 'hippocampus_001', got {subject!r}.")
    return "validation" if subject[-1] in "49" else "train"


def subjects(dataset_dir: str | Path, split: str = "all") -> list[str]:
    """Names (``hippocampus_001``) of the labelled subjects of a split, sorted.

    Args:
        dataset_dir: see the module's layout, or "phantom".
        split: one of ``SPLITS``; see ``split_of``.

    Returns:
        The names.

    Raises:
        DatasetLayoutError: when the folder is missing or holds no subject of the split.
        ValueError: for an unknown split.
    """
    known_name("split", split, SPLITS)
    folder = _folder(dataset_dir)
    files = [path for path in (folder / "imagesTr").iterdir() if re.fullmatch(NAME + r"\.nii\.gz", path.name)]
    names = sorted(path.name.removesuffix(".nii.gz") for path in files)
    found = [name for name in names if split in ("all", split_of(name))]
    if not found:
        raise DatasetLayoutError(f"split: no subject of {split!r} among the {len(names)} in {folder}; {LAYOUT}.")
    return found


def image_files(dataset_dir: str | Path, moving: str, fixed: str) -> tuple[Path, Path]:
    """Image files of two subjects.

    Args:
        dataset_dir: see ``subjects``.
        moving: 'hippocampus_001'.
        fixed: likewise.

    Returns:
        Paths of moving and fixed.

    Raises:
        DatasetLayoutError: where one is absent.
    """
    names = subjects(dataset_dir)
    absent = [name for name in (moving, fixed) if name not in names]
    if absent:
        raise DatasetLayoutError(f"expected subjects of {dataset_dir}, {names[:3]}, …; {absent} is not among them.")
    moving_file, fixed_file = (_folder(dataset_dir) / "imagesTr" / f"{name}.nii.gz" for name in (moving, fixed))
    return moving_file, fixed_file


def example_pair(dataset_dir: str | Path) -> tuple[Path, Path]:
    """Image files of the first two validation subjects.

    Args:
        dataset_dir: see ``subjects``.

    Returns:
        Paths of moving and fixed.

    Raises:
        DatasetLayoutError: as ``subjects``.
    """
    folder = root(dataset_dir)
    moving, fixed = (subjects(folder, "validation") * 2)[:2]
    return image_files(folder, moving, fixed)


def datalist(
    dataset_dir: str | Path, split: str = "train", partners: int = 1, pairs: str | Path | None = None
) -> list[dict[str, Any]]:
    """The files of a split, a dictionary a pair, in the order of ``load_pairs``; none is read.

    Args:
        dataset_dir: see ``subjects``.
        split: see ``subjects``.
        partners: of each subject; see ``data.pairing.pair_names``.
        pairs: file with a list of pairs to take instead (``data.pairing.read_pairs``); it may name any subject of the
            data set, as ``hippocampus_001``, ``hippocampus_001.nii.gz`` (with any folder before) or ``1``.

    Returns:
        Paths under ``moving_image``, ``fixed_image``, ``moving_label``, ``fixed_label``, of phantoms
        ``moving_noise_level``, ``fixed_noise_level``; ``subject``: the fixed one;
        ``case``: 'hippocampus_007_to_hippocampus_003'. JSON-serialisable.

    Raises:
        DatasetLayoutError: for missing folders or files, or an absent subject or a repeated pair in ``pairs``.
        ValueError: for an unknown split or no partners.
    """
    folder = _folder(dataset_dir)
    if pairs is None:
        listed = pair_names(subjects(dataset_dir, split), partners)
    else:
        known_name("split", split, SPLITS)
        listed = read_pairs(pairs, subjects(dataset_dir), _name)
    return [
        _files(folder, "moving", moving)
        | _files(folder, "fixed", fixed)
        | {"subject": fixed, "case": f"{moving}_to_{fixed}"}
        for moving, fixed in listed
    ]


def load_pairs(
    dataset_dir: str | Path,
    split: str = "train",
    spatial_size: Sequence[int] = (40, 56, 40),
    partners: int = 1,
    pairs: str | Path | None = None,
    percentiles: Sequence[float] | None = (1, 99),
    cache: str | Path = MEMORY,
) -> Sequence[dict[str, Any]]:
    """Read a split, each file once, and pair its subjects.

    Args:
        dataset_dir: see ``datalist``.
        split: see ``datalist``.
        partners: see ``datalist``.
        pairs: see ``datalist``.
        spatial_size: working grid in voxels, three numbers; every volume is centred on it.
        percentiles: lower and upper, in per cent, to which the intensities of each volume are clipped, as single voxels
            several times brighter than all tissue would set its range; None leaves them.
        cache: "memory", or a folder for decoded volumes, see ``data.decoded``.

    Returns:
        A dict a pair, in memory a list of them, volumes shared between them. ``moving_image``, ``fixed_image``: float32
        ``(1, *S)``; ``moving_label``, ``fixed_label``: uint8 ``(1, *S)``; ``centre``: float32 ``(3,)``, of the grid;
        ``subject``: the fixed one; ``case``: 'hippocampus_007_to_hippocampus_003'; ``spacing``: float32 ``(3,)``, mm;
        for phantoms ``noise_level``: float32 ``(1, *S)``, standard deviation of the noise of the fixed image, in its
        units.

    Raises:
        DatasetLayoutError: as ``datalist``, and for labels of another field of view or with other values.
        ValueError: as ``datalist``, and for a size that is not three numbers, or percentiles that are not two in order.
    """
    if len(spatial_size) != 3:
        raise ValueError(f"spatial_size: expected three numbers for these volumes, got {list(spatial_size)}.")
    clipped(torch.zeros(1), percentiles)  # before anything is read
    options = {"spatial_size": [int(n) for n in spatial_size], "percentiles": percentiles}
    decoded = DecodedPairs(
        datalist(dataset_dir, split, partners, pairs),
        parts=lambda entry: [
            {key: entry[f"{role}_{key}"] for key in PARTS if f"{role}_{key}" in entry} | options
            for role in ("moving", "fixed")
        ],
        read=read_volume,
        join=_pair,
        cache=cache,
    )
    return list(decoded) if str(cache) == MEMORY else decoded


def read_volume(part: Mapping[str, Any]) -> dict[str, Any]:
    """Decode a volume and its labels, centred on the working grid.

    Args:
        part: ``image``, ``label``, and of phantoms ``noise_level``: paths; ``spatial_size``, ``percentiles`` of
            ``load_pairs``.

    Returns:
        ``image``, ``label``, ``noise_level``: ``(1, *S)``; ``spacing``: ``(3,)`` in mm.

    Raises:
        DatasetLayoutError: naming the subject, for files that are not as published.
    """
    name, size = _name(part["image"]), part["spatial_size"]
    try:
        image, label = read_case(
            part["image"], part["label"], (0, *LABELS.values()), orientation=ORIENTATION, spacing=SPACING,
            spacing_range=SPACING_RANGE,
        )  # fmt: skip
        levels = {key: read_noise_level(part[key], image, ORIENTATION, 3) for key in ("noise_level",) if key in part}
    except DatasetLayoutError as error:
        raise DatasetLayoutError(f"{name}: {error}") from error
    if any(n > s for n, s in zip(image.array.shape, size, strict=True)):
        logger.warning(
            "%s, %s voxels, is larger than spatial_size %s and loses its border. Raise spatial_size.",
            name, list(image.array.shape), size,
        )  # fmt: skip
    on_grid = {key: centre_on_grid(level, size, label=True) for key, level in levels.items()}
    on_grid["image"] = centre_on_grid(clipped(image.array[None], part["percentiles"]), size)
    on_grid["label"] = centre_on_grid(label.array[None].byte(), size, label=True)
    return on_grid | {"spacing": torch.tensor(image.spacing)}


def _pair(entry: Mapping[str, Any], moving: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    both = {"moving": moving, "fixed": fixed}
    tensors = {f"{role}_{key}": volume[key] for role, volume in both.items() for key in ("image", "label")}
    tensors |= {key: fixed[key] for key in ("spacing", "noise_level") if key in fixed}
    centre = (torch.tensor([float(n) for n in fixed["image"].shape[1:]]) - 1) / 2
    return tensors | {"centre": centre, "subject": entry["subject"], "case": entry["case"]}


def _folder(dataset_dir: str | Path) -> Path:
    base = root(dataset_dir)
    for folder in (base, base / "Task04_Hippocampus"):
        if (folder / "imagesTr").is_dir():
            return folder
    raise DatasetLayoutError(f"dataset_dir: no folder imagesTr in {str(base)!r}; {LAYOUT}.")


def _files(folder: Path, role: str, name: str) -> dict[str, str]:
    files = {key: folder / part / f"{name}.nii.gz" for key, part in PARTS.items()}
    if not files["label"].is_file():
        raise DatasetLayoutError(f"{name}: there is {files['image']}, but no labels {files['label']}; {LAYOUT}.")
    return {f"{role}_{key}": str(path) for key, path in files.items() if key != "noise_level" or path.is_file()}


def _name(text: str) -> str:
    stem = Path(text.strip()).name.removesuffix(".gz").removesuffix(".nii")
    number = re.fullmatch(r"(?:hippocampus_)?(\d+)", stem)
    return f"hippocampus_{int(number[1]):03d}" if number else stem
