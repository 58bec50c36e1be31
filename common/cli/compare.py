# SPDX-License-Identifier: Apache-2.0
"""Methods side by side, with paired tests on patient means."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import atomic_path
from ..io.results import BEFORE, markdown_table, read_metrics, results_table, undeformed
from ..metrics.statistics import (
    bootstrap_interval,
    design_effect,
    holm,
    paired_comparison,
    subject_means,
)

MEASURES = (
    "dice", "hd", "hd95", "asd", "foldings_percent", "sd_log_jacobian", "inverse_consistency_error", "dice_official",
    "asd_official", "dice_vessels", "tre_mm", "tre_voxels",
)  # fmt: skip
TESTED = ("dice", "hd", "asd")
HEADLINES = ("dice", "dice_vessels", "tre_mm", "tre_voxels", "mse")  # the first that was measured has patient means


def compare(
    *results: str,
    measures: Sequence[str] | None = None,
    tested: Sequence[str] | None = None,
    output: str | None = None,
) -> str:
    """Compare evaluations of the same cases; run as ``python -m common compare NAME=DIR NAME=DIR …``.

    The table of cases is followed by means over patients with bootstrap intervals, the volumes' Dice, and paired tests
    of every pair of methods on patient means (slices of one heart are not independent), p-values adjusted by Holm over
    all pairs of a measure.

    Args:
        results: ``NAME=DIR``, DIR holding ``metrics.csv`` and ``summary.json`` of an evaluation.
        measures: columns of the first table, of those that were measured, as in ``--measures dice,dice_lv,hd95``;
            default: ``MEASURES`` and the headline, the first of ``HEADLINES`` that was measured.
        tested: measures with a table of tests; default: ``TESTED`` and the headline.
        output: also write the Markdown here.

    Returns:
        Markdown.

    Raises:
        ValueError: for no results, an argument of another form, a repeated name, or evaluations of different data:
            other cases, or cases of the same name whose measures before registration differ.
    """
    folders = _folders(results)
    rows = {name: read_metrics(folder / "metrics.csv") for name, folder in folders.items()}
    summaries = {
        name: json.loads((folder / "summary.json").read_text(encoding="utf-8")) for name, folder in folders.items()
    }
    _check_same_cases(rows)
    _check_same_data(rows)
    headline = _headline(summaries)
    columns = _names(measures, (*MEASURES, headline))
    shown = [name for name in columns if any(name in summary for summary in summaries.values())]
    first = next(iter(rows.values()))
    scored = sum(row["scorable"] > 0 for row in first)
    subjects = [str(row["subject"]) for row in first]
    before = {"undeformed": undeformed(next(iter(summaries.values())))}
    parts = [
        f"{len(first)} cases of {len(set(subjects))} subjects: {scored} scored, {len(first) - scored} not scorable "
        "(a scored label is missing in one of the two images).",
        results_table(before | summaries, shown or columns),
        _patient_table(rows, subjects, headline),
        _volume_table(folders),
    ]
    parts += [_tests(rows, subjects, measure) for measure in _names(tested, (*TESTED, headline)) if len(rows) > 1]
    text = "\n\n".join(part for part in parts if part) + "\n"
    if output is not None:
        with atomic_path(output) as path:
            path.write_text(text, encoding="utf-8")
    return text


def _names(given: Sequence[str] | None, default: Sequence[str]) -> list[str]:
    """The command line delivers one name as text and several as a tuple; each is named once."""
    if given is None:
        given = default
    return [given] if isinstance(given, str) else list(dict.fromkeys(given))


def _headline(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """The measure to compare patients by: the first of ``HEADLINES`` that all evaluations measured."""
    for name in HEADLINES:
        if all(summary.get(name, {}).get("n") for summary in summaries.values()):
            return name
    raise ValueError(
        f"compare: expected evaluations that all measured one of {', '.join(HEADLINES)}; add one of these measures to "
        "the bundles' 'measures' and evaluate again."
    )


def _folders(results: tuple[str, ...]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for result in results:
        name, separator, folder = str(result).partition("=")
        if not (name and separator and folder) or name in folders:
            raise ValueError(f"compare: expected NAME=DIR, each name once, got {result!r}.")
        folders[name] = Path(folder)
    if not folders:
        raise ValueError("compare: expected at least one NAME=DIR, got none.")
    return folders


def _check_same_cases(rows: dict[str, list[dict[str, Any]]]) -> None:
    cases = {name: [row["case"] for row in table] for name, table in rows.items()}
    reference_name, reference = next(iter(cases.items()))
    for name, other in cases.items():
        if other != reference:
            different = sorted(set(other) ^ set(reference))[:5]
            raise ValueError(
                f"compare: '{name}' and '{reference_name}' were evaluated on different cases or orders "
                f"({len(other)} and {len(reference)}; {different or 'same set'}). Evaluate both on one split."
            )


def _check_same_data(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Two data sets may use the same names; what was measured before registration tells them apart."""
    reference_name, reference = next(iter(rows.items()))
    for name, table in rows.items():
        columns = [key for key in reference[0] if key.endswith(BEFORE) and key in table[0]]
        for column, (one, other) in itertools.product(columns, zip(reference, table, strict=True)):
            same = math.isclose(one[column], other[column], rel_tol=1e-5, abs_tol=1e-6)
            if not same and not math.isnan(one[column]) + math.isnan(other[column]) == 2:
                raise ValueError(
                    f"compare: '{name}' and '{reference_name}' were evaluated on different data: before registration "
                    f"{column} of case {one['case']} is {other[column]:.6g} and {one[column]:.6g}. Evaluate both on "
                    "one dataset_dir, with the same window, percentiles and scored labels."
                )


def _patient_table(rows: dict[str, list[dict[str, Any]]], subjects: list[str], measure: str) -> str:
    first = next(iter(rows.values()))
    columns = {"undeformed": [row[f"{measure}{BEFORE}"] for row in first]}
    columns |= {name: [row[measure] for row in table] for name, table in rows.items()}
    lines = []
    for name, values in columns.items():
        means = {subject: mean for subject, mean in subject_means(values, subjects).items() if not math.isnan(mean)}
        low, high = bootstrap_interval(means)
        mean = sum(means.values()) / len(means)
        lines.append([name, f"{mean:.4f} [{low:.4f}, {high:.4f}]", f"{design_effect(values, subjects):.2f}"])
    return markdown_table(["patient means", f"{measure} [95 % interval]", "design effect"], lines)


def _volume_table(folders: dict[str, Path]) -> str:
    """Mean over patients of the Dice of whole volumes, a column a label."""
    files = {name: folder / "subjects.csv" for name, folder in folders.items()}
    tables = {name: read_metrics(file, ("subject",)) for name, file in files.items() if file.is_file()}
    first = next(iter(tables.values()), [{}])[0]
    labels = [key.removeprefix("dice_3d_") for key in first if key.startswith("dice_3d_") and "before" not in key]
    if not labels:
        return ""
    lines = [["undeformed", *(_mean(next(iter(tables.values())), f"dice_3d_before_{label}") for label in labels)]]
    lines += [[name, *(_mean(table, f"dice_3d_{label}") for label in labels)] for name, table in tables.items()]
    return markdown_table(["3D Dice of a patient", *labels], lines)


def _mean(table: list[dict[str, Any]], key: str) -> str:
    values = np.array([row[key] for row in table if not math.isnan(row.get(key, math.nan))])
    if not len(values):
        return "–"
    spread = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
    return f"{values.mean():.4f}{spread} ({len(values)})"


def _tests(rows: dict[str, list[dict[str, Any]]], subjects: list[str], measure: str) -> str:
    pairs = list(itertools.combinations(rows, 2))
    missing = sorted(name for name, table in rows.items() if measure not in table[0])
    if missing:
        raise ValueError(f"tested: expected a measure of all evaluations, got {measure!r}, which {missing} lack.")
    if any(all(math.isnan(row[measure]) for row in table) for table in rows.values()):
        return ""  # not measured
    outcomes = [
        paired_comparison([row[measure] for row in rows[b]], [row[measure] for row in rows[a]], subjects)
        for a, b in pairs
    ]
    adjusted = holm([outcome.p_wilcoxon for outcome in outcomes])
    header = (
        f"{measure}: difference of patient means",
        "mean [95 % interval]",
        "patients",
        "p Wilcoxon",
        "Holm",
        "p t-test",
    )
    lines = [
        (
            f"{b} − {a}",
            f"{outcome.mean_difference:+.4f} [{outcome.ci_low:+.4f}, {outcome.ci_high:+.4f}]",
            str(outcome.n_subjects),
            *(f"{p:.2g}" for p in (outcome.p_wilcoxon, adjusted_p, outcome.p_ttest)),
        )
        for (a, b), outcome, adjusted_p in zip(pairs, outcomes, adjusted, strict=True)
    ]
    return markdown_table(header, lines)
