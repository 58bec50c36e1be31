# SPDX-License-Identifier: Apache-2.0
"""IXI: T1 MR of whole brains, 160 x 192 x 224 voxels of 1 mm, to each of which one atlas is registered.

The volumes as the authors of TransMorph preprocessed and publish them (skull-stripped, affinely aligned, in [0, 1])::

    dataset_dir/[IXI_data/]atlas.pkl             the atlas of CycleMorph, (image, labels)
                           Train/subject_0.pkl …      403 subjects
                           Val/subject_2.pkl …         58
                           Test/subject_1.pkl …       115

or the same as NIfTI, read by its headers: ``atlas.nii.gz``, ``atlas_seg.nii.gz``, ``Val/subject_2.nii.gz``,
``Val/subject_2_seg.nii.gz``; where both are there, the NIfTI file is read. Pickles are read without running code in
them (``common.data.pickles``). They say nothing of their axes, which are taken to be left, down, front (LIA), as in
TransMorph's OASIS; that matters only where images of other orientation are registered with the trained network.

Moving is the atlas, fixed the subject. Labels are FreeSurfer's numbers, which become classes 1 to 45 in the order of
these numbers, as published (``common.data.ixi_labels``): ``LABELS`` are all of them, ``EVALUATED`` the 30 whose Dice
the papers report, ``GROUPS`` the 17 structures that these make up, both sides taken together.

Subjects have the name of their folder, ``Val_subject_2``: the published split goes by folders alone.

Reference: brain-development.org (IXI); Chen et al., TransMorph, Medical Image Analysis 82, 2022 (preprocessing, split);
Kim et al., CycleMorph, Medical Image Analysis 71, 2021 (atlas); Fischl, FreeSurfer, NeuroImage 62, 2012.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..checks import known_name
from .decoded import MEMORY, DecodedPairs
from .ixi_labels import EVALUATED, GROUPS, LABELS, classes
from .ixi_phantom import PHANTOM
from .layout import DatasetLayoutError, dataset_root, present
from .reading import read_case, read_displacement, read_image
from .volumes import check_shape, check_window, joined, parts_of, pickled_volumes

__all__ = ["EVALUATED", "GROUPS", "LABELS"]
SPLITS = ("train", "validation", "test", "all")
FOLDERS = {"Train": "train", "Val": "validation", "Test": "test"}
ORIENTATION, SPACING, SPACING_RANGE = "LIA", (1.0, 1.0, 1.0), None  # mm
SPATIAL_SIZE = (160, 192, 224)  # of the network's window
NUMBERS = range(256)  # of FreeSurfer
LAYOUT = (
    "expected DIR/[IXI_data/]atlas.pkl with Train, Val, Test/subject_0.pkl …, or the same as NIfTI: atlas.nii.gz, "
    "atlas_seg.nii.gz, Train/subject_0.nii.gz, Train/subject_0_seg.nii.gz …; get the preprocessed IXI from the page of "
    "TransMorph (CC BY-SA 3.0)"
)
# How inference reads a pair of images; what is not said here is as in training.
INFERENCE = {
    "align": "physical", "orientation": ORIENTATION, "spacing": SPACING, "spacing_range": SPACING_RANGE,
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
    """Split of a subject, which its folder says.

    Args:
        subject: 'Train_subject_0'.

    Returns:
        Name of the split.

    Raises:
        ValueError: for a name of another form.
    """
    match = re.fullmatch(r"(Train|Val|Test)_subject_\d+", subject)
    if match is None:
        raise ValueError(f"subject: expected a name like 'Train_subject_0', got {subject!r}.")
    return FOLDERS[match[1]]


def subjects(dataset_dir: str | Path, split: str = "all") -> list[str]:
    """Names (``Train_subject_0``) of the subjects of a split, sorted; the atlas is none.

    Args:
        dataset_dir: see ``root``.
        split: one of ``SPLITS``.

    Returns:
        The names.

    Raises:
        DatasetLayoutError: when the folder is missing or holds no subject of the split.
        ValueError: for an unknown split.
    """
    return sorted(_files(dataset_dir, split)[1])


def example_pair(dataset_dir: str | Path) -> tuple[Path, Path]:
    """Image files of the atlas and the first validation subject.

    Args:
        dataset_dir: see ``root``.

    Returns:
        Paths of moving and fixed.

    Raises:
        DatasetLayoutError: as ``datalist``, and for pickles, which inference does not read.
    """
    first = datalist(dataset_dir, "validation")[0]
    moving, fixed = Path(first["moving_image"]), Path(first["fixed_image"])
    for path in (moving, fixed):
        if path.suffix == ".pkl":
            raise DatasetLayoutError(
                f"{path} is no image file. Name two NIfTI files: --moving a.nii.gz --fixed b.nii.gz."
            )
    return moving, fixed


def datalist(dataset_dir: str | Path, split: str = "train", with_labels: bool = True) -> list[dict[str, Any]]:
    """The files of a split, a dictionary a pair, in the order of ``load_pairs``; none is read.

    Args:
        dataset_dir: see ``root``.
        split: see ``subjects``.
        with_labels: list the labels.

    Returns:
        Paths under ``moving_image``, ``fixed_image``, ``moving_label``, ``fixed_label``, ``true_ddf`` where there is
        one for every pair; ``subject``; ``case``: 'atlas_to_Val_subject_2'. JSON-serialisable.

    Raises:
        DatasetLayoutError: for missing folders or files.
        ValueError: for an unknown split.
    """
    folder, found = _files(dataset_dir, split)
    atlas = _volume(folder, "atlas")
    if atlas is None:
        raise DatasetLayoutError(f"dataset_dir: no atlas.pkl or atlas.nii.gz in {str(folder)!r}; {LAYOUT}.")
    entries = []
    for name, files in sorted(found.items()):
        case = f"atlas_to_{name}"
        pair = {f"{role}_{key}": path for role, own in (("moving", atlas), ("fixed", files))
                for key, path in own.items() if key == "image" or with_labels}  # fmt: skip
        truth = present({"true_ddf": Path(files["image"]).with_name(f"{case}_ddf.nii.gz")})  # a phantom's
        entries.append(pair | {"subject": name, "case": case} | truth)
    if not all("true_ddf" in entry for entry in entries):
        entries = [{key: value for key, value in entry.items() if key != "true_ddf"} for entry in entries]
    return entries


def load_pairs(
    dataset_dir: str | Path,
    split: str = "train",
    spatial_size: Sequence[int] | None = None,
    with_labels: bool = True,
    cache: str | Path = MEMORY,
) -> Sequence[dict[str, Any]]:
    """Read a split, each volume once, and pair the atlas with its subjects.

    The 403 training volumes take 11 GB decoded: name a folder as ``cache`` where memory is less.

    Args:
        dataset_dir: see ``datalist``.
        split: see ``datalist``.
        spatial_size: of the network's window, three numbers; volumes that it would cut are an error. None: any.
        with_labels: read the labels.
        cache: "memory", or a folder for decoded volumes, see ``data.decoded``.

    Returns:
        A dict a pair, in memory a list of them, the atlas shared between them. ``moving_image``, ``fixed_image``:
        float32 ``(1, *S)``; ``moving_label``, ``fixed_label``: uint8 ``(1, *S)``, 0 to 45; ``centre``: float32
        ``(3,)``, of the volume; ``subject``; ``case``: 'atlas_to_Val_subject_2'; ``spacing``: float32 ``(3,)``, mm;
        ``true_ddf``: float32 ``(3, *S)``, voxels, for a phantom's validation and test pairs.

    Raises:
        DatasetLayoutError: as ``datalist``, and for damaged files or volumes of another shape than the first.
        ValueError: as ``datalist``, and for a size that is smaller than the volumes.
    """
    entries = datalist(dataset_dir, split, with_labels)
    shape = list(read_volume({"image": entries[0]["moving_image"]})["image"].shape)
    check_window(shape[1:], spatial_size, dataset_dir)
    decoded = DecodedPairs(entries, partial(parts_of, options={"shape": shape}), read_volume, joined, cache)
    return list(decoded) if str(cache) == MEMORY else decoded


def read_volume(part: Mapping[str, Any]) -> dict[str, Any]:
    """Decode a volume and its labels, or a true displacement.

    Args:
        part: ``image``, and where wanted ``label``: paths; ``shape``: that is expected; or ``true_ddf`` and ``image``:
            paths.

    Returns:
        ``image``, ``label``: ``(1, *S)``; ``spacing``: ``(3,)`` in mm; or ``true_ddf``: ``(3, *S)``, voxels.

    Raises:
        DatasetLayoutError: for files that are not as published.
    """
    if "true_ddf" in part:
        image = read_image(part["image"], ORIENTATION, SPACING, SPACING_RANGE)
        return {"true_ddf": read_displacement(part["true_ddf"], image, ORIENTATION, 3)}
    volume = _unpickled(part) if part["image"].endswith(".pkl") else _from_nifti(part)
    check_shape(volume["image"], part, ORIENTATION)
    return volume


def _unpickled(part: Mapping[str, Any]) -> dict[str, Any]:
    image, label = (torch.tensor(array)[None] for array in pickled_volumes(part["image"], 2))
    if not torch.isin(label, torch.tensor(list(NUMBERS))).all():
        raise DatasetLayoutError(
            f"expected FreeSurfer's numbers 0 to {NUMBERS[-1]} as labels in {part['image']}, got "
            f"{label.unique().tolist()[-4:]}; restore the published file."
        )
    volume = {"image": image.float().contiguous(), "spacing": torch.tensor(SPACING)}
    return volume | ({"label": classes(label).contiguous()} if "label" in part else {})


def _from_nifti(part: Mapping[str, Any]) -> dict[str, Any]:
    if "label" not in part:
        image = read_image(part["image"], ORIENTATION, SPACING, SPACING_RANGE)
        return {"image": image.array[None], "spacing": torch.tensor(image.spacing)}
    image, label = read_case(part["image"], part["label"], NUMBERS, orientation=ORIENTATION, spacing=SPACING,
                             spacing_range=SPACING_RANGE)  # fmt: skip
    return {"image": image.array[None], "label": classes(label.array)[None], "spacing": torch.tensor(image.spacing)}


def _files(dataset_dir: str | Path, split: str) -> tuple[Path, dict[str, dict[str, str]]]:
    """The folder of the atlas, and the files of each subject of a split, by name."""
    known_name("split", split, SPLITS)
    base = root(dataset_dir)
    folder = base / "IXI_data" if (base / "IXI_data").is_dir() else base
    found = {}
    for name in (name for name, own in FOLDERS.items() if split in ("all", own)):
        stems = {path.name.split(".")[0].removesuffix("_seg") for path in (folder / name).glob("subject_*")}
        for stem in sorted(stem for stem in stems if re.fullmatch(r"subject_\d+", stem)):
            files = _volume(folder / name, stem)
            if files is None:
                raise DatasetLayoutError(f"{name}_{stem}: there is no image beside its labels; {LAYOUT}.")
            found[f"{name}_{stem}"] = files
    if not found:
        raise DatasetLayoutError(f"dataset_dir: no subject of {split!r} in {str(folder)!r}; {LAYOUT}.")
    return folder, found


def _volume(folder: Path, stem: str) -> dict[str, str] | None:
    """Paths of image and labels; None where there is no image."""
    image, label, pickled = (folder / f"{stem}{ending}" for ending in (".nii.gz", "_seg.nii.gz", ".pkl"))
    if not image.is_file():
        return {"image": str(pickled), "label": str(pickled)} if pickled.is_file() else None
    if not label.is_file():
        raise DatasetLayoutError(f"{stem}: there is {image}, but no labels {label}; {LAYOUT}.")
    return {"image": str(image), "label": str(label)}
