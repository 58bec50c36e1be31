# SPDX-License-Identifier: Apache-2.0
"""A bundle of the template ``method_tmspr.json`` with a small network in the place of the published one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from common.cli import scaffold as scaffolding
from common.cli.eta import eta
from common.cli.scaffold import new_train, scaffold
from common.data import hippocampus
from common.handlers.log import read_history
from common.io.results import read_metrics
from common.networks.registry import ARCHITECTURES
from common.runs.options import OPTIONS, is_part
from tests.bundles.suite import BUNDLES_DIR, causes, run, workflow_of
from tests.engines.weighing import DEFAULT, Weighing

NAME = "tmspr_hippocampus"
TINY: dict[str, Any] = {"device": "cpu", "spatial_size": [24, 32, 20]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The scaffolded bundle in a repository of its own."""
    repository = tmp_path_factory.mktemp("repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaffolding, "REPOSITORY", repository)
        patch.setitem(ARCHITECTURES, "tmspr", Weighing)
        assert f"Wrote bundles/{NAME}" in scaffold(NAME)
        yield repository / "bundles" / NAME


@pytest.fixture(scope="module")
def common_options(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("phantom") / "hippocampus"
    hippocampus.PHANTOM.make(folder, **hippocampus.PHANTOM.small)
    return TINY | {"bundle_root": str(bundle), "dataset_dir": str(folder)}


@pytest.fixture(scope="module")
def trained(bundle: Path, common_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a short training with the Dice loss, evaluated at η = 1."""
    output = tmp_path_factory.mktemp("training")
    run(
        bundle, "training", "train.json", **common_options, output_dir=str(output), epochs=2, dice_weight=1.0, eta=1.0,
        eta_per_direction="true", learning_rate=1e-3,
    )  # fmt: skip
    return output


def terms_of(bundle: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    method = workflow_of(bundle, "train.json", **options).parser.get_parsed_content("method")
    return method, dict(method.updates[0].objective.terms)


def test_every_option_is_described_and_the_files_are_as_rendered(bundle: Path) -> None:
    for name in (NAME, "tmspr_oasis", "tmspr_acdc"):
        train = new_train(name)
        assert not {key for key, value in train.items() if key not in OPTIONS and not is_part(key, value)}
    assert scaffolding.render(NAME) == "All files are as rendered."
    lines = (bundle / "configs" / "train.json").read_text().splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 160
    for file in ("train.json", "inference.json"):
        assert workflow_of(bundle, file, **TINY, bundle_root=str(bundle)).check_properties() == []


def test_defaults_are_the_papers_and_the_overlay_has_the_published_codes(bundle: Path) -> None:
    options = TINY | {"bundle_root": str(bundle)}
    method, terms = terms_of(bundle, **options)
    assert list(terms) == ["similarity", "smoothness", "log_loss"]  # no labels
    weights = method.updates[0].objective.weights
    assert (weights["smoothness"], weights["log_loss"].largest) == (5.0, 4.0)
    assert terms["smoothness"].epsilon == terms["log_loss"].epsilon == 1e-4 and terms["smoothness"].energy.first == 0
    assert type(method.similarity).__name__ == "LNCC" and method.similarity.window == 9 and method.bidirectional
    assert method.condition(3, torch.device("cpu")).shape == (3, 1)
    optimizer = method.updates[0].optimizer(method.network.parameters())
    assert optimizer.defaults["lr"] == 1e-4 and optimizer.defaults["amsgrad"] is True
    parser = workflow_of(bundle, "train.json", "tmspr.json", **options).parser
    official = parser.get_parsed_content("method")
    smoothness = official.updates[0].objective.terms["smoothness"]
    assert smoothness.epsilon == 1e-6 and smoothness.energy.first == 1
    assert official.condition(3, torch.device("cpu")).shape == (6, 1)
    assert parser.config["learning_rate_decay"] == 0.9 and parser.config["epochs"] == 500


def test_options_reach_the_terms(bundle: Path) -> None:
    options = TINY | {"bundle_root": str(bundle), "energy": "bending", "epsilon": 0.01, "dice_weight": 0.5}
    method, terms = terms_of(bundle, **options, smoothness_weight=2.0, eta_max=2.0, similarity="mse")
    assert type(terms["smoothness"].energy).__name__ == "Bending" and terms["log_loss"].epsilon == 0.01
    weights = method.updates[0].objective.weights
    assert (weights["smoothness"], weights["dice"], weights["log_loss"].largest) == (2.0, 0.5, 2.0)
    assert terms["dice"].overlap.labels == [0, 1, 2]


def test_training_logs_its_terms_and_is_evaluated_at_its_eta(trained: Path) -> None:
    row = read_history(trained / "history.csv")[-1]
    names = ("similarity", "smoothness", "log_loss", "dice")
    values = {name: float(row[f"displacement/{name}"]) for name in names}
    assert 0 < values["log_loss"] < 1 and 0 < values["dice"] < 1
    assert 0 <= float(row["weight_volume/min"]) <= float(row["weight_volume/mean"]) <= float(row["weight_volume/max"]) <= 1
    summary = json.loads((trained / "summary.json").read_text())
    settings = summary["settings"]
    assert settings["labels_in_training"] is True
    assert (settings["eta"], settings["eta_max"], settings["condition"]) == (1.0, 4.0, 0.25)
    assert (trained / "weight_volumes.png").stat().st_size > 10_000


@pytest.mark.parametrize("given, share", [(None, None), ("0.5", 0.125), (3, 0.75), (6.0, 1.5)])
def test_evaluation_is_of_its_eta(
    bundle: Path, trained: Path, common_options: dict[str, Any], tmp_path: Path, given: Any, share: float | None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    chosen = {} if given is None else {"eta": given}
    files, weights = ("train.json", "evaluate.json"), str(trained / "model.pt")
    workflow = run(
        bundle, "evaluating", *files, **common_options, **chosen, ckpt_path=weights, output_dir=str(tmp_path)
    )
    network = workflow.parser.get_parsed_content("network_def")
    assert (network.seen[0] == (DEFAULT if share is None else share)).all()
    assert ("eta: 6 lies outside of [0, 4]" in caplog.text) == (given == 6.0)
    assert json.loads((tmp_path / "summary.json").read_text())["settings"]["condition"] == share


@pytest.mark.parametrize("given, share", [(None, DEFAULT), (2.0, 0.5)])
def test_inference_is_of_its_eta_and_writes_the_weights_of_the_smoothness(
    bundle: Path, trained: Path, common_options: dict[str, Any], tmp_path: Path, given: Any, share: float
) -> None:
    chosen = {} if given is None else {"eta": given}
    workflow = run(
        bundle, "inferring", "inference.json", **common_options, **chosen, ckpt_path=str(trained / "model.pt"),
        maps="true", output_dir=str(tmp_path),
    )  # fmt: skip
    network = workflow.parser.get_parsed_content("network_def")
    assert len(network.seen) == 2 and all((seen == share).all() for seen in network.seen)
    written = nib.load(tmp_path / "weight_volume.nii.gz")
    fixed = nib.load(workflow.parser.get_parsed_content("dataset").data[0]["fixed"])
    assert written.shape == fixed.shape and np.allclose(written.affine, fixed.affine)
    inside = written.get_fdata()[written.get_fdata() > 0]
    assert inside.size > 1000 and inside.max() < 1
    assert written.header["descrip"].item().decode().startswith("Weight of the smoothness")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"eta": "much"}, "eta: expected a number, got 'much'"),
        ({"eta_max": 0}, "eta_max: expected a number, above 0"),
        ({"epsilon": 1.5}, "epsilon: expected a number between 0 and 1"),
        ({"epsilon": 0}, "epsilon: expected a number, above 0"),
        ({"energy": "elastic"}, "energy: expected one of diffusion, bending"),
        ({"energy": "bending", "weight_form": "official"}, "weight_form: expected 'paper' with energy 'bending'"),
        ({"dice_weight": 1, "classes": 2}, "_label: expected the values 0 to 1 of 2 classes, got \\[2"),
        ({"architecture": "voxelmorph", "architectures": {"voxelmorph": {}}}, "condition: VoxelMorph takes none"),
    ],
    ids=lambda part: "-".join(map(str, part)) if isinstance(part, dict) else "",
)
def test_what_cannot_be_trained_is_named(
    bundle: Path, common_options: dict[str, Any], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RuntimeError) as caught:
        run(bundle, "training", "train.json", **common_options, output_dir=str(tmp_path), epochs=1, **options)
    assert any(re.search(message, cause) for cause in causes(caught.value)), causes(caught.value)


def test_eta_of_another_range_than_the_trainings_is_refused(
    bundle: Path, trained: Path, common_options: dict[str, Any], tmp_path: Path
) -> None:
    options = common_options | {"ckpt_path": str(trained / "model.pt"), "output_dir": str(tmp_path), "eta_max": 2.0}
    for run_id, *files in (("evaluating", "train.json", "evaluate.json"), ("inferring", "inference.json")):
        with pytest.raises(RuntimeError) as caught:
            run(bundle, run_id, *files, **options)
        assert any("eta_max: expected 4, with which the weights" in cause for cause in causes(caught.value))
    assert not list(tmp_path.iterdir())


ETAS = [0, 1.0, 4]


@pytest.fixture(scope="module")
def searched(
    bundle: Path, trained: Path, common_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str]:
    """Arguments of a search over η, and what it returned."""
    kept = {key: value for key, value in common_options.items() if key != "bundle_root"}
    output = str(tmp_path_factory.mktemp("eta"))
    arguments = kept | {"bundle": str(bundle), "ckpt_path": str(trained / "model.pt"), "output_dir": output}
    return arguments, eta(**arguments, etas=ETAS)


def test_search_measures_every_pair_at_every_eta_and_marks_the_best(
    searched: tuple[dict[str, Any], str], trained: Path
) -> None:
    arguments, text = searched
    output = Path(arguments["output_dir"])
    rows = {value: read_metrics(output / "cases" / f"eta_{value:g}.csv") for value in ETAS}
    table = read_metrics(output / "eta.csv", ("eta",))
    assert [float(row["eta"]) for row in table] == ETAS
    for row in table:
        cases = rows[float(row["eta"])]
        for key in ("dice", "foldings_percent", "sd_log_jacobian"):
            assert row[key] == pytest.approx(np.mean([case[key] for case in cases]), abs=1e-9)
            assert row[f"{key}_n"] == len(cases)
    best = max(table, key=lambda row: (row["dice"], float(row["eta"])))
    assert [row["eta_best"] for row in table] == [row is best and 1.0 or 0.0 for row in table]
    assert f"best by Dice: η = {float(best['eta']):g}, register with --eta {float(best['eta']):g}." in text
    assert f"| **{float(best['eta']):g}** |" in text and text.splitlines()[0] in (output / "eta.md").read_text()
    assert (output / "eta.png").stat().st_size > 10_000
    evaluated = read_metrics(trained / "metrics.csv")  # at η = 1, in the training's closing evaluation
    assert [row["case"] for row in evaluated] == [row["case"] for row in rows[1.0]]
    for one, other in zip(evaluated, rows[1.0], strict=True):
        assert one["dice"] == pytest.approx(other["dice"], abs=1e-6)
        assert one["sd_log_jacobian"] == pytest.approx(other["sd_log_jacobian"], abs=1e-6)


def test_search_repeats_no_eta_that_is_finished(searched: tuple[dict[str, Any], str]) -> None:
    arguments, text = searched
    cases = Path(arguments["output_dir"]) / "cases"
    before = {path.name: path.stat().st_mtime_ns for path in cases.iterdir()}
    assert eta(**arguments, etas=ETAS) == text
    assert eta(**arguments, etas=[*ETAS, 2]).count("\n") == text.count("\n") + 1
    assert {name: (cases / name).stat().st_mtime_ns for name in before} == before
    assert (cases / "eta_2.csv").is_file()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"split": "test"}, "holds values of other settings: split was 'validation' and is now 'test'"),
        ({"etas": ["low"]}, "etas: expected numbers"), ({"etas": [-1]}, "etas: expected numbers from 0"), ({"etas": []}, "etas: expected at least one number"),
        ({"eta": 1.0}, "leave --eta and --condition out"), ({"architecture": "pairwise"}, "got the solver 'pairwise'"),
        ({"bundle": "baseline_acdc"}, "expected one with an option eta"), ({"splitt": "test"}, "Unknown override"),
    ],
    ids=lambda part: "" if isinstance(part, str) else next(iter(part)),
)  # fmt: skip
def test_search_that_cannot_be_is_refused(
    searched: tuple[dict[str, Any], str], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        eta(**(searched[0] | {"etas": ETAS} | change))


SOFT = "$stiff_soft.load_pairs(@data_root, {split}, {{'train': 4, 'validation': 3, 'test': 1}}, @spatial_size)"


@pytest.mark.parametrize("name", [NAME, "baseline_hippocampus"])
def test_the_phantom_of_a_stiff_ball_trains_this_network_and_its_baseline(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "device": "cpu", "output_dir": str(tmp_path / "out"), "epochs": 1, "val_interval": 2, "batch_size": 4,
        "architectures": {"voxelmorph": {"weight_volume": True, "conditional": True} if name == NAME else {}},
    }  # fmt: skip
    for part, split in (("train", "'train'"), ("validate", "@split")):
        options[f"{part}#dataset#data"] = SOFT.format(split=split)
    files = ("train.json", f"../../{NAME}/configs/stiff_soft.json")
    run(BUNDLES_DIR / name, "training", *files, **options)
    rows = read_metrics(tmp_path / "out" / "metrics.csv")
    columns = {"dice_stiff", "dice_soft", "epe", "epe_before", "ndv_percent"}
    weights = {"weight", "weight_stiff", "weight_soft"}
    assert len(rows) == 3 and columns <= set(rows[0])
    assert weights.intersection(rows[0]) == (weights if name == NAME else set())
    assert all(row["epe"] > 0 for row in rows)
