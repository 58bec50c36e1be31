# SPDX-License-Identifier: Apache-2.0
"""The one writer (and reader) of results: ``metrics.csv``, a row a case, and ``summary.json``."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import atomic_path

IDENTIFIERS = ("case", "subject")
COLUMNS = (
    "case", "subject", "slice", "scorable",
    "dice", "hd", "hd95", "asd", "foldings_percent", "sd_log_jacobian",
    "dice_before", "hd_before", "hd95_before", "asd_before",
)  # fmt: skip
NOT_MEASURES = (*IDENTIFIERS, "slice", "scorable")
SUMMARY_KEYS = ("settings", "versions", "subjects", "cost")
DISTRIBUTION = "registration-bundles"
BEFORE = "_before"
METRICS_FILE, SUMMARY_FILE = "metrics.csv", "summary.json"


def write_results(
    rows: list[dict[str, Any]],
    output_dir: str | Path,
    settings: dict[str, Any],
    further: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``metrics.csv`` and ``summary.json`` and return the summary.

    The table has the fixed ``COLUMNS`` first (empty where a run does not measure them), then every further key of the
    rows, sorted (``dice_lv``, ``hd_mm``, ``epe``, …). Every row is kept, a case that cannot be scored with
    ``scorable`` 0. The summary holds, for each numeric key that a row has, ``{"mean", "std", "n", "not_scorable"}``
    over the cases: ``std`` is that of the sample (n − 1; null for one case), ``not_scorable`` counts the cases without
    a finite value (NaN, None, absent, or infinite); n + not_scorable is the number of rows. Text columns are kept in
    the table and not summarised. Both files are replaced as a whole or left as they were.

    Args:
        rows: a dictionary a case with ``case`` and ``subject`` (text), optionally ``slice`` and ``scorable`` (taken as
            True where absent), and the measures: numbers, zero-dimensional tensors or arrays, None.
        output_dir: folder to write in; created.
        settings: the configuration of the run, kept in the summary (what JSON does not know is written as text).
        further: other entries of the summary, ``{"cost": …}``.

    Returns:
        The summary as written: the measures, and ``settings``, ``versions``, ``subjects`` (their number), ``further``.

    Raises:
        ValueError: if there is no row, a row lacks an identifier, two rows are the same case and slice, or a measure
            has a name that the summary reserves.
    """
    plain = [{key: _plain(value) for key, value in row.items()} for row in rows]
    _check_rows(plain)
    plain = [{**row, "scorable": int(row.get("scorable", 1))} for row in plain]
    present = {key for row in plain for key in row}
    columns = [*COLUMNS, *sorted(present - set(COLUMNS))]
    summary: dict[str, Any] = {
        column: spread([row.get(column) for row in plain])
        for column in columns
        if column in present and column not in NOT_MEASURES and not _is_text(plain, column)
    }
    summary |= {
        "settings": _strict(settings),
        "versions": versions(),
        "subjects": len({str(row["subject"]) for row in plain}),
    } | _strict(further or {})
    with atomic_path(Path(output_dir) / METRICS_FILE) as path:
        _write_table(plain, columns, path)
    with atomic_path(Path(output_dir) / SUMMARY_FILE) as path:
        path.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return summary


def write_rows(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write a table that ``read_metrics`` reads back, such as ``subjects.csv``.

    Args:
        rows: a dictionary a row, all with the same keys; NaN is written as an empty field.
        path: the file, replaced as a whole; its folder is created.
    """
    plain = [{key: _plain(value) for key, value in row.items()} for row in rows]
    with atomic_path(path) as temporary:
        _write_table(plain, list(plain[0]), temporary)


def read_metrics(path: str | Path, identifiers: Sequence[str] = IDENTIFIERS) -> list[dict[str, Any]]:
    """Read ``metrics.csv`` back, or another table that was written here, a dictionary a row.

    Args:
        path: the file that ``write_results`` wrote.
        identifiers: columns of text that must be there; ``("subject",)`` for ``subjects.csv``.

    Returns:
        Rows in the order of the file: identifiers as text, every other column as floats (NaN where empty), or as text
        where the column holds any.

    Raises:
        FileNotFoundError: if ``path`` does not exist.
        ValueError: if the table lacks an identifier's column or a row has the wrong number of fields.
    """
    with open(path, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows: list[dict[str, Any]] = list(reader)
        columns = list(reader.fieldnames or [])
    if not set(identifiers) <= set(columns):
        raise ValueError(
            f"{path}: expected the columns {list(identifiers)}, got {columns}; was write_results its writer?"
        )
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(
                f"{path}: expected {len(columns)} fields, row {number} has another number; file cut short?"
            )
    for column in set(columns) - set(identifiers):
        if all(_is_number(row[column]) for row in rows):
            for row in rows:
                row[column] = float(row[column]) if row[column] else math.nan
    return rows


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its lines separated by newlines.

    Args:
        header: a text a column.
        rows: of as many texts each.

    Returns:
        The table.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def results_table(summaries: Mapping[str, Mapping[str, Any]], measures: Sequence[str]) -> str:
    """Markdown table, a row a method and a column a measure: "mean ± std (n)".

    Where cases could not be scored the count reads "(n of all)", so that the table does not hide them.

    Args:
        summaries: method → summary (``write_results``, a ``summary.json`` read back, or ``undeformed`` of one).
        measures: the columns, in order.

    Returns:
        The table, lines separated by newlines; "–" where a summary lacks the measure or no case was scored.

    Raises:
        ValueError: if there is nothing to show, or no summary has any of the measures.
    """
    known = {name for summary in summaries.values() for name in summary} - set(SUMMARY_KEYS)
    if not known.intersection(measures):
        raise ValueError(
            f"measures: expected at least one of {sorted(known)}, got {list(measures)}; name measures of the summaries."
        )
    rows = [[method, *(spread_text(summary.get(name)) for name in measures)] for method, summary in summaries.items()]
    return markdown_table(["method", *measures], rows)


def undeformed(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The measures before registration under their plain names, to stand beside the registered ones in a table.

    Args:
        summary: what ``write_results`` returned.

    Returns:
        ``{"dice": summary["dice_before"], …}`` for every measure that ends in ``_before``.
    """
    return {name.removesuffix(BEFORE): summary[name] for name in summary if name.endswith(BEFORE)}


def versions() -> dict[str, str]:
    """Versions of this package, MONAI, PyTorch, NumPy and Python; "unknown" for what is not installed as a package.

    Returns:
        Version by name.
    """
    found = {}
    for name in (DISTRIBUTION, "monai", "torch", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            # a packed bundle carries this code without installing it
            found[name] = "unknown"
    return {**found, "python": platform.python_version()}


def _check_rows(rows: list[dict[str, Any]]) -> None:
    if not rows:
        raise ValueError("rows: expected a row a case, got none; is the evaluated list of pairs empty?")
    seen: set[tuple[str, str]] = set()
    for number, row in enumerate(rows):
        missing = [name for name in IDENTIFIERS if row.get(name) in (None, "")]
        if missing:
            raise ValueError(
                f"rows: expected {list(IDENTIFIERS)} in each, row {number} lacks {missing}; got {list(row)}."
            )
        key = (str(row["case"]), str(row.get("slice")))
        if key in seen:
            raise ValueError(
                f"rows: expected each case once, got case {key[0]!r} slice {key[1]} again;"
                " a distributed sampler repeats samples to even out the ranks: keep one row of each."
            )
        seen.add(key)
    reserved = sorted({key for row in rows for key in row}.intersection(SUMMARY_KEYS))
    if reserved:
        raise ValueError(f"rows: the names {reserved} are reserved for the summary; give these measures other names.")


def _plain(value: Any) -> Any:
    """Tensors, arrays and NumPy scalars of one element as Python numbers."""
    return value.item() if hasattr(value, "item") else value


def _is_text(rows: list[dict[str, Any]], column: str) -> bool:
    return any(isinstance(row.get(column), str) for row in rows)


def spread(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """What a summary says of a measure.

    Args:
        values: one a case; None and what is not finite are not scorable.

    Returns:
        ``{"mean", "std", "n", "not_scorable"}``, see ``write_results``.
    """
    finite = np.array([value for value in values if value is not None and math.isfinite(value)], dtype=np.float64)
    return {
        "mean": float(finite.mean()) if len(finite) else None,
        "std": float(finite.std(ddof=1)) if len(finite) > 1 else None,
        "n": len(finite),
        "not_scorable": len(values) - len(finite),
    }


def _write_table(rows: list[dict[str, Any]], columns: list[str], path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_field(row.get(column)) for column in columns] for row in rows)


def _field(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    # str of a float is the shortest text that reads back to the same float
    return str(int(value)) if isinstance(value, bool) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _strict(value: Any) -> Any:
    """What strict JSON can hold; anything else (paths, devices, NaN) as text."""
    value = _plain(value) if getattr(value, "ndim", None) == 0 else value
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def spread_text(measure: Mapping[str, Any] | None) -> str:
    """A measure of a summary in words: "mean ± std (n)", "(n of all)" where cases could not be scored.

    Args:
        measure: see ``spread``; None is "–", as is one of no case.

    Returns:
        The text.
    """
    if measure is None or measure["n"] == 0:
        return "–"
    count = str(measure["n"])
    if measure["not_scorable"]:
        count += f" of {measure['n'] + measure['not_scorable']}"
    # one case has no standard deviation
    deviation = "" if measure["std"] is None else f" ± {_rounded(measure['std'])}"
    return f"{_rounded(measure['mean'])}{deviation} ({count})"


def _rounded(value: float) -> str:
    # three decimals would print the small folding percentages as 0.000
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"
