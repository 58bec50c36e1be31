# SPDX-License-Identifier: Apache-2.0
"""The studies of GradICON's paper, tiny: what each run is, and what their tables say."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from common.cli.study import STUDIES, study
from common.cli.trainings import Run, Training
from common.engines.architectures import SOLVERS
from common.networks.registry import ARCHITECTURES

TINY: dict[str, Any] = {"epochs": 1, "device": "cpu", "count": 2, "batch_size": 2, "val_interval": 9}
NARROW = {"architectures#icon#down": [2, 4, 6], "architectures#icon#up": [4, 4]}


def rows_of(output: Path) -> dict[str, dict[str, str]]:
    with (output / "results.csv").open(newline="") as stream:
        return {row["run"]: row for row in csv.DictReader(stream)}


def settings_of(name: str, bundle: str | None = None) -> dict[str, dict[str, Any]]:
    return {
        run.label: Training(run._replace(bundle=bundle or run.bundle), 0, Path("none"), run.overrides).settings()
        for run in STUDIES[name].runs
    }


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_trains_what_its_bundle_has(name: str) -> None:
    for label, settings in settings_of(name).items():
        if "objective" in settings:
            assert settings["objective"] in settings["objectives"], label
        assert settings["architecture"] in [*ARCHITECTURES, *SOLVERS], label


@pytest.mark.parametrize("bundle", ["gradicon_drive", "gradicon_triangles"])
def test_figure_4_is_three_chains_with_three_similarities(bundle: str) -> None:
    found = settings_of("gradicon_vessels", bundle)
    chains = {"net-1": [1], "net-2": [2, 1], "net-4": [8, 4, 2, 1]}
    similarities = {"single": "global_ncc", "averaged": "global_ncc_multiscale", "adaptive": "global_ncc_adaptive"}
    assert list(found) == [f"{chain}, {scales}" for chain in chains for scales in similarities]
    for label, settings in found.items():
        chain, scales = label.split(", ")
        assert settings["architectures"]["icon"]["factors"] == chains[chain] and settings["epochs"] == 1000
        assert settings["split"] == "train"  # the paper: whether such maps can be learned, not how they generalise
        assert settings["objectives"][settings["objective"]]["similarity"] == similarities[scales]
    assert {run.bundle for run in STUDIES["gradicon_vessels"].runs} == {"gradicon_drive"}


def shorten(monkeypatch: pytest.MonkeyPatch, name: str, kept: slice) -> list[Run]:
    """Some of a study's runs, for the sake of time."""
    runs = STUDIES[name].runs[kept]
    monkeypatch.setitem(STUDIES, name, STUDIES[name]._replace(runs=runs))
    return list(runs)


def test_figure_4_runs_on_another_bundle_and_shows_length_and_foldings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = shorten(monkeypatch, "gradicon_vessels", slice(2, 9, 5))
    text = study(
        "gradicon_vessels", str(tmp_path), bundle="gradicon_triangles", spatial_size=[32, 32], **TINY, **NARROW
    )
    rows = rows_of(tmp_path)
    assert list(rows) == [run.label for run in runs] == ["net-1, adaptive", "net-4, averaged"]
    assert "mean length, extents" in text and "foldings, %" in text and "folds" in text
    for row in rows.values():
        assert 0 <= float(row["magnitude_unit"]) < 0.5 and 0 <= float(row["foldings_percent"]) <= 100


def test_figure_4_has_the_error_against_the_true_displacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, "gradicon_vessels", slice(0, 1))
    tiny = {key: value for key, value in TINY.items() if key != "count"}
    text = study("gradicon_vessels", str(tmp_path), spatial_size=[32, 32], **tiny, **NARROW)
    (row,) = rows_of(tmp_path).values()
    assert "displacement error" in text and 0 < float(row["epe_before"]) < 10 and float(row["epe"]) > 0
    assert 0 <= float(row["magnitude_unit"]) < 0.5 and 0 <= float(row["foldings_percent"]) <= 100


def test_one_weight_at_every_resolution_and_icons_with_a_schedule() -> None:
    found = settings_of("gradicon_resolution")
    for label, settings in found.items():
        method, size = label.split(" at ")
        icon = settings["objectives"][settings["objective"]]
        assert settings["spatial_size"] == [int(size)] * 2 and len(found) == 9
        if method == "GradICON":
            assert (icon["kind"], icon["weight"], settings["epochs"]) == ("gradicon", 0.2, 64)
        else:
            start = {"ICON": (1024.0, False), "ICON, schedule": (64.0, True)}[method]
            assert (icon["weight"], icon["schedule"] is not None, settings["epochs"]) == (*start, 128)


def test_the_affine_study_trains_all_three_on_the_same_misaligned_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [run.overrides["misalignment"] for run in STUDIES["gradicon_affine"].runs] == [0.0] * 3 + [0.2] * 3
    runs = shorten(monkeypatch, "gradicon_affine", slice(2, 6))
    study("gradicon_affine", str(tmp_path), spatial_size=[32, 32], **TINY, **NARROW)
    summaries = [json.loads((tmp_path / f"{run.folder}_seed0" / "summary.json").read_text()) for run in runs]
    before = [summary["dice_before"]["mean"] for summary in summaries]
    assert len(set(before[1:])) == 1 and before[0] != before[1]
    used = [summary["settings"]["architecture"] for summary in summaries]
    assert used == ["icon", "voxelmorph", "affine_voxelmorph", "icon"]


def test_a_study_of_several_bundles_stays_with_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bundle: this study trains several, adacs_acdc, baseline_acdc; leave"):
        study("adacs_losses", str(tmp_path / "none"), bundle="adacs_camus")
