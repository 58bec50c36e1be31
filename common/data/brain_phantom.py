# SPDX-License-Identifier: Apache-2.0
"""What the phantoms of whole brains share: subjects on their grid, displacements between them, axes of their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .oasis_brain import Ellipsoid, Map, draw_map, from_template, paint, to_template
from .phantom_cache import write_reproducible_nifti
from .scanner import Array, smooth_texture

FULL_SHAPE = (160, 224, 192)  # voxels of the data sets, to the right, front and top


class Brain(NamedTuple):
    """A subject on its grid, axes left, down, front (LIA)."""

    map: Map
    image: NDArray[np.float32]
    label: NDArray[np.uint8]


def positions(shape: Sequence[int]) -> tuple[Array, float]:
    """Positions of the voxels.

    Args:
        shape: (X, Y, Z) along RAS.

    Returns:
        (3, X, Z, Y) in mm, of voxels along LIA, and mm a voxel.
    """
    mm = max(full / n for full, n in zip(FULL_SHAPE, shape, strict=True))
    x, y, z = ((np.arange(n) - (n - 1) / 2) * mm for n in shape)
    left, down, front = np.meshgrid(x[::-1], z[::-1], y, indexing="ij")
    return np.stack([left, front, down]), mm


def draw_brain(number: int, shape: Sequence[int], seed: int, more: Mapping[str, Ellipsoid] | None = None) -> Brain:
    """One subject, from (seed, number) alone.

    Args:
        number: of the subject.
        shape: (X, Y, Z) along RAS.
        seed: of the phantom.
        more: see ``oasis_brain.paint``.

    Returns:
        The subject.
    """
    rng = np.random.default_rng((seed, number))
    subject = draw_map(rng)
    points, mm = positions(shape)
    signal, label = paint(to_template(points, subject), mm, more)
    return Brain(subject, _scanned(signal, rng), label)


def _scanned(signal: Array, rng: Generator) -> NDArray[np.float32]:
    """Contrast of the subject's own, texture, bias field and Rician noise; 0 outside of the brain."""
    inside, unit = signal > 0.02, signal.shape[0] / 40
    textured = signal ** rng.uniform(0.85, 1.15) + 0.02 * smooth_texture(signal.shape, unit, rng, unit)
    bias = np.exp(0.05 * smooth_texture(signal.shape, 8 * unit, rng, 8 * unit))
    noise = 0.02 * rng.standard_normal((2, *signal.shape))
    image = np.hypot(textured * bias + noise[0], noise[1]) * inside
    return np.clip(image, 0, 1).astype(np.float32)


def file_affine(shape: Sequence[int], lia: bool) -> Array:
    """Voxels to mm of a file's axes, 1 mm each, the middle at 0.

    Args:
        shape: of the file's array.
        lia: its axes are left, down, front; else right, front, up.

    Returns:
        (4, 4).
    """
    affine = np.eye(4)
    if lia:
        affine[:3, :3] = [[-1, 0, 0], [0, 0, 1], [0, -1, 0]]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def write_displacement(path: Path, moving: Brain, fixed: Brain, shape: Sequence[int]) -> None:
    """Write the true displacement, (X, Y, Z, 3) float32 in voxels along LIA: fixed(x) ~ moving(x + ddf(x)).

    Args:
        path: the file, ``.nii.gz``.
        moving: a subject.
        fixed: another.
        shape: of both, along RAS.
    """
    points, mm = positions(shape)
    right, front, up = (from_template(to_template(points, fixed.map), moving.map) - points) / mm
    ddf = np.stack([-right, -up, front], axis=-1).astype(np.float32)
    write_reproducible_nifti(path, ddf, file_affine(ddf.shape[:3], True))


def check_recipe(counts: Mapping[str, tuple[int, int, int]], shape: Sequence[int], seed: int, root: Path) -> None:
    """Refuse what a phantom cannot be made of.

    Args:
        counts: number, lowest and highest, by argument.
        shape: voxels.
        seed: of everything random.
        root: folder to fill.

    Raises:
        ValueError: naming the argument.
        FileExistsError: where ``root`` holds something.
    """
    for name, (count, lowest, highest) in counts.items():
        if not lowest <= count <= highest:
            raise ValueError(f"{name}: expected {lowest} to {highest}, got {count}.")
    if len(shape) != 3 or min(shape) < 32:
        raise ValueError(f"shape: expected three numbers of at least 32 voxels, got {shape}.")
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}.")
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"root: {root} is not empty; name an empty folder or delete it first.")
