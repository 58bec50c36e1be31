# SPDX-License-Identifier: Apache-2.0
"""Runs as a person starts them, in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fire
import monai.bundle
import pytest

from common.runs import command_line, outputs

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--device", "cpu", "--count", "2", "--spatial_size", "[32,24]"]
TRAINING = [*QUICK, "--epochs", "1", "--batch_size", "2"]
FILES = {"training": ["train"], "evaluating": ["train", "evaluate"], "inferring": ["inference"]}


def config(run_id: str, bundle: str = "gradicon_triangles") -> list[str]:
    """``--config_file`` of a bundle's run."""
    files = [str(ROOT / "bundles" / bundle / "configs" / f"{name}.json") for name in FILES[run_id]]
    return ["--config_file", files[0] if len(files) == 1 else str(files)]


@contextmanager
def as_command(words: list[str]) -> Iterator[None]:
    """What ``python -m monai.bundle`` with these words would see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["monai.bundle", *words])
        patch.setattr(command_line, "started_by_monai", lambda: True)
        patch.setattr(sys, "excepthook", sys.excepthook)
        yield


def monai_run(*words: str) -> None:
    """``python -m monai.bundle run WORDS``, without its message at the end."""
    everything = ["run", *words, *([] if "--logging_file" in words else ["--logging_file", str(NO_LOGGING)])]
    with as_command(everything):
        try:
            fire.Fire({"run": monai.bundle.run}, command=everything)
        finally:
            outputs.release()


NO_LOGGING = ROOT / "bundles" / "gradicon_triangles" / "configs" / "logging.conf"


def refused(*words: str) -> str:
    """The chain of messages with which a command fails."""
    with pytest.raises(Exception) as caught:
        monai_run(*words)
    chain, error = [], caught.value
    while error is not None:
        chain.append(f"{type(error).__name__}: {error}")
        error = error.__cause__
    return "\n".join(chain)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "CI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training's folder; copy it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    monai_run("training", *config("training"), *TRAINING, "--output_dir", str(folder))
    return folder


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder with its content, but the lock."""

    def read(folder: Path) -> dict[str, bytes]:
        paths = (Path(base) / name for base, _, names in os.walk(folder) for name in names)
        return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.name != outputs.LOCK}

    return read
