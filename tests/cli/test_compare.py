# SPDX-License-Identifier: Apache-2.0
"""Side-by-side tables: the numbers are those of the files, the tests those of SciPy on patient means."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from common.cli.compare import compare
from common.io.results import read_metrics, write_results, write_subjects

ROOT = Path(__file__).resolve().parents[2]


def evaluation(folder: Path, gain: float, subjects: int = 6) -> np.ndarray:
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
    write_results(rows, folder, {})
    write_subjects([{"subject": "a", "dice_3d_lv": 0.9, "dice_3d_before_lv": 0.6}], folder)
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
        write_subjects([{"subject": "s0", "slices": 2}], tmp_path / name)
    text = compare(f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}")
    assert "| method | mse |" in text and "| patient means | mse [95 % interval] | design effect |" in text
    assert "| undeformed | 0.1000 [0.1000, 0.1000] |" in text and "3D Dice" not in text
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
    assert text.splitlines()[2] == "| method | hd |"
    assert text.count("difference of patient means") == 1 and "| hd: difference" in text
    with pytest.raises(ValueError, match=r"tested: expected .* of all evaluations, got 'epe', which \['a', 'b'\]"):
        compare(f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", tested="epe")


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
