# SPDX-License-Identifier: Apache-2.0
"""Synthetic T1 MR of whole brains and an atlas in the layouts of IXI, with the true displacement of the atlas."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..atomic import atomic_path
from ..checks import known_name
from .brain_phantom import Brain, check_recipe, draw_brain, file_affine, write_displacement
from .ixi_labels import FREESURFER
from .oasis_brain import FLUID, WHITE, Ellipsoid
from .oasis_labels import LABELS as OASIS_LABELS
from .phantom_cache import Phantom, write_reproducible_nifti

LAYOUTS = ("nifti", "pickle")
ATLAS = 999  # its number among the subjects
FIRST = {"Train": 0, "Val": 403, "Test": 461}  # number of the first subject
# What FreeSurfer labels and OASIS's 35 structures lack: centre, radii and signal, on both sides alike.
MORE: dict[str, Ellipsoid] = {
    "csf": ((0, 4, -30), (6, 7, 6), FLUID),
    "fifth_ventricle": ((0, 22, 6), (5, 6, 5.5), FLUID),
    "white_matter_hypointensities": ((36, 34, 26), (6, 6, 6), 0.6),
    "other_hypointensities": ((40, -40, 20), (6, 6, 6), 0.4),
    "optic_chiasm": ((0, 18, -24), (6, 6, 5.5), 0.66),
    "corpus_callosum_posterior": ((0, -34, 29), (8, 8, 6), WHITE),
    "corpus_callosum_mid_posterior": ((0, -18, 31), (8, 8, 6), WHITE),
    "corpus_callosum_central": ((0, -2, 32), (8, 8, 6), WHITE),
    "corpus_callosum_mid_anterior": ((0, 14, 31), (8, 8, 6), WHITE),
    "corpus_callosum_anterior": ((0, 30, 29), (8, 8, 6), WHITE),
}


def _numbers(label: NDArray[np.uint8]) -> NDArray[np.int16]:
    """FreeSurfer's numbers of what ``oasis_brain.paint`` returns."""
    return np.array([0, *(FREESURFER[name] for name in (*OASIS_LABELS, *MORE))], np.int16)[label]


def _write(folder: Path, stem: str, brain: Brain, layout: str) -> None:
    label = _numbers(brain.label)
    if layout == "nifti":
        for ending, array in (("", brain.image), ("_seg", label)):
            write_reproducible_nifti(folder / f"{stem}{ending}.nii.gz", array, file_affine(array.shape, True))
        return
    with atomic_path(folder / f"{stem}.pkl") as path:
        path.write_bytes(pickle.dumps((brain.image, label), protocol=4))


def make_ixi_phantom(
    root: str | Path,
    n_train: int = 12,
    n_validation: int = 4,
    n_test: int = 3,
    shape: tuple[int, int, int] = (40, 56, 48),
    layout: str = "nifti",
    seed: int = 0,
) -> Path:
    """Write synthetic brains and an atlas in a layout of IXI.

    All subjects and the atlas are smooth warps of one anatomy, that of the OASIS phantom with ten structures more;
    contrast, texture, shading and noise are each one's own. A subject depends on (seed, number, shape) alone. Beside
    the NIfTI file of a validation or test subject lies the true displacement of the atlas, ``…_ddf.nii.gz``:
    (X, Y, Z, 3) float32 in voxels along LIA, fixed(x) ~ moving(x + ddf(x)). Pickles have no place for it. Voxels are
    1 mm, whatever ``shape`` is: a smaller one shows a smaller brain.

    Args:
        root: folder to fill; must not exist, or be empty.
        n_train: subjects in Train, from number 0 on.
        n_validation: subjects in Val, from number 403 on.
        n_test: subjects in Test, from number 461 on.
        shape: voxels (X, Y, Z) to the right, front and top; the data set has (160, 224, 192).
        layout: one of ``LAYOUTS``: NIfTI, which inference reads as well, or TransMorph's pickles.
        seed: of everything random.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: a number is out of range.
        FileExistsError: ``root`` holds something.

    Reference:
        Chen et al., TransMorph, Medical Image Analysis 82, 2022 (the data set whose layout is imitated).
    """
    root, size = Path(root), tuple(int(n) for n in shape)
    known_name("layout", layout, LAYOUTS)
    counts = {"n_train": (n_train, 1, 403), "n_validation": (n_validation, 1, 58), "n_test": (n_test, 1, 115)}
    check_recipe(counts, size, seed, root)
    base = root / "IXI_data"
    atlas = draw_brain(ATLAS, size, seed, MORE)
    _write(base, "atlas", atlas, layout)
    for (folder, first), (count, *_) in zip(FIRST.items(), counts.values(), strict=True):
        for number in range(first, first + count):
            brain = draw_brain(number, size, seed, MORE)
            _write(base / folder, f"subject_{number}", brain, layout)
            if layout == "nifti" and folder != "Train":
                name = f"atlas_to_{folder}_subject_{number}_ddf.nii.gz"
                write_displacement(base / folder / name, atlas, brain, size)
    return root


PHANTOM = Phantom(
    "ixi_phantom",
    make_ixi_phantom,
    small={"n_train": 2, "n_validation": 2, "n_test": 2},
    version=1,  # raise it whenever the written voxels change, so that no old cache is taken for a new one
    text="stands in for MR of people; its results say nothing of real brains, and its volumes are a quarter as wide. "
    "Set dataset_dir to the folder of TransMorph's preprocessed IXI for those.",
)
