# SPDX-License-Identifier: Apache-2.0
"""Synthetic apical echocardiograms in the layout of the CAMUS release, with the true displacement beside them.

Lengths are in mm. A heart is given in coordinates of its own: s along the long axis, from the apex of the left
ventricle to the valve plane at s = L and on into the atrium; r across it. End-systole is the anatomy of end-diastole,
evaluated where the tissue was: the walls thicken, the cavity narrows, the valve plane moves towards the apex.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ..atomic import atomic_path
from .phantom_cache import Phantom, write_reproducible_nifti
from .scanner import Array, smooth_texture
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

REFERENCE_SHAPE, SPACING = (192, 208), (0.8, 0.7)  # voxels, and mm of a voxel, along width and depth
QUALITIES = ("Good", "Medium", "Poor")
HALF_ANGLE, NEAR, FAR = np.radians(39), 6.0, 142.0  # of the sector
BLUR = 1.2  # mm, width of an edge
DECIBELS = 45.0


class _Heart(NamedTuple):
    """One view of a heart at end-diastole, and how it contracts."""

    apex: Array  # (2,) in mm from the probe
    tilt: float  # radians between the long axis and the middle beam
    length: float  # apex to valve plane
    radius: float  # of the cavity at the valve plane
    wall: float
    atrium: tuple[float, float]  # half axes along s and r
    narrowing: float  # of the cavity near its axis
    shortening: float  # mm by which the valve plane moves
    bend: float  # of the long axis, mm at its middle


def _draw_heart(view: str, rng: Generator) -> _Heart:
    length = rng.normal(82, 6)
    return _Heart(
        apex=np.array([rng.normal(0, 4), rng.normal(20, 2)]),
        tilt=rng.normal(0.0, 0.09),
        length=length,
        radius=rng.normal(21 if view == "2CH" else 23, 2),
        wall=rng.normal(9, 1),
        atrium=(rng.normal(19, 2), rng.normal(20, 2)),
        narrowing=rng.uniform(0.2, 0.5),
        shortening=rng.uniform(6, 13),
        bend=rng.normal(0, 2.5),
    )


def _along_and_across(points: Array, heart: _Heart) -> tuple[Array, Array]:
    """s and r of points (2, *S) in mm from the probe."""
    x, y = points - heart.apex[:, None, None]
    sine, cosine = np.sin(heart.tilt), np.cos(heart.tilt)
    return sine * x + cosine * y, cosine * x - sine * y


def _rise(t: Array) -> Array:
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def true_displacement(points: Array, heart: _Heart) -> Array:
    """Where the tissue at a point was at end-diastole, minus the point.

    Args:
        points: (2, *S), mm from the probe.
        heart: the view.

    Returns:
        (2, *S) in mm.
    """
    s, r = _along_and_across(points, heart)
    plane, roof = heart.length - heart.shortening, heart.length + 2 * heart.atrium[0]
    near = np.exp(-((np.maximum(np.abs(r) - heart.radius - heart.wall, 0) / 16) ** 2))
    along = heart.shortening * _rise(s / plane) * (1 - _rise((s - plane) / (roof - plane))) * near
    level = _rise((s + heart.wall) / (0.3 * heart.length)) * (1 - _rise((s - 0.8 * plane) / (0.6 * plane)))
    across = r * heart.narrowing * level * np.exp(-0.5 * (r / (heart.radius + 0.6 * heart.wall)) ** 2)
    sine, cosine = np.sin(heart.tilt), np.cos(heart.tilt)
    return np.stack([cosine * across + sine * along, cosine * along - sine * across])


def _regions(points: Array, heart: _Heart) -> dict[str, Array]:
    """Distances to the borders of ventricle, outer wall and atrium, roughly in mm, negative inside."""
    s, r = _along_and_across(points, heart)
    r = r - heart.bend * np.sin(np.pi * np.clip(s / heart.length, 0, 1))
    up = (heart.length - s) / heart.length
    cavity = (np.hypot(r / heart.radius, up) - 1) * heart.radius
    outer = heart.radius + heart.wall
    wall = (np.hypot(r / outer, (heart.length - s) / (heart.length + heart.wall)) - 1) * outer
    below = s - heart.length
    half_s, half_r = heart.atrium
    atrium = (np.hypot(r / half_r, (below - half_s) / half_s) - 1) * half_s
    return {
        "cavity": np.maximum(cavity, below),
        "wall": np.maximum(wall, below),
        "atrium": np.maximum(atrium, -below),
        "valve": np.abs(below) + np.maximum(np.abs(r) - heart.radius, 0),
    }


def _inside(distance: Array) -> Array:
    return 1 - _rise(distance / BLUR + 0.5)


def _echogenicity(points: Array, heart: _Heart, texture: Array) -> tuple[Array, NDArray[np.uint8]]:
    """What the tissue sends back, and its labels: 1 ventricle, 2 myocardium, 3 atrium."""
    d = _regions(points, heart)
    tissue = 0.12 * np.exp(0.8 * texture)
    pericardium = np.exp(-((d["wall"] / 1.6) ** 2)) * (d["cavity"] > 2)
    signal = tissue + pericardium * 0.9
    for name, level in (("wall", 0.16), ("cavity", 0.004), ("atrium", 0.004)):
        inside = _inside(d[name])
        signal = signal * (1 - inside) + level * np.exp(0.3 * texture) * inside
    signal = signal + 0.3 * np.exp(-((d["valve"] / 1.4) ** 2))
    label = np.zeros(points.shape[1:], np.uint8)
    label[d["atrium"] < 0], label[d["wall"] < 0], label[d["cavity"] < 0] = 3, 2, 1
    return signal, label


class _Probe(NamedTuple):
    """How well a view is seen."""

    quality: str
    gain: Array  # (*S), drop-out and attenuation
    inside: NDArray[np.bool_]
    correlation: Array  # (*S), of the speckle between the frames
    noise: float


def _draw_probe(points: Array, quality: str, rng: Generator) -> _Probe:
    poor = QUALITIES.index(quality)
    angle, depth = np.arctan2(points[0], points[1]), np.hypot(*points)
    gain = attenuation(depth, rng.normal(95, 8))
    for _ in range(1 + poor):  # ribs and lung: beams that carry little
        centre, width = rng.uniform(-HALF_ANGLE, HALF_ANGLE), rng.uniform(0.04, 0.1)
        gain = gain * (1 - (0.5 + 0.15 * poor) * np.exp(-(((angle - centre) / width) ** 2)))
    correlation = correlation_at((depth - NEAR) / (FAR - NEAR), rng.uniform(0.6, 0.85) - 0.12 * poor)
    return _Probe(quality, gain, sector(points, [HALF_ANGLE], NEAR, FAR), correlation, 0.006 * (1 + poor))


def _frame(signal: Array, field: NDArray, probe: _Probe, rng: Generator) -> NDArray[np.uint8]:
    noise = probe.noise * (rng.standard_normal(signal.shape) + 1j * rng.standard_normal(signal.shape))
    amplitude = np.abs(np.sqrt(signal) * probe.gain * field + noise)
    return np.rint(255 * log_compressed(amplitude, DECIBELS) * probe.inside).astype(np.uint8)


def _noise(signal: Array, kept: NDArray, probe: _Probe) -> NDArray[np.float32]:
    """Standard deviation of the grey levels of a frame, given the speckle ``kept`` from the one before."""
    steady = np.sqrt(signal) * probe.gain * probe.correlation * np.abs(kept)
    spread = np.sqrt(signal * probe.gain**2 * (1 - probe.correlation**2) + 2 * probe.noise**2)
    return (255 * shown_deviation(steady, spread, DECIBELS) * probe.inside).astype(np.float32)


def _make_view(folder: Path, view: str, shape: tuple[int, int], quality: str, rng: Generator) -> None:
    """Write the six files of a view, and its Info."""
    unit = min(n / reference for n, reference in zip(shape, REFERENCE_SHAPE, strict=True))
    spacing = np.array(SPACING) / unit
    grid = np.indices(shape).astype(np.float64)
    points = grid * spacing[:, None, None]
    points[0] -= (shape[0] - 1) / 2 * spacing[0]
    heart, probe = _draw_heart(view, rng), _draw_probe(points, quality, rng)
    ddf_mm = true_displacement(points, heart)
    ddf = ddf_mm / spacing[:, None, None]
    along, across = 0.45 / spacing[1], 1.3 / spacing[0]
    texture = smooth_texture((*shape, 1), 7 * unit, rng)[..., 0]
    field = scattering(shape, rng, along, across)
    before, label_before = _echogenicity(points, heart, texture)
    after, label_after = _echogenicity(points + ddf_mm, heart, texture)
    later = moved(field, ddf, rng, probe.correlation, along, across)
    affine = np.diag([-spacing[0], -spacing[1], 1.0, 1.0])  # LPS, as ITK writes images without directions
    stem = f"{folder.name}_{view}"
    frames = {
        "ED": (_frame(before, field, probe, rng), label_before),
        "ES": (_frame(after, later, probe, rng), label_after),
    }
    for phase, (image, label) in frames.items():
        write_reproducible_nifti(folder / f"{stem}_{phase}.nii.gz", image, affine)
        write_reproducible_nifti(folder / f"{stem}_{phase}_gt.nii.gz", label, affine)
    write_reproducible_nifti(folder / f"{stem}_ES_noise.nii.gz", _noise(after, carried(field, ddf), probe), affine)
    truth = np.moveaxis(ddf, 0, -1)[:, :, None].astype(np.float32)
    write_reproducible_nifti(folder / f"{stem}_ED_to_ES_ddf.nii.gz", truth, affine)
    area = [float((label == 1).sum()) for label in (label_before, label_after)]
    facts = {"ED": 1, "ES": 18, "NbFrame": 18, "Sex": "F", "Age": 60, "ImageQuality": quality,
             "EF": round(100 * (1 - (area[1] / area[0]) ** 1.5)), "FrameRate": 50.0}  # fmt: skip
    with atomic_path(folder / f"Info_{view}.cfg") as path:
        path.write_text("".join(f"{key}: {value}\n" for key, value in facts.items()), encoding="utf-8")


def make_camus_phantom(root: str | Path, n_train: int = 16, shape: tuple[int, int] = (192, 208), seed: int = 0) -> Path:
    """Write synthetic echocardiograms in the layout of the CAMUS release.

    ``database_nifti/patientNNNN`` holds image and labels (1 ventricle, 2 myocardium, 3 atrium) of ED and ES and an Info
    file for both views, and the truth ``patientNNNN_2CH_ED_to_ES_ddf.nii.gz``: (X, Y, 1, 2) float32 in voxels, with
    ES(x) ~ ED(x + ddf(x)); ``patientNNNN_2CH_ES_noise.nii.gz``: float32, the standard deviation of ES's grey levels at
    each voxel, given anatomy and the speckle that moves with it from ED; ``database_split`` names the patients of each
    split. Speckle moves with the tissue and loses part of its likeness, more with depth; sector, attenuation and
    drop-out stay with the probe. A patient depends on (seed, number) alone.

    Args:
        root: folder to fill; must not hold ``database_nifti`` yet.
        n_train: number of training patients; those between them whose number ends in 4 or 9 (validation) come besides,
            patient 0004 always.
        shape: voxels (width, depth); the field of view is kept, so that smaller shapes have larger voxels.
        seed: of everything random.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: a number is out of range.
        FileExistsError: ``root`` holds ``database_nifti`` already.

    Reference:
        Leclerc et al., IEEE TMI 2019 (the data set whose layout is imitated).
    """
    root = Path(root)
    if not 1 <= n_train <= 400 or len(shape) != 2 or min(shape) < 32 or seed < 0:
        raise ValueError(
            f"expected n_train of 1 to 400, shape of two numbers from 32, seed from 0; got {n_train}, {shape}, {seed}."
        )
    nifti, split = root / "database_nifti", root / "database_split"
    if nifti.exists():
        raise FileExistsError(f"root: {nifti} exists already; name an empty folder or delete it first.")
    training = [number for number in range(1, 501) if number % 10 not in (4, 9)][:n_train]
    numbers = sorted({*range(1, training[-1] + 1), 4})
    names = {number: f"patient{number:04d}" for number in numbers}
    for number, name in names.items():
        rng = np.random.default_rng((seed, number))
        for view in ("2CH", "4CH"):
            _make_view(nifti / name, view, (shape[0], shape[1]), QUALITIES[number % 3], rng)
    groups = {
        "training": [n for n in numbers if n in training],
        "validation": [n for n in numbers if n not in training],
    }
    for group, members in (groups | {"testing": []}).items():
        with atomic_path(split / f"subgroup_{group}.txt") as path:
            path.write_text("".join(f"{names[n]}\n" for n in members), encoding="utf-8")
    return root


PHANTOM = Phantom(
    "camus_phantom",
    make_camus_phantom,
    small={"n_train": 3, "shape": (96, 104)},
    version=2,  # raise it whenever the written voxels change, so that no old cache is taken for a new one
    text="stands in for patients of CAMUS; its results say nothing of real hearts. Set dataset_dir to the folder of "
    "the CAMUS release for those.",
)
