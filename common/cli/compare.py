# SPDX-License-Identifier: Apache-2.0
"""Methods side by side: tables, tests on subjects, box plots, panels of single cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..checks import known_name
from ..figures.boxes import box_plots, dependence_plot, structure_boxes
from ..figures.uncertainty import sparsification_plot
from ..io.results import BEFORE, read_metrics, spread
from ..io.tables import check_suffix, write_tables
from ..metrics.labels import GROUPS
from ..metrics.uncertainty import CURVES
from .comparison import (
    UNDEFORMED,
    Evaluations,
    cost_table,
    groups_table,
    measures_table,
    paired_table,
    seeds_table,
    subjects_table,
    volumes_table,
)
from .evaluations import Evaluation, Rows, averaged, headline_of, read_evaluations
from .failures import failures_table
from .panels import draw_cases
from .structures import dice_by_structure, groups_measured, structures_table

MEASURES = (
    "dice", GROUPS, "hd", "hd95", "asd", "foldings_percent", "foldings_any_percent", "ndv_percent", "sd_log_jacobian",
    "sd_log_jacobian_l2r", "inverse_consistency_error", "dice_official", "asd_official", "dice_vessels", "tre_mm",
    "tre_voxels", "ause", "ence",
)  # fmt: skip
TESTED = ("dice", "hd", "asd")


def compare(
    *results: str,
    measures: Sequence[str] | None = None,
    tested: Sequence[str] | None = None,
    reference: str | None = None,
    output: Sequence[str] | None = None,
    figures: str | None = None,
    against: str | None = None,
    failures: int = 0,
    panels: Sequence[str] | None = None,
) -> str:
    """Compare evaluations of the same cases; run as ``python -m common compare NAME=DIR NAME=DIR …``.

    Tables of measures over cases and of cost are followed by means over subjects with bootstrap intervals, the volumes'
    Dice, the Dice by structure where groups of labels were measured, and paired tests on subject means (slices of one
    heart are not independent): Wilcoxon and t, adjusted by Holm over the comparisons of a measure, Cohen's d_z, and the
    papers' own t-test of slices. Several folders of a method, ``NAME=DIR1,DIR2``, are runs with different seeds: tests
    take the mean over them of each case, and a table shows their spread. Methods trained with labels and without are
    not compared.

    Args:
        results: ``NAME=DIR``, DIR holding ``metrics.csv`` and ``summary.json`` of an evaluation.
        measures: columns of the first table, of those that were measured, as in ``--measures dice,dice_lv,hd95``;
            default: ``MEASURES`` and the headline, the first of ``evaluations.HEADLINES`` that was measured.
        tested: measures with a table of tests, and a box plot; default: ``TESTED``, the headline, and the mean Dice of
            groups where it was measured.
        reference: name of the method that is tested against each of the others; default: all pairs.
        output: also write the tables here, as ``--output table.md,table.tex,table.csv``; of CSV a file a table.
        figures: folder for figures: box plots of the tested measures and of the structures, and the sparsification
            curves of the methods whose uncertainty was measured.
        against: a column, such as ``thickness_myocardium``, that the headline is plotted over in ``figures``.
        failures: list this many worst cases of each method.
        panels: cases to register once more with every method and to draw in ``figures``: names of cases, or ``worst``
            for the worst case of each method.

    Returns:
        Markdown.

    Raises:
        ValueError: for no results, an argument of another form, a repeated or unknown name, or evaluations of different
            data: other cases, or cases of the same name whose measures before registration differ.
    """
    outputs = [check_suffix(path) for path in _names(output, ())]
    if (against or panels) and figures is None:
        raise ValueError("figures: expected a folder with --against and --panels, got none; pass --figures DIR.")
    evaluations = read_evaluations(results)
    if reference is not None:
        known_name("reference", reference, evaluations)
    headline = headline_of(evaluations.values())
    columns = _names(measures, (*MEASURES, headline))
    checked = _names(tested, (*TESTED, headline, *([GROUPS] if groups_measured(evaluations) else [])))
    _check_columns(evaluations, columns, against)
    tables = [
        measures_table(evaluations, [name for name in columns if _measured(evaluations, name)]),
        cost_table(evaluations),
        seeds_table(evaluations, [name for name in columns if _measured(evaluations, name)]),
        subjects_table(evaluations, headline),
        groups_table(evaluations, headline),
        volumes_table(evaluations),
        structures_table(dice_by_structure(evaluations)),
        *(paired_table(evaluations, name, reference) for name in checked if len(evaluations) > 1),
        failures_table(evaluations, headline, failures, [against] if against else []) if failures else None,
    ]
    notes = "\n".join(_notes(evaluations, checked))
    present = [table for table in tables if table is not None and (table.rows or table.caption)]
    for path in outputs:
        write_tables(present, path, notes)
    if figures is not None:
        _draw(evaluations, Path(figures), [name for name in checked if _measured(evaluations, name)], headline, against)
        draw_cases(evaluations, Path(figures), headline, _names(panels, ()))
    return "\n\n".join([notes, *(table.markdown() for table in present)]) + "\n"


def _names(given: Sequence[str] | None, default: Sequence[str]) -> list[str]:
    """The command line delivers one name as text and several as a tuple; each is named once."""
    if given is None:
        given = default
    return given.split(",") if isinstance(given, str) else list(dict.fromkeys(given))


def _measured(evaluations: Evaluations, column: str) -> bool:
    return any(not math.isnan(value) for one in evaluations.values() for value in one.values(column))


def _check_columns(evaluations: Evaluations, columns: Sequence[str], against: str | None) -> None:
    first = next(iter(evaluations.values())).rows
    known = [name for name, value in first[0].items() if isinstance(value, float)]
    if not any(_measured(evaluations, name) for name in columns):
        raise ValueError(f"measures: expected at least one of {', '.join(known)}; got {', '.join(columns)}.")
    if against is not None:
        known_name("against", against, known)


def _notes(evaluations: Evaluations, checked: Sequence[str]) -> list[str]:
    """What was compared, and what is missing from it: no case is left out silently."""
    first = next(iter(evaluations.values())).rows
    scored = [index for index, row in enumerate(first) if row.get("scorable", 1) > 0]
    subjects = {str(row["subject"]) for row in first}
    notes = [
        f"{len(first)} cases of {len(subjects)} subjects: {len(scored)} scored, {len(first) - len(scored)} not "
        "scorable (a scored label is missing in one of the two images)."
    ]
    for name, one in evaluations.items():
        for measure in checked:
            lost = [one.rows[i]["case"] for i in scored if math.isnan(one.rows[i].get(measure, math.nan))]
            if lost and len(lost) < len(scored):
                shown = ", ".join(lost[:5]) + (", …" if len(lost) > 5 else "")
                notes.append(f"{name} has no {measure} in {len(lost)} of the scored cases: {shown}.")
    unknown = [name for name, one in evaluations.items()
               if any(run.settings.get("labels_in_training") is None for run in one.runs)]  # fmt: skip
    if unknown:
        notes.append(f"Whether labels were used in training is not recorded for {', '.join(unknown)}.")
    return notes


def _draw(evaluations: Evaluations, folder: Path, measures: Sequence[str], headline: str, against: str | None) -> None:
    first = next(iter(evaluations.values()))
    drawn = {}
    for measure in measures:
        before = {UNDEFORMED: first.values(f"{measure}{BEFORE}")} if f"{measure}{BEFORE}" in first.rows[0] else {}
        drawn[measure] = before | {name: one.values(measure) for name, one in evaluations.items()}
    box_plots(drawn, folder / "boxes.png")
    structures = dice_by_structure(evaluations)
    if structures:
        structure_boxes(structures, folder / "structures.png")
    if against is not None:
        values = {name: one.values(headline) for name, one in evaluations.items()}
        dependence_plot(first.values(against), values, folder / f"{headline}_over_{against}.png", against, headline)
    for name, column in CURVES.items():
        tables = {method: _table(one, f"{name}.csv") for method, one in evaluations.items()}
        curves = {method: rows for method, rows in tables.items() if rows}
        if curves:
            areas = {method: spread(evaluations[method].values(column))["mean"] for method in curves}
            sparsification_plot(folder / f"{name}.png", curves, areas)


def _table(evaluation: Evaluation, name: str) -> Rows:
    """A table of an evaluation, averaged over its runs; no rows where none of them has it."""
    files = [run.folder / name for run in evaluation.runs]
    tables = [read_metrics(file, ()) for file in files if file.is_file()]
    return averaged(tables) if tables else []
