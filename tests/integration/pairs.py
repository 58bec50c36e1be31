# SPDX-License-Identifier: Apache-2.0
"""Pairs of synthetic images in files, of every kind that a bundle registers; which bundle takes which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

SIZES = {"volume": (40, 56, 40), "chest": (48, 40, 48), "stack": (96, 80, 5), "oblique": (96, 80, 5), "plane": (40, 33)}
SPACINGS = {
    "volume": (1.0, 1.0, 1.0), "chest": (2.0, 2.0, 2.0), "stack": (1.5, 1.5, 8.0), "oblique": (1.4, 1.4, 8.0),
    "plane": (1.0, 1.0, 1.0),
}  # fmt: skip
KINDS = tuple(SIZES)


class Pair(NamedTuple):
    """Files of two images and the label map of the first."""

    moving: Path
    fixed: Path
    moving_label: Path


def kind_of(config: dict[str, Any]) -> str:
    """Kind of the pairs that a bundle registers.

    Args:
        config: its inference.json.

    Returns:
        One of ``KINDS``.
    """
    if len(config["spatial_size"]) == 3:
        return "chest" if "intensities" in config else "volume"
    return "plane" if config["spacing"] is None else "stack"


def affine_of(kind: str, size: Sequence[int], degrees: float = 0.0) -> np.ndarray:
    """Voxels to mm, RAS, (4, 4): rotated about an axis that is none of the grid's where ``degrees`` is not 0."""
    affine = np.diag([*SPACINGS[kind], 1.0])
    affine[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * np.array([0.6, 0.0, 0.8])).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = affine[:3, :3] @ -np.array([*size, 1, 1][:3]) / 2
    return affine


def ball(kind: str, size: Sequence[int], affine: np.ndarray, centre_mm: float) -> np.ndarray:
    """A textured ball in space, on the grid of an affine; its values are of the order of 100."""
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in (*size, 1)[:3]], indexing="ij"), axis=-1)
    mm = voxels @ affine[:3, :3].T + affine[:3, 3] - np.array([centre_mm, 0.0, 0.0])
    mm = mm[..., :2] if len(size) == 2 else mm
    radius = 0.2 * min(n * s for n, s in zip(size, SPACINGS[kind], strict=False))
    values = 100 * np.exp(-np.square(mm / radius).sum(-1)) + 10 * np.cos(mm[..., 0] / 3) * np.cos(mm[..., 1] / 4)
    return (values + 20).astype(np.float32).reshape(tuple(size))


def write_pair(folder: Path, kind: str, size: Sequence[int] | None = None) -> Pair:
    """Write a pair, ``kind`` one of ``KINDS``; "oblique": two grids, rotated differently.

    Args:
        folder: to write to.
        kind: names the files too.
        size: in voxels; None takes the kind's.
    """
    size = SIZES[kind] if size is None else size
    files = Pair(*(folder / f"{kind}_{name}.nii.gz" for name in Pair._fields))
    affines = [affine_of(kind, size, turn) for turn in ((12.0, -7.0) if kind == "oblique" else (0.0, 0.0))]
    for path, affine, centre in zip((files.moving, files.fixed), affines, (0.0, 2.0), strict=True):
        values = ball(kind, size, affine, centre)
        # In HU the ball is air inside a body.
        nib.save(nib.Nifti1Image(40 - 9 * values if kind == "chest" else values, affine), path)
    label = (ball(kind, size, affines[0], 0.0) > 60).astype(np.uint8) * 3
    nib.save(nib.Nifti1Image(label, affines[0]), files.moving_label)
    return files
