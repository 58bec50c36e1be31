# SPDX-License-Identifier: Apache-2.0
"""The three forms in which OASIS is published: whose files lie where."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .layout import DatasetLayoutError
from .pairing import pair_names, read_pairs

LAYOUT = (
    "expected one of: DIR/imagesTr/OASIS_0001_0000.nii.gz … with labelsTr (Learn2Reg 2021 task 3), "
    "DIR/OASIS_OAS1_0001_MR1/aligned_norm.nii.gz … with aligned_seg35.nii.gz (neurite-oasis v1.0), or "
    "DIR/[Train, Test/]p_0001.pkl … and p_0395_0396.pkl … (TransMorph's); get them from learn2reg.grand-challenge.org, "
    "the page of neurite-oasis or that of TransMorph, under the OASIS data use agreement"
)
# Number of the first validation subject and the first test subject. neurite counts as OASIS-1 does, with gaps.
FIRST = {"OASIS": (395, 415), "OAS1": (438, 458), "p": (395, 415)}
NAME = re.compile(r"OASIS_(\d{4})|OASIS_OAS1_(\d{4})_MR1|p_(\d{4})")


class Subject(NamedTuple):
    """A subject's name, and its files as in ``datalist``: ``image``, and ``label``, ``tissues`` where there are any.

    A file of pickles holds several arrays: ``pair`` is 0 for the moving subject of a pair, 1 for the fixed one.
    """

    name: str
    files: dict[str, str]
    pair: int | None = None


def number_and_split(name: str) -> tuple[int, str]:
    """Number of a subject as its layout counts, and its split.

    Args:
        name: 'OASIS_0001', 'OASIS_OAS1_0001_MR1' or 'p_0001'.

    Returns:
        Number, and "train", "validation" or "test".

    Raises:
        ValueError: for a name of another form.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"subject: expected a name like 'OASIS_0001' or 'OASIS_OAS1_0001_MR1', got {name!r}.")
    kind = "OAS1" if match[2] else "p" if match[3] else "OASIS"
    number = int(match[1] or match[2] or match[3])
    validation, test = FIRST[kind]
    return number, "train" if number < validation else "validation" if number < test else "test"


def find_subjects(folder: Path) -> list[Subject]:
    """Every subject of a folder, by name; of pickles those of training.

    Args:
        folder: in any of the three layouts.

    Returns:
        Subjects, sorted.

    Raises:
        DatasetLayoutError: for a folder in none of them, or a subject without labels that should have some.
    """
    found = sorted([*_learn2reg(folder), *_neurite(folder), *_pickles(folder)], key=lambda subject: subject.name)
    if not found and not pair_pickles(folder):
        raise DatasetLayoutError(f"dataset_dir: no subject of OASIS in {str(folder)!r}; {LAYOUT}.")
    return found


def pair_pickles(folder: Path) -> list[tuple[Subject, Subject]]:
    """Validation pairs of TransMorph's pickles, ``p_0395_0396.pkl``: fixed and moving number.

    Args:
        folder: of the data set.

    Returns:
        Moving and fixed, sorted.

    Raises:
        DatasetLayoutError: for numbers that are not those of validation.
    """
    pairs = []
    for path in _pickle_files(folder, r"p_\d{4}_\d{4}\.pkl"):
        fixed, moving = (f"p_{number}" for number in path.stem.split("_")[1:])
        if {number_and_split(name)[1] for name in (fixed, moving)} != {"validation"}:
            raise DatasetLayoutError(
                f"expected the numbers of {path} to be two of 0395 to 0414, the validation subjects; {LAYOUT}."
            )
        files = {"image": str(path), "label": str(path)}
        pairs.append((Subject(moving, files, 0), Subject(fixed, files, 1)))
    return sorted(pairs, key=lambda pair: pair[1].name)


def find_pairs(folder: Path, names: Collection[str], partners: int) -> list[tuple[Subject, Subject]]:
    """Pairs of the named subjects: those of training, then of validation and test each with the next number.

    Args:
        folder: of the data set.
        names: whom to pair.
        partners: of each training subject, see ``data.pairing.pair_names``.

    Returns:
        Moving and fixed.

    Raises:
        DatasetLayoutError: where a number between two validation or test subjects is missing.
        ValueError: for a single training subject, or no partners.
    """
    by_name = {subject.name: subject for subject in find_subjects(folder) if subject.name in names}
    training = [name for name in by_name if number_and_split(name)[1] == "train"]
    listed = pair_names(training, partners) if training else []
    for split in ("validation", "test"):
        chain = [name for name in by_name if number_and_split(name)[1] == split]
        if len(chain) == 1:
            raise DatasetLayoutError(f"{chain[0]} is the only subject of {split!r} in {folder}; {LAYOUT}.")
        for fixed, moving in zip(chain, chain[1:], strict=False):
            if number_and_split(moving)[0] != number_and_split(fixed)[0] + 1:
                raise DatasetLayoutError(f"no subject between {fixed} and {moving} in {folder}; {LAYOUT}.")
            listed.append((moving, fixed))
    pickled = [pair for pair in pair_pickles(folder) if pair[1].name in names]
    return [(by_name[moving], by_name[fixed]) for moving, fixed in listed] + pickled


def listed_pairs(folder: Path, path: str | Path) -> list[tuple[Subject, Subject]]:
    """The pairs of a list, as the challenge's ``pairs_val.csv`` is one.

    Args:
        folder: of the data set.
        path: CSV with the columns moving and fixed, see ``data.pairing.read_pairs``; a subject is named by its number
            ("395", "0395"), its name or its image's file, with any folder before.

    Returns:
        Moving and fixed.

    Raises:
        DatasetLayoutError: as ``read_pairs`` and ``find_subjects``.
    """
    by_name = {subject.name: subject for subject in find_subjects(folder)}
    by_number = {number_and_split(name)[0]: name for name in by_name}

    def name_of(text: str) -> str:
        stem = Path(text.strip()).name.removesuffix(".gz").removesuffix(".nii").removesuffix("_0000")
        return by_number.get(int(stem), stem) if stem.isdecimal() else stem

    return [(by_name[moving], by_name[fixed]) for moving, fixed in read_pairs(path, sorted(by_name), name_of)]


def _learn2reg(folder: Path) -> Iterator[Subject]:
    for images, labels in (("imagesTr", "labelsTr"), ("imagesTs", "labelsTs")):
        for path in sorted((folder / images).glob("OASIS_????_0000.nii.gz")):
            name, label = path.name.removesuffix("_0000.nii.gz"), folder / labels / path.name
            if NAME.fullmatch(name) is None:
                continue
            if not label.is_file() and images == "imagesTr":
                raise DatasetLayoutError(f"{name}: there is {path}, but no labels {label}; {LAYOUT}.")
            yield Subject(name, _existing(image=path, label=label))


def _neurite(folder: Path) -> Iterator[Subject]:
    for path in sorted(folder.glob("OASIS_OAS1_????_MR1")):
        image, label, tissues = (path / f"aligned_{part}.nii.gz" for part in ("norm", "seg35", "seg4"))
        for needed in (image, label):
            if not needed.is_file():
                raise DatasetLayoutError(f"{path.name}: no file {needed}; {LAYOUT}.")
        yield Subject(path.name, _existing(image=image, label=label, tissues=tissues))


def _pickles(folder: Path) -> Iterator[Subject]:
    for path in _pickle_files(folder, r"p_\d{4}\.pkl"):
        if number_and_split(path.stem)[1] == "train":  # the folder All holds the others once more
            yield Subject(path.stem, {"image": str(path), "label": str(path)})


def _pickle_files(folder: Path, pattern: str) -> list[Path]:
    """Files of that name in the folder or one below; of two of one name the first by path."""
    files: dict[str, Path] = {}
    for path in sorted([*folder.glob("p_*.pkl"), *folder.glob("*/p_*.pkl")]):
        if re.fullmatch(pattern, path.name):
            files.setdefault(path.name, path)
    return list(files.values())


def _existing(**paths: Path) -> dict[str, Any]:
    return {key: str(path) for key, path in paths.items() if path.is_file()}
