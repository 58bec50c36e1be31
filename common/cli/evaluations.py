# SPDX-License-Identifier: Apache-2.0
"""Evaluations to be compared: read from their folders, averaged over seeds, and refused where they do not compare."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..figures.curves import read_columns
from ..handlers.log import HISTORY_FILE
from ..io.results import BEFORE, METRICS_FILE, SUMMARY_FILE, read_metrics
from ..runs.options import SOLVERS
from .bundles import read_json

HEADLINES = ("dice", "dice_vessels", "tre_mm", "tre_voxels", "mse")  # the first that was measured has patient means
Rows = list[dict[str, Any]]


class Run(NamedTuple):
    """One evaluation: its folder, its cases, its summary."""

    folder: Path
    rows: Rows
    summary: dict[str, Any]

    @property
    def weights(self) -> Path | None:
        """The network's weights: those that were evaluated, or that the run trained; None of a solver."""
        if self.settings.get("architecture") in SOLVERS:
            return None
        given = self.settings.get("ckpt_path")
        return self.folder / "model.pt" if given is None else Path(given)

    @property
    def settings(self) -> dict[str, Any]:
        """What the summary says of the run's options."""
        return self.summary.get("settings", {})

    @property
    def training_hours(self) -> float | None:
        """Time of all epochs, from the history that lies in the folder or beside the weights; None without one."""
        if self.weights is None:
            return 0.0
        for folder in (self.folder, self.weights.parent):
            if (folder / HISTORY_FILE).is_file():
                return float(np.nansum(read_columns(folder / HISTORY_FILE)[0].get("seconds", np.nan))) / 3600
        return None


class Evaluation(NamedTuple):
    """A method: its runs, one a seed, and the cases averaged over them."""

    name: str
    runs: tuple[Run, ...]
    rows: Rows

    def values(self, column: str) -> list[float]:
        """A column of the averaged cases.

        Args:
            column: its name.

        Returns:
            One number a case, NaN where there is none.
        """
        return [row.get(column, math.nan) for row in self.rows]


def _read(name: str, folder: Path) -> Run:
    for file in (METRICS_FILE, SUMMARY_FILE):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"{name}: expected the folder of an evaluation or of a finished training, with {METRICS_FILE} and "
                f"{SUMMARY_FILE}; there is no {folder / file}. Check the spelling, or evaluate into it."
            )
    return Run(folder, read_metrics(folder / METRICS_FILE), read_json(folder / SUMMARY_FILE))


def read_evaluations(results: Sequence[str]) -> dict[str, Evaluation]:
    """Read the folders and check that they hold the same cases of the same data.

    Args:
        results: ``NAME=DIR``, or ``NAME=DIR1,DIR2,…`` for runs of one method with different seeds.

    Returns:
        Evaluation by name, in the order given.

    Raises:
        ValueError: for no results, another form, a repeated name, other cases or data, or trainings with and without
            labels together.
        FileNotFoundError: for a folder that holds no evaluation.
    """
    evaluations = {}
    for name, folders in _folders(results).items():
        evaluations[name] = (name, tuple(_read(name, folder) for folder in folders))
    named = {
        name if len(runs) == 1 else f"{name} ({run.folder})": run for name, runs in evaluations.values() for run in runs
    }
    _check_same_cases(named)
    _check_same_data(named)
    _check_labels(named)
    return {name: Evaluation(name, runs, averaged([run.rows for run in runs])) for name, runs in evaluations.values()}


def averaged(tables: Sequence[Rows]) -> Rows:
    """Rows of several runs averaged case by case.

    Args:
        tables: rows of each run, in one order.

    Returns:
        Rows with the columns that all runs have; a number is NaN where one run has none.
    """
    if len(tables) == 1:
        return tables[0]
    shared = [key for key in tables[0][0] if all(key in table[0] for table in tables)]
    return [
        {key: float(np.mean([row[key] for row in rows])) if isinstance(rows[0][key], float) else rows[0][key]
         for key in shared}
        for rows in zip(*tables, strict=True)
    ]  # fmt: skip


def headline_of(evaluations: Iterable[Evaluation]) -> str:
    """The measure to compare subjects by.

    Args:
        evaluations: all.

    Returns:
        The first of ``HEADLINES`` that all of them measured.

    Raises:
        ValueError: where there is none.
    """
    tables = [evaluation.rows for evaluation in evaluations]
    for name in HEADLINES:
        if all(any(not math.isnan(row.get(name, math.nan)) for row in rows) for rows in tables):
            return name
    raise ValueError(
        f"compare: expected evaluations that all measured one of {', '.join(HEADLINES)}; add one of these measures to "
        "the bundles' 'measures' and evaluate again."
    )


def _folders(results: Sequence[str]) -> dict[str, list[Path]]:
    folders: dict[str, list[Path]] = {}
    for result in results:
        name, separator, given = str(result).partition("=")
        parts = [given] if Path(given).is_dir() else given.split(",")  # a name may hold a comma
        if not (name and separator and all(parts)) or name in folders:
            raise ValueError(f"compare: expected NAME=DIR or NAME=DIR1,DIR2,…, each name once, got {result!r}.")
        if len({Path(part).resolve() for part in parts}) < len(parts):
            raise ValueError(f"compare: expected each run of '{name}' once, got {result!r}.")
        folders[name] = [Path(part) for part in parts]
    if not folders:
        raise ValueError("compare: expected at least one NAME=DIR, got none.")
    return folders


def _check_same_cases(runs: Mapping[str, Run]) -> None:
    cases = {name: [row["case"] for row in run.rows] for name, run in runs.items()}
    reference_name, reference = next(iter(cases.items()))
    for name, other in cases.items():
        if other != reference:
            different = sorted(set(other) ^ set(reference))[:5]
            raise ValueError(
                f"compare: '{name}' and '{reference_name}' were evaluated on different cases or orders "
                f"({len(other)} and {len(reference)}; {different or 'same set'}). Evaluate both on one split."
            )


def _check_same_data(runs: Mapping[str, Run]) -> None:
    """Two data sets may use the same names; what was measured before registration tells them apart."""
    reference_name, reference = next(iter(runs.items()))
    for name, run in runs.items():
        columns = [key for key in reference.rows[0] if key.endswith(BEFORE) and key in run.rows[0]]
        for column, (one, other) in itertools.product(columns, zip(reference.rows, run.rows, strict=True)):
            same = math.isclose(one[column], other[column], rel_tol=1e-5, abs_tol=1e-6)
            if not same and not math.isnan(one[column]) + math.isnan(other[column]) == 2:
                raise ValueError(
                    f"compare: '{name}' and '{reference_name}' were evaluated on different data: before registration "
                    f"{column} of case {one['case']} is {other[column]:.6g} and {one[column]:.6g}. Evaluate both on "
                    "one dataset_dir, with the same window, percentiles and scored labels."
                )


def _check_labels(runs: Mapping[str, Run]) -> None:
    flags = {name: run.settings.get("labels_in_training") for name, run in runs.items()}
    given, not_given = ([name for name, flag in flags.items() if flag is value] for value in (True, False))
    if given and not_given:
        raise ValueError(
            f"compare: the training of {', '.join(given)} was given labels, that of {', '.join(not_given)} was not; "
            "their Dice does not belong in one table. Compare each group by itself."
        )
