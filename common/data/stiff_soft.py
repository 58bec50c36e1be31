# SPDX-License-Identifier: Apache-2.0
"""Stiff & Soft: generated pairs with a stiff ball that is moved as a whole, in soft tissue that is deformed.

Where a weight of the smoothness that varies in space should pay: one constant weight is too small for the ball or too
large for what is around it. The true displacement is known. With x a point of the fixed image, s(x) the stiffness, 1 in
the ball and 0 beyond a margin, t a translation, and v a random smooth field that vanishes at the border::

    u(x) = s(x) t + (1 - s(x)) v(x)            moving(x + u(x)) = fixed(x), but for the noise of each image

Lengths are fractions of the image's shortest side L: the ball's radius in [0.14, 0.18] and its margin 0.22; its centre
within 0.06 of the image's along each axis; |t| in [0.03, 0.06]; v with a correlation length of 0.08 and 0.03 in each
component (standard deviation), or half of it, and so on, until the map's determinant is above 0.1 everywhere. The
moving image is a smooth texture with a bright ball and dark blobs around it; the noise's deviation is 0.03.

There are no files, see ``common.data.generated``. Labels: the ball, ``stiff``, and the blobs, ``soft``.

Reference: none; this project's, for the claim of Chen et al., Spatially-varying regularization with conditional
transformer, arXiv 2023, Sec. 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from ..spatial.jacobian import jacobian_determinant

# What every data set offers, and here is that of all generated ones.
from .generated import LAYOUT, SPLITS, generator_of, ordered, root, split_of, subjects, write_example  # noqa: F401
from .layout import PHANTOM_NAME

LABELS = {"stiff": 1, "soft": 2}
ORIENTATION, SPACING, SPACING_RANGE = "RAS", None, None  # there is no physical unit
SPATIAL_SIZE = (64, 64)  # of the network's window
# How inference reads a pair of images; what is not said here is as in training.
INFERENCE = {
    "align": "physical", "orientation": ORIENTATION, "spacing": SPACING, "spacing_range": SPACING_RANGE,
    "crop_center": "middle", "percentiles": [0, 100],
}  # fmt: skip
PHANTOM = None
MIN_SIZE = 24  # voxels
MARGIN, NOISE, LEAST_DETERMINANT = 0.22, 0.03, 0.1
BLOBS = 6
Array = NDArray[np.float64]


def datalist(
    dataset_dir: str | Path = PHANTOM_NAME,
    split: str = "train",
    count: int | Mapping[str, int] | None = None,
    spatial_size: Sequence[int] = SPATIAL_SIZE,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What the pairs of a split are generated from, in the order of ``load_pairs``.

    Args:
        dataset_dir: "phantom".
        split: 'train', 'validation' or 'test', disjoint random streams, or 'all': these three, one after the other.
        count: pairs of each split, see ``generated.subjects``.
        spatial_size: voxels, 2 or 3 numbers of at least 24.
        seed: of everything random, >= 0.

    Returns:
        A dict a pair: ``subject``, and under ``generated`` the arguments of ``generate``. JSON-serialisable.

    Raises:
        DatasetLayoutError: for another ``dataset_dir``.
        ValueError: for an unknown split, with the nearest known one, and numbers out of range.
    """
    names = ordered(dataset_dir, split, count)
    if len(spatial_size) not in (2, 3) or min(spatial_size) < MIN_SIZE:
        raise ValueError(
            f"spatial_size: expected 2 or 3 numbers of at least {MIN_SIZE} voxels, got {tuple(spatial_size)}; in less "
            "there is no room for a ball and its surroundings."
        )
    how = {"spatial_size": [int(n) for n in spatial_size], "seed": seed}
    return [{"subject": name, "generated": how} for name in names]


def load_pairs(
    dataset_dir: str | Path = PHANTOM_NAME,
    split: str = "train",
    count: int | Mapping[str, int] | None = None,
    spatial_size: Sequence[int] = SPATIAL_SIZE,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Generate the pairs of a split.

    Args:
        dataset_dir: see ``datalist``.
        split: see ``datalist``.
        count: see ``datalist``.
        spatial_size: see ``datalist``.
        seed: see ``datalist``.

    Returns:
        A dict a pair, see ``generate``.

    Raises:
        DatasetLayoutError, ValueError: as ``datalist``.
    """
    entries = datalist(dataset_dir, split, count, spatial_size, seed)
    return [generate(entry["subject"], **entry["generated"]) for entry in entries]


def example_pair(
    dataset_dir: str | Path = PHANTOM_NAME, spatial_size: Sequence[int] = SPATIAL_SIZE
) -> tuple[Path, Path]:
    """Write the first test pair as NIfTI, voxels of 1 mm, into a new temporary folder.

    Args:
        dataset_dir: "phantom".
        spatial_size: see ``datalist``.

    Returns:
        Files of moving and fixed.
    """
    return write_example(load_pairs(dataset_dir, "test", 1, spatial_size)[0])


def generate(subject: str, spatial_size: Sequence[int], seed: int) -> dict[str, Any]:
    """Draw a pair.

    Args:
        subject: 'train_00017'.
        spatial_size: see ``datalist``.
        seed: see ``datalist``.

    Returns:
        ``moving_image``, ``fixed_image``: float32 ``(1, *S)`` in [0, 1]; ``moving_label``, ``fixed_label``: uint8
        ``(1, *S)``, see ``LABELS``; ``true_ddf``: float32 ``(d, *S)``, voxels; ``centre``: float32 ``(d,)``, the
        image's, voxels; ``subject``; ``spacing``: float32 ``(d,)``, NaN, as there is no physical unit.
    """
    rng = generator_of(subject, seed)
    shape, side = tuple(spatial_size), min(spatial_size) - 1.0
    points = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in shape], indexing="ij"))
    last = np.array(shape) - 1.0
    centre = last / 2 + rng.uniform(-0.06, 0.06, len(shape)) * side
    radius = rng.uniform(0.14, 0.18) * side
    direction = rng.standard_normal(len(shape))
    shift = direction / np.linalg.norm(direction) * rng.uniform(0.03, 0.06) * side
    ddf = _displacement(points, centre, radius, shift, side, rng)
    image, label = _moving(points, centre + shift, radius, side, rng)
    where = points + ddf
    fixed = map_coordinates(image, where, order=3, mode="nearest")
    fixed_label = map_coordinates(label, where, order=0, mode="nearest")
    noisy = [np.clip(values + rng.normal(0, NOISE, shape), 0, 1) for values in (image, fixed)]
    moving_image, fixed_image = (torch.from_numpy(values[None]).float() for values in noisy)
    return {
        "moving_image": moving_image, "fixed_image": fixed_image,
        "moving_label": torch.from_numpy(label[None]), "fixed_label": torch.from_numpy(fixed_label[None]),
        "true_ddf": torch.from_numpy(ddf).float(), "centre": torch.tensor(last / 2, dtype=torch.float32),
        "subject": subject, "spacing": torch.full((len(shape),), torch.nan),
    }  # fmt: skip


def stiffness(points: Array, centre: Array, radius: float, margin: float) -> Array:
    """1 within a ball, 0 beyond its margin, and 1 - 3 q^2 + 2 q^3 between, q the share of the margin.

    Args:
        points: (d, *S) voxels.
        centre: (d,) voxels, of the ball.
        radius: voxels.
        margin: voxels, > 0.

    Returns:
        (*S).
    """
    q = np.clip((_distance(points, centre) - radius) / margin, 0, 1)
    return 1 - q**2 * (3 - 2 * q)


def _displacement(points: Array, centre: Array, radius: float, shift: Array, side: float, rng: Generator) -> Array:
    shape = points.shape[1:]
    stiff = stiffness(points, centre, radius, MARGIN * side)
    waves = np.stack([gaussian_filter(rng.standard_normal(shape), 0.08 * side, mode="reflect") for _ in shape])
    waves *= 0.03 * side / waves.std(axis=tuple(range(1, waves.ndim)), keepdims=True)
    last = np.array(shape).reshape(-1, *[1] * len(shape)) - 1.0
    border = np.minimum(points, last - points).min(0)
    soft = (1 - stiff) * np.clip(border / (0.15 * side), 0, 1)
    moved = stiff * shift.reshape(last.shape)
    while True:
        ddf = moved + soft * waves
        if float(jacobian_determinant(torch.from_numpy(ddf[None])).min()) > LEAST_DETERMINANT:
            return ddf
        waves = waves / 2


def _moving(points: Array, centre: Array, radius: float, side: float, rng: Generator) -> tuple[Array, NDArray[Any]]:
    shape, axes = points.shape[1:], len(points)
    texture = gaussian_filter(rng.standard_normal(shape), 0.035 * side, mode="reflect")
    image = 0.45 + 0.1 * texture / texture.std()
    image += 0.3 * np.clip(radius - _distance(points, centre) + 0.5, 0, 1)
    label = (_distance(points, centre) <= radius).astype(np.uint8)
    for _ in range(BLOBS):
        away = rng.standard_normal(axes)
        size = rng.uniform(0.05, 0.08) * side
        at = centre + away / np.linalg.norm(away) * (radius + size + rng.uniform(0.02, 0.14) * side)
        inside = size - _distance(points, at)
        image -= 0.3 * np.clip(inside + 0.5, 0, 1) * (label != 1)
        label[(inside >= 0) & (label == 0)] = LABELS["soft"]
    return np.clip(image, 0, 1), label


def _distance(points: Array, centre: Array) -> Array:
    return np.linalg.norm(points - centre.reshape(-1, *[1] * (points.ndim - 1)), axis=0)
