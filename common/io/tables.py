# SPDX-License-Identifier: Apache-2.0
"""Tables of results for people (Markdown, LaTeX) and for programs (CSV)."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..atomic import atomic_path
from .results import markdown_table, spread_text

SUFFIXES = (".md", ".csv", ".tex")
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "≤": r"$\leq$", "–": "--",
    "|": "$|$", "·": r"$\cdot$", "α": r"$\alpha$", "β": r"$\beta$", "²": "$^2$", "∇": r"$\nabla$", "<": "$<$",
    ">": "$>$",
}  # fmt: skip


class Cell(NamedTuple):
    """What a table shows in one place, and the numbers behind it.

    Attributes:
        text: for people, "0.833 ± 0.095 (181)".
        values: for programs, by the ending of the column's name: {"": 0.833, "_sd": 0.095, "_n": 181}.
    """

    text: str
    values: Mapping[str, Any]


def spread_cell(values: Mapping[str, Any]) -> Cell:
    """Mean ± standard deviation of a measure, and their number.

    Args:
        values: of ``results.spread``.

    Returns:
        The cell.
    """
    return Cell(spread_text(values), {"": values["mean"], "_sd": values["std"], "_n": values["n"]})


class Table(NamedTuple):
    """A table.

    Attributes:
        name: short and without spaces, for names of files.
        header: a text a column.
        rows: as many cells each; text stands for itself.
        caption: sentences above it.
        columns: names of the columns in CSV; None takes the header.
    """

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    caption: str = ""
    columns: Sequence[str] | None = None

    def markdown(self) -> str:
        """Caption and table in Markdown.

        Returns:
            Lines separated by newlines.
        """
        table = markdown_table(self.header, [[_text(cell) for cell in row] for row in self.rows])
        return f"{self.caption}\n\n{table}" if self.caption else table

    def latex(self) -> str:
        """A ``table`` environment in the form of the package booktabs.

        Returns:
            Lines separated by newlines.
        """
        lines = [" & ".join(latex(_text(cell)) for cell in row) + r" \\" for row in (self.header, *self.rows)]
        body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        caption = [rf"\caption{{{latex(self.caption)}}}"] if self.caption else []
        return "\n".join(
            [r"\begin{table}", r"\centering", *caption, rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}"]
            + [*body, r"\end{tabular}", r"\end{table}"]
        )

    def records(self) -> list[dict[str, Any]]:
        """A dictionary a row of what stands behind the cells.

        Returns:
            Value by column; numbers that are missing are None.
        """
        names = list(self.columns or self.header)
        records = [{} for _ in self.rows]  # type: list[dict[str, Any]]
        for index, name in enumerate(names):
            cells = [row[index] for row in self.rows]
            endings = list(dict.fromkeys(end for cell in cells for end in _values(cell)))
            for record, cell in zip(records, cells, strict=True):
                record |= {f"{name}{end}": _values(cell).get(end) for end in endings}
        return records


def number(value: float | None, form: str = ".4g") -> Cell:
    """A cell of one number.

    Args:
        value: the number; None and NaN are shown as "–".
        form: format specification.

    Returns:
        The cell.
    """
    missing = value is None or math.isnan(value)
    return Cell("–" if missing else format(value, form), {"": None if missing else value})


def latex(text: str) -> str:
    """Text as LaTeX needs it.

    Args:
        text: any.

    Returns:
        With its special characters escaped.
    """
    return re.sub("|".join(map(re.escape, LATEX)), lambda found: LATEX[found[0]], text)


def check_suffix(path: str | Path) -> Path:
    """Refuse a name of a file from which no format follows.

    Args:
        path: of the file.

    Returns:
        The path.

    Raises:
        ValueError: naming the formats.
    """
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f"output: expected a name that ends in one of {', '.join(SUFFIXES)}, got '{path}'.")
    return Path(path)


def write_tables(tables: Sequence[Table], path: str | Path, notes: str = "") -> None:
    """Write tables in the format of a file's name.

    CSV has one table a file: the first in ``path``, "cost" beside it in "…_cost.csv".

    Args:
        tables: at least one.
        path: ends in .md, .tex (booktabs) or .csv.
        notes: sentences above the tables; as a comment in LaTeX, left out of CSV.

    Raises:
        ValueError: for another suffix.
    """
    path = check_suffix(path)
    if path.suffix == ".csv":
        for index, table in enumerate(tables):
            _write_csv(table.records(), path if index == 0 else path.with_name(f"{path.stem}_{table.name}.csv"))
        return
    parts = [table.markdown() if path.suffix == ".md" else table.latex() for table in tables]
    if path.suffix == ".tex":
        notes = "\n".join(f"% {line}" for line in ["Needs \\usepackage{booktabs}.", *notes.splitlines()])
    with atomic_path(path) as temporary:
        temporary.write_text("\n\n".join(part for part in (notes, *parts) if part) + "\n", encoding="utf-8")


def _write_csv(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    columns = list(dict.fromkeys(key for record in records for key in record))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def _text(cell: Cell | str) -> str:
    return cell if isinstance(cell, str) else cell.text


def _values(cell: Cell | str) -> Mapping[str, Any]:
    return {"": cell} if isinstance(cell, str) else cell.values
