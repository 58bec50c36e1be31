# SPDX-License-Identifier: Apache-2.0
"""A study trains each of its runs once, however often it is started, and tabulates what their files say."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from common.cli.study import STUDIES, study
from common.handlers.log import TrainingLog, read_history

NAME = "gradicon_convergence"
TINY: dict[str, Any] = {
    "epochs": 1, "icon_epochs": 2, "device": "cpu", "amp": "false", "count": 4, "spatial_size": [32, 24],
}  # fmt: skip
FOLDERS = [f"{name}_seed0" for name in ("icon_one_step", "icon_multi_step", "gradicon_one_step", "gradicon_multi_step")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Output folder and table of the whole study, tiny."""
    output = tmp_path_factory.mktemp("study")
    return output, study(NAME, str(output), **TINY)


def times(output: Path) -> dict[str, int]:
    return {name: (output / name / "last.pt").stat().st_mtime_ns for name in FOLDERS}


def test_the_four_runs_differ_in_penalty_and_steps_as_published(finished: tuple[Path, str]) -> None:
    settings = json.loads((finished[0] / "settings.json").read_text())
    assert [f"{run.folder}_seed0" for run in STUDIES[NAME].runs] == list(settings) == FOLDERS
    assert [run.overrides["epochs"] for run in STUDIES[NAME].runs] == [128, 128, 64, 64]
    assert {key for name in FOLDERS for key in settings[name] if settings[name][key] != settings[FOLDERS[0]][key]} == {
        "objective", "chosen", "epochs", "architectures"
    }  # fmt: skip
    for name in FOLDERS:
        summary = json.loads((finished[0] / name / "summary.json").read_text())
        assert summary["settings"]["objective"] == name.split("_")[0]
        assert summary["settings"]["style"] == "outlines"
        assert len(read_history(finished[0] / name / "history.csv")) == (1 if name.startswith("gradicon") else 2)
    one, four = (torch.load(finished[0] / f"icon_{steps}_seed0" / "model.pt", weights_only=True)
                 for steps in ("one_step", "multi_step"))  # fmt: skip
    assert sum(map(torch.Tensor.numel, four.values())) == 4 * sum(map(torch.Tensor.numel, one.values()))


def test_the_table_holds_what_the_runs_wrote(finished: tuple[Path, str]) -> None:
    output, text = finished
    assert (output / "convergence.png").stat().st_size > 10_000
    with (output / "convergence.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    curves = [[float(row["displacement/similarity"]) for row in read_history(output / name / "history.csv")]
              for name in FOLDERS]  # fmt: skip
    threshold = max(min(curve) for curve in curves)
    for name, run, row, curve in zip(FOLDERS, STUDIES[NAME].runs, rows, curves, strict=True):
        summary = json.loads((output / name / "summary.json").read_text())
        assert (row["run"], int(row["epochs"]), int(row["updates"])) == (run.label, len(curve), len(curve))
        assert float(row["threshold"]) == threshold and float(row["final_similarity"]) == curve[-1]
        assert int(row["epoch_at_threshold"]) == 1 + next(i for i, value in enumerate(curve) if value <= threshold)
        for measure in ("dice", "foldings_percent", "inverse_consistency_error"):
            assert float(row[measure]) == summary[measure]["mean"]
        assert f"| {run.label} | {len(curve)} | {len(curve)} | {curve[-1]:.4g} |" in text
    assert f"| first epoch ≤ {threshold:.4g} |" in text and text.startswith("4 validation pairs, Dice 0.")


def test_started_again_it_trains_nothing(finished: tuple[Path, str]) -> None:
    output, text = finished
    before = times(output)
    (output / "convergence.png").unlink()
    assert study(NAME, str(output), **TINY) == text
    assert times(output) == before and (output / "convergence.png").is_file()
    assert not list(output.rglob("previous_*"))


def test_a_run_killed_in_its_evaluation_is_only_evaluated(finished: tuple[Path, str], tmp_path: Path) -> None:
    output = shutil.copytree(finished[0], tmp_path / "copy")
    before, summary = times(output), (output / FOLDERS[3] / "summary.json").read_text()
    (output / FOLDERS[3] / "summary.json").unlink()
    study(NAME, str(output), **TINY)
    measured, again = json.loads(summary), json.loads((output / FOLDERS[3] / "summary.json").read_text())
    assert times(output) == before and again["dice"] == measured["dice"]


def test_a_run_killed_in_its_training_is_resumed_to_the_same_weights(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STUDIES, NAME, STUDIES[NAME]._replace(runs=STUDIES[NAME].runs[:1]))
    write = TrainingLog._write

    def killed(log: TrainingLog, engine: Any) -> None:
        if engine.state.epoch == 2:
            raise RuntimeError("killed")
        write(log, engine)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(TrainingLog, "_write", killed)
        study(NAME, str(tmp_path), **TINY)
    assert not (tmp_path / FOLDERS[0] / "summary.json").exists()
    with pytest.raises(
        ValueError, match="icon_one_step_seed0 holds a run with other settings: epochs was 2 and is now 3"
    ):
        study(NAME, str(tmp_path), **(TINY | {"icon_epochs": 3}))
    study(NAME, str(tmp_path), **TINY)
    assert "Run 1 of 1, ICON, one step, seed 0: resumes in" in capsys.readouterr().out
    assert [row["epoch"] for row in read_history(tmp_path / FOLDERS[0] / "history.csv")] == ["1", "2"]
    once, twice = (torch.load(path / FOLDERS[0] / "model.pt", weights_only=True) for path in (finished[0], tmp_path))
    assert all(torch.equal(once[key], twice[key]) for key in once)


@pytest.mark.parametrize(
    "change, match",
    [({"padding": "zeros"}, "padding was 'border' and is now 'zeros'"),
     ({"amp": "true"}, "amp was False and is now True"), ({"count": 8}, "count was 4 and is now 8"),
     ({"epochs": 2}, "gradicon_one_step_seed0 .* epochs was 1 and is now 2")],
)  # fmt: skip
def test_other_settings_are_refused_by_name(change: dict[str, Any], match: str, finished: tuple[Path, str]) -> None:
    before = times(finished[0])
    with pytest.raises(ValueError, match=f"{match}\\. Pass those it was started with"):
        study(NAME, str(finished[0]), **(TINY | change))
    assert times(finished[0]) == before


def test_runs_of_unknown_settings_are_refused(finished: tuple[Path, str], tmp_path: Path) -> None:
    output = shutil.copytree(finished[0], tmp_path / "copy")
    for name in ("settings.json", "convergence.csv", "convergence.png"):
        (output / name).unlink()
    with pytest.raises(ValueError, match="seed was 'not recorded' and is now 0"):
        study(NAME, str(output), **TINY)


def test_an_unknown_study_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'gradicon_convergence'"):
        study("gradicon_convergance", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("workers", [0, "many", 1.5])
def test_workers_are_a_whole_number(workers: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"workers: expected a whole number from 1, got {workers!r}"):
        study(NAME, str(tmp_path / "none"), workers=workers)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["settings.json", "convergence.csv"])
def test_foreign_files_are_not_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(ValueError, match=f"{name} is not of this study"):
        study(NAME, str(tmp_path), epochs=1, icon_epochs=1, count=2, spatial_size=[32, 25], device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == [name]
