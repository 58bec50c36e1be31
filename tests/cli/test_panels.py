# SPDX-License-Identifier: Apache-2.0
"""Cases are registered once more exactly as their evaluations recorded, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from common.cli import panels
from common.cli.compare import compare
from common.cli.evaluations import Evaluation, Run, read_evaluations
from common.cli.panels import Rebuilt, rebuild
from common.io.results import read_metrics
from tests.bundles.suite import BUNDLES_DIR, run

BUNDLE = BUNDLES_DIR / "gradicon_triangles"
QUICK: dict[str, Any] = {"device": "cpu", "count": 3, "spatial_size": [32, 24]}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a network's training and of a solver's evaluation on the same pairs."""
    root = tmp_path_factory.mktemp("evaluated")
    run(BUNDLE, "training", "train.json", **QUICK, epochs=1, output_dir=str(root / "net"))
    solver = {"architecture": "identity", "output_dir": str(root / "identity")}
    run(BUNDLE, "evaluating", "train.json", "evaluate.json", **QUICK, **solver)
    return {name: root / name for name in ("net", "identity")}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the panels were asked to draw, by the name of the file."""
    calls: dict[str, Any] = {}
    monkeypatch.setattr(
        panels, "comparison_panel", lambda path, *images, **more: calls.update({path.name: (images, more)})
    )
    return calls


def arguments(folders: dict[str, Path]) -> list[str]:
    return [f"{name}={folder}" for name, folder in folders.items()]


def test_a_rebuilt_network_registers_as_its_evaluation_did(evaluated: dict[str, Path]) -> None:
    (one,) = read_evaluations([f"net={evaluated['net']}"])["net"].runs
    rebuilt = rebuild(one)
    trained = torch.load(evaluated["net"] / "model.pt", weights_only=True)
    assert all(torch.equal(value, trained[key]) for key, value in rebuilt.engine.network.state_dict().items())
    assert len(rebuilt.dataset) == len(one.rows) == 3
    assert one.settings["labels_in_training"] is False and one.training_hours > 0


def test_the_worst_case_of_each_method_is_drawn_with_all_methods(
    evaluated: dict[str, Path], drawn: dict[str, Any], tmp_path: Path
) -> None:
    compare(*arguments(evaluated), figures=str(tmp_path), panels="worst")
    rows = {name: read_metrics(folder / "metrics.csv") for name, folder in evaluated.items()}
    worst = {min(table, key=lambda row: row["dice"])["case"] for table in rows.values()}
    assert set(drawn) == {f"case_{case}.png" for case in worst}
    index = next(n for n, row in enumerate(rows["identity"]) if row["case"] in worst)
    (moving, _, methods, *_), more = drawn[f"case_{rows['identity'][index]['case']}.png"]
    assert list(methods) == [f"{name}, dice {table[index]['dice']:.3f}" for name, table in rows.items()]
    identity = methods[f"identity, dice {rows['identity'][index]['dice']:.3f}"]
    assert np.allclose(identity["warped"], moving, atol=1e-6) and not identity["ddf"].any()
    assert more["undeformed"] == f"undeformed, dice {rows['net'][index]['dice_before']:.3f}"


def test_the_files_are_written(evaluated: dict[str, Path], tmp_path: Path) -> None:
    case = read_metrics(evaluated["net"] / "metrics.csv")[1]["case"]
    compare(*arguments(evaluated), figures=str(tmp_path), panels=case)
    assert (tmp_path / f"case_{case}.png").stat().st_size > 10_000


def test_unknown_cases_are_refused(evaluated: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="panels: expected one of .*, worst, got 'wrst'. Did you mean 'worst'"):
        compare(*arguments(evaluated), figures=str(tmp_path), panels="wrst")


@pytest.mark.parametrize(
    ("damage", "message"),
    [("mse", "gives case .* with a mean squared difference of"), ("case", "gives case .* instead of"),
     ("weights", "model.pt has changed since"), ("gone", "are not there any more"),
     ("bundle", "does not record which bundle")],
)  # fmt: skip
def test_an_evaluation_that_cannot_be_repeated_is_refused(
    damage: str, message: str, evaluated: dict[str, Path], drawn: dict[str, Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(evaluated["net"], tmp_path / "net")
    if damage == "gone":
        (folder / "model.pt").unlink()
    elif damage == "weights":
        state = torch.load(folder / "model.pt", weights_only=True)
        torch.save({key: value + 1e-3 for key, value in state.items()}, folder / "model.pt")
    elif damage == "bundle":
        summary = json.loads((folder / "summary.json").read_text())
        del summary["settings"]["bundle_root"]
        (folder / "summary.json").write_text(json.dumps(summary))
    else:
        lines = (folder / "metrics.csv").read_text().splitlines()
        cells = lines[1].split(",")
        position = lines[0].split(",").index(damage)
        cells[position] = "other" if damage == "case" else str(1.2 * float(cells[position]))
        (folder / "metrics.csv").write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    case = read_metrics(folder / "metrics.csv")[0]["case"]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        compare(f"net={folder}", figures=str(tmp_path / "figures"), panels=case)
    assert not drawn


def test_weights_of_an_evaluation_are_those_it_read() -> None:
    one = Run(Path("out"), [], {"settings": {"ckpt_path": "w/model.pt"}})
    assert one.weights == Path("w/model.pt") and one.training_hours is None
    solver = Run(Path("out"), [], {"settings": {"architecture": "pairwise"}})
    assert solver.weights is None and solver.training_hours == 0


def test_the_displacements_deviations_are_shown_of_the_methods_that_have_one(
    drawn: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {name: np.zeros((4, 5)) for name in ("moving_image", "fixed_image", "warped_image")}
    shown |= {"ddf": np.zeros((2, 4, 5))}
    cases = {"plain": shown, "ours": shown | {"displacement_deviation": np.full((4, 5), 0.3)}}
    monkeypatch.setattr(panels, "_registered", lambda one, rebuilt, index: cases[one.name])
    monkeypatch.setattr(panels, "displacement_deviation_panel", lambda path, cases: drawn.update({path.name: cases}))
    row = {"case": "a/1", "dice": 0.5, "dice_before": 0.25}
    evaluations = {name: Evaluation(name, (Run(tmp_path, [row], {}),), [row]) for name in cases}
    rebuilt = {name: Rebuilt(cast(Any, None), None, {}) for name in cases}
    panels._draw(evaluations, rebuilt, 0, "dice", tmp_path)
    assert set(drawn) == {"case_a_1.png", "deviations_a_1.png"}
    (case,) = drawn["deviations_a_1.png"]
    assert list(case["deviations"]) == ["ours"] and case["title"] == "a/1"
    del cases["ours"]["displacement_deviation"]
    drawn.clear()
    panels._draw(evaluations, rebuilt, 0, "dice", tmp_path)
    assert set(drawn) == {"case_a_1.png"}


def test_a_network_that_draws_in_training_is_shown_as_evaluated(tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "spatial_size": [32, 32], "updates_per_epoch": 1, "epochs": 1}
    uncertain = {"architectures#voxelmorph#displacement_uncertainty": True}
    run(
        BUNDLES_DIR / "baseline_acdc",
        "training",
        "train.json",
        **options,
        **uncertain,
        output_dir=str(tmp_path / "net"),
    )
    (one,) = read_evaluations([f"net={tmp_path / 'net'}"])["net"].runs
    rebuilt = rebuild(one)
    image = torch.cat([rebuilt.dataset[0][key][None] for key in ("moving_image", "fixed_image")], dim=1)
    rebuilt.engine.network.train()
    assert torch.equal(rebuilt.engine.register(image), rebuilt.engine.register(image))
    case = one.rows[0]["case"]
    compare(f"net={tmp_path / 'net'}", figures=str(tmp_path / "figures"), panels=case)
    assert (tmp_path / "figures" / f"deviations_{case}.png").stat().st_size > 10_000
