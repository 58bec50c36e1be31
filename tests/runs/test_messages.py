# SPDX-License-Identifier: Apache-2.0
"""The last lines that a person sees."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from common.runs import command_line, messages

from .conftest import ROOT, TRAINING, config


def chain(*errors):
    for outer, inner in zip(errors, errors[1:], strict=False):
        outer.__cause__ = inner
    return errors[0]


def test_wrappers_are_skipped_and_the_librarys_cause_is_not_followed():
    ours = ValueError("epochs: expected 1 or more, got 0")
    error = chain(
        RuntimeError("Failed to evaluate ConfigExpression: ..."), RuntimeError("Failed to instantiate component 'x'"),
        RuntimeError("applying transform <x>"), ours, KeyError("a library's"),
    )  # fmt: skip
    assert messages.words(error) == "ValueError: epochs: expected 1 or more, got 0"
    assert messages.words(KeyError("a key: give it")) == "KeyError: a key: give it"


def broken(data):
    raise FileNotFoundError("moving: there is no a.nii.gz") from OSError("a library's")


def test_monais_own_wrappers_are_known():
    parser = ConfigParser({"a": {"_target_": "builtins.int", "x": "y"}, "b": "$@a + 1"})
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("b")
    assert messages.words(caught.value).startswith("TypeError: ")
    with pytest.raises(RuntimeError) as caught:
        Compose([broken])({"image": 1})
    assert messages.words(caught.value) == "FileNotFoundError: moving: there is no a.nii.gz"


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        broken(None)


def test_an_error_in_a_loading_process_is_told_without_its_traceback():
    with pytest.raises(FileNotFoundError) as caught:
        next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1)))
    assert messages.words(caught.value) == "FileNotFoundError: moving: there is no a.nii.gz"


def report(error, capsys, verbose=False):
    try:
        raise error
    except BaseException as caught:
        messages._report(caught, caught.__traceback__, verbose)
    return capsys.readouterr().err


def test_the_traceback_goes_to_a_file_or_is_shown_first(capsys):
    told = report(ValueError("epochs: wrong"), capsys)
    lines = told.strip().splitlines()
    assert lines[0] == "ValueError: epochs: wrong" and len(lines) == 2
    log = Path(re.search(r"Traceback: (\S+);", lines[1])[1])
    assert "Traceback (most recent call last)" in log.read_text()
    log.unlink()
    shown = report(ValueError("epochs: wrong"), capsys, verbose=True).strip().splitlines()
    assert shown[0].startswith("Traceback") and shown[-1] == "ValueError: epochs: wrong"


def test_who_interrupts_learns_how_to_go_on(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(messages, "_resume_from", [])
    assert report(KeyboardInterrupt(), capsys).strip() == "Interrupted. Nothing was left half written."
    messages.training_in(tmp_path / "last.pt")
    assert "start the same command again" in report(KeyboardInterrupt(), capsys)
    (tmp_path / "last.pt").write_text("x")
    assert "--resume true" in report(KeyboardInterrupt(), capsys)


@pytest.mark.parametrize(
    "environment, debug, shown", [("", False, False), ("false", False, False), ("true", False, True), ("", True, True)]
)
def test_ci_and_debug_show_the_traceback(environment, debug, shown, monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("CI", environment)
    messages.install(debug)
    try:
        raise ValueError("x")
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    assert capsys.readouterr().err.strip().startswith("Traceback") is shown


def test_nothing_is_installed_but_on_monais_command_line():
    assert not command_line.started_by_monai()


def test_an_interrupted_training_ends_in_words_and_can_be_resumed(here):
    """The real command: Ctrl-C after the first epoch."""
    words = ["training", *config("training"), *TRAINING, "--epochs", "1000", "--val_interval", "1000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CI": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "monai.bundle", "run", *words, "--output_dir", "out"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # A job in the background of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not Path("out/last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert output.strip().splitlines()[-1].startswith("Interrupted. The same command with --resume true")
    assert "Traceback" not in output
    assert not list(Path("out").glob(".writing-*"))


READING = """
from multiprocessing.pool import ThreadPool
import torch
from common.runs import messages

messages.install(False)

def read(number):
    if number == 3:
        raise ValueError("item 3 is damaged")
    for _ in range(100):
        torch.stft(torch.rand(100_000), 512, return_complex=True)

with ThreadPool(4) as pool:
    list(pool.imap(read, range(40)))
"""


def test_an_error_while_others_are_read_ends_the_process_in_words_and_with_status_1():
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "CI": ""}
    done = subprocess.run([sys.executable, "-c", READING], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "ValueError: item 3 is damaged" in done.stderr and "terminate called" not in done.stderr
