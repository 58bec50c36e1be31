# SPDX-License-Identifier: Apache-2.0
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import bundle

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"epochs": 3, "learning_rate": 1e-4, "network_def": {"name": "x"}, "+imports": []}))
    return path


@pytest.mark.parametrize("folder", ["repository", "elsewhere"])
def test_root_is_the_bundle_of_the_repository_from_anywhere(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT if folder == "repository" else tmp_path)
    assert bundle.root("adacs_acdc") == str(ROOT / "bundles" / "adacs_acdc")


def packed(tmp_path, with_metadata=True):
    """A bundle that carries the package as scripts/common, in a folder of any name."""
    target = tmp_path / "renamed" / "scripts" / "common"
    target.mkdir(parents=True)
    for name in ("__init__.py", "bundle.py", "checks.py", "console.py"):
        shutil.copy(ROOT / "common" / name, target / name)
    (tmp_path / "renamed" / "configs").mkdir()
    if with_metadata:
        (tmp_path / "renamed" / "configs" / "metadata.json").write_text("{}")
    code = "from scripts.common import bundle; print(bundle.root('adacs_acdc'))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "renamed"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_root_of_a_packed_bundle_is_the_folder_that_carries_it(tmp_path):
    result = packed(tmp_path)
    assert result.stdout.strip() == str(tmp_path / "renamed"), result.stderr


def test_unknown_bundle_names_the_places_that_were_tried():
    with pytest.raises(FileNotFoundError, match="bundle_root: 'adacs_acdx' is in none of .*/adacs_acdx.*--bundle_root"):
        bundle.root("adacs_acdx")


@pytest.mark.parametrize("value", [True, 1, "1", "true", "True", " YES ", "on"])
def test_switch_reads_yes(value):
    assert bundle.switch(value, "amp") is True


@pytest.mark.parametrize("value", [False, 0, "0", "false", "False", "no", "OFF"])
def test_switch_reads_no(value):
    assert bundle.switch(value, "amp") is False


@pytest.mark.parametrize("value", ["", "fasle", None, 2, 0.5, "null", []])
def test_switch_refuses_what_it_cannot_read(value):
    with pytest.raises(ValueError, match="amp must be true or false, got"):
        bundle.switch(value, "amp")


@pytest.mark.parametrize("value", ["cpu", torch.device("cpu")])
def test_device_by_name_or_as_it_is(value):
    assert bundle.select_device(value) == torch.device("cpu")


@pytest.mark.parametrize("value", ["gpu", "cuda:x", "", None, 1.5])
def test_unreadable_device_is_refused(value):
    with pytest.raises(ValueError, match="device must be like 'cpu', 'cuda' or 'cuda:1', got"):
        bundle.select_device(value)


@pytest.mark.parametrize("value", ["cuda", "cuda:1"])
def test_cuda_without_a_gpu_says_what_to_do(value, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"'{value}' was asked for.*no CUDA GPU.*--device cpu"):
        bundle.select_device(value)


def test_each_process_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert bundle.select_device("cuda") == torch.device("cuda", 3)
    assert bundle.select_device("cuda:1") == torch.device("cuda", 1)


def test_rank_and_world_size_are_those_of_torchrun(one_process, monkeypatch):
    assert (bundle.rank(), bundle.world_size()) == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (bundle.rank(), bundle.world_size()) == (2, 4)


def test_choice_by_name():
    assert bundle.choose({"plain": 1, "score": 2}, "score", "objective") == 2
    with pytest.raises(ValueError, match=r"objective: expected one of .*plain.*, got 'scroe'.*'score'\?"):
        bundle.choose({"plain": 1, "score": 2}, "scroe", "objective")
    with pytest.raises(ValueError, match="objective: expected one of"):
        bundle.choose({"plain": 1}, None, "objective")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["--epochs", "5"],
        ["--epochs=5", "--learning_rate=-1"],
        ["--network_def#name", "y"],
        ["--network_def::name=y"],
        ["--imports", "[]"],
        ["--logging_file", "x.conf", "--run_id", "training"],
    ],
)
def test_known_overrides_pass(config, overrides):
    bundle.check_arguments(["run", "training", "--config_file", str(config), *overrides])
    bundle.check_arguments(["run", "training", f"--config_file={config}", *overrides])


@pytest.mark.parametrize(
    ("override", "near"),
    [("--epoch", "--epochs"), ("--learning_rat=1", "--learning_rate"), ("--network_deff#name", "--network_def")],
)
def test_misspelt_override_is_refused_with_the_nearest(config, override, near):
    with pytest.raises(
        ValueError, match=f"Unknown override '{override.partition('=')[0].partition('#')[0]}'.*mean '{near}'"
    ):
        bundle.check_arguments(["run", "training", "--config_file", str(config), override, "5"])


def test_override_unlike_any_key_lists_the_known_ones(config):
    with pytest.raises(
        ValueError, match="Unknown override '--zzz'.*Known keys: epochs, imports, learning_rate, network_def"
    ):
        bundle.check_arguments(["--config_file", str(config), "--zzz", "1"])


@pytest.mark.parametrize("form", ["['{0}','{1}']", "[{0}, {1}]", '["{0}", "{1}"]', "{0},{1}"])
def test_keys_of_every_named_file_are_known(config, tmp_path, form):
    overlay = tmp_path / "evaluate.json"
    overlay.write_text(json.dumps({"split": "test", "evaluate#evaluator#network": "x"}))
    files = form.format(config, overlay)
    bundle.check_arguments(["--config_file", files, "--split", "train", "--epochs", "2", "--evaluate#x", "1"])
    with pytest.raises(ValueError, match="Unknown override '--spilt'.*'--split'"):
        bundle.check_arguments(["--config_file", files, "--spilt", "train"])


def test_command_line_without_configuration_is_left_alone():
    bundle.check_arguments(["tests/test_bundle.py", "--whatever", "1"])


def test_arguments_default_to_the_command_line(config, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", "--config_file", str(config), "--epohcs", "2"])
    with pytest.raises(ValueError, match="'--epohcs'.*'--epochs'"):
        bundle.check_arguments()


def test_start_seeds_torch_and_shows_information(one_process, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", root.level)
    draws = []
    for _ in range(2):
        bundle.start("7", "cpu")
        draws.append(torch.rand(3))
    assert torch.equal(*draws) and torch.equal(draws[0], torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert root.isEnabledFor(logging.INFO)
    assert not torch.distributed.is_initialized()
    bundle.finish()


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_output_folder_is_made(one_process, tmp_path):
    bundle.clear_output(tmp_path / "runs" / "training", False)
    assert (tmp_path / "runs" / "training").is_dir() and not files(tmp_path)


def test_earlier_runs_move_aside_and_are_kept(one_process, tmp_path, caplog):
    for number in (1, 2, 3):
        bundle.clear_output(tmp_path, False)
        (tmp_path / "last.pt").write_text(f"run {number}")
        (tmp_path / "tensorboard").mkdir()
        (tmp_path / "tensorboard" / "events").write_text("e")
    assert files(tmp_path) == {
        f"{folder}{name}" for folder in ("", "previous_1/", "previous_2/") for name in ("last.pt", "tensorboard/events")
    }
    assert (tmp_path / "previous_1" / "last.pt").read_text() == "run 1"
    assert (tmp_path / "previous_2" / "last.pt").read_text() == "run 2"
    assert "held an earlier run" in caplog.text


def test_earlier_runs_are_kept_although_one_of_them_was_deleted(one_process, tmp_path):
    for number in (1, 2, 3):
        bundle.clear_output(tmp_path, False)
        (tmp_path / "last.pt").write_text(f"run {number}")
    shutil.rmtree(tmp_path / "previous_1")
    bundle.clear_output(tmp_path, False)
    assert sorted(path.read_text() for path in tmp_path.rglob("last.pt")) == ["run 2", "run 3"]
    assert not (tmp_path / "last.pt").exists()


def test_resume_and_other_processes_leave_the_folder_alone(one_process, tmp_path, monkeypatch):
    (tmp_path / "last.pt").write_text("run")
    bundle.clear_output(tmp_path, True)
    monkeypatch.setenv("RANK", "1")
    bundle.clear_output(tmp_path, False)
    assert files(tmp_path) == {"last.pt"}


def test_dataset_root_is_the_phantom_only_by_name(tmp_path):
    made = []

    def phantom():
        made.append(1)
        return tmp_path / "made"

    assert bundle.dataset_root("phantom", phantom) == tmp_path / "made" and made == [1]
    assert bundle.dataset_root(str(tmp_path), phantom) == tmp_path
    assert bundle.dataset_root(Path("~/acdc"), phantom) == Path.home() / "acdc"
    assert made == [1]
