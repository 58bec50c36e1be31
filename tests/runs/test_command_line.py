# SPDX-License-Identifier: Apache-2.0
"""Commands as they are typed: what is refused, with which words, before anything is written."""

import json
import re
import shutil
from pathlib import Path

import pytest

from common.runs.command_line import Words, exact_path, read

from .conftest import QUICK, TRAINING, config, monai_run, refused


def test_words_are_read_as_fire_reads_them_but_as_text():
    words = read(["training", "--output_dir", "run#1", "--seed=-1", "-epocs", "2", "--amp", "--val-interval", "3", "b"])
    assert words.positional == ["training", "b"]
    assert words.options == {"output_dir": "run#1", "seed": "-1", "epocs": "2", "amp": True, "val_interval": "3"}


def test_the_command_line_overrides_the_file_of_arguments(tmp_path):
    (tmp_path / "args.json").write_text(json.dumps({"output_dir": "a#1", "epochs": 3}))
    words = read(["--args_file", str(tmp_path / "args.json"), "--output_dir", "b#2"])
    assert words.options["output_dir"] == "b#2" and words.options["epochs"] == 3


@pytest.mark.parametrize(
    "typed", ["run#1", "results/run#1", "./pat#1.nii.gz", "2024", "1e5", "a,b", "a::b", "@x", "[1]"]
)
def test_a_typed_path_is_exactly_that_path(typed):
    assert str(exact_path("output_dir", "what MONAI made of it", typed, {})) == str(Path(typed))


def test_a_home_folder_that_the_shell_left_is_found():
    assert exact_path("output_dir", "x", "~/run#1", {}) == Path.home() / "run#1"


def test_expressions_and_lost_paths():
    assert exact_path("output_dir", "$@a + 'b'", "$@a + 'b'", {"a": 1}) == "$@a + 'b'"
    assert exact_path("output_dir", "@a", "@a", {"a": 1}) == "@a"
    assert exact_path("output_dir", Path("a#1"), None, {}) == Path("a#1")
    with pytest.raises(ValueError, match="output_dir: MONAI replaces '#'.*run::1.*pathlib.Path"):
        exact_path("output_dir", "run::1", None, {})


@pytest.mark.parametrize(
    ("run_id", "words", "message"),
    [
        ("training", ["--epochs", "ten"], "epochs: expected a whole number"),
        ("training", ["--device", "gpu"], "device must be like 'cpu'.*got 'gpu'.*--device cpu"),
        ("training", ["--epocs", "1"], r"'--epocs'.*'--epochs'\?"),
        ("training", ["-epocs", "1"], r"'--epocs'.*'--epochs'\?"),
        ("training", ["--metafile", "x"], r"'--metafile'.*'--meta_file'\?"),
        ("training", ["--objectives#gradicon#weigth", "5"], r"'--objectives#gradicon#weigth'.*'weight'\?"),
        ("training", ["--objectives#gradicon#weight", "five"], "#weight: expected a number like 0.2"),
        ("training", ["--objectives#gradcon", "{'weight':1}"], r"'--objectives#gradcon'.*'gradicon'\?"),
        ("training", ["--architectures#icno", "{}"], r"'--architectures#icno'.*'icon'\?"),
        ("training", ["--train#trainer#max_epoch", "5"], r"'--train#trainer#max_epoch'.*'max_epochs'\?"),
        ("training", ["--optimizer#lrr", "5"], r"#lrr'.*'lr'\?"),
        ("training", ["--train#datset", "5"], r"'--train#datset'.*'dataset'\?"),
        ("training", ["--count#trian", "5"], r"'--count#trian'.*'train'\?"),
        ("training", ["--dataset_dir", "/nope"], "dataset_dir: .*leave dataset_dir at 'phantom'"),
        ("evaluating", ["--dataset_dir", "/nope"], "dataset_dir: .*leave dataset_dir at 'phantom'"),
        ("inferring", ["--dataset_dir", "/nope"], "dataset_dir: .*leave dataset_dir at 'phantom'"),
        ("training", ["--ckpt_path", "x.pt"], "ckpt_path: a training does not read it.*--initial_weights"),
        ("training", ["--learning_rate", "None"], "learning_rate: expected a number.*got None"),
        ("training", ["word"], "'word': expected an option before it"),
        ("inferring", ["moving.nii.gz", "fixed.nii.gz"], "'moving.nii.gz': expected an option before it.*--moving"),
        ("inferring", ["--moving", "--fixed", "f"], "moving: expected a path, got no value"),
        ("inferring", ["--epochs", "3"], "'--epochs'"),
        ("inferring", ["--output_dir"], "output_dir: expected a path, got no value"),
    ],
)  # fmt: skip
def test_what_nothing_reads_is_refused_by_name(run_id, words, message, here):
    text = refused(run_id, *config(run_id), *QUICK[:2], "--output_dir", "out", *words)
    assert re.search(message, text), text
    assert not list(here.iterdir())


def test_the_file_of_arguments_is_checked_alike(here):
    Path("args.json").write_text(json.dumps({"config_file": config("training")[1], "epocs": 3}))
    assert "Did you mean '--epochs'" in refused("training", "--args_file", "args.json")


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("evaluating", ["evaluate"], "evaluate.json only adds to train.json. Give both"),
        ("evaluating", ["evaluate", "train"], "evaluate.json must come after train.json"),
        ("training", ["train", "evaluate"], "a training takes no evaluate.json"),
    ],
)
@pytest.mark.parametrize(
    "bundle", ["adacs_acdc", "baseline_acdc", "baseline_hippocampus", "gradicon_hippocampus", "gradicon_triangles"]
)
def test_overlays_alone_or_in_the_wrong_order_say_what_to_give(bundle, name, files, message, here):
    folder = Path(config("training", bundle)[1]).parent
    chosen = str([str(folder / f"{file}.json") for file in files])
    assert message in refused(name, "--config_file", chosen, "--output_dir", "out", "--device", "cpu")
    assert not list(here.iterdir())


def test_what_a_file_of_ones_own_may_add(here):
    Path("mine.json").write_text(
        json.dumps({
            "+objectives": {
                "mine": {"similarity": "mse", "kind": "icon", "preset": "paper_v1", "weight": 2.0, "field_weight": 0.1}
            },
            "objective": "mine", "half": 0.5, "learning_rate": "$@half / 500",
            "optimizer#weight_decay": 0.1,
        })
    )  # fmt: skip
    files = str([config("training")[1], "mine.json"])
    monai_run("training", "--config_file", files, *TRAINING, "--output_dir", "out")
    settings = json.loads(Path("out/summary.json").read_text())["settings"]
    assert settings["chosen"]["weight"] == 2.0 and settings["learning_rate"] == 0.001
    assert settings["optimizer#weight_decay"] == 0.1
    Path("mine.json").write_text(json.dumps({"epocs": 2}))
    assert "Did you mean '--epochs'" in refused("training", "--config_file", files, *TRAINING, "--output_dir", "out2")


def test_results_lie_exactly_where_they_were_asked_for(finished, here):
    shutil.copytree(finished, "w#1")
    for folder in ("run#1", "results/run#2", "2024", "1e5", "a,b"):
        monai_run(
            "evaluating", *config("evaluating"), *QUICK, f"--output_dir={folder}", "--ckpt_path", "w#1/model.pt",
        )  # fmt: skip
        assert (here / folder / "summary.json").is_file()
        assert json.loads((here / folder / "summary.json").read_text())["settings"]["ckpt_path"] == "w#1/model.pt"
    assert {path.name for path in here.iterdir()} == {"w#1", "run#1", "results", "2024", "1e5", "a,b"}


def test_words_is_empty_outside_of_a_command():
    assert Words([], {}) == ([], {})
