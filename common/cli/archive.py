# SPDX-License-Identifier: Apache-2.0
"""Whether a packed bundle is as it was packed."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path, PurePosixPath

SUMS = "SHA256SUMS"


def verify_archive(path: str | Path) -> str:
    """Check the files of a packed bundle against its ``SHA256SUMS``. Nothing is unpacked or run.

    That the sums themselves are the publisher's, only the sum of the whole zip tells, which ``pack`` prints.

    Args:
        path: a .zip that ``python -m common pack`` wrote.

    Returns:
        What was found, in words.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for what is no such zip, and naming files whose content is another, that are missing, or that the
            list does not name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"bundle: there is no {path}. Check the spelling.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            top = _top(names, path)
            listed = _listed(archive.read(f"{top}/{SUMS}").decode("utf-8"), path)
            found = {name.removeprefix(f"{top}/"): hashlib.sha256(archive.read(name)).hexdigest() for name in names}
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no readable zip: {error}. Download it anew.") from error
    del found[SUMS]
    faults = {
        "changed": sorted(name for name in listed.keys() & found.keys() if listed[name] != found[name]),
        "missing": sorted(listed.keys() - found.keys()),
        f"not in {SUMS}": sorted(found.keys() - listed.keys()),
    }
    if any(faults.values()):
        said = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)
        raise ValueError(f"{path} is not as it was packed: {said}. Do not use it; download it anew.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{path}: {top}, {len(found)} files as {SUMS} says; sha256 of the zip {digest}"


def _top(names: list[str], path: Path) -> str:
    parts = [PurePosixPath(name).parts for name in names]
    tops = {part[0] for part in parts if part}
    unsafe = any(PurePosixPath(name).is_absolute() or ".." in part for name, part in zip(names, parts, strict=True))
    if unsafe or len(tops) != 1 or len(set(names)) != len(names):
        raise ValueError(
            f"{path}: expected one folder, the bundle's, with each file once, got {sorted(tops)}. It is no packed "
            "bundle."
        )
    (top,) = tops
    if f"{top}/{SUMS}" not in names:
        raise ValueError(
            f"{path}: expected {top}/{SUMS}, as 'python -m common pack' writes it, there is none. Its files cannot be "
            "checked."
        )
    return top


def _listed(text: str, path: Path) -> dict[str, str]:
    """Sum by name."""
    listed = {}
    for line in text.splitlines():
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise ValueError(f"{path}: {SUMS} has the line {line!r}, which is no sum. Download the zip anew.")
        listed[name] = digest
    return listed
