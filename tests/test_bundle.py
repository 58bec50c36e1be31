# SPDX-License-Identifier: Apache-2.0
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import bundle
from common.engines import architectures
from common.runs.options import SOLVERS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("folder", ["repository", "elsewhere"])
def test_root_is_the_bundle_of_the_repository_from_anywhere(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT if folder == "repository" else tmp_path)
    assert bundle.root("adacs_acdc") == str(ROOT / "bundles" / "adacs_acdc")


def packed(tmp_path, with_metadata=True):
    """A bundle that carries the package as scripts/common, in a folder of any name."""
    target = tmp_path / "renamed" / "scripts" / "common"
    target.mkdir(parents=True)
    for name in ("__init__.py", "bundle.py", "checks.py", "atomic.py", "console.py"):
        shutil.copy(ROOT / "common" / name, target / name)
    shutil.copytree(ROOT / "common" / "runs", target / "runs", ignore=shutil.ignore_patterns("__pycache__"))
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
    with pytest.raises(ValueError, match="amp: expected true or false, got"):
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


def test_what_needs_no_training_is_no_objective():
    for solver in SOLVERS:
        with pytest.raises(ValueError, match=f"got '{solver}', which is no objective .* --architecture {solver}"):
            bundle.choose_objective({"mse": 1}, solver)
    with pytest.raises(ValueError, match="'ncc' names two things. Take lncc.*or global_ncc"):
        bundle.choose_objective({"mse": 1}, "ncc")
    assert bundle.choose_objective({"mse": 1, "ncc": 2}, "ncc") == 2
    assert set(SOLVERS) == set(architectures.SOLVERS)


def test_arguments_are_left_alone_outside_of_a_configuration():
    hook = sys.excepthook
    bundle.check_arguments("training")
    assert sys.excepthook is hook


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


@pytest.mark.parametrize("eta, eta_max, share", [(None, 4.0, None), (0, 4.0, 0.0), (0.45, 2.0, 0.225), (4, 4, 1.0)])
def test_eta_is_given_to_the_network_as_a_share_of_its_range(eta, eta_max, share, caplog):
    assert bundle.eta_condition(eta, eta_max) == share and not caplog.text


@pytest.mark.parametrize("eta, share", [(5, 1.25), (-0.4, -0.1)])
def test_eta_outside_of_its_range_warns_and_is_taken(eta, share, caplog):
    assert bundle.eta_condition(eta, 4.0) == pytest.approx(share)
    assert f"eta: {eta} lies outside of [0, 4], from which it was drawn in training" in caplog.text


@pytest.mark.parametrize(
    "eta, eta_max, message",
    [("0.5", 4.0, "eta: expected a number, got '0.5'"), (True, 4.0, "eta: expected a number, got True"),
     (float("nan"), 4.0, "eta: expected a number, got nan"), (0.5, None, "eta_max: expected a number, got None"),
     (None, 0.0, "eta_max: expected a number above 0, got 0.0"), (0.5, -1, "eta_max: expected a number above 0")],
)  # fmt: skip
def test_eta_that_is_none_is_refused(eta, eta_max, message):
    with pytest.raises(ValueError, match=message):
        bundle.eta_condition(eta, eta_max)
