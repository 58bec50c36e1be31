# SPDX-License-Identifier: Apache-2.0
"""Synthetic T1 MR of whole brains in the layouts of OASIS, with the true displacement of the pairs that validate."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ..atomic import atomic_path
from ..checks import known_name
from .oasis_brain import Map, draw_map, from_template, paint, to_template
from .phantom_cache import Phantom, write_reproducible_nifti
from .scanner import Array, smooth_texture

FULL_SHAPE = (160, 224, 192)  # voxels of the data set, to the right, front and top, as Learn2Reg stores them
LAYOUTS = ("learn2reg", "neurite", "pickle")
MISSING = 43  # numbers that OASIS-1 has no subject of, all below 438


class _Brain(NamedTuple):
    """A subject on its grid, axes left, down, front (LIA)."""

    map: Map
    image: NDArray[np.float32]
    label: NDArray[np.uint8]


def _grid(shape: tuple[int, ...]) -> tuple[Array, float]:
    """Positions (3, X, Z, Y) in mm of the voxels along LIA, and mm a voxel, for a shape (X, Y, Z) along RAS."""
    mm = max(full / n for full, n in zip(FULL_SHAPE, shape, strict=True))
    x, y, z = ((np.arange(n) - (n - 1) / 2) * mm for n in shape)
    left, down, front = np.meshgrid(x[::-1], z[::-1], y, indexing="ij")
    return np.stack([left, front, down]), mm


def _scanned(signal: Array, rng: Generator) -> NDArray[np.float32]:
    """Contrast of the subject's own, texture, bias field and Rician noise; 0 outside of the brain."""
    inside, unit = signal > 0.02, signal.shape[0] / 40
    textured = signal ** rng.uniform(0.85, 1.15) + 0.02 * smooth_texture(signal.shape, unit, rng, unit)
    bias = np.exp(0.05 * smooth_texture(signal.shape, 8 * unit, rng, 8 * unit))
    noise = 0.02 * rng.standard_normal((2, *signal.shape))
    image = np.hypot(textured * bias + noise[0], noise[1]) * inside
    return np.clip(image, 0, 1).astype(np.float32)


def _draw(number: int, shape: tuple[int, ...], seed: int) -> _Brain:
    """One subject, from (seed, number) alone."""
    rng = np.random.default_rng((seed, number))
    subject = draw_map(rng)
    points, mm = _grid(shape)
    signal, label = paint(to_template(points, subject), mm)
    return _Brain(subject, _scanned(signal, rng), label)


def _displacement(moving: Map, fixed: Map, shape: tuple[int, ...]) -> Array:
    """(3, *S) in voxels along LIA, fixed(x) ~ moving(x + ddf(x))."""
    points, mm = _grid(shape)
    right, front, up = (from_template(to_template(points, fixed), moving) - points) / mm
    return np.stack([-right, -up, front])


def _to_ras(array: NDArray) -> NDArray:
    return np.ascontiguousarray(array.transpose(0, 2, 1)[::-1, :, ::-1])


def _affine(shape: Sequence[int], lia: bool) -> Array:
    """Voxels to mm of the file's axes, 1 mm each, the middle at 0."""
    affine = np.eye(4)
    if lia:
        affine[:3, :3] = [[-1, 0, 0], [0, 0, 1], [0, -1, 0]]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _write_learn2reg(root: Path, number: int, brain: _Brain, previous: _Brain | None, shape: tuple[int, ...]) -> None:
    test, name = number > 414, f"OASIS_{number:04d}_0000.nii.gz"
    volumes: dict[str, NDArray] = {
        "images": brain.image,
        "labels": brain.label,
        "masks": (brain.image > 0).astype(np.uint8),
    }
    for kind, array in list(volumes.items())[: 1 if test else 3]:
        write_reproducible_nifti(root / f"{kind}{'Ts' if test else 'Tr'}" / name, _to_ras(array), _affine(shape, False))
    if previous is not None:
        case = f"OASIS_{number:04d}_to_OASIS_{number - 1:04d}_ddf.nii.gz"
        _write_displacement(root / ("imagesTs" if test else "imagesTr") / case, brain, previous, shape)


def _write_neurite(root: Path, number: int, brain: _Brain, previous: _Brain | None, shape: tuple[int, ...]) -> None:
    names = [f"OASIS_OAS1_{n + (MISSING if n > 394 else 0):04d}_MR1" for n in (number - 1, number)]
    for kind, array in (("norm", brain.image), ("seg35", brain.label)):
        path = root / names[1] / f"aligned_{kind}.nii.gz"
        write_reproducible_nifti(path, array, _affine(array.shape, True))
    if previous is not None:
        _write_displacement(root / names[0] / f"{names[1]}_to_{names[0]}_ddf.nii.gz", brain, previous, shape)


def _write_displacement(path: Path, moving: _Brain, fixed: _Brain, shape: tuple[int, ...]) -> None:
    ddf = np.moveaxis(_displacement(moving.map, fixed.map, shape), 0, -1).astype(np.float32)
    write_reproducible_nifti(path, ddf, _affine(ddf.shape[:3], True))


def _write_pickle(root: Path, number: int, brain: _Brain, previous: _Brain | None, shape: tuple[int, ...]) -> None:
    arrays: tuple[NDArray, ...] = (brain.image, brain.label.astype(np.int16))
    name = f"Train/p_{number:04d}.pkl"
    if number > 394:
        if previous is None:
            return
        arrays = (brain.image, previous.image, arrays[1], previous.label.astype(np.int16))
        name = f"Test/p_{number - 1:04d}_{number:04d}.pkl"
    with atomic_path(root / name) as path:
        path.write_bytes(pickle.dumps(arrays, protocol=4))


def make_oasis_phantom(
    root: str | Path,
    n_train: int = 12,
    n_validation: int = 4,
    n_test: int = 2,
    shape: tuple[int, int, int] = (40, 56, 48),
    layout: str = "learn2reg",
    seed: int = 0,
) -> Path:
    """Write synthetic brains in a layout of OASIS.

    All subjects are smooth warps of one anatomy; contrast, texture, shading and noise are each subject's own. A subject
    depends on (seed, number, shape) alone, not on how many are made or in which layout. Of the pairs that validate and
    test the true displacement lies beside the fixed image, ``…_to_…_ddf.nii.gz``: (X, Y, Z, 3) float32 in voxels along
    LIA, fixed(x) ~ moving(x + ddf(x)). Pickles have no place for it. The files' voxels are 1 mm, whatever ``shape`` is:
    a smaller one shows a smaller brain.

    Args:
        root: folder to fill; must not exist, or be empty.
        n_train: subjects from number 1 on.
        n_validation: subjects from number 395 on, a pair fewer.
        n_test: subjects from number 415 on, without labels; in Learn2Reg's layout alone.
        shape: voxels (X, Y, Z) to the right, front and top; the data set has (160, 224, 192).
        layout: one of ``LAYOUTS``: Learn2Reg's, neurite's or TransMorph's pickles.
        seed: of everything random.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: a number is out of range.
        FileExistsError: ``root`` holds something.

    Reference:
        Marcus et al., Journal of Cognitive Neuroscience 19, 2007 (the data set whose layouts are imitated).
    """
    root, size = Path(root), tuple(int(n) for n in shape)
    known_name("layout", layout, LAYOUTS)
    _check({"n_train": (n_train, 2, 394), "n_validation": (n_validation, 2, 20), "n_test": (n_test, 0, 39)}, size, seed)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"root: {root} is not empty; name an empty folder or delete it first.")
    write = {"learn2reg": _write_learn2reg, "neurite": _write_neurite, "pickle": _write_pickle}[layout]
    for first, count in ((1, n_train), (395, n_validation), (415, n_test if layout == "learn2reg" else 0)):
        previous = None
        for number in range(first, first + count):
            brain = _draw(number, size, seed)
            write(root, number, brain, previous if first > 1 else None, size)
            previous = brain
    if layout == "learn2reg":
        facts = {"name": "OASIS", "tensorImageSize": "3D", "tensorImageShape": {"0": list(size)}}
        (root / "OASIS_dataset.json").write_text(json.dumps(facts, indent=4) + "\n", encoding="utf-8")
    return root


def _check(counts: dict[str, tuple[int, int, int]], shape: tuple[int, ...], seed: int) -> None:
    for name, (count, lowest, highest) in counts.items():
        if not lowest <= count <= highest:
            raise ValueError(f"{name}: expected {lowest} to {highest}, got {count}.")
    if len(shape) != 3 or min(shape) < 32:
        raise ValueError(f"shape: expected three numbers of at least 32 voxels, got {shape}.")
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}.")


PHANTOM = Phantom(
    "oasis_phantom",
    make_oasis_phantom,
    small={"n_train": 2, "n_validation": 3, "n_test": 2},
    version=1,  # raise it whenever the written voxels change, so that no old cache is taken for a new one
    text="stands in for MR of people; its results say nothing of real brains, and its volumes are a quarter as wide. "
    "Set dataset_dir to the folder of OASIS (Learn2Reg 2021 task 3, neurite-oasis or TransMorph's pickles) for those.",
)
