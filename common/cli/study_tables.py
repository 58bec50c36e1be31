# SPDX-License-Identifier: Apache-2.0
"""What a study reports: a table of its runs over seeds and a heat map of a grid, or curves of convergence."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import atomic_path
from ..figures.convergence import convergence_curves
from ..figures.curves import read_columns
from ..figures.heat_map import heat_maps
from ..handlers.log import HISTORY_FILE
from ..io.results import SUMMARY_FILE, spread
from ..io.tables import Cell, Table, number, write_tables
from .bundles import read_json
from .trainings import Training

TABLE_FILES = ("results.md", "results.csv", "heat_map.png")
CONVERGENCE_FILES = ("convergence.png", "convergence.csv")
MEASURES = {
    "dice": "Dice",
    "hd": "HD, voxels",
    "asd": "ASD, voxels",
    "tre_mm": "TRE, mm",
    "epe": "displacement error, voxels",
    "epe_before": "before",
    "magnitude_unit": "mean length, extents",
    "foldings_percent": "foldings, %",
    "fold_count": "folds",
}
# Of the last epoch, where they were logged; of a score that has collapsed to 0 the second is 1.
LOGGED = {"score/mean": "mean S", "score/reg": "mean (1 − S)²"}
COLUMNS = {
    "run": "run", "epochs": "epochs", "updates": "updates", "final_similarity": "final similarity",
    "epoch_at_threshold": "first epoch ≤ {threshold:.4g}", "dice": "Dice", "foldings_percent": "foldings %",
    "inverse_consistency_error": "inverse consistency error, voxels", "seconds": "seconds of training",
}  # fmt: skip


def table_report(output: Path, trainings: Sequence[Training], axes: Mapping[str, Sequence[Any]] | None = None) -> str:
    """Write ``results.md``, ``results.csv``, and of a grid of two options ``heat_map.png``.

    Args:
        output: the study's folder.
        trainings: all, finished.
        axes: options and values of a grid.

    Returns:
        The table, Markdown.
    """
    groups: dict[str, list[Training]] = {}
    for training in trainings:
        groups.setdefault(training.run.label, []).append(training)
    found = {label: _measured(group) for label, group in groups.items()}
    shown = {key: title for key, title in (MEASURES | LOGGED).items()
             if any(not math.isnan(value) for values in found.values() for value in values[key])}  # fmt: skip
    varied = list(axes or {})
    header = [*(varied or ["run"]), "seeds", *shown.values(), "seconds of training"]
    rows: list[list[Cell | str]] = []
    for label, group in groups.items():
        first: list[Cell | str] = [_plain(group[0].run.overrides[axis]) for axis in varied] or [label]
        cells = [_over_seeds(found[label][key]) for key in shown]
        seconds = number(float(np.mean(found[label]["seconds"])), ".0f")
        rows.append([*first, Cell(str(len(group)), {"": len(group)}), *cells, seconds])
    columns = [*(varied or ["run"]), "seeds", *(key.replace("/", "_") for key in shown), "seconds"]
    table = Table("results", header, rows, columns=columns)
    notes = _notes(trainings, found)
    for name in TABLE_FILES[:2]:
        write_tables([table], output / name, notes)
    if axes is not None and len(axes) == 2:
        _draw(output / TABLE_FILES[2], axes, groups, found, shown)
    return f"{notes}\n\n{table.markdown()}"


def _measured(group: Sequence[Training]) -> dict[str, list[float]]:
    """By measure one value a seed, NaN where there is none."""
    values: dict[str, list[float]] = {key: [] for key in (*MEASURES, *LOGGED, "seconds")}
    for training in group:
        summary = read_json(training.folder / SUMMARY_FILE)
        history = read_columns(training.folder / HISTORY_FILE)[0]
        for key in MEASURES:
            mean = (summary.get(key) or {}).get("mean")
            values[key].append(math.nan if mean is None else mean)
        for key in LOGGED:
            values[key].append(float(history[key][-1]) if key in history else math.nan)
        values["seconds"].append(float(np.nansum(history["seconds"])))
    return values


def _over_seeds(values: Sequence[float]) -> Cell:
    found = spread(values)
    if not found["n"]:
        return number(None)
    deviation = "" if found["std"] is None else f" ± {found['std']:.2g}"
    lacking = f" ({found['n']} of {len(values)})" if found["not_scorable"] else ""
    return Cell(f"{found['mean']:.4g}{deviation}{lacking}", {"": found["mean"], "_sd": found["std"], "_n": found["n"]})


def _plain(value: Any) -> Cell:
    return Cell(str(value), {"": value})


def _notes(trainings: Sequence[Training], found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    before = read_json(trainings[0].folder / SUMMARY_FILE).get("dice_before")
    lines = ["Mean ± standard deviation over seeds of the mean over cases; what was logged is that of the last epoch."]
    if before and before["n"]:
        lines.append(f"Before registration the Dice is {before['mean']:.4g} ({before['n']} cases).")
    dice = {label: float(np.mean(values["dice"])) for label, values in found.items()}
    scored = {label: value for label, value in dice.items() if not math.isnan(value)}
    if len(scored) > 1:
        best = max(scored, key=lambda label: scored[label])
        lines.append(f"The highest Dice is that of {best}; measure what you choose by it on other cases.")
    return "\n".join(lines)


def _draw(
    path: Path,
    axes: Mapping[str, Sequence[Any]],
    groups: Mapping[str, Sequence[Training]],
    found: Mapping[str, Mapping[str, Sequence[float]]],
    shown: Mapping[str, str],
) -> None:
    (row, rows), (column, columns) = axes.items()
    maps = {title: np.full((len(rows), len(columns)), np.nan) for title in shown.values()}
    for label, group in groups.items():
        point = group[0].run.overrides
        place = list(rows).index(point[row]), list(columns).index(point[column])
        for key, title in shown.items():
            maps[title][place] = np.mean(found[label][key])
    heat_maps(maps, path, (row, rows), (column, columns))


def convergence_report(output: Path, trainings: Sequence[Training], axes: Any = None) -> str:
    """Write ``convergence.png`` and ``convergence.csv``.

    Args:
        output: the study's folder.
        trainings: all, finished.
        axes: of no use here.

    Returns:
        The table, Markdown.
    """
    several = len({training.seed for training in trainings}) > 1
    labels = [f"{one.run.label}, seed {one.seed}" if several else one.run.label for one in trainings]
    files = {label: one.folder / HISTORY_FILE for label, one in zip(labels, trainings, strict=True)}
    runs: dict[str, list[Path]] = {}
    for one in trainings:
        runs.setdefault(one.run.label, []).append(one.folder / HISTORY_FILE)
    convergence_curves(runs, output / CONVERGENCE_FILES[0])
    histories = {label: read_columns(file)[0] for label, file in files.items()}
    summaries = {label: read_json(file.with_name(SUMMARY_FILE)) for label, file in files.items()}
    threshold = max(float(np.nanmin(history["displacement/similarity"])) for history in histories.values())
    rows = [_row(label, histories[label], summaries[label], threshold) for label in histories]
    with atomic_path(output / CONVERGENCE_FILES[1]) as path, path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*COLUMNS, "threshold"])
        writer.writeheader()
        writer.writerows(row | {"threshold": threshold} for row in rows)
    header = [title.format(threshold=threshold) for title in COLUMNS.values()]
    table = Table("convergence", header, [[_shown(row[key]) for key in COLUMNS] for row in rows])
    before = summaries[labels[0]]["dice_before"]
    first = f"{before['n']} validation pairs, Dice {before['mean']:.4g} before registration."
    return f"{first}\n\n{table.markdown()}"


def _row(label: str, history: dict[str, np.ndarray], summary: dict[str, Any], threshold: float) -> dict[str, Any]:
    similarity = history["displacement/similarity"]
    row = {
        "run": label,
        "epochs": int(history["epoch"][-1]),
        "updates": int(history["updates"][-1]),
        "final_similarity": float(similarity[-1]),
        "epoch_at_threshold": int(history["epoch"][np.flatnonzero(similarity <= threshold)[0]]),
        "seconds": round(float(np.nansum(history["seconds"])), 1),
    }
    measures = ("dice", "foldings_percent", "inverse_consistency_error")
    return row | {measure: summary.get(measure, {}).get("mean") for measure in measures}


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
