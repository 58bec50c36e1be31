# SPDX-License-Identifier: Apache-2.0
import errno
import subprocess
import sys
from pathlib import Path

import pytest

from common.atomic import PREFIX, atomic_path

ROOT = Path(__file__).resolve().parents[1]
WRITER = """
import sys, time
from common.atomic import atomic_path
with atomic_path(sys.argv[1]) as path:
    path.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def hidden(folder):
    return sorted(folder.glob(f"{PREFIX}*"))


def test_a_file_is_there_once_the_block_has_succeeded(tmp_path):
    with atomic_path(tmp_path / "deep" / "a.nii.gz") as path:
        assert path.name == "a.nii.gz" and not (tmp_path / "deep" / "a.nii.gz").exists()
        path.write_text("new")
    assert (tmp_path / "deep" / "a.nii.gz").read_text() == "new"
    assert not hidden(tmp_path / "deep")


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError, match="mine"), atomic_path(tmp_path / "a") as path:
        path.write_text("half")
        raise RuntimeError("mine")
    assert (tmp_path / "a").read_text() == "old" and not hidden(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_a_full_disk_names_the_file_and_the_remedy(tmp_path, error):
    (tmp_path / "model.pt").write_text("old")
    message = r"model.pt could not be written.*unchanged. Free space.*--output_dir"
    with pytest.raises(OSError, match=message), atomic_path(tmp_path / "model.pt") as path:
        path.write_text("half")
        raise error
    assert (tmp_path / "model.pt").read_text() == "old" and not hidden(tmp_path)


def test_the_next_writer_removes_what_dead_processes_left_and_nothing_of_living_ones(tmp_path):
    def start(name):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / name)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdout.readline().strip() == "writing"
        return process

    dead, living = start("dead"), start("living")
    try:
        dead.kill()
        dead.wait()
        assert len(hidden(tmp_path)) == 2
        with atomic_path(tmp_path / "mine") as path:
            path.write_text("mine")
        assert [path.name for folder in hidden(tmp_path) for path in folder.glob("[!.]*")] == ["living"]
    finally:
        living.kill()
        living.wait()
    with atomic_path(tmp_path / "mine") as path:
        path.write_text("again")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
