# SPDX-License-Identifier: Apache-2.0
"""What depends on the method alone, tried on one bundle of each: resuming, fitting, objectives, solvers, presets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.bundle.utils import DEFAULT_HANDLERS_ID
from monai.handlers import StatsHandler

from common.engines.instance import InstanceOptimisation
from common.handlers.log import TrainingLog, read_history
from common.io.results import read_metrics
from common.losses.similarity import build_similarity
from tests.bundles.suite import BUNDLES_DIR, METHODS, causes, config, data_of, run, small, train_only, workflow_of

every_method = pytest.mark.parametrize("bundle", METHODS, ids=lambda path: path.name)
EVALUATION, INFERENCE = ("train.json", "evaluate.json"), ("inference.json",)
ADACS, BASELINE = BUNDLES_DIR / "adacs_acdc", BUNDLES_DIR / "baseline_acdc"
GRADICON = BUNDLES_DIR / "gradicon_hippocampus"
OBJECTIVES = [(bundle, name) for bundle in METHODS for name in config(bundle).get("objectives", {})]


@every_method
def test_a_resumed_run_equals_an_uninterrupted_one(
    bundle: Path, trained: dict[str, Path], data_dirs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(bundle) | {"dataset_dir": data_dirs[bundle.name], "output_dir": str(tmp_path)}
    once, begin = trained[bundle.name], TrainingLog._new_epoch

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
    written = sorted(path.name for path in once.glob("model*.pt"))
    assert written and written == sorted(path.name for path in tmp_path.glob("model*.pt"))
    for name in written:
        first, second = (torch.load(folder / name, weights_only=True) for folder in (once, tmp_path))
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert [row["epoch"] for row in read_history(tmp_path / "history.csv")] == ["1", "2", "3"]


@every_method
def test_training_starts_from_the_weights_that_are_given(
    bundle: Path, trained: dict[str, Path], data_dirs: dict[str, str], tmp_path: Path
) -> None:
    given = trained[bundle.name] / "model.pt"
    settings = small(bundle, epochs=1) | {"dataset_dir": data_dirs[bundle.name], "output_dir": str(tmp_path)}
    workflow = run(bundle, "training", "train.json", initial_weights=str(given), learning_rate=0.0, **settings)
    parameters = dict(workflow.parser.get_parsed_content("network_def").named_parameters())
    start, end = (torch.load(path, weights_only=True) for path in (given, tmp_path / "model.pt"))
    assert parameters and all(torch.equal(start[key], end[key]) for key in parameters)
    assert json.loads((tmp_path / "summary.json").read_text())["settings"]["initial_weights"] == str(given)


@pytest.mark.parametrize("target", ["weights", "field"])
@every_method
def test_instance_optimisation_is_an_option(
    bundle: Path, target: str, trained: dict[str, Path], data_dirs: dict[str, str], tmp_path: Path
) -> None:
    folder = trained[bundle.name]
    options = {"ckpt_path": str(folder / "model.pt"), "instance_target": target, "instance_learning_rate": 1e-3}
    run(
        bundle, "evaluating", *EVALUATION, dataset_dir=data_dirs[bundle.name], output_dir=str(tmp_path / "evaluation"),
        instance_iterations=2, **options, **small(bundle),
    )  # fmt: skip
    before, after = (read_metrics(path / "metrics.csv") for path in (folder, tmp_path / "evaluation"))
    assert [row["sd_log_jacobian"] for row in before] != [row["sd_log_jacobian"] for row in after]
    assert max(row["foldings_percent"] for row in after) == 0.0
    moving, fixed = data_of(bundle).example_pair(data_dirs[bundle.name])
    fields = []
    for iterations in (0, 2):
        output = tmp_path / f"inference_{iterations}"
        run(
            bundle, "inferring", *INFERENCE, moving=str(moving), fixed=str(fixed), device="cpu", output_dir=str(output),
            spatial_size=small(bundle)["spatial_size"], instance_iterations=iterations, **options,
        )  # fmt: skip
        fields.append(nibabel.load(output / "ddf.nii.gz").get_fdata())
    assert np.isfinite(fields[1]).all()
    assert np.abs(fields[0] - fields[1]).max() > 1e-4


def test_tracking_adds_its_handlers_to_training_and_validation() -> None:
    """As ``--tracking`` does: it appends to lists of handlers by their place in the JSON."""
    parser = workflow_of(BASELINE, "train.json", device="cpu").parser
    handler = {"_target_": "monai.handlers.StatsHandler", "name": "tracked"}
    settings = {
        "handlers_id": DEFAULT_HANDLERS_ID,
        "configs": {"save_execute_config": False, "trainer": handler, "validator": dict(handler)},
    }
    ConfigWorkflow.patch_bundle_tracking(parser, settings)
    for name in ("train#trainer", "validate#evaluator"):
        attached = parser.get_parsed_content(name)._event_handlers[Events.EPOCH_COMPLETED]
        owners = [getattr(function, "__self__", None) for function, *_ in attached]
        assert [owner.name for owner in owners if isinstance(owner, StatsHandler)] == ["tracked"]


def described(part: Any) -> Any:
    """Types and numbers of an object, whatever it is made of; of parameters the shapes: a checkpoint sets them."""
    if isinstance(part, torch.nn.Parameter):
        return tuple(part.shape)
    if isinstance(part, torch.Tensor):
        return part.tolist()
    if isinstance(part, dict):
        return {key: described(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [described(value) for value in part]
    own = getattr(part, "__dict__", None)
    return part if own is None else (type(part).__name__, {key: described(value) for key, value in own.items()})


@pytest.mark.parametrize("target", ["weights", "field"])
@every_method
def test_inference_has_the_instance_optimisation_of_the_evaluation(bundle: Path, target: str) -> None:
    """Objective, similarity, weights, estimator, padding, learning rate: everything that it is made of."""
    fits = []
    for files in (EVALUATION, INFERENCE):
        parser = workflow_of(bundle, *files, device="cpu").parser
        learning_rate = parser.get_parsed_content("instance_learning_rate")
        fits.append(InstanceOptimisation(parser.get_parsed_content("method"), 3, target, learning_rate))
    assert described(fits[0]) == described(fits[1])
    assert fits[0].field.smoothness_weight > 0


@pytest.mark.parametrize("bundle, objective", OBJECTIVES, ids=lambda part: getattr(part, "name", part))
def test_every_objective_trains_and_has_its_own_similarity_and_weight_of_the_field(
    bundle: Path, objective: str, data_dirs: dict[str, str], tmp_path: Path
) -> None:
    """A weight tuned for one similarity is no weight for another."""
    workflow = train_only(
        bundle, "train.json", dataset_dir=data_dirs[bundle.name], output_dir=str(tmp_path),
        objective=objective, **small(bundle, epochs=1),
    )  # fmt: skip
    row = read_history(tmp_path / "history.csv")[0]
    assert np.isfinite(float(row["displacement/total"])) and np.isfinite(float(row["displacement/similarity"]))
    entry, method = config(bundle)["objectives"][objective], workflow.parser.get_parsed_content("method")
    assert method.field_weight == entry["field_weight"] > 0
    assert type(method.similarity) is type(build_similarity(entry["similarity"]))


@pytest.mark.parametrize("file", [EVALUATION, INFERENCE], ids=["evaluation", "inference"])
def test_a_solver_takes_the_place_of_the_network(
    file: tuple[str, ...], data_dirs: dict[str, str], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"architecture": "pairwise", "output_dir": str(tmp_path), "device": "cpu"}
    if file == INFERENCE:
        moving, fixed = data_of(BASELINE).example_pair(data_dirs[BASELINE.name])
        run(BASELINE, "inferring", *file, moving=str(moving), fixed=str(fixed), spatial_size=[40, 33], **options)
        assert np.abs(nibabel.load(tmp_path / "ddf.nii.gz").get_fdata()).max() > 0.5
        return
    run(BASELINE, "evaluating", *file, dataset_dir=data_dirs[BASELINE.name], **(small(BASELINE) | options))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["dice"]["mean"] > summary["dice_before"]["mean"] + 0.05
    assert summary["foldings_percent"]["mean"] < 0.1
    assert summary["epe"]["mean"] < summary["epe_before"]["mean"]
    assert "ckpt_path" not in summary["settings"] and summary["settings"]["objective"] == "mse"


@pytest.mark.parametrize("solver", ["pairwise", "identity"])
def test_a_solver_is_not_trained(solver: str, data_dirs: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:
        run(
            BASELINE, "training", "train.json", dataset_dir=data_dirs[BASELINE.name], output_dir=str(tmp_path / "out"),
            architecture=solver, **small(BASELINE),
        )  # fmt: skip
    assert any("evaluating" in message and solver in message for message in causes(caught.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"objective": "lnc"}, "Did you mean 'lncc'"),
        ({"objective": "pairwise"}, "--architecture pairwise"),
        ({"objective": "ncc"}, "lncc, the local one"),
        ({"condition": 0.5}, "condition"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    overrides: dict[str, Any], message: str, data_dirs: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(Exception) as caught:
        run(
            BASELINE, "evaluating", *EVALUATION, dataset_dir=data_dirs[BASELINE.name], output_dir=str(tmp_path / "out"),
            **small(BASELINE), **overrides,
        )  # fmt: skip
    assert any(message in text for text in causes(caught.value)), causes(caught.value)


def test_a_similarity_may_be_a_sum(data_dirs: dict[str, str], tmp_path: Path) -> None:
    train_only(
        ADACS, "train.json", dataset_dir=data_dirs[ADACS.name], output_dir=str(tmp_path),
        similarity="{'mse': 1.0, 'mind': 0.2}", **small(ADACS),
    )  # fmt: skip
    assert np.isfinite(float(read_history(tmp_path / "history.csv")[-1]["displacement/similarity"]))


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
        names = data_of(GRADICON).subjects(data_dirs[GRADICON.name])
        Path(options["pairs"]).write_text(f"moving,fixed\n{names[0]},{names[2]}\n{names[3]},{names[1]}\n")
    run(
        GRADICON, "training", "train.json", dataset_dir=data_dirs[GRADICON.name], output_dir=str(tmp_path / "out"),
        **options, **small(GRADICON, epochs=1),
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
        {"crop_shift": "false"}, {"similarity": "lncc"}, {"score_alpha": "auto"}, {"score_control": "mean"},
        {"score_control": "shuffled"}, {"score_control": "other"},
    ],
    ids=lambda ablation: "-".join(f"{key}-{value}" for key, value in ablation.items()),
)  # fmt: skip
def test_every_ablation_of_adacs_is_reached_by_configuration(
    ablation: dict[str, Any], data_dirs: dict[str, str], tmp_path: Path
) -> None:
    workflow = train_only(
        ADACS, "train.json", dataset_dir=data_dirs[ADACS.name], output_dir=str(tmp_path),
        **small(ADACS, **ablation),
    )  # fmt: skip
    method, row = workflow.parser.get_parsed_content("method"), read_history(tmp_path / "history.csv")[-1]
    assert row["active"] == "displacement+score"
    assert np.isfinite(float(row["displacement/total"])) and np.isfinite(float(row["score/total"]))
    assert float(row["score/min"]) <= float(row["score/mean"]) <= float(row["score/max"])
    if ablation == {"score_momentum": "none"}:
        assert float(row["score/momentum"]) == 1.0
    if ablation == {"score_alpha": "auto"}:
        first = read_history(tmp_path / "history.csv")[0]
        assert float(row["score/alpha"]) == pytest.approx(2 * float(first["displacement/similarity"]), rel=1e-5)
    if "score_control" in ablation:
        assert method.updates[0].objective.terms["similarity"].weight.control == ablation["score_control"]
    if ablation == {"score_input": "fixed_warped"}:
        assert method.estimator_network.unet.in_channels == 2
    if ablation == {"score_initial": None}:
        assert method.estimator_network.head.weight.abs().min() > 0
    if ablation == {"score_leak": "true"}:
        assert method.second_forward and method.updates[1].gradients == {"model", "model_score"}
    if ablation == {"updates_per_epoch": 3}:
        assert row["updates"] == "9"


def test_official_training_is_the_published_one_part_by_part(data_dirs: dict[str, str], tmp_path: Path) -> None:
    workflow = train_only(
        ADACS, "train.json", "official.json", dataset_dir=data_dirs[ADACS.name], output_dir=str(tmp_path),
        **small(ADACS, crop_jitter=0, updates_per_epoch=4),
    )  # fmt: skip
    method = workflow.parser.get_parsed_content("method")
    assert method.bidirectional and method.inverse_by_negation and method.foreground and method.second_forward
    assert method.updates[1].gradients == {"model", "model_score"}
    official = config(ADACS, "official.json")
    assert official["updates_per_epoch"] == 50 and official["crop_jitter"] == 0 and official["score_initial"] is None
    for part in ("train", "validate"):
        assert workflow.parser.get_parsed_content(f"{part}#dataset").crop.shift is False
    history = read_history(tmp_path / "history.csv")
    assert [row["updates"] for row in history] == ["4", "8", "12"]
    # m advances with the displacement, b of the first epoch's mean; it stands still in the score's own warm-up.
    similarity, momenta = float(history[0]["displacement/similarity"]), [row["score/momentum"] for row in history]
    assert momenta[0] == "" and float(momenta[1]) == pytest.approx(np.cos(3.14 * 50 * 0.5 * similarity), abs=1e-4)
    assert np.isfinite(float(history[2]["score/total"])) and abs(float(momenta[2]) - float(momenta[1])) > 1e-3


def test_the_papers_form_stays_the_default() -> None:
    published = {
        "crop_jitter": 16, "crop_shift": True, "updates_per_epoch": None, "bidirectional": False,
        "inverse_by_negation": False, "foreground": False, "score_initial": 0.88, "score_momentum": "paper",
        "score_leak": False, "percentiles": [0, 99],
    }  # fmt: skip
    assert {key: config(ADACS)[key] for key in published} == published
    assert set(config(ADACS, "official.json")) - {"_doc_"} == set(published)


def test_inference_reads_the_score_only_to_fit(
    data_dirs: dict[str, str], trained: dict[str, Path], tmp_path: Path
) -> None:
    """A pair is registered without the score; the fit of its own objective needs it, and says which file is missing."""
    moving, fixed = data_of(ADACS).example_pair(data_dirs[ADACS.name])
    alone = tmp_path / "weights" / "model.pt"
    alone.parent.mkdir()
    alone.write_bytes((trained[ADACS.name] / "model.pt").read_bytes())
    overrides = {
        "moving": str(moving), "fixed": str(fixed), "device": "cpu", "spatial_size": [32, 32], "ckpt_path": str(alone)
    }
    run(ADACS, "inferring", *INFERENCE, output_dir=str(tmp_path / "plain"), **overrides)
    assert (tmp_path / "plain" / "ddf.nii.gz").is_file()
    with pytest.raises(Exception) as caught:
        run(ADACS, "inferring", *INFERENCE, output_dir=str(tmp_path / "fit"), instance_iterations=1, **overrides)
    assert any("model_score.pt" in message for message in causes(caught.value))


@every_method
def test_gradicon_continues_images_at_the_border_and_the_others_with_zeros(bundle: Path) -> None:
    method = workflow_of(bundle, "train.json", device="cpu").parser.get_parsed_content("method")
    assert method.padding == ("border" if bundle.name.startswith("gradicon") else "zeros") and not method.inside_only
