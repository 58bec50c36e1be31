# SPDX-License-Identifier: Apache-2.0
"""Synthetic T1 MR of whole brains in the layouts of OASIS, with the true displacement of the pairs that validate."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..atomic import atomic_path
from ..checks import known_name
from .brain_phantom import Brain, check_recipe, draw_brain, file_affine, write_displacement
from .phantom_cache import Phantom, write_reproducible_nifti

LAYOUTS = ("learn2reg", "neurite", "pickle")
MISSING = 43  # numbers that OASIS-1 has no subject of, all below 438


def _to_ras(array: NDArray) -> NDArray:
    return np.ascontiguousarray(array.transpose(0, 2, 1)[::-1, :, ::-1])


def _write_learn2reg(root: Path, number: int, brain: Brain, previous: Brain | None, shape: tuple[int, ...]) -> None:
    test, name = number > 414, f"OASIS_{number:04d}_0000.nii.gz"
    volumes: dict[str, NDArray] = {
        "images": brain.image,
        "labels": brain.label,
        "masks": (brain.image > 0).astype(np.uint8),
    }
    for kind, array in list(volumes.items())[: 1 if test else 3]:
        write_reproducible_nifti(
            root / f"{kind}{'Ts' if test else 'Tr'}" / name, _to_ras(array), file_affine(shape, False)
        )
    if previous is not None:
        case = f"OASIS_{number:04d}_to_OASIS_{number - 1:04d}_ddf.nii.gz"
        write_displacement(root / ("imagesTs" if test else "imagesTr") / case, brain, previous, shape)


def _write_neurite(root: Path, number: int, brain: Brain, previous: Brain | None, shape: tuple[int, ...]) -> None:
    names = [f"OASIS_OAS1_{n + (MISSING if n > 394 else 0):04d}_MR1" for n in (number - 1, number)]
    for kind, array in (("norm", brain.image), ("seg35", brain.label)):
        path = root / names[1] / f"aligned_{kind}.nii.gz"
        write_reproducible_nifti(path, array, file_affine(array.shape, True))
    if previous is not None:
        write_displacement(root / names[0] / f"{names[1]}_to_{names[0]}_ddf.nii.gz", brain, previous, shape)


def _write_pickle(root: Path, number: int, brain: Brain, previous: Brain | None, shape: tuple[int, ...]) -> None:
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
    counts = {"n_train": (n_train, 2, 394), "n_validation": (n_validation, 2, 20), "n_test": (n_test, 0, 39)}
    check_recipe(counts, size, seed, root)
    write = {"learn2reg": _write_learn2reg, "neurite": _write_neurite, "pickle": _write_pickle}[layout]
    for first, count in ((1, n_train), (395, n_validation), (415, n_test if layout == "learn2reg" else 0)):
        previous = None
        for number in range(first, first + count):
            brain = draw_brain(number, size, seed)
            write(root, number, brain, previous if first > 1 else None, size)
            previous = brain
    if layout == "learn2reg":
        facts = {"name": "OASIS", "tensorImageSize": "3D", "tensorImageShape": {"0": list(size)}}
        (root / "OASIS_dataset.json").write_text(json.dumps(facts, indent=4) + "\n", encoding="utf-8")
    return root


PHANTOM = Phantom(
    "oasis_phantom",
    make_oasis_phantom,
    small={"n_train": 2, "n_validation": 3, "n_test": 2},
    version=1,  # raise it whenever the written voxels change, so that no old cache is taken for a new one
    text="stands in for MR of people; its results say nothing of real brains, and its volumes are a quarter as wide. "
    "Set dataset_dir to the folder of OASIS (Learn2Reg 2021 task 3, neurite-oasis or TransMorph's pickles) for those.",
)
