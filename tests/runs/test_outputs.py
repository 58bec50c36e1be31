# SPDX-License-Identifier: Apache-2.0
"""What happens to files in an output folder: ours make room as a set, others stay, nothing that is read is touched."""

import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import pytest

from common.runs import outputs
from common.runs.outputs import (
    EVALUATION,
    INFERENCE,
    LOCK,
    MANIFEST,
    MAPS,
    SETS,
    TRAINING,
    claim,
    release,
    replaced_set,
)

from .conftest import QUICK, ROOT, config, monai_run, refused
from .conftest import TRAINING as SHORT

BOTH = (TRAINING, EVALUATION)
HOLDER = """
import sys, time
from common.runs.outputs import claim
claim(sys.argv[1], ("training", "evaluation"), resume=True)
print("claimed", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def released():
    yield
    release()


def fill(folder, *names, text="x"):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(text)


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_text()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }


def test_a_new_folder_is_made_and_locked(tmp_path):
    claim(tmp_path / "a" / "b", BOTH)
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {MANIFEST, LOCK}


def test_earlier_runs_move_aside_as_a_set_and_foreign_files_stay(tmp_path):
    fill(tmp_path, "notes.txt", "README.md")
    (tmp_path / ".git").mkdir()
    fill(tmp_path / "bundles", "x.json")
    for number in (1, 2, 3):
        claim(tmp_path, BOTH)
        fill(tmp_path, "last.pt", "model.pt", "summary.json", text=f"run {number}")
        fill(tmp_path / "tensorboard", "events", text=f"run {number}")
        release(tmp_path)
    found = contents(tmp_path)
    foreign = {"notes.txt": "x", "README.md": "x", "bundles/x.json": "x"}
    assert {name: found.pop(name) for name in foreign} == foreign and (tmp_path / ".git").is_dir()
    names = ("last.pt", "model.pt", "summary.json", "tensorboard/events")
    assert found == {
        f"{folder}{name}": run
        for folder, run in (("previous_1/", "run 1"), ("previous_2/", "run 2"), ("", "run 3"))
        for name in names
    }


def test_numbers_of_deleted_runs_are_not_used_over_living_ones(tmp_path):
    for number in (1, 2, 3):
        claim(tmp_path, BOTH)
        fill(tmp_path, "last.pt", text=f"run {number}")
        release()
    shutil.rmtree(tmp_path / "previous_1")
    claim(tmp_path, BOTH)
    assert sorted(contents(tmp_path).values()) == ["run 2", "run 3"]


@pytest.mark.parametrize("name", [*SETS[TRAINING], *SETS[EVALUATION]])
def test_a_foreign_file_of_our_names_is_refused_before_anything_moves(tmp_path, name):
    fill(tmp_path, name)
    before = contents(tmp_path)
    with pytest.raises(
        ValueError, match=f"output_dir: .*{name} is not known as a file of an earlier run.*--output_dir"
    ):
        claim(tmp_path, BOTH)
    assert contents(tmp_path) == before and not list(tmp_path.glob("previous_*"))


def test_an_evaluation_leaves_the_training_in_its_folder(tmp_path):
    claim(tmp_path, BOTH)
    fill(tmp_path, "model.pt", "last.pt", "summary.json", "registration.png", text="training")
    release()
    claim(tmp_path, (EVALUATION,), {"ckpt_path": tmp_path / "model.pt"})
    assert set(contents(tmp_path)) == {"model.pt", "last.pt", "previous_1/summary.json", "previous_1/registration.png"}
    fill(tmp_path, "summary.json", text="evaluation")
    release()
    claim(tmp_path, BOTH)
    assert set(contents(tmp_path)) == {
        "previous_1/summary.json", "previous_1/registration.png",
        "previous_2/model.pt", "previous_2/last.pt", "previous_2/summary.json",
    }  # fmt: skip


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_a_run_that_would_replace_what_it_reads_is_refused(tmp_path, link):
    claim(tmp_path / "run", BOTH)
    fill(tmp_path / "run", "model.pt")
    release()
    read = tmp_path / "run" / "model.pt"
    if link is not None:
        link(read, tmp_path / "other.pt")
        read = tmp_path / "other.pt"
    with pytest.raises(ValueError, match=r"initial_weights and output_dir: the run reads .*--initial_weights"):
        claim(tmp_path / "run", BOTH, {"initial_weights": read})
    assert set(contents(tmp_path / "run")) == {"model.pt"}


def test_resume_keeps_everything_where_there_is_a_state(tmp_path):
    fill(tmp_path, "last.pt", "model.pt", "history.csv")
    claim(tmp_path, BOTH, resume=True)
    assert set(contents(tmp_path)) == {"last.pt", "model.pt", "history.csv"}
    release()
    (tmp_path / "last.pt").unlink()
    claim(tmp_path, BOTH, resume=True)
    assert set(contents(tmp_path)) == {"previous_1/model.pt", "previous_1/history.csv"}


def test_folders_of_earlier_versions_are_recognised_by_what_they_hold(tmp_path):
    fill(tmp_path / "training", "last.pt", "model.pt")
    (tmp_path / "training" / "history.csv").write_text("epoch,updates,active,seconds\n1,2,displacement,0.1\n")
    (tmp_path / "training" / "summary.json").write_text(json.dumps({"versions": {"registration-bundles": "0.2.0"}}))
    claim(tmp_path / "training", BOTH)
    assert {Path(name).parts[0] for name in contents(tmp_path / "training")} == {"previous_1"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "summary.json").write_text(json.dumps({"versions": 3}))
    with pytest.raises(ValueError, match="summary.json is not known"):
        claim(tmp_path / "other", BOTH)


@contextmanager
def held(folder):
    """Another process has claimed the folder, and dies at the end."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert holder.stdout.readline().strip() == "claimed"
        yield
    finally:
        holder.kill()
        holder.wait()


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "PATIENCE_SECONDS", 0.2)
    fill(tmp_path, "last.pt")
    with held(tmp_path):
        with pytest.raises(ValueError, match="another process is writing its results to .*--output_dir"):
            claim(tmp_path, BOTH, resume=True)
        assert set(contents(tmp_path)) == {"last.pt"}
    claim(tmp_path, BOTH, resume=True)


def test_a_file_is_no_output_folder(tmp_path):
    fill(tmp_path, "a")
    with pytest.raises(ValueError, match="output_dir: expected a folder, .* is a file"):
        claim(tmp_path / "a", BOTH)


def test_a_result_replaces_the_earlier_one_as_a_whole(tmp_path):
    fill(tmp_path, "moving.nii.gz", text="mine")
    for names in (("ddf.nii.gz", "warped.nii.gz", "warped_label.nii.gz"), ("ddf.nii.gz", "warped.nii.gz")):
        with replaced_set(tmp_path, INFERENCE) as folder:
            fill(folder, *names, text=str(len(names)))
    assert contents(tmp_path) == {"moving.nii.gz": "mine", "ddf.nii.gz": "2", "warped.nii.gz": "2"}
    assert not list(tmp_path.glob(".writing-*"))


def test_a_result_that_fails_changes_nothing(tmp_path):
    with replaced_set(tmp_path, INFERENCE) as folder:
        fill(folder, "ddf.nii.gz", "warped_label.nii.gz", text="old")
    message = rf"{tmp_path} could not be written .*unchanged. Free space.*--output_dir"
    with pytest.raises(OSError, match=message), replaced_set(tmp_path, INFERENCE) as folder:
        fill(folder, "ddf.nii.gz", text="new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert contents(tmp_path) == {"ddf.nii.gz": "old", "warped_label.nii.gz": "old"}
    assert not list(tmp_path.glob(".writing-*"))


def test_a_result_does_not_overwrite_foreign_files_and_moves_an_evaluation_aside(tmp_path):
    fill(tmp_path / "foreign", "warped.nii.gz")
    with pytest.raises(ValueError, match="warped.nii.gz is not known"), replaced_set(tmp_path / "foreign", INFERENCE):
        pytest.fail("no work before the check")
    claim(tmp_path / "evaluation", (EVALUATION,))
    fill(tmp_path / "evaluation", "summary.json", "registration.png", text="evaluation")
    release()
    with replaced_set(tmp_path / "evaluation", INFERENCE) as folder:
        fill(folder, "ddf.nii.gz", "registration.png", text="inference")
    assert contents(tmp_path / "evaluation") == {
        "ddf.nii.gz": "inference", "registration.png": "inference",
        "previous_1/summary.json": "evaluation", "previous_1/registration.png": "evaluation",
    }  # fmt: skip


def test_the_second_of_two_results_waits_for_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "QUEUE_SECONDS", 0.2)
    fill(tmp_path, "last.pt")
    match = "another process"
    with held(tmp_path), pytest.raises(ValueError, match=match), replaced_set(tmp_path, INFERENCE) as folder:
        fill(folder, "ddf.nii.gz")
    assert set(contents(tmp_path)) == {"last.pt"}


def test_every_file_of_a_training_is_known(finished):
    names = {path.name for path in finished.iterdir()} - {MANIFEST, LOCK}
    assert names <= {*SETS[TRAINING], *SETS[EVALUATION]} and "model.pt" in names


@pytest.mark.parametrize(
    "words", [["--epochs", "ten"], ["--objective", "gradicn"], ["--initial_weights", "nowhere.pt"]]
)
def test_a_run_that_fails_at_once_has_moved_nothing(words, finished, here, tree):
    shutil.copytree(finished, "run")
    before = tree(here / "run")
    refused("training", *config("training"), *SHORT, "--output_dir", "run", *words)
    assert tree(here / "run") == before


def test_an_evaluation_into_the_folder_of_its_weights(finished, here, tree):
    shutil.copytree(finished, "R")
    before = tree(here / "R")
    monai_run("evaluating", *config("evaluating"), *QUICK, "--output_dir", "R", "--ckpt_path", "R/model.pt")
    after = tree(here / "R")
    assert {name: after[name] for name in ("model.pt", "last.pt", "history.csv")} == {
        name: before[name] for name in ("model.pt", "last.pt", "history.csv")
    }
    assert after["previous_1/summary.json"] == before["summary.json"] and "summary.json" in after


def test_a_training_that_would_replace_its_initial_weights(finished, here, tree):
    shutil.copytree(finished, "R")
    before = tree(here / "R")
    text = refused("training", *config("training"), *SHORT, "--output_dir", "R", "--initial_weights", "R/model.pt")
    assert "initial_weights and output_dir" in text
    assert tree(here / "R") == before


def test_a_clone_as_output_folder_stays_as_it_is(finished, here, tree):
    for name in (".git/HEAD", "README.md", "bundles/a/configs/train.json", "docs/images/registration.png"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    before = tree(here)
    monai_run(
        "evaluating", *config("evaluating"), *QUICK, "--output_dir", ".", "--ckpt_path", str(finished / "model.pt")
    )
    after = tree(here)
    assert {name: after[name] for name in before} == before
    written = {"metrics.csv", "subjects.csv", "summary.json", "report.html", "registration.png"}  # and an estimator's
    assert set(after) - set(before) == {MANIFEST, *written} and written < set(SETS[EVALUATION])


def images(folder):
    rng = np.random.default_rng(0)
    for name in ("moving", "fixed"):
        array = rng.random((40, 36), dtype=np.float32)
        array[10:30, 10:25] += 2
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"{name}.nii.gz")
    nibabel.save(nibabel.Nifti1Image((array > 1.5).astype(np.uint8), np.eye(4)), folder / "label.nii.gz")


def test_inference_replaces_its_result_and_never_its_input(here, tree, monkeypatch):
    images(here)
    words = [*config("inferring"), "--device", "cpu", "--spatial_size", "[32,24]", "--fixed", "fixed.nii.gz"]
    first = ["--moving", "moving.nii.gz", "--output_dir", "out"]
    monai_run("inferring", *words, *first, "--moving_label", "label.nii.gz")
    plain = set(SETS[INFERENCE]) - {f"{name}.nii.gz" for name in MAPS}
    assert {path.name for path in Path("out").iterdir()} - {MANIFEST, LOCK} == plain
    before = tree(here)

    def full_disk(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        assert "DiskFull: out could not be written (No space left on device)" in refused("inferring", *words, *first)
    text = refused("inferring", *words, "--moving", "out/warped.nii.gz", "--output_dir", "out")
    assert "moving and output_dir: the run reads out/warped.nii.gz" in text
    assert tree(here) == before
    monai_run("inferring", *words, *first)
    assert {path.name for path in Path("out").iterdir()} - {MANIFEST, LOCK} == plain - {"warped_label.nii.gz"}


def test_example_images_are_not_written_over_ones_own(here, tree):
    images(here)
    before = tree(here)
    monai_run("inferring", *config("inferring"), "--device", "cpu", "--spatial_size", "[32,24]", "--output_dir", ".")
    after = tree(here)
    assert {name: after[name] for name in before} == before
