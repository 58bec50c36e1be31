# SPDX-License-Identifier: Apache-2.0
"""Output folders: which files are ours, how they make room for new ones, and who may write.

A folder holds sets of files of fixed names (``SETS``). ``.registration.json`` in it says which sets are ours. A file of
such a name that is not ours is refused before anything is touched; all other files stay where they are. The lock in
``.registration.lock`` is the operating system's: it is gone when the process is.
"""

from __future__ import annotations

import csv
import gzip
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..atomic import atomic_path, named_if_full, remove_stale, temporary_folder
from ..checks import check_writable
from .configuration import read_json

logger = logging.getLogger(__name__)
TRAINING, EVALUATION, INFERENCE, REGISTRATION = "training", "evaluation", "inference", "registration"
# NAME.nii.gz, where an inference is asked for maps
MAPS = ("score", "noise_deviation", "weight", "weight_volume", "displacement_deviation")
SETS: dict[str, tuple[str, ...]] = {
    TRAINING: (
        "last.pt", "model.pt", "model_score.pt", "model_variance.pt", "history.csv", "curves.png", "tensorboard",
    ),
    EVALUATION: (
        "metrics.csv", "subjects.csv", "summary.json", "report.html", "registration.png", "scores.png",
        "deviations.png", "weights.png", "weight_volumes.png", "ejection_fraction.png", "sparsification.csv",
        "sparsification.png", "sparsification_displacement.csv", "sparsification_displacement.png", "landmarks.csv",
        "reliability.csv",
        "reliability.png",
    ),
    REGISTRATION: (
        "warped.nii.gz", "forward.nii.gz", "inverse.nii.gz", "forward.h5", "inverse.h5", "jacobian.nii.gz",
        "warped_label.nii.gz", "moving_points_in_fixed.csv", "moving_points_in_fixed.fcsv",
        "fixed_points_in_moving.csv", "fixed_points_in_moving.fcsv", "registration.png", "report.html", "metrics.json",
        "provenance.json", *(f"{name}.nii.gz" for name in MAPS),
    ),
    INFERENCE: (
        "ddf.nii.gz", "warped.nii.gz", "jacobian.nii.gz", "warped_label.nii.gz", "registration.png",
        *(f"{name}.nii.gz" for name in MAPS),
    ),
}  # fmt: skip
STATE_FILE = "last.pt"
MANIFEST, LOCK, PREVIOUS = ".registration.json", ".registration.lock", "previous_"
# A run that was just killed may keep its loading processes, and with them the lock, for a moment.
PATIENCE_SECONDS, QUEUE_SECONDS = 6.0, 60.0
_held: dict[Path, FileLock] = {}


def claim(
    output_dir: str | Path, names: Iterable[str], reads: Mapping[str, str | Path] | None = None, resume: bool = False
) -> None:
    """Make a folder this run's own until it ends: lock it, and move an earlier run's files to ``previous_<k>`` in it.

    Args:
        output_dir: the folder; created.
        names: of the sets that the run writes.
        reads: files that it reads, by the option that names them.
        resume: keep the earlier files, where there is a state to continue from.

    Raises:
        ValueError: for another running process, a foreign file of our names, a file that is read and would be replaced.
    """
    folder, names = Path(output_dir), tuple(names)
    _make(folder)
    _acquire(folder, PATIENCE_SECONDS)
    try:
        resume = resume and (folder / STATE_FILE).exists()
        owned = _owned(folder) | ({TRAINING: SETS[TRAINING]} if resume else {})
        moving = {} if resume else _colliding(owned, names)
        _check(folder, names, owned, reads or {}, moving)
        remove_stale(folder)
        if any((folder / file).exists() for files in moving.values() for file in files):
            _move_aside(folder, moving)
        _record(folder, {name: files for name, files in owned.items() if name not in moving}, names)
    except BaseException:
        release(folder)
        raise


def release(output_dir: str | Path | None = None) -> None:
    """Give a folder back, or all that this process holds.

    Args:
        output_dir: the folder; None gives back all of them.
    """
    for folder in [Path(output_dir).resolve()] if output_dir is not None else list(_held):
        lock = _held.pop(folder, None)
        if lock is not None:
            lock.release()


def check(output_dir: str | Path, name: str, reads: Mapping[str, str | Path] | None = None) -> None:
    """Refuse early what ``replaced_set`` would refuse after the work.

    Args:
        output_dir: the folder.
        name: of the set of files.
        reads: files that the run reads, by option.

    Raises:
        ValueError: as ``replaced_set``, where the folder cannot be made or written to, and where the run would replace
            a file that it reads.
    """
    folder = Path(output_dir)
    check_writable(folder)
    if folder.exists():
        _make(folder)
        owned = _owned(folder)
        _check(folder, (name,), owned, reads or {}, _colliding(owned, (name,)))


@contextmanager
def replaced_set(output_dir: str | Path, name: str) -> Iterator[Path]:
    """Yield a folder to write a set into; it replaces the earlier set as a whole once the block has succeeded.

    On any error the earlier set stays as it was.

    Args:
        output_dir: the folder; created.
        name: of the set.

    Yields:
        Path of the folder to write into.

    Raises:
        ValueError: for a foreign file of our names, or where a training or evaluation is running there.
        OSError: naming the folder, where the disk is full.
    """
    folder = Path(output_dir)
    _make(folder)
    check(folder, name)
    with temporary_folder(folder) as temporary, named_if_full(folder):
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        old.mkdir()
        yield new
        held = folder.resolve() in _held
        if not held:
            _acquire(folder, QUEUE_SECONDS)
        try:
            owned = _owned(folder)
            others = {key: files for key, files in _colliding(owned, (name,)).items() if key != name}
            _check(folder, (name,), owned, {}, others)
            if others:
                _move_aside(folder, others)
            _move((folder / file, old / file) for file in owned.get(name, ()))
            _move((new / file.name, folder / file.name) for file in sorted(new.iterdir()))
            _record(folder, {key: files for key, files in owned.items() if key not in others}, (name,))
        finally:
            if not held:
                release(folder)


def _make(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir: expected a folder, {folder} is a file. Choose another name.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir: {folder} cannot be made ({error.strerror}). Choose another place.") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"output_dir: {folder} cannot be written to. Choose another place, or change its permissions.")


def _acquire(folder: Path, seconds: float) -> None:
    place = folder.resolve()
    if place in _held:
        return
    lock = FileLock(place / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise ValueError(
            f"output_dir: another process is writing its results to {folder}. Wait until it has ended, or choose "
            "another --output_dir."
        ) from None
    _held[place] = lock


def _owned(folder: Path) -> dict[str, tuple[str, ...]]:
    """Our sets in a folder, with their files' names."""
    if (folder / MANIFEST).is_file():
        return {name: tuple(files) for name, files in read_json(folder / MANIFEST).get("sets", {}).items()}
    return _owned_by_an_earlier_version(folder)


def _owned_by_an_earlier_version(folder: Path) -> dict[str, tuple[str, ...]]:
    """What earlier versions, which left no manifest, have written: told by what the files hold."""
    found = []
    if _first_row(folder / "history.csv")[:3] == ["epoch", "updates", "active"]:
        found.append(TRAINING)
    versions = read_json(folder / "summary.json").get("versions")
    if isinstance(versions, dict) and "registration-bundles" in versions:
        found.append(EVALUATION)
    elif _describes(folder / "jacobian.nii.gz", b"Jacobian determinant"):
        found.append(INFERENCE)
    return {name: SETS[name] for name in found}


def _first_row(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return next(csv.reader(stream), [])
    except (OSError, ValueError):
        return []


def _describes(path: Path, text: bytes) -> bool:
    try:
        with gzip.open(path) as stream:
            return text in stream.read(348)  # the header of a NIfTI file
    except (OSError, EOFError):
        return False


def _colliding(owned: Mapping[str, tuple[str, ...]], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Those of our sets that have a file which the new sets write."""
    written = {file for name in names for file in SETS[name]}
    return {name: files for name, files in owned.items() if written & set(files)}


def _check(
    folder: Path,
    names: Iterable[str],
    owned: Mapping[str, tuple[str, ...]],
    reads: Mapping[str, str | Path],
    moving: Mapping[str, tuple[str, ...]],
) -> None:
    ours = {file for files in owned.values() for file in files}
    written = {file for name in names for file in SETS[name]}
    foreign = sorted(file for file in written - ours if os.path.lexists(folder / file))
    if foreign:
        raise ValueError(
            f"output_dir: {folder / foreign[0]} is not known as a file of an earlier run, and this run would write one "
            "of that name. Nothing was changed. Choose another --output_dir, or move that file."
        )
    for option, path in reads.items():
        for file in sorted(written | {file for files in moving.values() for file in files}):
            if _is_inside(Path(path), folder / file):
                raise ValueError(
                    f"{option} and output_dir: the run reads {path}, and would move or overwrite it, as its results "
                    f"go to {folder}. Nothing was changed. Choose another --output_dir, or pass a copy as --{option}."
                )


def _is_inside(path: Path, target: Path) -> bool:
    if not (path.exists() and target.exists()):
        return False
    return os.path.samefile(path, target) or target.resolve() in path.resolve().parents


def _move_aside(folder: Path, sets: Mapping[str, tuple[str, ...]]) -> None:
    numbers = [path.name.removeprefix(PREVIOUS) for path in folder.glob(f"{PREVIOUS}*")]
    target = folder / f"{PREVIOUS}{1 + max([int(number) for number in numbers if number.isdigit()], default=0)}"
    target.mkdir()
    files = sorted({file for files in sets.values() for file in files})
    _move((folder / file, target / file) for file in files)
    _record(target, {}, sets)
    logger.warning("%s held an earlier run; its files are now in %s.", folder, target)


def _move(pairs: Iterable[tuple[Path, Path]]) -> None:
    """Rename the files that exist; all of them or, after an error, none."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in pairs:
            if os.path.lexists(source):
                source.rename(target)
                done.append((source, target))
    except OSError:
        for source, target in reversed(done):
            target.rename(source)
        raise


def _record(folder: Path, owned: Mapping[str, tuple[str, ...]], names: Iterable[str]) -> None:
    sets = {**owned, **{name: SETS[name] for name in names}}
    with atomic_path(folder / MANIFEST) as path:
        path.write_text(json.dumps({"sets": sets}, indent=2) + "\n", encoding="utf-8")
