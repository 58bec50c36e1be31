# SPDX-License-Identifier: Apache-2.0
"""What the readers of all data sets share: their error, the folder to read, and subjects that may be left out."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

PHANTOM_NAME = "phantom"


class DatasetLayoutError(ValueError):
    """Files of a data set are missing or not as its owners publish them."""


def dataset_root(dataset_dir: str | Path, phantom: Callable[[], Path], layout: str) -> Path:
    """Folder to read a data set from.

    Args:
        dataset_dir: a folder, or "phantom" for synthetic data in the same layout.
        phantom: makes them, once, and returns their folder.
        layout: what the error says of the layout, and where to get the data.

    Returns:
        The folder.

    Raises:
        DatasetLayoutError: where there is no such folder.
    """
    if str(dataset_dir) == PHANTOM_NAME:
        return phantom()
    folder = Path(dataset_dir).expanduser()
    if not folder.is_dir():
        raise DatasetLayoutError(f"dataset_dir: no folder {str(folder)!r}; {layout}.")
    return folder


def present(files: Mapping[str, Path]) -> dict[str, str]:
    """Those of some optional files that are there, such as a phantom's truths.

    Args:
        files: path by key.

    Returns:
        Path by key.
    """
    return {key: str(path) for key, path in files.items() if path.is_file()}


def subject_folders(base: Path, parents: Iterable[Path], pattern: str, layout: str) -> list[Path]:
    """List the folders of subjects, by name.

    Args:
        base: where a copy of the data set lies, for errors.
        parents: where they may be; what does not exist is passed over.
        pattern: regular expression of a subject's whole name.
        layout: what the error says of the layout.

    Returns:
        Their paths.

    Raises:
        DatasetLayoutError: for no subject, or one in two places.
    """
    found: dict[str, Path] = {}
    for parent in parents:
        for folder in parent.iterdir() if parent.is_dir() else ():
            if not (folder.is_dir() and re.fullmatch(pattern, folder.name)):
                continue
            other = found.setdefault(folder.name, folder)
            if other != folder:
                raise DatasetLayoutError(f"dataset_dir: {folder.name} is there twice, {other} and {folder}; keep one.")
    if not found:
        raise DatasetLayoutError(f"dataset_dir: no patient folder in {str(base)!r}; {layout}.")
    return [found[name] for name in sorted(found)]


class Invalid:
    """Subjects whose files are not as published: an error, or left out with a warning each.

    Args:
        skip: leave them out.
    """

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.subjects: list[str] = []

    @contextmanager
    def left_out(self, subject: str) -> Iterator[None]:
        """Catch the layout error of a block that reads a subject, where subjects may be left out.

        Args:
            subject: whom the block reads.

        Yields:
            Nothing.
        """
        try:
            yield
        except DatasetLayoutError as error:
            if not self.skip:
                raise
            if subject not in self.subjects:
                self.subjects.append(subject)
                logger.warning("skipping %s: %s", subject, error)

    def report(self, split: str, dataset_dir: str | Path, kept: int) -> None:
        """Say how many were left out.

        Args:
            split: that was read.
            dataset_dir: where it lies.
            kept: number of pairs that are left.

        Raises:
            DatasetLayoutError: where none is left.
        """
        if self.subjects:
            names = ", ".join(self.subjects)
            logger.warning("skipped %d invalid subject(s) of split %r: %s", len(self.subjects), split, names)
        if not kept:
            raise DatasetLayoutError(
                f"split {split!r}: no valid subject is left in {dataset_dir}; skipped {self.subjects}. Restore the "
                "published files."
            )
