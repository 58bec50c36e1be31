# SPDX-License-Identifier: Apache-2.0
"""Dice by structure of a comparison, where the evaluations measured groups of labels."""

from __future__ import annotations

import itertools
import math

from ..io.results import BEFORE, spread
from ..io.tables import Cell, Table, spread_cell
from ..metrics.labels import GROUP, GROUPS
from .comparison import UNDEFORMED, Evaluations

Structures = dict[str, dict[str, list[float]]]


def dice_by_structure(evaluations: Evaluations) -> Structures:
    """The cases' Dice of every structure that all evaluations measured as a group of labels.

    Args:
        evaluations: by name.

    Returns:
        One number a case, by method (with the undeformed pairs), by structure; empty where there is none.
    """
    tables = [one.rows[0] for one in evaluations.values()]
    names = [key for key in tables[0] if key.startswith(GROUP) and not key.endswith(BEFORE)]
    shared = [name for name in names if all(name in table for table in tables)]
    first = next(iter(evaluations.values()))
    return {
        name.removeprefix(GROUP): {UNDEFORMED: first.values(f"{name}{BEFORE}")}
        | {method: one.values(name) for method, one in evaluations.items()}
        for name in shared
    }


def structures_table(structures: Structures) -> Table | None:
    """Mean ± standard deviation of Dice, a row a structure, and first over all structures and cases at once.

    Args:
        structures: see ``dice_by_structure``.

    Returns:
        The table; None where there is no structure.

    Reference:
        Chen et al., TransMorph, Medical Image Analysis 82, 2022 (the spread that its tables of IXI print is that over
        structures and subjects).
    """
    if not structures:
        return None
    methods = list(next(iter(structures.values())))
    every = {
        method: list(itertools.chain.from_iterable(values[method] for values in structures.values()))
        for method in methods
    }
    rows: list[list[Cell | str]] = [
        [name, *(spread_cell(spread(values[method])) for method in methods)]
        for name, values in (("all structures and cases", every), *structures.items())
    ]
    return Table("structures", ["Dice by structure", *methods], rows, columns=["structure", *methods])


def groups_measured(evaluations: Evaluations) -> bool:
    """Whether all evaluations hold the mean over structures.

    Args:
        evaluations: by name.

    Returns:
        True or False.
    """
    return all(any(not math.isnan(value) for value in one.values(GROUPS)) for one in evaluations.values())
