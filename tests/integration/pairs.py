# SPDX-License-Identifier: Apache-2.0
"""Pairs of synthetic images in files, of every kind that a bundle registers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

KINDS = ("volume", "stack", "oblique", "plane")
SIZES = {"volume": (40, 56, 40), "stack": (96, 80, 5), "oblique": (96, 80, 5), "plane": (40, 33)}
SPACINGS = {"volume": (1.0, 1.0, 1.0), "stack": (1.5, 1.5, 8.0), "oblique": (1.4, 1.4, 8.0), "plane": (1.0, 1.0, 1.0)}


class Pair(NamedTuple):
    """Files of two images and the label map of the first."""

    moving: Path
    fixed: Path
    moving_label: Path


def affine_of(kind: str, degrees: float = 0.0) -> np.ndarray:
    """Voxels to mm, RAS, (4, 4): rotated about an axis that is none of the grid's where ``degrees`` is not 0."""
    affine = np.diag([*SPACINGS[kind], 1.0])
    affine[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * np.array([0.6, 0.0, 0.8])).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = affine[:3, :3] @ -np.array([*SIZES[kind], 1, 1][:3]) / 2
    return affine


def ball(kind: str, affine: np.ndarray, centre_mm: float) -> np.ndarray:
    """A textured ball in space, on the grid of an affine; its values are of the order of 100."""
    size = SIZES[kind]
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in (*size, 1)[:3]], indexing="ij"), axis=-1)
    mm = voxels @ affine[:3, :3].T + affine[:3, 3] - np.array([centre_mm, 0.0, 0.0])
    mm = mm[..., :2] if len(size) == 2 else mm
    radius = 0.2 * min(n * s for n, s in zip(size, SPACINGS[kind], strict=False))
    values = 100 * np.exp(-np.square(mm / radius).sum(-1)) + 10 * np.cos(mm[..., 0] / 3) * np.cos(mm[..., 1] / 4)
    return (values + 20).astype(np.float32).reshape(size)


def write_pair(folder: Path, kind: str) -> Pair:
    """Write a pair, ``kind`` one of ``KINDS``; "oblique": two grids, rotated differently.

    Args:
        folder: to write to.
        kind: names the files too.
    """
    files = Pair(*(folder / f"{kind}_{name}.nii.gz" for name in Pair._fields))
    affines = [affine_of(kind, 12.0), affine_of(kind, -7.0)] if kind == "oblique" else [affine_of(kind)] * 2
    for path, affine, centre in zip((files.moving, files.fixed), affines, (0.0, 2.0), strict=True):
        nib.save(nib.Nifti1Image(ball(kind, affine, centre), affine), path)
    moving = nib.load(files.moving)
    label = (np.asarray(moving.dataobj) > 60).astype(np.uint8) * 3
    nib.save(nib.Nifti1Image(label, moving.affine), files.moving_label)
    return files
