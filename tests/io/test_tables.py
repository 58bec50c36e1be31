# SPDX-License-Identifier: Apache-2.0
"""One table as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import math
import shutil
import subprocess
from pathlib import Path

import pytest

from common.io.tables import Cell, Table, latex, number, write_tables

TABLE = Table(
    "measures",
    ["method", "dice_lv, %", "p"],
    [["a_b & c", Cell("83 ± 2 (7)", {"": 83.25, "_sd": 2.0}), number(0.00012, ".2g")],
     ["|J| ≤ 0", Cell("–", {"": None}), number(math.nan)]],
    "Mean ± sd.",
    ["method", "dice", "p"],
)  # fmt: skip


def test_markdown_has_caption_and_a_row_a_method() -> None:
    assert TABLE.markdown().splitlines() == [
        "Mean ± sd.", "", "| method | dice_lv, % | p |", "| --- | --- | --- |", "| a_b & c | 83 ± 2 (7) | 0.00012 |",
        r"| \|J\| ≤ 0 | – | – |",
    ]  # fmt: skip


def test_latex_escapes_what_is_special() -> None:
    text = TABLE.latex()
    assert r"method & dice\_lv, \% & p \\" in text and r"a\_b \& c & 83 $\pm$ 2 (7) & 0.00012 \\" in text
    assert r"$|$J$|$ $\leq$ 0 & -- & -- \\" in text and r"\begin{tabular}{lrr}" in text
    assert latex(r"\a{b}^~#$") == r"\textbackslash{}a\{b\}\textasciicircum{}\textasciitilde{}\#\$"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX")
def test_latex_compiles(tmp_path: Path) -> None:
    body = TABLE.latex()
    (tmp_path / "a.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}" + body + "\\end{document}"
    )
    subprocess.run(["pdflatex", "-interaction=batchmode", "-halt-on-error", "a.tex"], cwd=tmp_path, check=True)


def test_csv_holds_numbers_and_a_file_a_table(tmp_path: Path) -> None:
    cost = Table("cost", ["method", "hours"], [["a", number(1 / 3, ".2g")]])
    write_tables([TABLE, cost], tmp_path / "t.csv", "left out")
    with (tmp_path / "t.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows == [["method", "dice", "dice_sd", "p"], ["a_b & c", "83.25", "2.0", "0.00012"], ["|J| ≤ 0", "", "", ""]]
    assert (tmp_path / "t_cost.csv").read_text() == f"method,hours\na,{1 / 3}\n"


def test_files_hold_notes_and_all_tables(tmp_path: Path) -> None:
    for name in ("t.md", "t.tex"):
        write_tables([TABLE, TABLE], tmp_path / name, "Two lines\nof notes")
    assert (tmp_path / "t.md").read_text() == f"Two lines\nof notes\n\n{TABLE.markdown()}\n\n{TABLE.markdown()}\n"
    text = (tmp_path / "t.tex").read_text()
    assert "% Two lines\n% of notes\n" in text and text.count(r"\begin{table}") == 2


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a name that ends in one of .md, .csv, .tex, got"):
        write_tables([TABLE], tmp_path / "t.xlsx")
