# SPDX-License-Identifier: Apache-2.0
"""Synthetic chests in the layouts of COPDGene, with true displacements, and of DIR-Lab COPDgene, with landmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator

from ..atomic import atomic_path
from .dirlab import LANDMARKS, OFFSET, ROLES
from .lung_phantom import FIELD, Chest, draw_chest, inside_lungs, paint, positions, to_expiration
from .phantom_cache import Phantom, write_reproducible_nifti
from .scanner import Array

PHASES = {"INSP": "inspiration", "EXP": "expiration"}
EDGE = 1.5  # mm, width of a vessel's edge
RAW_SPACING = (1.25, 1.25, 2.5)  # mm, of the raw files
DISPLACEMENT = "INSP_to_EXP_ddf"


def _write_pair(folder: Path, name: str, spacing: float, rng: Generator) -> None:
    """Both phases with their lungs, and the displacement on the grid of inspiration."""
    chest, mm = draw_chest(rng), (spacing,) * 3
    shape = np.rint(FIELD / spacing).astype(int).tolist()
    points = positions(shape, mm)
    affine = np.diag([-spacing, -spacing, spacing, 1.0])  # the array runs to the left, the back and upwards
    affine[:3, 3] = points[:, 0, 0, 0] * (-1, -1, 1)
    for phase, breath in PHASES.items():
        image, lungs = paint(points, chest, breath, EDGE, rng)
        stem = folder / name / f"{name}_{phase}_STD_PHA_COPD"
        write_reproducible_nifti(stem.with_name(f"{stem.name}_img.nii.gz"), np.rint(image).astype(np.int16), affine)
        write_reproducible_nifti(stem.with_name(f"{stem.name}_label.nii.gz"), lungs, affine)
    ddf = (to_expiration(points, chest) - points) / spacing
    path = folder / name / f"{name}_{DISPLACEMENT}.nii.gz"
    write_reproducible_nifti(path, np.moveaxis(ddf, 0, -1).astype(np.float32), affine)


def landmarks(chest: Chest, count: int, rng: Generator) -> Array:
    """Points on the vessels inside the lungs at inspiration.

    Args:
        chest: whose.
        count: how many.
        rng: advanced by the draws.

    Returns:
        (count, 3), mm.
    """
    found: list[Array] = []
    while len(found) < count:
        piece = chest.pieces[rng.integers(len(chest.pieces))]
        point = piece[:3] + rng.uniform() * (piece[3:6] - piece[:3])
        if inside_lungs(point[:, None], margin=0.97)[0]:
            found.append(point)
    return np.array(found)


def write_dirlab_case(
    folder: str | Path, number: int, rng: Generator, spacing: Sequence[float] = RAW_SPACING, count: int = LANDMARKS
) -> Path:
    """Write a case in the layout of DIR-Lab COPDgene: raw images, landmarks, and ``copdN_grid.json``.

    Landmarks are rounded to whole voxels, as the published ones are. ``distance`` of the grid file is the mean distance
    of these, in mm.

    Args:
        folder: that ``copdN`` is to lie in.
        number: N.
        rng: advanced by the draws.
        spacing: mm along x, y, z.
        count: landmarks.

    Returns:
        Folder of the case.
    """
    name, size = f"copd{number}", np.rint(FIELD / np.array(spacing)).astype(int)
    case, chest = Path(folder) / name, draw_chest(rng)
    case.mkdir(parents=True)
    points = positions(size.tolist(), spacing) * np.array([1, 1, -1]).reshape(
        3, 1, 1, 1
    )  # slices from the top downwards
    at_inspiration = landmarks(chest, count, rng)
    places = {"fixed": at_inspiration, "moving": to_expiration(at_inspiration.T, chest).T}
    indices = {}
    for role, (breath, _) in ROLES.items():
        image, _ = paint(points, chest, {"moving": "expiration", "fixed": "inspiration"}[role], EDGE, rng)
        raw = np.clip(np.rint(image + OFFSET), 0, 4095).astype("<i2")
        with atomic_path(case / f"{name}_{breath}CT.img") as temporary:
            temporary.write_bytes(raw.tobytes(order="F"))
        voxels = places[role] * (1, 1, -1) / np.array(spacing) + (size - 1) / 2
        indices[role] = np.clip(np.rint(voxels), 0, size - 1).astype(int) + 1  # counted from 1
        lines = ["\t".join(map(str, row)) + "\n" for row in indices[role].tolist()]
        (case / f"{name}_300_{breath}_xyz_r1.txt").write_text("".join(lines), encoding="ascii")
    apart = np.linalg.norm((indices["fixed"] - indices["moving"]) * np.array(spacing), axis=1)
    grid = {"size": size.tolist(), "spacing": list(spacing), "distance": float(apart.mean())}
    (case / f"{name}_grid.json").write_text(json.dumps(grid) + "\n", encoding="ascii")
    return case


def make_copdgene_phantom(
    root: str | Path, n_train: int = 8, n_validation: int = 3, n_dirlab: int = 2, spacing: float = 2.0, seed: int = 0
) -> Path:
    """Write synthetic chests in the layouts of COPDGene and DIR-Lab COPDgene.

    ``splits/{train,test}.txt``; ``10001X/10001X_{INSP,EXP}_STD_PHA_COPD_{img,label}.nii.gz`` in HU, labels 1 in both
    lungs; ``10001X/10001X_INSP_to_EXP_ddf.nii.gz``: (X, Y, Z, 3) float32, voxels of inspiration, inspiration(x) ~
    expiration(x + ddf(x)). ``copd1`` …: see ``write_dirlab_case``. The lungs are a quarter as large as a person's. A
    case depends on (seed, number, spacing) alone.

    Args:
        root: folder to fill; must hold none of these yet.
        n_train: pairs for training.
        n_validation: pairs of ``splits/test.txt``.
        n_dirlab: cases of DIR-Lab, 0 to 10.
        spacing: mm; the data set's files have 1.
        seed: of everything random.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: a number is out of range.
        FileExistsError: ``root`` holds something of these already.

    Reference:
        Regan et al., COPD 7(1), 2010 (COPDGene), whose images are imitated.
    """
    root = Path(root)
    if min(n_train, n_validation) < 1 or not 0 <= n_dirlab <= 10 or not 0.5 <= spacing <= 4 or seed < 0:
        raise ValueError(
            f"expected n_train and n_validation from 1, n_dirlab 0 to 10, spacing 0.5 to 4 mm and seed from 0, got "
            f"{n_train}, {n_validation}, {n_dirlab}, {spacing} and {seed}."
        )
    if (root / "splits").exists() or any(root.glob("copd*")):
        raise FileExistsError(f"root: {root} holds such data already; name an empty folder or delete it first.")
    (root / "splits").mkdir(parents=True)
    numbers = {"train": range(1, n_train + 1), "test": range(501, 501 + n_validation)}
    for split, own in numbers.items():
        names = [f"{10000 + number}X" for number in own]
        (root / "splits" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="ascii")
        for number, name in zip(own, names, strict=True):
            _write_pair(root, name, float(spacing), np.random.default_rng((seed, number)))
    for number in range(1, n_dirlab + 1):
        write_dirlab_case(root, number, np.random.default_rng((seed, 1000 + number)))
    return root


PHANTOM = Phantom(
    "copdgene_phantom",
    make_copdgene_phantom,
    small={"n_train": 3, "n_validation": 2, "n_dirlab": 1},
    version=1,  # raise it whenever the written voxels change, so that no old cache is taken for a new one
    text="stands in for CT of people; its results say nothing of real lungs, and its lungs are a quarter as large. Set "
    "dataset_dir to a folder of COPDGene (copdgene.org; dbGaP phs000179) or DIR-Lab (dir-lab.com) for those.",
)
