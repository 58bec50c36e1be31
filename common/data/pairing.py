# SPDX-License-Identifier: Apache-2.0
"""Which subjects are registered to which: fixed lists, where a data set pairs different subjects."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from .layout import DatasetLayoutError


def pair_names(names: Sequence[str], partners: int) -> list[tuple[str, str]]:
    """A fixed list of (moving, fixed): each subject is fixed, its first partners are moving.

    The k-th partner of names[i] lies 1 + (k + 3) mod (n - 1) further in cyclic order, so the first one five further.
    Direct neighbours come last, as consecutive numbers may resemble each other. With one partner every subject is fixed
    once and moving once.

    Args:
        names: sorted subjects, at least two.
        partners: of each subject, from 1; all others where there are fewer.

    Returns:
        Names of moving and fixed, a tuple a pair.

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


def read_pairs(
    path: str | Path, names: Sequence[str], name_of: Callable[[str], str] = str.strip
) -> list[tuple[str, str]]:
    """Read a list of pairs: CSV with the columns ``moving`` and ``fixed``, subjects.

    Args:
        path: the file.
        names: the subjects that there are.
        name_of: a subject's name, from what stands in the file.

    Returns:
        Names of moving and fixed, a tuple a pair.

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
    pairs = [(name_of(row["moving"]), name_of(row["fixed"])) for row in rows]
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
