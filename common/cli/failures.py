# SPDX-License-Identifier: Apache-2.0
"""The cases that methods register worst."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..io.results import BEFORE
from ..io.tables import Table, number
from .comparison import UNDEFORMED, Evaluations, Row
from .evaluations import Evaluation


def worst_cases(evaluation: Evaluation, measure: str, count: int) -> list[int]:
    """Numbers of the cases that a method registers worst, those that it lost before all others.

    Args:
        evaluation: of the method.
        measure: the headline.
        count: how many.

    Returns:
        Indices into the rows, the worst first.
    """
    sign = 1 if measure.startswith("dice") else -1
    scored = [index for index, row in enumerate(evaluation.rows) if row.get("scorable", 1) > 0]
    values = {index: sign * evaluation.rows[index].get(measure, math.nan) for index in scored}
    return sorted(values, key=lambda index: (not math.isnan(values[index]), values[index]))[:count]


def failures_table(evaluations: Evaluations, measure: str, count: int, beside: Sequence[str] = ()) -> Table:
    """The worst cases of each method, with what the others make of them.

    Args:
        evaluations: by name.
        measure: the headline.
        count: cases a method.
        beside: further columns of the cases.

    Returns:
        The table.
    """
    rows: list[Row] = []
    for name, one in evaluations.items():
        for index in worst_cases(one, measure, count):
            values = [other.rows[index].get(measure) for other in evaluations.values()]
            shown = [number(value, ".4f") for value in (one.rows[index].get(f"{measure}{BEFORE}"), *values)]
            rows.append([name, one.rows[index]["case"], *shown, *(number(one.rows[index].get(c)) for c in beside)])
    header = [f"worst {measure} of", "case", UNDEFORMED, *evaluations, *beside]
    return Table("failures", header, rows, columns=["method", *header[1:]])
