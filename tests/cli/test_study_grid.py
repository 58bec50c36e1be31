# SPDX-License-Identifier: Apache-2.0
"""A grid over two options of a bundle: killed and started again, its numbers are those of a run in one go."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from common.cli import trainings
from common.cli.study import STUDIES, study
from common.cli.trainings import Training, grid_runs
from common.handlers.log import read_history

ROOT = Path(__file__).resolve().parents[2]
GRID: dict[str, list[float]] = {"score_alpha": [0.005, 0.08], "score_beta": [0.5, 4.5]}
FOLDERS = [f"score_alpha_{a}_score_beta_{b}_seed0" for a in GRID["score_alpha"] for b in GRID["score_beta"]]
TINY: dict[str, Any] = {
    "epochs": 3, "warmup_epochs": 1, "device": "cpu", "spatial_size": [32, 32], "batch_size": 4, "val_interval": 9,
    "learning_rate": 0.01,
}  # fmt: skip
SECONDS = 300


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in the processes of a pool: sums of several threads may round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(acdc_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Output folder and table of the grid, run in one go."""
    output = tmp_path_factory.mktemp("grid")
    return output, study("adacs_acdc", str(output), GRID, dataset_dir=str(acdc_dir), **TINY)


def numbers(output: Path) -> dict[str, Any]:
    """All that the runs measured, but times."""
    found = {}
    for name in FOLDERS:
        summary = json.loads((output / name / "summary.json").read_text())
        found[name] = {key: summary[key] for key in ("dice", "hd", "foldings_percent", "mse")}
        history = read_history(output / name / "history.csv")
        found[name]["history"] = [{k: v for k, v in row.items() if k != "seconds"} for row in history]
    return found


@pytest.mark.timeout(1200)  # six processes import torch
def test_a_killed_grid_goes_on_to_the_same_numbers(finished: tuple[Path, str], acdc_dir: Path, tmp_path: Path) -> None:
    options = {"grid": GRID, "output_dir": tmp_path, "workers": 2, "dataset_dir": acdc_dir} | TINY
    command = [sys.executable, "-m", "common", "study", "adacs_acdc"]
    command += [word for key, value in options.items() for word in (f"--{key}", str(value).replace(" ", ""))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **start) as process:
        until = time.monotonic() + SECONDS
        while not list(tmp_path.glob("*/summary.json")) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        output = process.communicate()[0]
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/summary.json")}
    done |= {path.with_name("model.pt"): path.with_name("model.pt").stat().st_mtime_ns for path in done}
    assert 0 < len(done) < 8, output
    again = subprocess.run(command, timeout=SECONDS, check=False, **start)
    assert again.returncode == 0, again.stdout
    assert "finished earlier in" in again.stdout and again.stdout.count(": finished\n") == 4 - len(done) // 2
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert numbers(tmp_path) == numbers(finished[0])


def test_the_table_and_the_heat_map_hold_what_the_runs_measured(finished: tuple[Path, str]) -> None:
    output, text = finished
    with (output / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(float(row["score_alpha"]), float(row["score_beta"])) for row in rows] == [
        (a, b) for a in GRID["score_alpha"] for b in GRID["score_beta"]
    ]
    for name, row in zip(FOLDERS, rows, strict=True):
        summary = json.loads((output / name / "summary.json").read_text())
        last = read_history(output / name / "history.csv")[-1]
        assert float(row["dice"]) == summary["dice"]["mean"] and float(row["hd"]) == summary["hd"]["mean"]
        assert float(row["score_reg"]) == float(last["score/reg"]) and row["seeds"] == "1"
        assert summary["settings"]["score_beta"] == float(row["score_beta"])
    best = max(rows, key=lambda row: float(row["dice"]))
    assert f"The highest Dice is that of score_alpha={best['score_alpha']}, score_beta={best['score_beta']};" in text
    assert (output / "results.md").read_text() == f"{text}\n" and "mean (1 − S)²" in text
    assert (output / "heat_map.png").stat().st_size > 10_000


def test_seeds_are_added_and_spread_is_shown(
    finished: tuple[Path, str], acdc_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, trained = finished[0], []

    def train(training: Training) -> None:
        trained.append(training.folder.name)
        training.folder.mkdir()
        (training.folder / "history.csv").write_text((output / FOLDERS[0] / "history.csv").read_text())
        summary = json.loads((output / FOLDERS[0] / "summary.json").read_text())
        summary["dice"]["mean"] = 0.25
        (training.folder / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr(Training, "train", train)
    text = study("adacs_acdc", str(output), GRID, seeds=(0, 1), dataset_dir=str(acdc_dir), **TINY)
    assert trained == [name.replace("seed0", "seed1") for name in FOLDERS]
    first = json.loads((output / FOLDERS[0] / "summary.json").read_text())["dice"]["mean"]
    mean, deviation = (first + 0.25) / 2, abs(first - 0.25) / 2**0.5
    assert f"| 0.005 | 0.5 | 2 | {mean:.4g} ± {deviation:.2g} |" in text


def test_a_failed_training_is_named_once_the_others_are_finished(
    acdc_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(training: Training) -> None:
        if training.overrides["score_beta"] == 0.5:
            raise RuntimeError("ValueError: no luck")

    monkeypatch.setattr(trainings, "ProcessPoolExecutor", lambda workers, *_, **__: ThreadPoolExecutor(workers))
    monkeypatch.setattr(trainings, "_train_logged", train)
    grid, options = {"score_beta": [0.5, 1.5]}, TINY | {"dataset_dir": str(acdc_dir)}
    message = r"1 of 2 trainings failed: .*score_beta_0.5_seed0 \(ValueError: no luck; see log.txt there\)"
    with pytest.raises(RuntimeError, match=message):
        study("adacs_acdc", str(tmp_path), grid, workers=2, **options)
    assert "score_beta_1.5_seed0: finished\n" in capsys.readouterr().out


def test_random_points_lie_between_the_ends_and_follow_the_seed() -> None:
    grid = {"score_alpha": {"loguniform": [0.001, 0.1]}, "score_beta": [0.5, 1.5]}
    runs = grid_runs("adacs_acdc", grid, samples=40)
    alphas = sorted(run.overrides["score_alpha"] for run in runs)
    assert 0.001 <= alphas[0] < 0.003 and 0.03 < alphas[-1] <= 0.1 and 0.004 < alphas[20] < 0.025
    assert {run.overrides["score_beta"] for run in runs} == {0.5, 1.5}
    assert runs == grid_runs("adacs_acdc", grid, samples=40) != grid_runs("adacs_acdc", grid, samples=40, seed=1)
    few = grid_runs("adacs_acdc", GRID, samples=3)
    assert len({run.folder for run in few}) == 3


def test_the_named_studies_are_the_papers() -> None:
    ablation = {run.label: run.overrides for run in STUDIES["adacs_ablation"].runs}
    assert ablation["AdaCS"] == {} and ablation["without L_smooth"] == {"score_beta": 0.0}
    assert ablation["without m_T"] == {"score_momentum": "none"}
    assert ablation["score from fixed and warped"] == {"score_input": "fixed_warped"}
    assert len(STUDIES["adacs_sensitivity"].runs) == 9
    for chosen in STUDIES.values():
        folders = [run.folder for run in chosen.runs]
        assert len(set(folders)) == len(folders) and all(folder.isascii() for folder in folders)


@pytest.mark.parametrize(
    "name", ["adacs_sensitivity", "adacs_ablation", "adacs_losses", "hetero_gamma", "hetero_controls"]
)
def test_every_option_of_the_named_studies_is_one_of_its_bundle(name: str, tmp_path: Path, acdc_dir: Path) -> None:
    for run in STUDIES[name].runs:
        more = {"seed": 3, "dataset_dir": str(acdc_dir), "architecture": "voxelmorph"}
        settings = Training(run, 3, tmp_path, run.overrides | more).settings()
        assert settings["seed"] == 3 and run.overrides.items() <= settings.items()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adacs_sensitivity", {"score_alpha": 1}, "score_alpha: the study varies it"),
        ("adacs_sensitivity", {"seed": 1}, "seed: the study sets it for every run; give --seeds"),
        ("adacs_sensitivity", {"grid": GRID}, "grid: adacs_sensitivity has its own"),
        ("adacs_sensitivity", {"icon_epochs": 3}, "icon_epochs: no run of this study"),
        ("adacs_sensitivity", {"samples": 3}, "samples: expected a --grid to draw from"),
        ("adacs_sensitivity", {"seeds": "a"}, "seeds: expected whole numbers"),
        ("adacs_sensitivity", {"backend": "dask"}, "backend: expected one of processes, ray, got 'dask'"),
        ("adacs_acdc", {"grid": {"score_alhpa": [1, 2]}}, "score_alhpa.*Did you mean '--score_alpha'"),
        ("adacs_acdc", {"grid": {"score_alpha": 1}}, "expected a list of values for 'score_alpha'"),
        ("adacs_acdc", {"grid": {"score_alpha": {"uniform": [0, 1]}}}, "expected a list of values for 'score_alpha'"),
        ("adacs_acdc", {"grid": {"score_alpha": [1, 1]}}, "expected different values"),
        ("adacs_acdc", {"grid": {"epochs": [1, 2]}, "epochs": 3}, "epochs: the study varies it"),
        ("adacs_acdc", {"grid": GRID, "samples": 5}, "the grid has 4 combinations, got 5"),
        ("adacs_acdc", {"grid": "a"}, "grid: expected values by option"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(
    name: str, options: dict[str, Any], message: str, tmp_path: Path, acdc_dir: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        study(name, str(tmp_path / "out"), **({"dataset_dir": str(acdc_dir)} | options))
    assert not (tmp_path / "out").exists()


def test_ray_runs_what_the_processes_do(acdc_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.tune")
    options = TINY | {"epochs": 2, "dataset_dir": str(acdc_dir)}
    text = study("adacs_acdc", str(tmp_path), {"score_beta": [0.5, 1.5]}, workers=2, backend="ray", **options)
    assert "| 1.5 | 1 |" in text and (tmp_path / "score_beta_0.5_seed0" / "summary.json").is_file()


def test_without_ray_the_command_that_installs_it_is_named(
    acdc_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'registration-bundles\[sweep\]'"):
        study("adacs_acdc", str(tmp_path), GRID, backend="ray", dataset_dir=str(acdc_dir), **TINY)
