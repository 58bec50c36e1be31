# SPDX-License-Identifier: Apache-2.0
"""One suite over every bundle: it trains, resumes, evaluates and registers, on synthetic data in its own layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigWorkflow

from common.data import acdc, hippocampus, triangles
from common.data.hippocampus_phantom import make_hippocampus_phantom
from common.handlers.log import TrainingLog, read_history
from common.io.results import read_metrics

BUNDLES_DIR = Path(__file__).resolve().parents[2] / "bundles"
BUNDLES = sorted(path.parents[1] for path in BUNDLES_DIR.rglob("configs/metadata.json"))
NAMES = ["adacs_acdc", "baseline_acdc", "baseline_hippocampus", "gradicon_hippocampus", "gradicon_triangles"]
EPOCHS = {"epochs": 3, "val_interval": 2, "device": "cpu"}
SMALL: dict[str, dict[str, Any]] = {
    "acdc": EPOCHS | {"spatial_size": [64, 48], "batch_size": 4, "crop_jitter": 4},
    "hippocampus": EPOCHS | {"spatial_size": [24, 32, 21], "batch_size": 2, "partners": 1},
    "triangles": EPOCHS | {
        "spatial_size": [32, 25], "batch_size": 4, "count": {"train": 4, "validation": 3, "test": 1}
    },
}  # fmt: skip
CASES = {"acdc": 3, "hippocampus": 2, "triangles": 3}
MEASURES = {
    "acdc": {"hd", "hd95", "asd", "hd_mm", "epe", "dice_before", "dice_lv", "dice_rv"},
    "hippocampus": {"hd", "hd95", "asd", "hd95_mm", "dice_before", "inverse_consistency_error"},
    "triangles": {"hd", "hd95", "asd", "dice_before", "inverse_consistency_error"},
}
LABELS = {"acdc": ["myocardium", "lv", "rv"], "hippocampus": ["anterior", "posterior"], "triangles": ["shape"]}
SCORED = {"acdc": ["myocardium"], "hippocampus": ["anterior", "posterior"], "triangles": ["shape"]}


def data_of(bundle: Path) -> str:
    """Name of a bundle's data set."""
    return bundle.name.partition("_")[2]


def small(bundle: Path) -> dict[str, Any]:
    """Overrides that make a bundle's training a matter of seconds."""
    return SMALL[data_of(bundle)]


@pytest.fixture(scope="session")
def data_dirs(acdc_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """``dataset_dir`` of every data set."""
    hippocampi = make_hippocampus_phantom(tmp_path_factory.mktemp("hippocampus"), n_train=3, n_validation=2)
    return {"acdc": str(acdc_dir), "hippocampus": str(hippocampi), "triangles": "phantom"}


def image_pair(bundle: Path, data_dirs: dict[str, str], folder: Path) -> tuple[Path, Path]:
    """Files of a moving and a fixed image of a bundle's data set."""
    data = data_of(bundle)
    if data == "acdc":
        return acdc.frame_files(data_dirs[data], "patient001")
    if data == "hippocampus":
        return hippocampus.image_files(data_dirs[data], *hippocampus.subjects(data_dirs[data])[:2])
    pair = triangles.load_pairs("phantom", "test", 1, (40, 33))[0]
    files = folder / "moving.nii.gz", folder / "fixed.nii.gz"
    for file, key in zip(files, ("moving_image", "fixed_image"), strict=True):
        nibabel.save(nibabel.Nifti1Image(pair[key][0].numpy(), np.diag([1.5, 1.0, 1.0, 1.0])), file)
    return files


def run(bundle: Path, run_id: str, *overlays: str, **overrides: Any) -> ConfigWorkflow:
    """Run one id of a bundle's configuration in this process, as ``python -m monai.bundle run`` would."""
    configs = bundle / "configs"
    files = [str(configs / name) for name in overlays]
    workflow = ConfigWorkflow(
        config_file=files, meta_file=str(configs / "metadata.json"), logging_file=False, run_id=run_id,
        workflow_type="infer" if overlays[0] == "inference.json" else "train", **overrides,
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


@pytest.fixture(scope="session")
def trained(data_dirs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Output folder of a short training of every bundle."""
    folders = {}
    for bundle in BUNDLES:
        folders[bundle.name] = tmp_path_factory.mktemp(bundle.name)
        run(
            bundle, "training", "train.json", dataset_dir=data_dirs[data_of(bundle)],
            output_dir=str(folders[bundle.name]), **small(bundle),
        )  # fmt: skip
    return folders


def test_the_bundles_are_found() -> None:
    assert [bundle.name for bundle in BUNDLES] == NAMES


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
@pytest.mark.parametrize("config, kind", [("train.json", "train"), ("inference.json", "infer")])
def test_every_property_is_there(bundle: Path, config: str, kind: str) -> None:
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / config), meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False, workflow_type=kind,
    )  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_training_reaches_its_last_phase_and_writes_its_results(bundle: Path, trained: dict[str, Path]) -> None:
    folder = trained[bundle.name]
    history = read_history(folder / "history.csv")
    assert len(history) == EPOCHS["epochs"]
    if bundle.name.startswith("adacs"):
        assert [row["active"] for row in history] == ["displacement", "score", "displacement+score"]
        assert float(history[-1]["score/momentum"]) > 0
    names = {"history.csv", "curves.png", "metrics.csv", "subjects.csv", "summary.json", "registration.png", "model.pt"}
    assert names <= {path.name for path in folder.iterdir()}
    rows = read_metrics(folder / "metrics.csv")
    summary = json.loads((folder / "summary.json").read_text())
    count = CASES[data_of(bundle)]
    assert len(rows) == count
    assert summary["dice"]["n"] + summary["dice"]["not_scorable"] == count
    assert MEASURES[data_of(bundle)] <= set(rows[0])
    scored, labels = SCORED[data_of(bundle)], LABELS[data_of(bundle)]
    assert {f"dice_{name}{when}" for name in labels for when in ("", "_before")} <= set(rows[0])
    assert [name for name in labels if f"hd_{name}" in rows[0]] == scored
    for row in rows:
        for measure in ("dice", "hd", "hd95", "asd", "dice_before", "hd_before"):
            stem, _, before = measure.partition("_")
            parts = [row[f"{stem}_{name}{'_before' if before else ''}"] for name in scored]
            np.testing.assert_allclose(row[measure], np.mean(parts), atol=1e-6)
    last = [float(row["validation/dice"]) for row in history if row["validation/dice"]][-1]
    assert float(history[EPOCHS["val_interval"] - 1]["validation/dice"]) == last
    assert f"validation/dice_{scored[0]}" in history[0]
    # A field that three epochs have barely moved changes little and folds nothing.
    assert summary["foldings_percent"]["mean"] == 0.0
    assert abs(summary["dice"]["mean"] - summary["dice_before"]["mean"]) < 0.05


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_resumed_run_equals_an_uninterrupted_one(
    bundle: Path, trained: dict[str, Path], data_dirs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(bundle) | {"dataset_dir": data_dirs[data_of(bundle)], "output_dir": str(tmp_path)}
    begin = TrainingLog._new_epoch

    def interrupted(log: TrainingLog, engine: Engine) -> None:
        if engine.state.epoch == 3:
            raise RuntimeError("interrupted")
        begin(log, engine)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "_new_epoch", interrupted)
        with pytest.raises(RuntimeError):
            run(bundle, "training", "train.json", **settings)
    assert not (tmp_path / "model.pt").exists()
    run(bundle, "training", "train.json", **(settings | {"resume": "true"}))
    for name in ("model.pt", "score.pt"):
        if (tmp_path / name).exists():
            once = torch.load(trained[bundle.name] / name, weights_only=True)
            twice = torch.load(tmp_path / name, weights_only=True)
            assert all(torch.equal(once[key], twice[key]) for key in once)
    assert [row["epoch"] for row in read_history(tmp_path / "history.csv")] == ["1", "2", "3"]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_training_starts_from_the_weights_that_are_given(
    bundle: Path, trained: dict[str, Path], data_dirs: dict[str, str], tmp_path: Path
) -> None:
    given = trained[bundle.name] / "model.pt"
    settings = small(bundle) | {"dataset_dir": data_dirs[data_of(bundle)], "output_dir": str(tmp_path)}
    workflow = run(
        bundle, "training", "train.json", initial_weights=str(given), learning_rate=0.0, **(settings | {"epochs": 1})
    )
    parameters = dict(workflow.parser.get_parsed_content("network_def").named_parameters())
    start, end = (torch.load(path, weights_only=True) for path in (given, tmp_path / "model.pt"))
    assert parameters and all(torch.equal(start[key], end[key]) for key in parameters)
    assert json.loads((tmp_path / "summary.json").read_text())["settings"]["initial_weights"] == str(given)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_evaluation_repeats_what_training_measured(
    bundle: Path, trained: dict[str, Path], data_dirs: dict[str, str], tmp_path: Path
) -> None:
    folder = trained[bundle.name]
    weights = {"ckpt_path": str(folder / "model.pt")}
    if (folder / "score.pt").exists():
        weights["score_path"] = str(folder / "score.pt")
    run(
        bundle, "evaluating", "train.json", "evaluate.json",
        dataset_dir=data_dirs[data_of(bundle)], output_dir=str(tmp_path), **weights, **small(bundle),
    )  # fmt: skip
    first, second = (read_metrics(path / "metrics.csv") for path in (folder, tmp_path))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a["dice"], b["dice"], atol=1e-6)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_inference_registers_two_files(
    bundle: Path, trained: dict[str, Path], data_dirs: dict[str, str], tmp_path: Path
) -> None:
    moving, fixed = image_pair(bundle, data_dirs, tmp_path)
    size = small(bundle)["spatial_size"]
    run(
        bundle, "inferring", "inference.json", moving=str(moving), fixed=str(fixed), device="cpu",
        output_dir=str(tmp_path), ckpt_path=str(trained[bundle.name] / "model.pt"), spatial_size=size,
    )  # fmt: skip
    warped, reference = nibabel.load(tmp_path / "warped.nii.gz"), nibabel.load(fixed)
    assert warped.shape == reference.shape
    np.testing.assert_allclose(warped.affine, reference.affine, atol=1e-5)
    field = (*reference.shape, 1, 3) if reference.ndim == 3 else (*reference.shape, 1, 1, 2)
    assert nibabel.load(tmp_path / "ddf.nii.gz").shape == field
    assert {"jacobian.nii.gz", "registration.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("target", ["weights", "field"])
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_instance_optimisation_is_an_option(
    bundle: Path, target: str, trained: dict[str, Path], data_dirs: dict[str, str], tmp_path: Path
) -> None:
    folder = trained[bundle.name]
    weights = {"ckpt_path": str(folder / "model.pt")}
    options = {"instance_iterations": 2, "instance_target": target, "instance_learning_rate": 1e-3}
    score = {"score_path": str(folder / "score.pt")} if (folder / "score.pt").exists() else {}
    run(
        bundle, "evaluating", "train.json", "evaluate.json", dataset_dir=data_dirs[data_of(bundle)],
        output_dir=str(tmp_path / "evaluation"), **weights, **score, **options, **small(bundle),
    )  # fmt: skip
    before, after = (read_metrics(path / "metrics.csv") for path in (folder, tmp_path / "evaluation"))
    assert [row["sd_log_jacobian"] for row in before] != [row["sd_log_jacobian"] for row in after]
    assert max(row["foldings_percent"] for row in after) == 0.0
    moving, fixed = image_pair(bundle, data_dirs, tmp_path)
    fields = []
    for iterations in (0, 2):
        output = tmp_path / f"inference_{iterations}"
        run(
            bundle, "inferring", "inference.json", moving=str(moving), fixed=str(fixed), device="cpu",
            output_dir=str(output), spatial_size=small(bundle)["spatial_size"],
            **weights, **score, **(options | {"instance_iterations": iterations}),
        )  # fmt: skip
        fields.append(nibabel.load(output / "ddf.nii.gz").get_fdata())
    assert np.isfinite(fields[1]).all()
    assert np.abs(fields[0] - fields[1]).max() > 1e-4


@pytest.mark.parametrize("objective", ["mse", "mae", "tukey", "ncc", "lncc", "mi", "adaframe", "adareg"])
def test_every_objective_of_the_baseline_trains(objective: str, acdc_dir: Path, tmp_path: Path) -> None:
    bundle = BUNDLES_DIR / "baseline_acdc"
    overrides = SMALL["acdc"] | {"epochs": 1, "learning_rate": 1e-3, "batch_size": 2}
    run(bundle, "training", "train.json", dataset_dir=str(acdc_dir), output_dir=str(tmp_path), objective=objective,
        **overrides)  # fmt: skip
    row = read_history(tmp_path / "history.csv")[0]
    assert np.isfinite(float(row["displacement/total"]))
    assert float(row["displacement/smoothness"]) > 0


def test_an_unknown_objective_names_the_nearest(acdc_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:
        run(BUNDLES_DIR / "baseline_acdc", "training", "train.json", dataset_dir=str(acdc_dir),
            output_dir=str(tmp_path), objective="lnc", **SMALL["acdc"])  # fmt: skip
    causes = [caught.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert any("Did you mean 'lncc'" in str(cause) for cause in causes)


@pytest.mark.parametrize("name, size", [("baseline_acdc", [64, 48]), ("baseline_hippocampus", [40, 56, 40])])
def test_the_anchor_needs_no_training(name: str, size: list[int], data_dirs: dict[str, str], tmp_path: Path) -> None:
    data = name.partition("_")[2]
    run(
        BUNDLES_DIR / name, "evaluating", "train.json", "evaluate.json", dataset_dir=data_dirs[data],
        output_dir=str(tmp_path), objective="pairwise", **(SMALL[data] | {"spatial_size": size}),
    )  # fmt: skip
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["dice"]["mean"] > summary["dice_before"]["mean"] + 0.05
    assert summary["foldings_percent"]["mean"] < 0.1
    if "epe" in summary:
        assert summary["epe"]["mean"] < summary["epe_before"]["mean"]


@pytest.mark.parametrize("objective", ["mse", "adaptive", "released", "icon"])
def test_every_objective_of_gradicon_trains(objective: str, data_dirs: dict[str, str], tmp_path: Path) -> None:
    run(
        BUNDLES_DIR / "gradicon_hippocampus", "training", "train.json", dataset_dir=data_dirs["hippocampus"],
        output_dir=str(tmp_path), objective=objective, **(SMALL["hippocampus"] | {"epochs": 1}),
    )  # fmt: skip
    row = read_history(tmp_path / "history.csv")[0]
    assert np.isfinite(float(row["displacement/similarity"]))
    assert float(row["displacement/inverse_consistency"]) >= 0


@pytest.mark.parametrize(
    "options",
    [{"architecture": "voxelmorph"}, {"batched_directions": "false"}, {"pairs": "file"}],
    ids=lambda options: next(iter(options)),
)
def test_gradicon_takes_other_networks_and_pairs(
    options: dict[str, str], data_dirs: dict[str, str], tmp_path: Path
) -> None:
    if "pairs" in options:
        options = {"pairs": str(tmp_path / "pairs.csv")}
        names = hippocampus.subjects(data_dirs["hippocampus"])
        Path(options["pairs"]).write_text(f"moving,fixed\n{names[0]},{names[2]}\n{names[3]},{names[1]}\n")
    run(
        BUNDLES_DIR / "gradicon_hippocampus", "training", "train.json", dataset_dir=data_dirs["hippocampus"],
        output_dir=str(tmp_path / "out"), **options, **(SMALL["hippocampus"] | {"epochs": 1}),
    )  # fmt: skip
    rows = read_metrics(tmp_path / "out" / "metrics.csv")
    if "pairs" in options:
        assert [row["case"] for row in rows] == [f"{names[0]}_to_{names[2]}", f"{names[3]}_to_{names[1]}"]
    assert all(np.isfinite(row["inverse_consistency_error"]) for row in rows)


@pytest.mark.parametrize(
    "ablation",
    [
        {"score_initial": None}, {"score_beta": 0.0}, {"score_momentum": "none"}, {"score_input": "fixed_warped"},
        {"score_momentum": "official"}, {"score_leak": "true"}, {"second_forward": "true"}, {"bidirectional": "true"},
        {"bidirectional": "true", "inverse_by_negation": "true"}, {"foreground": "true"}, {"updates_per_epoch": 3},
        {"crop_shift": "false"}, {"similarity": "lncc"},
    ],
    ids=lambda ablation: "-".join(f"{key}-{value}" for key, value in ablation.items()),
)  # fmt: skip
def test_every_ablation_of_adacs_is_reached_by_configuration(
    ablation: dict[str, Any], acdc_dir: Path, tmp_path: Path
) -> None:
    workflow = run(
        BUNDLES_DIR / "adacs_acdc", "training", "train.json", dataset_dir=str(acdc_dir), output_dir=str(tmp_path),
        **SMALL["acdc"], **ablation,
    )  # fmt: skip
    trainer = workflow.parser.get_parsed_content("train#trainer")
    row = read_history(tmp_path / "history.csv")[-1]
    assert row["active"] == "displacement+score"
    assert np.isfinite(float(row["displacement/total"])) and np.isfinite(float(row["score/total"]))
    if ablation == {"score_momentum": "none"}:
        assert float(row["score/momentum"]) == 1.0
    if ablation == {"score_input": "fixed_warped"}:
        assert trainer.estimator.unet.in_channels == 2
    if ablation == {"score_initial": None}:
        assert trainer.estimator.head.weight.abs().min() > 0
    if ablation == {"score_leak": "true"}:
        assert trainer.second_forward
    if ablation == {"updates_per_epoch": 3}:
        assert row["updates"] == str(3 * EPOCHS["epochs"])
