# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or absent, whatever kills the process."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

PREFIX, LOCK = ".writing-", ".lock"
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", None)} - {None}
TORCH_FAILED = ("PytorchStreamWriter", "file write failed", "unexpected pos")
YOUNG_SECONDS = 60.0


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path and move it to ``path`` once the block has succeeded.

    The temporary file bears the name of ``path`` (writers such as nibabel choose the format by it) in a hidden folder
    beside it. On any error, a full disk included, it is removed and what ``path`` held before stays.

    Args:
        path: the file to write; its folder is created.

    Yields:
        Path of the temporary file.

    Raises:
        OSError: naming ``path``, where the disk is full.
    """
    path = Path(path)
    with temporary_folder(path.parent) as folder, named_if_full(path):
        temporary = folder / path.name
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)


@contextmanager
def temporary_folder(parent: str | Path) -> Iterator[Path]:
    """Yield a hidden folder inside ``parent``, and remove it at the end.

    The process holds a lock in it that the operating system releases when the process dies: so those of dead processes
    are known, and removed here, and those of living ones are left alone.

    Args:
        parent: created where it is absent.

    Yields:
        Path of the folder.
    """
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    remove_stale(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    lock = FileLock(folder / LOCK)
    lock.acquire()
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale(parent: Path) -> None:
    """Remove what processes that were killed have left of ``temporary_folder`` in ``parent``.

    Args:
        parent: the folder that held them.
    """
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            if not (folder / LOCK).exists():  # about to be locked, or killed before that
                stale = time.time() - folder.stat().st_mtime > YOUNG_SECONDS
            else:
                with FileLock(folder / LOCK, blocking=False):
                    stale = True
        except (Timeout, OSError):
            continue
        if stale:
            shutil.rmtree(folder, ignore_errors=True)


class DiskFull(OSError):
    """A file or folder that could not be written, with what to do.

    Args:
        path: what was to be written.
        reason: the system's, in short.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} could not be written ({reason}); what was there before is unchanged. Free space on that disk, or "
            "choose a folder on another one (--output_dir)."
        )
        self.reason = reason


@contextmanager
def named_if_full(path: Path) -> Iterator[None]:
    """Name ``path``, and what to do, in the error of a full disk: the system's own names no file.

    Args:
        path: the file that is written.

    Yields:
        Nothing.

    Raises:
        DiskFull: in place of that error; any other passes unchanged.
    """
    try:
        yield
    except DiskFull as error:  # of a temporary file inside
        raise DiskFull(path, error.reason) from error
    except (OSError, RuntimeError) as error:
        number: Any = getattr(error, "errno", None)
        if number not in FULL and not any(text in str(error) for text in (*TORCH_FAILED, "No space")):
            raise
        raise DiskFull(path, os.strerror(number) if number in FULL else str(error).splitlines()[0]) from error
