# SPDX-License-Identifier: Apache-2.0
"""What the data sets share whose pairs are generated, not read: names, splits and their sizes.

There are no files: every argument ``dataset_dir`` is "phantom", and a pair is made from its name and the arguments of
its data set. The splits are disjoint random streams.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import known_name, whole
from ..io.images import Image, save_image
from .layout import PHANTOM_NAME, DatasetLayoutError

COUNTS = {"train": 1000, "validation": 100, "test": 100}
SPLITS = (*COUNTS, "all")
LAYOUT = "the pairs of this data set are generated; leave dataset_dir at 'phantom'"


def root(dataset_dir: str | Path) -> Path:
    """The name "phantom", as there are no files.

    Args:
        dataset_dir: "phantom".

    Returns:
        The name.

    Raises:
        DatasetLayoutError: for any other.
    """
    if str(dataset_dir) != PHANTOM_NAME:
        raise DatasetLayoutError(f"dataset_dir: expected 'phantom', got {str(dataset_dir)!r}; {LAYOUT}.")
    return Path(PHANTOM_NAME)


def split_of(subject: str) -> str:
    """Split of a pair.

    Args:
        subject: 'train_00017'.

    Returns:
        Name of the split.

    Raises:
        ValueError: for a name of another form.
    """
    split, _, index = subject.partition("_")
    if split not in COUNTS or not index.isdigit():
        raise ValueError(f"subject: expected a name like 'train_00017', got {subject!r}.")
    return split


def subjects(
    dataset_dir: str | Path = PHANTOM_NAME, split: str = "all", count: int | Mapping[str, int] | None = None
) -> list[str]:
    """Names (``train_00017``) of the pairs of a split, sorted.

    Args:
        dataset_dir: "phantom".
        split: 'train', 'validation' or 'test', or 'all'.
        count: pairs of each split, or a dict of them by split; default, also for splits that the dict leaves out:
            ``COUNTS``.

    Returns:
        The names.

    Raises:
        DatasetLayoutError: for another ``dataset_dir``.
        ValueError: for an unknown split, with the nearest known one, or counts that are not whole numbers from 1.
    """
    root(dataset_dir)
    known_name("split", split, SPLITS)
    return sorted(
        f"{name}_{index:05d}" for name, number in _counts(count).items() if split in (name, "all")
        for index in range(number)
    )  # fmt: skip


def ordered(dataset_dir: str | Path, split: str, count: int | Mapping[str, int] | None) -> list[str]:
    """The names of ``subjects`` in the order of the splits: training, validation, test.

    Args:
        dataset_dir: "phantom".
        split: see ``subjects``.
        count: see ``subjects``.

    Returns:
        The names.

    Raises:
        DatasetLayoutError, ValueError: as ``subjects``.
    """
    names = subjects(dataset_dir, split, count)
    return sorted(names, key=lambda name: (list(COUNTS).index(split_of(name)), name))


def generator_of(subject: str, seed: int) -> np.random.Generator:
    """The random stream of a pair, a function of its split, its index and the seed.

    Args:
        subject: 'train_00017'.
        seed: of everything random, >= 0.

    Returns:
        The generator.

    Raises:
        ValueError: for a name of another form, or a negative seed.
    """
    return np.random.default_rng(
        (whole("seed", seed), list(COUNTS).index(split_of(subject)), int(subject.partition("_")[2]))
    )


def write_example(pair: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write the images of a pair as NIfTI, voxels of 1 mm, into a new temporary folder.

    Args:
        pair: with ``moving_image`` and ``fixed_image``, (1, *S).

    Returns:
        Files of moving and fixed.
    """
    folder = Path(tempfile.mkdtemp(prefix="registration-example-"))
    moving, fixed = (folder / f"{role}.nii.gz" for role in ("moving", "fixed"))
    for file, key in ((moving, "moving_image"), (fixed, "fixed_image")):
        array = pair[key][0]
        image = Image(array, np.eye(4), (1.0,) * array.dim())
        save_image(file, image.array, image)
    return moving, fixed


def _counts(count: int | Mapping[str, int] | None) -> dict[str, int]:
    if count is None:
        return COUNTS
    given = dict(count) if isinstance(count, Mapping) else dict.fromkeys(COUNTS, count)
    for name, number in given.items():
        known_name("count", name, tuple(COUNTS))
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"count: expected whole numbers of at least 1, got {number!r} for {name!r}.")
    return COUNTS | given
