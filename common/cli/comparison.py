# SPDX-License-Identifier: Apache-2.0
"""The tables of a comparison: measures, cost, seeds, subjects, volumes, tests, worst cases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..io.results import BEFORE, read_metrics, spread, spread_text
from ..io.tables import Cell, Table, number
from ..metrics.statistics import (
    PairedComparison,
    bootstrap_interval,
    design_effect,
    holm,
    paired_comparison,
    subject_means,
)
from .evaluations import Evaluation, Rows, Run

UNDEFORMED = "undeformed"
GIB = 2.0**30
Evaluations = Mapping[str, Evaluation]
Row = list[Cell | str]


def measures_table(evaluations: Evaluations, columns: Sequence[str]) -> Table:
    """Mean ± standard deviation over the cases, a row a method and one for the pairs as they were.

    Args:
        evaluations: by name.
        columns: measures.

    Returns:
        The table.
    """
    first = next(iter(evaluations.values()))
    rows: list[Row] = [[UNDEFORMED, *(_spread(first.values(f"{column}{BEFORE}")) for column in columns)]]
    rows += [[name, *(_spread(one.values(column)) for column in columns)] for name, one in evaluations.items()]
    return Table("measures", ["method", *columns], rows)


def groups_table(evaluations: Evaluations, column: str) -> Table | None:
    """A measure by group (diagnosis, image quality); None where the data give fewer than two.

    Args:
        evaluations: by name.
        column: the measure.

    Returns:
        The table.
    """
    own = [str(row.get("group") or "") for row in next(iter(evaluations.values())).rows]
    groups = sorted(set(own) - {"", "nan"})
    if len(groups) < 2:
        return None
    values = {UNDEFORMED: next(iter(evaluations.values())).values(f"{column}{BEFORE}")}
    values |= {name: one.values(column) for name, one in evaluations.items()}
    rows: list[Row] = [
        [name, *(_spread([v for v, g in zip(all_, own, strict=True) if g == group]) for group in groups)]
        for name, all_ in values.items()
    ]
    return Table("groups", [f"{column} by group", *groups], rows)


def cost_table(evaluations: Evaluations) -> Table:
    """What each method takes: hours of training, seconds a pair, memory, parameters.

    Args:
        evaluations: by name; of several runs the mean over them.

    Returns:
        The table.
    """
    header = ("method", "hours of training", "seconds a pair", "peak memory, GiB", "parameters", "device")
    columns = ("method", "training_hours", "seconds", "peak_memory_gib", "parameters", "device")
    rows = [[name, *_costs(one.runs)] for name, one in evaluations.items()]
    caption = (
        "Seconds are those of registering alone, the median over the cases, of a batch its share. Memory is the most "
        "that torch held on a GPU, or the whole process on a CPU, training included where the run trained."
    )
    return Table("cost", header, rows, caption, columns)


def _costs(runs: Sequence[Run]) -> list[Cell | str]:
    costs = [run.summary.get("cost", {}) for run in runs]
    seconds = [float(np.nanmedian([row.get("seconds", math.nan) for row in run.rows])) for run in runs
               if any("seconds" in row for row in run.rows)]  # fmt: skip
    memory = [cost["peak_memory_bytes"] / GIB for cost in costs if cost.get("peak_memory_bytes")]
    parameters = costs[0].get("parameters")
    devices = dict.fromkeys(cost["device"] + _batch(run) for cost, run in zip(costs, runs, strict=True) if cost)
    hours = [run.training_hours for run in runs]
    return [
        number(_mean(hours), ".3g"),
        number(_mean(seconds), ".3g"),
        number(_mean(memory), ".3g"),
        Cell("–" if parameters is None else f"{parameters:,}", {"": parameters}),
        "; ".join(devices) or "–",
    ]


def _batch(run: Run) -> str:
    size = run.settings.get("batch_size")
    return "" if size is None else f", batches of {size}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def seeds_table(evaluations: Evaluations, columns: Sequence[str]) -> Table | None:
    """Mean ± standard deviation over runs of one method of their means over cases.

    Args:
        evaluations: by name.
        columns: measures.

    Returns:
        The table; None where no method has several runs.
    """
    several = {name: one.runs for name, one in evaluations.items() if len(one.runs) > 1}
    if not several:
        return None
    rows: list[Row] = []
    for name, runs in several.items():
        means = [[spread([row.get(column) for row in run.rows])["mean"] for run in runs] for column in columns]
        rows.append([name, *(_spread([math.nan if m is None else m for m in values]) for values in means)])
    caption = "Mean ± standard deviation over runs (their number) of the mean over cases."
    return Table("seeds", ["method, over seeds", *columns], rows, caption, ["method", *columns])


def subjects_table(evaluations: Evaluations, measure: str) -> Table:
    """Means over subjects with bootstrap intervals.

    Args:
        evaluations: by name.
        measure: a column.

    Returns:
        The table.
    """
    first = next(iter(evaluations.values()))
    subjects = [str(row["subject"]) for row in first.rows]
    before = f"{measure}{BEFORE}"
    columns = {UNDEFORMED: first.values(before)} if before in first.rows[0] else {}
    columns |= {name: one.values(measure) for name, one in evaluations.items()}
    rows: list[Row] = []
    for name, values in columns.items():
        means = {subject: mean for subject, mean in subject_means(values, subjects).items() if not math.isnan(mean)}
        mean = sum(means.values()) / max(len(means), 1)
        if len(means) < 2:  # one subject has no interval
            rows.append([name, number(mean if means else None, ".4f"), number(None)])
            continue
        low, high = bootstrap_interval(means)
        interval = Cell(f"{mean:.4f} [{low:.4f}, {high:.4f}]", {"": mean, "_low": low, "_high": high})
        rows.append([name, interval, number(design_effect(values, subjects), ".2f")])
    header = ["patient means", f"{measure} [95 % interval]", "design effect"]
    return Table("subjects", header, rows, columns=["method", measure, "design_effect"])


def volumes_table(evaluations: Evaluations) -> Table | None:
    """Mean over subjects of the Dice of whole volumes, a column a label.

    Args:
        evaluations: by name; of several runs the mean over them.

    Returns:
        The table; None where no label was measured.
    """
    tables: dict[str, Rows] = {}
    for name, one in evaluations.items():
        files = [run.folder / "subjects.csv" for run in one.runs]
        found = [read_metrics(file, ("subject",)) for file in files if file.is_file()]
        tables |= {name: [row for table in found for row in table]} if found else {}
    first: Rows = next(iter(tables.values()), [{}])
    labels = [key.removeprefix("dice_3d_") for key in first[0] if key.startswith("dice_3d_") and BEFORE not in key]
    if not labels:
        return None
    rows: list[Row] = [[UNDEFORMED, *(_volume(first, f"dice_3d_before_{label}") for label in labels)]]
    rows += [[name, *(_volume(table, f"dice_3d_{label}") for label in labels)] for name, table in tables.items()]
    return Table("volumes", ["Dice over all cases of a subject", *labels], rows, columns=["method", *labels])


def _volume(table: Rows, key: str) -> Cell:
    by_subject: dict[str, list[float]] = {}
    for row in table:  # of several runs a subject has several rows
        by_subject.setdefault(row["subject"], []).append(row.get(key, math.nan))
    found = spread([float(np.mean(values)) for values in by_subject.values()])
    if not found["n"]:
        return number(None)
    deviation = "" if found["std"] is None else f" ± {found['std']:.4f}"
    return Cell(f"{found['mean']:.4f}{deviation} ({found['n']})", _values(found))


def paired_table(evaluations: Evaluations, measure: str, reference: str | None = None) -> Table | None:
    """Paired tests of a measure, of every pair of methods or of a reference with every other.

    Args:
        evaluations: by name.
        measure: a column.
        reference: name of the method that the others are compared with.

    Returns:
        The table; None where nobody measured it.

    Raises:
        ValueError: for a measure that one of the evaluations lacks.
    """
    missing = sorted(name for name, one in evaluations.items() if measure not in one.rows[0])
    if missing:
        raise ValueError(f"tested: expected a measure of all evaluations, got {measure!r}, which {missing} lack.")
    if any(all(math.isnan(value) for value in one.values(measure)) for one in evaluations.values()):
        return None
    pairs = [(b, a) for a, b in itertools.combinations(evaluations, 2)]
    if reference is not None:
        pairs = [(reference, other) for other in evaluations if other != reference]
    subjects = [str(row["subject"]) for row in next(iter(evaluations.values())).rows]
    outcomes: dict[str, PairedComparison] = {}
    refused: list[str] = []
    for a, b in pairs:
        try:
            one, other = evaluations[a].values(measure), evaluations[b].values(measure)
            outcomes[f"{a} − {b}"] = paired_comparison(one, other, subjects)
        except ValueError as error:
            refused.append(f"{a} − {b} is not tested: {error}")
    wilcoxon, ttest = (
        holm([getattr(one, p) for one in outcomes.values()]) if outcomes else [] for p in ("p_wilcoxon", "p_ttest")
    )
    rows: list[Row] = [_test(*row) for row in zip(outcomes, outcomes.values(), wilcoxon, ttest, strict=True)]
    left_out = [f"{found.n_unpaired} of {name}" for name, found in outcomes.items() if found.n_unpaired]
    if left_out:
        refused.insert(0, f"Cases that only one of the two scored are left out: {', '.join(left_out)}.")
    header = (
        f"{measure}: difference of patient means", "mean [95 % interval]", "patients", "p Wilcoxon", "Holm",
        "p t-test", "Holm", "d_z", "p t-test, slices taken as independent, as in the papers",
    )  # fmt: skip
    columns = (
        "difference", "mean", "subjects", "p_wilcoxon", "p_wilcoxon_holm", "p_ttest", "p_ttest_holm", "d_z",
        "p_ttest_cases",
    )  # fmt: skip
    return Table(f"tests_{measure}", header, rows, " ".join(refused), columns)


def _test(name: str, one: PairedComparison, wilcoxon: float, ttest: float) -> list[Cell | str]:
    text = f"{one.mean_difference:+.4f} [{one.ci_low:+.4f}, {one.ci_high:+.4f}]"
    probabilities = (one.p_wilcoxon, wilcoxon, one.p_ttest, ttest)
    return [
        name,
        Cell(text, {"": one.mean_difference, "_low": one.ci_low, "_high": one.ci_high}),
        Cell(str(one.n_subjects), {"": one.n_subjects}),
        *(number(p, ".2g") for p in probabilities),
        number(one.effect_size, "+.2f"),
        Cell(f"{one.p_ttest_cases:.2g} ({one.n_cases})", {"": one.p_ttest_cases, "_n": one.n_cases}),
    ]


def _spread(values: Sequence[float]) -> Cell:
    found = spread(values)
    return Cell(spread_text(found), _values(found))


def _values(found: Mapping[str, float | int | None]) -> dict[str, float | int | None]:
    endings = {"mean": "", "std": "_sd", "n": "_n", "not_scorable": "_not_scorable"}
    return {ending: found[key] for key, ending in endings.items()}
