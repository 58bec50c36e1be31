# SPDX-License-Identifier: Apache-2.0
"""What the phantoms share: a cache in which each is made once, and files that are the same byte by byte."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
from numpy.typing import NDArray

from ..atomic import atomic_path, temporary_folder
from .layout import DatasetLayoutError

logger = logging.getLogger(__name__)

CHECKSUMS = "SHA256SUMS"  # of a phantom's files, written beside them when it is made
_checked: dict[Path, frozenset[tuple[str, int, int]]] = {}  # phantoms that this process has compared, as they were


class Phantom(NamedTuple):
    """Synthetic cases in the layout of a data set.

    name: beginning of the folder's name in the cache.
    make: writes the cases into the folder that it is given.
    small: arguments of ``make`` for a few small cases in every split, for tests.
    version: raised by whoever changes the written voxels, so that no old cache is taken for a new one.
    text: the warning's end: what the data stand in for, and how to get the real ones.
    """

    name: str
    make: Callable[..., object]
    small: Mapping[str, Any]
    version: int
    text: str

    def folder(self, cache_dir: str | Path | None = None) -> Path:
        """Return the phantom that ``make`` writes by default, made once into a cache, and warn that it is one.

        The folder is whole or absent: it is made beside its place and renamed, and where several processes make it at
        the same time the first one wins and all return the same folder. What a killed process left is removed. The
        files are compared with their checksums once a process, and again where their sizes or times have changed.

        Args:
            cache_dir: see ``cache_folder``.

        Returns:
            Path of the folder.

        Raises:
            DatasetLayoutError: for a file that is missing or no longer the one that was made, naming what to delete.
            OSError: where the cache cannot be written, naming the variable that moves it.
        """
        parent = cache_folder(cache_dir)
        defaults = {key: str(value.default) for key, value in signature(self.make).parameters.items()}
        recipe = f"{sorted(defaults.items())} {self.version} {CHECKSUMS}"
        target = parent / f"{self.name}_{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
        logger.warning("SYNTHETIC DATA: the phantom in %s %s", target, self.text)
        if target.is_dir():
            _check(target)
        else:
            _make(self.make, parent, target)
        return target


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Folder for what can be made again.

    Args:
        cache_dir: holds ``registration-bundles``; default: the environment's REGISTRATION_BUNDLES_CACHE, else
            XDG_CACHE_HOME, else ``~/.cache``.

    Returns:
        Its path; it need not exist.
    """
    environment = os.environ.get("REGISTRATION_BUNDLES_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(cache_dir or environment or Path.home() / ".cache").expanduser() / "registration-bundles"


def _make(make: Callable[..., object], parent: Path, target: Path) -> None:
    try:
        with temporary_folder(parent) as temporary:
            made = temporary / target.name
            make(made)
            lines = [f"{digest}  {name}\n" for name, digest in _checksums(made)]
            (made / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
            os.replace(made, target)
    except OSError as error:
        if not target.is_dir():  # else another process was first, and its folder holds the same bytes
            raise OSError(
                f"the phantom cannot be made in {parent} ({error}); set REGISTRATION_BUNDLES_CACHE to a folder that"
                " can be written and has room."
            ) from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)


def _checksums(folder: Path) -> list[tuple[str, str]]:
    return [(str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in _files(folder)]


def _check(folder: Path) -> None:
    stamps = frozenset((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in _files(folder))
    if _checked.get(folder) == stamps:
        return
    listed, found = folder / CHECKSUMS, dict(_checksums(folder))
    made = [line.partition("  ")[::2] for line in listed.read_text().splitlines()] if listed.is_file() else []
    damaged = [name for digest, name in made if found.get(name) != digest] if made else [CHECKSUMS]
    if damaged:
        raise DatasetLayoutError(
            f"dataset_dir: the phantom in the cache {folder} is damaged: {', '.join(damaged[:3])} missing or changed. "
            "Delete that folder, and it is made again. The cache lies where REGISTRATION_BUNDLES_CACHE says, else "
            "XDG_CACHE_HOME, else in ~/.cache."
        )
    _checked[folder] = stamps


def write_reproducible_nifti(path: Path, array: NDArray, affine: NDArray) -> None:
    """Write a gzipped NIfTI file, atomically, whose bytes depend on the values alone.

    Args:
        path: the file, ``.nii.gz``.
        array: values, of the type that the file is to have.
        affine: ``(4, 4)``, voxels to mm.
    """
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:  # the gzip header would hold the time
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))
