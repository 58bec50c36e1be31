# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or absent, whatever kills the process."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and move it there once the block has succeeded.

    The temporary name keeps the suffixes of ``path`` (writers such as nibabel choose the format by them).
    On any error, a full disk included, the temporary file is removed and what ``path`` held before stays.

    Args:
        path: the file to write; its folder is created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
