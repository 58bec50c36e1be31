# SPDX-License-Identifier: Apache-2.0
"""The record says what ran: derived from the configuration, not listed by hand."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow

from common.handlers.state import TrainingState
from common.runs import arguments, record
from common.runs.command_line import Words
from common.runs.configuration import current_parser, differences

from .conftest import QUICK, ROOT, TRAINING, config, monai_run, refused

TRAINING_ONLY = {"epochs", "learning_rate", "seed", "initial_weights", "crop_jitter", "warmup_epochs", "score_beta"}


def parser(bundle, *files, **overrides):
    found = ConfigParser()
    found.read_config([str(ROOT / "bundles" / bundle / "configs" / f"{file}.json") for file in files])
    found.update({key.replace("__", "#"): value for key, value in overrides.items()})
    return found


def settings(bundle, *files, **overrides):
    return record.settings(parser(bundle, *files, **({"data_root": "none"} | overrides)))


def test_the_parser_is_found_where_an_expression_is_evaluated():
    import_it = "$import common.runs.configuration as configuration"
    found = ConfigParser({"imports": [import_it], "a": 1, "b": "$configuration.current_parser()"})
    assert found.get_parsed_content("b") is found
    assert current_parser() is None


@pytest.mark.parametrize(
    "changed",
    [
        {"similarity": "lncc"}, {"bidirectional": True}, {"score_leak": True}, {"warmup_epochs": 1}, {"crop_jitter": 0},
        {"amp": True}, {"score_momentum": "official"}, {"optimizer__weight_decay": 0.1},
        {"network_def__name": "other"}, {"score_alpha": 0.5},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_every_change_shows(changed):
    plain, other = settings("adacs_acdc", "train"), settings("adacs_acdc", "train", **changed)
    ((key, value),) = changed.items()
    assert other[key.replace("__", "#")] == value and plain.get(key.replace("__", "#")) != value


@pytest.mark.parametrize(
    "bundle", ["adacs_acdc", "baseline_acdc", "baseline_hippocampus", "gradicon_hippocampus", "gradicon_triangles"]
)
def test_an_evaluation_says_nothing_of_how_its_weights_were_trained(bundle):
    found = settings(bundle, "train", "evaluate")
    assert not TRAINING_ONLY & set(found)
    assert not {"objective", "objectives", "chosen", "smoothness_weight", "similarity"} & set(found)
    assert {"ckpt_path", "split", "architecture", "instance_iterations"} <= set(found)
    fitted = settings(bundle, "train", "evaluate", instance_iterations=2)
    assert {"instance_learning_rate", "bidirectional" if "gradicon" not in bundle else "chosen"} <= set(fitted)


def test_the_anchor_reads_no_weights():
    found = settings("baseline_acdc", "train", "evaluate", architecture="pairwise")
    assert found["chosen"]["field_weight"] == 0.025 and "ckpt_path" not in found


def test_a_resumed_training_must_agree_in_what_decides_its_result():
    found = record.fixed(settings("baseline_hippocampus", "train"))
    assert {"objective", "objectives", "seed", "dataset_dir", "architecture", "spatial_size"} <= set(found)
    assert not {"epochs", "learning_rate", "device", "output_dir", "num_workers", "resume"} & set(found)


def test_differences_are_the_leaves_that_differ():
    base = {"a": 1, "b": {"c": [1, {"d": 2}], "e": True}}
    assert not list(differences(base, base))
    changed = {"a": 1, "b": {"c": [1, {"d": 3}], "e": 1, "f": None}}
    assert list(differences(base, changed)) == [(("b", "c", "1", "d"), 3), (("b", "e"), 1), (("b", "f"), None)]


def test_the_record_holds_the_weights_that_were_written_and_read(finished, here):
    written = json.loads((finished / "summary.json").read_text())["settings"]
    digest = hashlib.sha256((finished / "model.pt").read_bytes()).hexdigest()
    assert written["weights"] == {str(finished / "model.pt"): digest} and written["epochs"] == 1
    assert written["labels_in_training"] is False
    if (ROOT / ".git").exists():
        assert len(written["commit"].partition("-")[0]) == 40
    shutil.copytree(finished, "w")
    monai_run("evaluating", *config("evaluating"), *QUICK, "--output_dir", "out", "--ckpt_path", "w/model.pt")
    read = json.loads(Path("out/summary.json").read_text())["settings"]
    assert read["weights"] == {"w/model.pt": digest} and not TRAINING_ONLY & set(read)
    assert read["labels_in_training"] is False


def test_the_record_says_whether_labels_helped_the_training(tmp_path):
    def used(*files, **changed):
        return record.labels_in_training(parser("baseline_acdc", *files, **changed))

    assert used("train") is False
    assert used("train", train__dataset__with_labels=True) is True
    assert used("train", "evaluate") is False  # the bundle's own weights
    assert used("train", "evaluate", architecture="pairwise", ckpt_path="anywhere/model.pt") is False
    weights = tmp_path / "model.pt"
    assert used("train", "evaluate", ckpt_path=str(weights)) is None
    assert used("train", initial_weights=str(weights)) is None
    (tmp_path / "summary.json").write_text('{"settings": {"labels_in_training": true}}')
    assert used("train", "evaluate", ckpt_path=str(weights)) is True
    assert used("train", initial_weights=str(weights)) is True


@pytest.mark.parametrize("files", [("train", "evaluate"), ("inference",)])
def test_weights_of_a_network_with_other_parameters_are_refused(tmp_path, files):
    """Also where they fit: an integrated velocity and a displacement have the same weights."""
    run_id, weights = "evaluating" if "evaluate" in files else "inferring", str(tmp_path / "model.pt")

    def checked(**changed):
        arguments.check(parser("baseline_acdc", *files, ckpt_path=weights, **changed), Words([], {}), run_id)

    checked(architectures__voxelmorph__integration_steps=7)  # nothing is known of these weights
    tables = {"voxelmorph": {"integration_steps": 7}, "transmorph": {"window": [4, 4]}}
    found = {"settings": {"architecture": "voxelmorph", "architectures": tables}}
    (tmp_path / "summary.json").write_text(json.dumps(found))
    checked(architectures__voxelmorph__integration_steps=7)
    checked(architecture="pairwise", architectures__pairwise__steps=[1, 1, 1])
    with pytest.raises(ValueError, match=r"voxelmorph#integration_steps: expected 7, with which .* got the default"):
        checked()
    with pytest.raises(
        ValueError, match=r"velocity_downsample: expected the default, .* got 2. Leave --architectures#"
    ):
        checked(architectures__voxelmorph__integration_steps=7, architectures__voxelmorph__velocity_downsample=2)
    with pytest.raises(ValueError, match='architecture: expected voxelmorph, .* Pass --architecture "voxelmorph"'):
        checked(architecture="transmorph")
    found["settings"]["architecture"] = "pairwise"  # a solver was evaluated there: it says nothing of the weights
    (tmp_path / "summary.json").write_text(json.dumps(found))
    checked()


def test_settings_are_found_without_a_run():
    """As a workflow's property, before anything runs."""
    configs = ROOT / "bundles" / "gradicon_triangles" / "configs"
    workflow = ConfigWorkflow(
        config_file=str(configs / "train.json"), meta_file=str(configs / "metadata.json"), logging_file=False,
        workflow_type="train", seed=7, count=1, device="cpu",
    )  # fmt: skip
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    saved = [handler for handler, *_ in trainer._event_handlers[Events.COMPLETED]]
    (state,) = {handler.__self__ for handler in saved if isinstance(getattr(handler, "__self__", None), TrainingState)}
    assert state.settings["seed"] == 7


def test_a_resumed_training_of_another_kind_is_refused(finished, here):
    shutil.copytree(finished, "run")
    words = ["training", *config("training"), *TRAINING, "--output_dir", "run", "--resume", "true"]
    for option, value in (("objective", "icon"), ("seed", "3"), ("style", "filled"), ("padding", "zeros")):
        assert f"{option} was " in refused(*words, f"--{option}", value)
    assert "architectures was " in refused(*words, "--architectures#icon#factors", "[1]")
    monai_run(*words, "--epochs", "2", "--learning_rate", "0.01")
    assert "expected at least 2" in refused(*words)
