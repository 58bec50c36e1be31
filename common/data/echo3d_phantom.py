# SPDX-License-Identifier: Apache-2.0
"""Synthetic 3D echocardiography of a left ventricle, in the plain layout of ``common.data.echo3d``.

Positions are mm from the middle of the ventricle at end-diastole. The beams run along the last axis, from the apex
towards the base. ES is ED's tissue moved: anatomy is evaluated, and speckle taken along, where the tissue was at ED.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from .phantom_cache import Phantom, write_reproducible_nifti
from .scanner import Array
from .speckle import (
    attenuation,
    carried,
    correlation_at,
    log_compressed,
    moved,
    scattering,
    sector,
    shown_deviation,
)

FIELD = np.array([112.0, 104.0, 124.0])  # mm, of the volume
PROBE = np.array([0.0, 0.0, -64.0])  # mm, the apex of the sector
BASE = 0.5  # of the long half-axis: the valve's plane
ALONG, ACROSS = 1.0, 1.7  # mm, widths of the point-spread function
NEAR, FAR = 8.0, 122.0  # mm from the probe, of the sector
DECIBELS, HALF_DEPTH, CORRELATION = 50.0, 140.0, 0.75


class _Ventricle(NamedTuple):
    """One ventricle and its beat; lengths in mm."""

    shape: tuple[int, ...]
    half_axes: Array  # (3,) of the cavity at ED
    wall: float  # thickness as a share of the half-axes
    rotation: Array  # (3, 3)
    ratio: float  # of the cavity's lengths, ES to ED
    twist: float  # radians at the apex, with the other sign at the base
    bulk: Array  # (3,) shift of the whole
    dropouts: Array  # (n, 3): azimuth, width, depth of regions that the beams do not reach


def _draw(rng: Generator, shape: tuple[int, ...]) -> _Ventricle:
    return _Ventricle(
        shape=tuple(int(n) + int(rng.integers(-4, 5)) for n in shape),
        half_axes=np.array([21.0, 20.0, 38.0]) * rng.normal(1, 0.06, 3),
        wall=rng.uniform(0.36, 0.46),
        rotation=Rotation.from_rotvec(rng.normal(0, 0.08, 3)).as_matrix(),
        ratio=rng.uniform(0.68, 0.84),
        twist=rng.normal(0.1, 0.03),
        bulk=rng.normal(0, 1.2, 3),
        dropouts=np.stack([rng.uniform(-np.pi, np.pi, 2), rng.uniform(0.25, 0.5, 2), rng.uniform(0.6, 0.9, 2)], -1),
    )


def _level(own: Array, heart: _Ventricle) -> Array:
    """1 at the endocardium of ED, 0 in the middle of the cavity; at coordinates (3, *S) along the ventricle's axes."""
    return np.sqrt(sum((part / half) ** 2 for part, half in zip(own, heart.half_axes, strict=True)))


def _along_axes(points: Array, heart: _Ventricle) -> Array:
    return np.tensordot(heart.rotation.T, points, 1)


def _displacement(points: Array, heart: _Ventricle) -> Array:
    """Backward displacement in mm, (3, *S): ES(x) shows the tissue that was at x + displacement at ED.

    In levels the cavity scales by the ratio r, the wall keeps its volume (l³ - r³ = L³ - 1), and outside the motion
    fades. Twist and bulk shift fade likewise.
    """
    own = _along_axes(points - heart.bulk[:, None, None, None], heart)
    level = np.maximum(_level(own, heart), 1e-6)
    outer = np.cbrt(heart.ratio**3 + (1 + heart.wall) ** 3 - 1)
    fading = np.exp(-0.5 * (np.maximum(level - outer, 0) / 0.45) ** 2)
    in_wall = np.cbrt(np.maximum(level**3 - heart.ratio**3 + 1, 0))
    beyond = level + (1 + heart.wall - outer) * fading
    before = np.where(level < heart.ratio, level / heart.ratio, np.where(level < outer, in_wall, beyond))
    scaled = own * before / level
    angle = -heart.twist * own[2] / heart.half_axes[2] * fading
    turned = np.stack([np.cos(angle) * scaled[0] - np.sin(angle) * scaled[1],
                       np.sin(angle) * scaled[0] + np.cos(angle) * scaled[1], scaled[2]])  # fmt: skip
    shift = heart.bulk[:, None, None, None] * (1 - fading)
    return np.tensordot(heart.rotation, turned, 1) + shift - points


def _paint(points: Array, heart: _Ventricle) -> tuple[Array, NDArray[np.uint8]]:
    """Echogenicity and label of the tissue that is at these positions at ED."""
    own = _along_axes(points, heart)
    level, height = _level(own, heart), own[2] / heart.half_axes[2]
    surface = np.abs(level - 1 - heart.wall)
    below = height < BASE
    echo = np.full(level.shape, 0.05)
    echo = np.where(level < 1 + heart.wall, 0.30, echo + 0.9 * np.exp(-((surface / 0.09) ** 2)))
    blood = (level < 1) | (~below & (level < 1.12))
    echo = np.where(blood, 0.002, echo)
    echo = np.where((np.abs(height - BASE) < 0.05) & (level < 1), 0.15, echo)  # the valve
    label = np.where(below & (level < 1), 1, np.where(below & (level < 1 + heart.wall), 2, 0))
    return echo, label.astype(np.uint8)


def _beam(echo: Array, points: Array, heart: _Ventricle) -> tuple[Array, Array, NDArray[np.bool_]]:
    """What the scanner makes of tissue: the amplitude that scattering is shown with, depth in mm, and the sector."""
    offset = points - PROBE[:, None, None, None]
    depth = np.sqrt(np.square(offset).sum(0))
    azimuth = np.arctan2(offset[1], offset[0])
    side = np.clip(np.hypot(offset[0], offset[1]) / np.maximum(offset[2], 1) / 0.35, 0, 1)  # none on the middle beam
    gain = attenuation(depth, HALF_DEPTH)
    for where, width, strength in heart.dropouts:
        near = np.exp((np.cos(azimuth - where) - 1) / width**2)
        gain = gain * (1 - strength * near * side**2)
    inside = sector(offset, np.radians([40.0, 38.0]).tolist(), NEAR, FAR)
    return 1.6 * np.sqrt(gaussian_filter(echo, 0.6)) * gain, depth, inside


def _noise(amplitude: Array, kept: NDArray, correlation: Array, inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Standard deviation of the grey levels of ES, given the speckle ``kept`` from ED."""
    spread = amplitude * np.sqrt(1 - correlation**2)
    return (255 * shown_deviation(amplitude * correlation * np.abs(kept), spread, DECIBELS) * inside).astype(np.float32)


def _make_subject(folder: Path, number: int, shape: tuple[int, ...], seed: int) -> None:
    """Draw one subject from (seed, number) alone and write its six files."""
    rng = np.random.default_rng((seed, number))
    heart = _draw(rng, shape)
    spacing = FIELD / heart.shape
    voxels = np.indices(heart.shape, dtype=np.float64)
    points = (voxels - (np.array(heart.shape)[:, None, None, None] - 1) / 2) * spacing[:, None, None, None]
    smooth = [gaussian_filter(part, 2.0 / spacing) for part in _displacement(points, heart)]  # rounds the kinks
    ddf = np.stack(smooth) / spacing[:, None, None, None]
    along, across = ALONG / spacing[2], ACROSS / spacing[:2].mean()
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = points[:, 0, 0, 0]
    field = scattering(heart.shape, rng, along, across)
    for phase in ("ED", "ES"):
        tissue = points
        if phase == "ES":
            tissue = points + ddf * spacing[:, None, None, None]
        echo, label = _paint(tissue, heart)
        amplitude, depth, inside = _beam(echo, points, heart)
        if phase == "ES":
            correlation = correlation_at((depth - NEAR) / (FAR - NEAR), CORRELATION)
            level = _noise(amplitude, carried(field, ddf), correlation, inside)
            write_reproducible_nifti(folder / "ES_noise.nii.gz", level, affine)
            field = moved(field, ddf, rng, correlation, along, across)
        image = np.rint(255 * log_compressed(amplitude * np.abs(field), DECIBELS) * inside).astype(np.uint8)
        write_reproducible_nifti(folder / f"{phase}.nii.gz", image, affine)
        write_reproducible_nifti(folder / f"{phase}_label.nii.gz", label, affine)
    write_reproducible_nifti(folder / "ED_to_ES_ddf.nii.gz", np.moveaxis(ddf, 0, -1).astype(np.float32), affine)


def split_by_name(subject: str) -> str:
    """Split of a subject by a hash of its name: of all names 60 % train, 20 % validation, 20 % test.

    Args:
        subject: its name.

    Returns:
        Name of the split.
    """
    share = int(sha256(subject.encode()).hexdigest(), 16) % 5
    return "train" if share < 3 else "validation" if share == 3 else "test"


def make_echo3d_phantom(
    root: str | Path,
    n_train: int = 12,
    n_validation: int = 4,
    n_test: int = 4,
    shape: tuple[int, int, int] = (64, 60, 72),
    seed: int = 0,
) -> Path:
    """Write synthetic 3D echocardiograms, ED and ES, in the layout of ``common.data.echo3d``.

    ``phantomNNN/{ED,ES}.nii.gz`` (uint8), ``{ED,ES}_label.nii.gz`` (uint8: 1 cavity, 2 myocardium) and
    ``ED_to_ES_ddf.nii.gz``, the truth: (X, Y, Z, 3) float32 in voxels, ES(x) ~ ED(x + ddf(x)); ``ES_noise.nii.gz``:
    float32, the standard deviation of ES's grey levels at each voxel, given anatomy and the speckle that moves with it
    from ED. Speckle moves with the tissue and loses part of its likeness, more with depth; a sector, attenuation and
    drop-outs limit what is seen. Volumes differ in shape and spacing. A subject depends on (seed, number, shape) alone,
    not on how many are made.

    Args:
        root: folder to fill; must not exist, or be empty.
        n_train: number of subjects for training: the lowest numbers that ``split_by_name`` gives to it.
        n_validation: likewise.
        n_test: likewise.
        shape: voxels (X, Y, Z) about which the subjects' own lie; the field of view is kept.
        seed: of everything random.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: a number is out of range.
        FileExistsError: ``root`` holds something.
    """
    root, counts = Path(root), {"train": n_train, "validation": n_validation, "test": n_test}
    for split, count in counts.items():
        if not 0 <= count <= 100:
            raise ValueError(f"n_{split}: expected 0 to 100, got {count}.")
    if len(shape) != 3 or min(shape) < 24 or seed < 0 or not any(counts.values()):
        raise ValueError(
            f"expected a shape of three numbers of at least 24, a seed of 0 or more and at least one subject, got "
            f"{tuple(shape)}, {seed} and {counts}."
        )
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"root: {root} is not empty; name an empty folder or delete it first.")
    for number in range(1, 1000):
        name = f"phantom{number:03d}"
        split = split_by_name(name)
        if counts[split] > 0:
            counts[split] -= 1
            _make_subject(root / name, number, tuple(shape), seed)
    return root


PHANTOM = Phantom(
    "echo3d_phantom",
    make_echo3d_phantom,
    small={"n_train": 2, "n_validation": 2, "n_test": 1, "shape": (40, 38, 44)},
    version=2,  # raise it whenever the written voxels change, so that no old cache is taken for a new one
    text="stands in for 3D echocardiography; its results say nothing of real hearts. Set dataset_dir to a folder of "
    "your own volumes, DIR/SUBJECT/ED.nii.gz, ES.nii.gz, ED_label.nii.gz, ES_label.nii.gz, for those.",
)
