# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.data import phantom_cache
from common.data.layout import DatasetLayoutError
from common.data.phantom_cache import Phantom


def make(folder: Path, count: int = 3) -> None:
    for number in range(count):
        (folder / "cases").mkdir(parents=True, exist_ok=True)
        (folder / "cases" / f"{number}.txt").write_text(str(number))


PHANTOM = Phantom("text_phantom", make, {"count": 1}, version=1, text="stands in for text.")


def test_files_are_compared_once_a_process_and_again_when_they_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = PHANTOM.folder(tmp_path)
    compared = []
    checksums = phantom_cache._checksums
    monkeypatch.setattr(phantom_cache, "_checksums", lambda path: compared.append(path) or checksums(path))
    for _ in range(3):
        assert PHANTOM.folder(tmp_path) == folder
    assert compared == [folder]
    file = folder / "cases" / "1.txt"
    os.utime(file, ns=(1, 1))
    assert PHANTOM.folder(tmp_path) == folder and len(compared) == 2
    file.write_text("2")
    for _ in range(2):
        with pytest.raises(DatasetLayoutError, match="the phantom in the cache .* is damaged: cases/1.txt missing or"):
            PHANTOM.folder(tmp_path)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib, common.data.phantom_cache as cache\n"
        "def make(folder):\n"
        "    folder.mkdir(); (folder / 'half.txt').write_text('half'); os._exit(9)\n"
        "cache.Phantom('other', make, {}, 1, '').folder(sys.argv[1])"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    parent = tmp_path / "registration-bundles"
    assert killed.returncode == 9 and len(list(parent.iterdir())) == 1
    started = time.time()
    folder = PHANTOM.folder(tmp_path)
    assert list(parent.iterdir()) == [folder] and time.time() - started < 30
    assert sorted(file.name for file in folder.rglob("*.txt")) == ["0.txt", "1.txt", "2.txt"]
