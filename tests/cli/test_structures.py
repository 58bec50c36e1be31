# SPDX-License-Identifier: Apache-2.0
"""Dice by structure: spread over structures and cases, tests on subject means, box plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from common.cli import compare as module
from common.cli.compare import compare
from common.io.results import write_results

STRUCTURES = ("thalamus", "brain_stem", "csf")


def evaluation(folder: Path, gain: float, structures: tuple[str, ...] = STRUCTURES) -> np.ndarray:
    """Write an evaluation of five subjects; return Dice, (subjects, structures)."""
    generator = np.random.default_rng(int(1000 * gain))
    dice = 0.6 + 0.1 * np.arange(len(structures)) + gain + 0.02 * generator.standard_normal((5, len(structures)))
    rows: list[dict[str, Any]] = []
    for number, values in enumerate(dice):
        row = {"case": f"c{number}", "subject": f"s{number}", "dice": 0.7 + gain, "dice_before": 0.4}
        for end, found in (("", values), ("_before", 0.5 * np.ones(len(structures)))):
            row |= {f"dice_group_{name}{end}": value for name, value in zip(structures, found, strict=True)}
            if structures:
                row[f"dice_groups{end}"] = found.mean()
        rows.append(row)
    write_results(rows, folder, {})
    return dice


def test_the_spread_is_over_structures_and_cases_and_tests_are_on_subject_means(tmp_path: Path) -> None:
    dice = {name: evaluation(tmp_path / name, gain) for name, gain in (("a", 0.0), ("b", 0.05))}
    text = compare(*(f"{name}={tmp_path / name}" for name in dice))
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in text.splitlines()}
    assert cells["Dice by structure"] == ["undeformed", "a", "b"]
    expected = [f"{values.mean():.3f} ± {values.std(ddof=1):.3f} (15)" for values in dice.values()]
    assert cells["all structures and cases"] == ["0.500 ± 0.000 (15)", *expected]
    assert cells["brain_stem"][1] == f"{dice['a'][:, 1].mean():.3f} ± {dice['a'][:, 1].std(ddof=1):.3f} (5)"
    difference = (dice["b"] - dice["a"]).mean(1)
    tests = text[text.index("dice_groups: difference of patient means") :].splitlines()
    line = next(line for line in tests if line.startswith("| b − a |"))
    assert f"{difference.mean():+.4f} [" in line and f"| {stats.ttest_1samp(difference, 0).pvalue:.2g} |" in line


def test_structures_are_drawn_where_all_evaluations_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(module, "structure_boxes", lambda structures, path: drawn.append((structures, path.name)))
    dice = evaluation(tmp_path / "a", 0.0)
    evaluation(tmp_path / "b", 0.05, STRUCTURES[:2])
    evaluation(tmp_path / "none", 0.0, ())
    arguments = {name: f"{name}={tmp_path / name}" for name in ("a", "b", "none")}
    compare(arguments["a"], arguments["b"], figures=str(tmp_path / "figures"))
    ((structures, name),) = drawn
    assert name == "structures.png" and set(structures) == {"thalamus", "brain_stem"}
    assert list(structures["thalamus"]) == ["undeformed", "a", "b"]
    assert structures["thalamus"]["a"] == pytest.approx(dice[:, 0].tolist())
    text = compare(arguments["a"], arguments["none"], figures=str(tmp_path / "figures"))
    assert "Dice by structure" not in text and "dice_groups: difference" not in text and len(drawn) == 1
