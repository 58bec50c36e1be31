# SPDX-License-Identifier: Apache-2.0
"""What the phantoms share: a cache in which each is made once, and files that are the same byte by byte."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import nibabel as nib
from numpy.typing import NDArray

from ..atomic import atomic_path
from .layout import DatasetLayoutError

logger = logging.getLogger(__name__)

CHECKSUMS = "SHA256SUMS"  # of a phantom's files, written beside them when it is made


def ensure_phantom(
    name: str, make: Callable[[Path], object], version: int, cache_dir: str | Path | None = None, *, text: str
) -> Path:
    """Return the phantom that ``make`` writes by default, made once into the user's cache, and warn that it is one.

    The folder is whole or absent: it is made beside its place and renamed, and where several processes make it at the
    same time the first one wins and all return the same folder. Its files are compared with their checksums.

    Args:
        name: beginning of the folder's name; a digest of the defaults of ``make`` and the version follows.
        make: fills the folder that it is given.
        version: raised by whoever changes the written voxels, so that no old cache is taken for a new one.
        cache_dir: holds ``registration-bundles``; default: the environment's REGISTRATION_BUNDLES_CACHE, else
            XDG_CACHE_HOME, else ``~/.cache``.
        text: the warning's end: what the data stand in for, and how to get the real ones.

    Returns:
        The folder.

    Raises:
        DatasetLayoutError: for a file that is missing or no longer the one that was made, naming what to delete.
        OSError: where the cache cannot be written, naming the variable that moves it.
    """
    environment = os.environ.get("REGISTRATION_BUNDLES_CACHE") or os.environ.get("XDG_CACHE_HOME")
    parent = Path(cache_dir or environment or Path.home() / ".cache").expanduser() / "registration-bundles"
    defaults = {key: str(value.default) for key, value in signature(make).parameters.items()}
    recipe = f"{sorted(defaults.items())} {version} {CHECKSUMS}"
    target = parent / f"{name}_{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    logger.warning("SYNTHETIC DATA: the phantom in %s %s", target, text)
    if target.is_dir():
        _check(target)
        return target
    temporary = parent / f".{target.name}.{uuid.uuid4().hex}"
    try:
        make(temporary)
        (temporary / CHECKSUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in _checksums(temporary)))
        os.replace(temporary, target)
    except OSError as error:
        if not target.is_dir():  # else another process was first, and its folder holds the same bytes
            raise OSError(
                f"the phantom cannot be made in {parent} ({error}); set REGISTRATION_BUNDLES_CACHE to a folder that"
                " can be written and has room."
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _checksums(folder: Path) -> list[tuple[str, str]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return [(str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


def _check(folder: Path) -> None:
    listed, found = folder / CHECKSUMS, dict(_checksums(folder))
    made = [line.partition("  ")[::2] for line in listed.read_text().splitlines()] if listed.is_file() else []
    damaged = [name for digest, name in made if found.get(name) != digest] if made else [CHECKSUMS]
    if damaged:
        raise DatasetLayoutError(
            f"dataset_dir: the phantom in the cache {folder} is damaged: {', '.join(damaged[:3])} missing or changed. "
            "Delete that folder, and it is made again. The cache lies where REGISTRATION_BUNDLES_CACHE says, else "
            "XDG_CACHE_HOME, else in ~/.cache."
        )


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
