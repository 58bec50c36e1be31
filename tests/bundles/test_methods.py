# SPDX-License-Identifier: Apache-2.0
"""One source of what a method optimises: training, evaluation, inference and the published presets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from common.data import acdc
from common.handlers.log import read_history
from common.losses.similarity import SIMILARITIES
from tests.bundles.test_bundles import BUNDLES_DIR, NAMES, SMALL, run


EVALUATION, INFERENCE = ("train.json", "evaluate.json"), ("inference.json",)


def instances(name: str, *configurations: tuple[str, ...], **options: Any) -> list[Any]:
    """The instance optimisation of a bundle's evaluation and of its inference, or of what is named."""
    configs = BUNDLES_DIR / name / "configs"
    found = []
    for files in configurations or (EVALUATION, INFERENCE):
        workflow = ConfigWorkflow(
            config_file=[str(configs / file) for file in files], meta_file=str(configs / "metadata.json"),
            logging_file=False, workflow_type="train", device="cpu", **options,
        )  # fmt: skip
        workflow.initialize()
        found.append(workflow.parser.get_parsed_content("instance"))
    return found


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
@pytest.mark.parametrize("name", NAMES)
def test_inference_has_the_instance_optimisation_of_the_evaluation(name: str, target: str) -> None:
    """Objective, similarity, weights, estimator, padding, updates, learning rate: everything that it is made of."""
    one, other = instances(name, instance_iterations=3, instance_target=target)
    assert described(one) == described(other)
    assert one.field.smoothness_weight > 0 and (one.estimator is not None) == name.startswith("adacs")


@pytest.mark.parametrize("target", ["weights", "field"])
@pytest.mark.parametrize("name", NAMES)
def test_inference_optimises_what_evaluation_does(name: str, target: str) -> None:
    one, other = instances(name, instance_iterations=3, instance_target=target, instance_learning_rate=1e-2)
    models = BUNDLES_DIR / name / "models"
    for instance in (one, other):
        instance.network.load_state_dict(torch.load(models / "model.pt", weights_only=True))
        if instance.estimator is not None:
            instance.estimator.network.load_state_dict(torch.load(models / "score.pt", weights_only=True))
    size = [24, 17] if name.endswith(("acdc", "triangles")) else [18, 24, 17]
    image = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one(image), other(image))


def objectives_of(name: str) -> list[str]:
    """Names of the objectives of a bundle's training."""
    return list(json.loads((BUNDLES_DIR / name / "configs" / "train.json").read_text()).get("objectives", {}))


@pytest.mark.parametrize(
    "name, objective", [(name, objective) for name in NAMES for objective in objectives_of(name)]
)  # fmt: skip
def test_every_objective_names_the_weight_of_its_field(name: str, objective: str) -> None:
    """A weight tuned for one similarity is no weight for another; and the fit has the objective's own similarity."""
    (instance,) = instances(name, EVALUATION, instance_target="field", instance_iterations=2, objective=objective)
    settings = json.loads((BUNDLES_DIR / name / "configs" / "train.json").read_text())["objectives"][objective]
    assert instance.field.smoothness_weight == settings["field_weight"] > 0
    assert instance.field.similarity is instance.similarity
    assert type(instance.similarity) is SIMILARITIES[settings["similarity"]]


def test_fit_of_gradicon_has_its_own_weight_and_the_record_keeps_that_of_the_training() -> None:
    configs = BUNDLES_DIR / "gradicon_hippocampus" / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / "train.json"), str(configs / "evaluate.json")],
        meta_file=str(configs / "metadata.json"), logging_file=False, workflow_type="train", device="cpu",
    )  # fmt: skip
    workflow.initialize()
    assert workflow.parser.get_parsed_content("instance").objective.weight == 0.25
    assert workflow.parser.get_parsed_content("train#trainer").updates[0].objective.weight == 0.5
    assert workflow.parser.get_parsed_content("objectives#lncc#weight") == 0.5


def test_official_training_is_the_published_one_part_by_part(acdc_dir: Path, tmp_path: Path) -> None:
    workflow = run(
        BUNDLES_DIR / "adacs_acdc", "training", "train.json", "official.json", dataset_dir=str(acdc_dir),
        output_dir=str(tmp_path), **(SMALL["acdc"] | {"crop_jitter": 0, "updates_per_epoch": 4}),
    )  # fmt: skip
    trainer = workflow.parser.get_parsed_content("train#trainer")
    assert trainer.bidirectional and trainer.inverse_by_negation and trainer.foreground and trainer.second_forward
    score = trainer.updates[1]
    assert score.objective.leak and set(score.differentiates) == {"estimator", "displacement"}
    config = json.loads((BUNDLES_DIR / "adacs_acdc" / "configs" / "official.json").read_text())
    assert config["updates_per_epoch"] == 50 and config["crop_jitter"] == 0 and config["score_initial"] is None
    for part in ("train", "validate"):
        assert workflow.parser.get_parsed_content(f"{part}#dataset").crop.shift is False
    history = read_history(tmp_path / "history.csv")
    assert [row["updates"] for row in history] == ["4", "8", "12"]
    # m advances with the displacement, b of the first epoch's mean; it stands still in the score's own warm-up.
    similarity, momenta = float(history[0]["displacement/similarity"]), [row["score/momentum"] for row in history]
    assert momenta[0] == "" and float(momenta[1]) == pytest.approx(np.cos(3.14 * 50 * 0.5 * similarity), abs=1e-4)
    assert np.isfinite(float(history[2]["score/total"])) and abs(float(momenta[2]) - float(momenta[1])) > 1e-3


def test_evaluation_of_the_official_training_optimises_its_objective() -> None:
    (instance,) = instances("adacs_acdc", ("train.json", "official.json", "evaluate.json"))
    assert instance.bidirectional and instance.inverse_by_negation and instance.foreground
    assert instance.updates == {"displacement", "score"}


def test_the_papers_form_stays_the_default() -> None:
    config = json.loads((BUNDLES_DIR / "adacs_acdc" / "configs" / "train.json").read_text())
    published = {
        "crop_jitter": 16, "crop_shift": True, "updates_per_epoch": None, "bidirectional": False,
        "inverse_by_negation": False, "foreground": False, "score_initial": 0.88, "score_momentum": "paper",
        "score_leak": False,
    }  # fmt: skip
    assert {key: config[key] for key in published} == published
    overlay = json.loads((BUNDLES_DIR / "adacs_acdc" / "configs" / "official.json").read_text())
    assert set(overlay) - {"_doc_"} == set(published)


@pytest.mark.parametrize("name", NAMES)
def test_every_bundle_names_its_scored_labels(name: str) -> None:
    config = json.loads((BUNDLES_DIR / name / "configs" / "train.json").read_text())
    assert config["scored"] and set(config["scored"]) <= set(config["labels"])


def test_inference_reads_the_score_only_to_fit(acdc_dir: Path, tmp_path: Path) -> None:
    """A pair is registered without the score; the fit of its own objective needs it, and says which file is missing."""
    moving, fixed = acdc.frame_files(acdc_dir, "patient001")
    overrides = {
        "moving": str(moving), "fixed": str(fixed), "device": "cpu", "spatial_size": [32, 32],
        "score_path": str(tmp_path / "none.pt"),
    }  # fmt: skip
    bundle = BUNDLES_DIR / "adacs_acdc"
    run(bundle, "inferring", "inference.json", output_dir=str(tmp_path / "plain"), **overrides)
    assert (tmp_path / "plain" / "ddf.nii.gz").is_file()
    with pytest.raises(Exception) as caught:
        run(bundle, "inferring", "inference.json", output_dir=str(tmp_path / "fit"), instance_iterations=1, **overrides)
    causes = [caught.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert any("score_path: expected a file of weights at" in str(cause) for cause in causes)


@pytest.mark.parametrize("name", NAMES)
def test_gradicon_continues_images_at_the_border_and_the_others_with_zeros(name: str) -> None:
    for instance in instances(name):
        assert instance.padding == ("border" if name.startswith("gradicon") else "zeros") and not instance.inside_only
