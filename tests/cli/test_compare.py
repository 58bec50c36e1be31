# SPDX-License-Identifier: Apache-2.0
"""Side-by-side tables: the numbers are those of the files, the tests those of SciPy on patient means."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from common.cli import compare as module
from common.cli.compare import compare
from common.io.results import read_metrics, spread, write_results, write_rows
from common.metrics.statistics import holm

ROOT = Path(__file__).resolve().parents[2]


def evaluation(folder: Path, gain: float, subjects: int = 6, **settings: Any) -> np.ndarray:
    """Write an evaluation of three slices a subject, the last not scorable; return patient means of Dice."""
    generator = np.random.default_rng(int(gain * 1000))
    rows, means = [], []
    for subject in range(subjects):
        values = 0.7 + 0.02 * subject + gain + 0.01 * generator.standard_normal(2)
        means.append(values.mean())
        for number, dice in enumerate([*values, float("nan")]):
            rows.append(
                {"case": f"patient{subject:03d}_slice{number}", "subject": f"patient{subject:03d}", "slice": number,
                 "scorable": int(number < 2), "dice": dice, "dice_before": 0.5 if number < 2 else float("nan"),
                 "hd": 4.0 - gain if number < 2 else float("nan"), "foldings_percent": 0.0}
            )  # fmt: skip
    write_results(rows, folder, settings)
    write_rows([{"subject": "a", "dice_3d_lv": 0.9, "dice_3d_before_lv": 0.6}], folder / "subjects.csv")
    return np.array(means)


def test_tables_hold_the_measured_numbers_and_scipys_tests(tmp_path: Path) -> None:
    a, b = evaluation(tmp_path / "a", 0.0), evaluation(tmp_path / "b", 0.03)
    text = compare(f"plain={tmp_path / 'a'}", f"better={tmp_path / 'b'}", output=str(tmp_path / "table.md"))
    assert (tmp_path / "table.md").read_text() == text
    assert "18 cases of 6 subjects: 12 scored, 6 not scorable" in text
    assert f"| plain | {a.mean():.4f} [" in text
    line = next(line for line in text.splitlines() if line.startswith("| better − plain | +"))
    assert f"{(b - a).mean():+.4f}" in line
    assert f"{stats.wilcoxon(b - a).pvalue:.2g}" in line
    assert "| undeformed | 0.6000 (1) |" in text and "| better | 0.9000 (1) |" in text


def test_groups_have_a_table_where_the_data_tell_them_apart(tmp_path: Path) -> None:
    """Image quality, or diagnosis: an empty group has no column."""
    for name, gain in (("a", 0.0), ("b", 0.1)):
        rows = [
            {"case": f"c{n}", "subject": f"s{n}", "dice": 0.5 + 0.01 * n + gain, "dice_before": 0.25, "group": group}
            for n, group in enumerate(["Good", "Poor", "Good", "Poor", ""])
        ]
        write_results(rows, tmp_path / name, {})
    text = compare(f"plain={tmp_path / 'a'}", f"better={tmp_path / 'b'}")
    assert "| dice by group | Good | Poor |" in text
    assert "| better | 0.610 ± 0.014 (2) | 0.620 ± 0.014 (2) |" in text
    assert "| undeformed | 0.250 ± 0.000 (2) | 0.250 ± 0.000 (2) |" in text
    for path in (tmp_path / "a", tmp_path / "b"):
        write_results([row | {"group": "Good"} for row in read_metrics(path / "metrics.csv")], path, {})
    assert "by group" not in compare(f"plain={tmp_path / 'a'}", f"better={tmp_path / 'b'}")


def test_evaluations_without_labels_are_compared_by_what_they_measured(tmp_path: Path) -> None:
    for name, gain in (("a", 0.0), ("b", 0.01)):
        rows = [
            {
                "case": f"c{n}",
                "subject": f"s{n // 2}",
                "mse": 0.05 + 0.001 * n**2 - gain * (1 + n / 10),
                "mse_before": 0.1,
            }
            for n in range(12)
        ]
        write_results(rows, tmp_path / name, {})
        write_rows([{"subject": "s0", "slices": 2}], tmp_path / name / "subjects.csv")
    text = compare(f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}")
    assert "| method | mse |" in text and "| patient means | mse [95 % interval] | design effect |" in text
    assert "| undeformed | 0.1000 [0.1000, 0.1000] |" in text and "Dice over all cases" not in text
    assert text.count("difference of patient means") == 1 and "| b − a | -0.0155 [" in text


def test_evaluations_that_share_no_headline_are_refused(tmp_path: Path) -> None:
    for name, measure in (("a", "mse"), ("b", "tre_mm")):
        write_results([{"case": "c", "subject": "s", measure: 1.0}], tmp_path / name, {})
    with pytest.raises(ValueError, match="expected evaluations that all measured one of dice, .*tre_mm"):
        compare(f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}")


def test_one_evaluation_needs_no_tests(tmp_path: Path) -> None:
    evaluation(tmp_path, 0.0)
    assert "Wilcoxon" not in compare(f"plain={tmp_path}")


def test_measures_and_tests_are_chosen_by_name(tmp_path: Path) -> None:
    for name, gain in (("a", 0.0), ("b", 0.03)):
        evaluation(tmp_path / name, gain)
    text = compare(f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", measures=("hd", "nothing"), tested="hd")
    assert "| method | hd |" in text.splitlines()
    assert text.count("difference of patient means") == 1 and "| hd: difference" in text
    with pytest.raises(ValueError, match=r"tested: expected .* of all evaluations, got 'epe', which \['a', 'b'\]"):
        compare(f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", tested="epe")


def test_a_folder_without_an_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="net: expected the folder of an evaluation .* no .*metrics.csv"):
        compare(f"net={tmp_path}")


def test_evaluations_of_other_cases_are_refused(tmp_path: Path) -> None:
    evaluation(tmp_path / "a", 0.0)
    evaluation(tmp_path / "b", 0.03, subjects=5)
    with pytest.raises(ValueError, match="different cases"):
        compare(f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("dice_before", 0.51, "dice_before of case patient001_slice1 is 0.51 and 0.5"),
        ("mse_before", 0.02002, "mse_before of case patient001_slice1 is 0.02002 and 0.02"),
        ("mse_before", 0.02 + 1e-8, None),  # rounding of another machine
        ("dice_before", float("nan"), "dice_before of case patient001_slice1 is nan and 0.5"),
    ],
)
def test_other_data_with_the_same_names_are_refused(
    tmp_path: Path, column: str, value: float, message: str | None
) -> None:
    for name in ("a", "b"):
        evaluation(tmp_path / name, 0.0)
        rows = [row | {"mse_before": 0.02} for row in read_metrics(tmp_path / name / "metrics.csv")]
        if name == "b":
            rows[4][column] = value
        write_results(rows, tmp_path / name, {})
    arguments = f"plain={tmp_path / 'a'}", f"other={tmp_path / 'b'}"
    if message is None:
        assert "| other − plain |" in compare(*arguments)
    else:
        with pytest.raises(ValueError, match=f"'other' and 'plain' were evaluated on different data.*{message}"):
            compare(*arguments)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_command_prints_on_any_output(tmp_path: Path, encoding: str) -> None:
    for name, gain in (("a", 0.0), ("b", 0.03)):
        evaluation(tmp_path / name, gain)
    command = [sys.executable, "-m", "common", "compare", f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}"]
    command += ["--output", str(tmp_path / "table.md")]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert done.stdout.decode(encoding).split() == text.encode(encoding, errors="replace").decode(encoding).split()
    assert "| b − a |" in text


@pytest.mark.parametrize("arguments", [(), ("folder",), ("=folder",), ("a=x", "a=y")])
def test_arguments_have_the_form_name_and_folder(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="NAME=DIR"):
        compare(*arguments)


def column(text: str, header: str, row: str, name: str) -> str:
    """A cell of the Markdown table whose first column has this header."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    start = next(index for index, line in enumerate(lines) if line[0] == header)
    found = next(line for line in lines[start:] if line[0] == row)
    return found[lines[start].index(name)]


def test_a_reference_is_tested_against_each_of_the_others(tmp_path: Path) -> None:
    means = {name: evaluation(tmp_path / name, gain) for name, gain in (("a", 0.0), ("b", 0.03), ("c", 0.01))}
    folders = [f"{name}={tmp_path / name}" for name in means]
    text = compare(*folders, reference="b", tested="dice")
    header = "dice: difference of patient means"
    assert "| c − a |" not in text and "| b − a |" in text and "| b − c |" in text
    pairs = {f"b − {name}": means["b"] - means[name] for name in "ac"}
    p_values = [stats.wilcoxon(difference).pvalue for difference in pairs.values()]
    for (name, difference), adjusted in zip(pairs.items(), holm(p_values), strict=True):
        assert column(text, header, name, "d_z") == f"{difference.mean() / difference.std(ddof=1):+.2f}"
        assert column(text, header, name, "Holm") == f"{adjusted:.2g}"
        assert column(text, header, name, "p t-test") == f"{stats.ttest_1samp(difference, 0).pvalue:.2g}"
    with pytest.raises(ValueError, match="reference: expected one of a, b, c, got 'd'"):
        compare(*folders, reference="d")


def test_the_papers_test_is_that_of_slices_and_named_so(tmp_path: Path) -> None:
    for name, gain in (("a", 0.0), ("b", 0.03)):
        evaluation(tmp_path / name, gain)
    text = compare(f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", tested="dice")
    dice = [[row["dice"] for row in read_metrics(tmp_path / name / "metrics.csv")] for name in "ab"]
    expected = stats.ttest_rel(*dice, nan_policy="omit").pvalue
    name = "p t-test, slices taken as independent, as in the papers"
    assert column(text, "dice: difference of patient means", "b − a", name) == f"{expected:.2g} (12)"


def test_runs_with_several_seeds_are_averaged_case_by_case(tmp_path: Path) -> None:
    gains = {"s0": 0.01, "s1": 0.03, "s2": 0.02}
    means = np.array([evaluation(tmp_path / name, gain) for name, gain in gains.items()])
    base = evaluation(tmp_path / "base", 0.0)
    text = compare(f"base={tmp_path / 'base'}", "ours=" + ",".join(str(tmp_path / name) for name in gains))
    over_seeds = means.mean(1)
    assert (
        column(text, "method, over seeds", "ours", "dice")
        == f"{over_seeds.mean():.3f} ± {over_seeds.std(ddof=1):.3f} (3)"
    )
    difference = (means.mean(0) - base).mean()
    header = "dice: difference of patient means"
    assert column(text, header, "ours − base", "mean [95 % interval]").startswith(f"{difference:+.4f} [")
    assert column(text, "patient means", "ours", "dice [95 % interval]").startswith(f"{means.mean():.4f} [")
    with pytest.raises(ValueError, match="each run of 'ours' once"):
        compare(f"ours={tmp_path / 's0'},{tmp_path / 's0'}")
    evaluation(tmp_path / "other", 0.0, subjects=5)
    with pytest.raises(ValueError, match=r"'ours \(.*other\)' and 'ours \(.*s0\)' were evaluated on different cases"):
        compare(f"ours={tmp_path / 's0'},{tmp_path / 'other'}")


def test_trainings_with_and_without_labels_are_not_mixed(tmp_path: Path) -> None:
    for name, flag in (("with", True), ("without", False), ("unknown", None)):
        evaluation(tmp_path / name, 0.0, labels_in_training=flag)
    arguments = {name: f"{name}={tmp_path / name}" for name in ("with", "without", "unknown")}
    with pytest.raises(ValueError, match="training of with was given labels, that of without was not"):
        compare(arguments["without"], arguments["with"])
    note = "Whether labels were used in training is not recorded for unknown."
    assert note in compare(arguments["with"], arguments["unknown"])
    assert "not recorded" not in compare(arguments["without"])


def test_cases_that_a_method_loses_are_named(tmp_path: Path) -> None:
    for name, gain in (("a", 0.0), ("b", 0.03)):
        evaluation(tmp_path / name, gain)
    rows = read_metrics(tmp_path / "b" / "metrics.csv")
    rows[3] |= {"dice": 0.0, "hd": float("nan")}
    write_results(rows, tmp_path / "b", {})
    text = compare(f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", failures=2)
    assert "b has no hd in 1 of the scored cases: patient001_slice0." in text
    assert "a has no" not in text
    assert "Cases that only one of the two scored are left out: 1 of b − a." in text
    assert column(text, "method", "b", "hd").endswith("(11 of 18)") and column(text, "method", "a", "hd").endswith(
        "(12 of 18)"
    )
    assert column(text, "worst dice of", "b", "case") == "patient001_slice0"
    assert column(text, "worst dice of", "b", "undeformed") == "0.5000"
    assert sum(line.startswith(("| a | patient", "| b | patient")) for line in text.splitlines()) == 4


def test_a_method_that_lost_a_whole_subject_is_reported_not_dropped(tmp_path: Path) -> None:
    for name, gain in (("a", 0.0), ("b", 0.03)):
        evaluation(tmp_path / name, gain)
    rows = [row | ({"hd": float("nan")} if row["subject"] == "patient002" else {})
            for row in read_metrics(tmp_path / "b" / "metrics.csv")]  # fmt: skip
    write_results(rows, tmp_path / "b", {})
    text = compare(f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", tested="hd")
    assert "b − a is not tested: " in text and "'patient002'" in text


def test_cost_is_read_from_summary_history_and_cases(tmp_path: Path) -> None:
    for name in ("net", "anchor", "old"):
        evaluation(tmp_path / name, 0.0)
        rows = [
            row | {"seconds": 0.5 if n else 90.0} for n, row in enumerate(read_metrics(tmp_path / name / "metrics.csv"))
        ]
        settings = {
            "net": {"batch_size": 8},
            "anchor": {"architecture": "pairwise"},
            "old": {"ckpt_path": "gone/model.pt"},
        }
        cost = {
            "parameters": 1234567,
            "peak_memory_bytes": 3 * 2**30,
            "memory_of": "GPU",
            "device": "H100",
            "threads": 1,
        }
        write_results(rows, tmp_path / name, settings[name], {} if name == "old" else {"cost": cost})
    (tmp_path / "net" / "history.csv").write_text("epoch,seconds\n1,1800\n2,3600\n")
    outputs = ",".join(str(tmp_path / f"table.{end}") for end in ("md", "csv", "tex"))
    text = compare(*(f"{name}={tmp_path / name}" for name in ("net", "anchor", "old")), output=outputs)
    table = text[text.index("| method | hours of training") :].splitlines()[2:5]
    assert table == [
        "| net | 1.5 | 0.5 | 3 | 1,234,567 | H100, batches of 8 |",
        "| anchor | 0 | 0.5 | 3 | 1,234,567 | H100 |",
        "| old | – | 0.5 | – | – | – |",
    ]
    assert (tmp_path / "table.md").read_text() == text and r"\toprule" in (tmp_path / "table.tex").read_text()
    with (tmp_path / "table_cost.csv").open(newline="") as stream:
        costs = list(csv.DictReader(stream))
    assert [row["training_hours"] for row in costs] == ["1.5", "0.0", ""]
    with (tmp_path / "table.csv").open(newline="") as stream:
        first = next(row for row in csv.DictReader(stream) if row["method"] == "net")
    summary = spread([row["dice"] for row in read_metrics(tmp_path / "net" / "metrics.csv")])
    assert float(first["dice"]) == summary["mean"] and float(first["dice_sd"]) == summary["std"]
    assert (first["dice_n"], first["dice_not_scorable"]) == ("12", "6")


def test_figures_show_the_tested_measures_and_a_chosen_column(tmp_path: Path) -> None:
    for name, gain in (("a", 0.0), ("b", 0.03)):
        evaluation(tmp_path / name, gain)
        rows = read_metrics(tmp_path / name / "metrics.csv")
        write_results([row | {"thickness": 5.0 + n % 4} for n, row in enumerate(rows)], tmp_path / name, {})
    arguments = [f"{name}={tmp_path / name}" for name in "ab"]
    compare(*arguments, figures=str(tmp_path / "figures"), against="thickness")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"boxes.png", "dice_over_thickness.png"}
    with pytest.raises(ValueError, match="against: expected one of .*Did you mean 'thickness'"):
        compare(*arguments, figures=str(tmp_path), against="thicknes")
    with pytest.raises(ValueError, match="figures: expected a folder with --against and --panels"):
        compare(*arguments, against="thickness")
    with pytest.raises(ValueError, match=r"output: expected a name that ends in one of .md, .csv, .tex, got 'a.txt'"):
        compare(*arguments, output="b.md,a.txt")


def test_sparsification_is_drawn_of_the_methods_that_have_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seeds are averaged, a method without an uncertainty is left out, and the area is that of the cases."""
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(module, "sparsification_plot", lambda path, *parts: drawn.update({path.name: parts}))
    for number, name in enumerate(("a1", "a2", "b")):
        evaluation(tmp_path / name, 0.01 * number)
        if name == "b":
            continue
        rows = read_metrics(tmp_path / name / "metrics.csv")
        write_results([row | {"ause": 0.2 + 0.1 * number} for row in rows], tmp_path / name, {})
        curve = [{"fraction": k / 4, "curve": 1.0 - number * k / 8, "curve_sd": 0.1, "oracle": 0.0} for k in range(4)]
        write_rows(curve, tmp_path / name / "sparsification.csv")
    text = compare(f"a={tmp_path / 'a1'},{tmp_path / 'a2'}", f"b={tmp_path / 'b'}", figures=str(tmp_path / "figures"))
    assert "| ause |" in text.replace("  ", " ") and "0.250 ± 0.000 (18)" in text
    ((methods, areas),) = drawn.values()
    assert set(drawn) == {"sparsification.png"} and areas == {"a": pytest.approx(0.25)}
    assert [row["curve"] for row in methods["a"]] == [1.0, 1 - 1 / 16, 1 - 1 / 8, 1 - 3 / 16]
    assert [row["fraction"] for row in methods["a"]] == [0.0, 0.25, 0.5, 0.75] and set(methods) == {"a"}
