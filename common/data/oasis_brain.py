# SPDX-License-Identifier: Apache-2.0
"""The brain of the OASIS phantom: one anatomy of 35 structures, and the smooth maps by which subjects differ.

Template coordinates t are mm from the middle of a 160 x 224 x 192 mm box: t[0] to the right, t[1] to the front, t[2]
upwards. A subject is the template seen through t = u(x), x being mm from the middle of its own box. So any two subjects
correspond exactly: what lies at x in one lies in another at the y with u'(y) = u(x).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .oasis_labels import LABELS
from .scanner import Array

Point = tuple[float, float, float]
Ellipsoid = tuple[Point, Point, float]  # centre and radii in mm, signal
WHITE, GREY, FLUID = 0.75, 0.50, 0.10
CEREBRUM = ((0.0, 0.0, 8.0), (66.0, 84.0, 60.0))
CEREBELLUM = ((24.0, -50.0, -42.0), (29.0, 26.0, 21.0))
FLUID_SPACE = 4.0  # mm of fluid around the cortex
VENTRICLES = np.array([0.0, -2.0, 12.0])
# Centre and radii in mm at the right side, mirrored to the left, and signal; later ones cover earlier ones.
STRUCTURES: dict[str, Ellipsoid] = {
    "lateral_ventricle": ((12, -2, 14), (7, 30, 8), FLUID),
    "choroid_plexus": ((13, -18, 14), (5, 8, 5), 0.30),
    "inferior_lateral_ventricle": ((33, -18, -14), (5.5, 12, 5.5), FLUID),
    "hippocampus": ((29, -22, -25), (7, 16, 6), GREY),
    "amygdala": ((26, 3, -24), (7, 7, 7), GREY - 0.02),
    "thalamus": ((11, -18, 0), (8, 12, 7), 0.62),
    "caudate": ((24, 11, 14), (5.5, 15, 8), GREY),
    "putamen": ((33, 4, 0), (6, 16, 10), 0.55),
    "pallidum": ((22, -3, -1), (5.5, 8, 6), 0.67),
    "accumbens": ((11, 15, -8), (5.5, 6, 5.5), GREY + 0.02),
    "ventral_dc": ((9, -14, -14), (6.5, 8, 6), 0.66),
    "vessel": ((22, 12, -13), (5, 5, 5), 0.35),
}
MIDDLE: dict[str, Ellipsoid] = {
    "brain_stem": ((0, -26, -38), (11, 10, 20), 0.70),
    "third_ventricle": ((0, -10, -2), (3.5, 14, 8), FLUID),
    "fourth_ventricle": ((0, -39, -34), (6, 5, 8), FLUID),
}


class Map(NamedTuple):
    """A subject's u(x) = A (x - shift) + waves + a widening of the ventricles; mm.

    linear: (3, 3). shift: (3,). waves: (3, n, 5), for each component n waves of amplitude, wave vector, phase.
    widening: negative where the ventricles are large.
    """

    linear: Array
    shift: Array
    waves: Array
    widening: float


def draw_map(rng: Generator) -> Map:
    """Draw pose, size and shape of a subject.

    Args:
        rng: advanced by the draws.

    Returns:
        The map.
    """
    count = 4
    vectors = rng.standard_normal((3, count, 3))
    vectors *= 2 * np.pi / rng.uniform(60, 130, (3, count, 1)) / np.linalg.norm(vectors, axis=-1, keepdims=True)
    amplitudes, phases = rng.normal(0, 1.3, (3, count, 1)), rng.uniform(0, 2 * np.pi, (3, count, 1))
    rotation = Rotation.from_rotvec(rng.normal(0, 0.03, 3)).as_matrix()
    return Map(
        linear=rotation / rng.normal(1, 0.03, (3, 1)),
        shift=rng.normal(0, 1.0, 3),
        waves=np.concatenate([amplitudes, vectors, phases], axis=-1),
        widening=rng.uniform(-0.3, 0.1),
    )


def to_template(points: Array, subject: Map) -> Array:
    """u(x).

    Args:
        points: (3, ...), x in mm.
        subject: whose map it is.

    Returns:
        (3, ...), template coordinates in mm.
    """
    centred = points - _broadcast(subject.shift, points)
    placed = np.tensordot(subject.linear, centred, 1)
    result = placed.copy()
    for component, waves in zip(result, subject.waves, strict=True):
        for amplitude, *vector, phase in waves:
            component += amplitude * np.sin(np.tensordot(vector, placed, 1) + phase)
    offset = placed - _broadcast(VENTRICLES, points)
    return result + subject.widening * offset * np.exp(-np.square(offset).sum(0) / (2 * 24.0**2))


def from_template(template: Array, subject: Map, iterations: int = 60, tolerance: float = 1e-4) -> Array:
    """u⁻¹: the x with u(x) = t, by a fixed-point iteration.

    Args:
        template: (3, ...), t in mm.
        subject: whose map it is.
        iterations: upper bound.
        tolerance: largest |u(x) - t| in mm.

    Returns:
        (3, ...), x in mm.

    Raises:
        RuntimeError: where it does not converge, as the map folds.
    """
    inverse = np.linalg.inv(subject.linear)
    points = np.tensordot(inverse, template, 1) + _broadcast(subject.shift, template)
    for _ in range(iterations):
        residual = to_template(points, subject) - template
        if np.abs(residual).max() <= tolerance:
            return points
        points -= np.tensordot(inverse, residual, 1)
    raise RuntimeError("from_template: the subject's map was not inverted; draw it with smaller waves.")


def _broadcast(values: Array, like: Array) -> Array:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _distance(t: Array, centre: tuple[float, ...], radii: tuple[float, ...]) -> Array:
    """Approximate signed distance (mm, negative inside) to an ellipsoid."""
    level = np.sqrt(sum(((a - c) / r) ** 2 for a, c, r in zip(t, centre, radii, strict=True)))
    return (level - 1) * min(radii)


def paint(t: Array, blur: float, more: Mapping[str, Ellipsoid] | None = None) -> tuple[Array, NDArray[np.uint8]]:
    """Signal and label at template coordinates.

    Args:
        t: (3, *S) in mm.
        blur: width of an edge in the image, in mm.
        more: centre, radii and signal of further ellipsoids, of one label on both sides: the values after OASIS's.

    Returns:
        Signal in [0, 1], 0 outside of the brain, and label; (*S) each.
    """
    image, label = np.zeros(t.shape[1:]), np.zeros(t.shape[1:], np.uint8)
    side, right = np.stack([np.abs(t[0]), t[1], t[2]]), t[0] > 0

    known = [*LABELS, *(more or {})]

    def fill(distance: Array, value: Array | float, name: str | None = None, paired: bool = True) -> None:
        share = np.clip(0.5 - distance / blur, 0, 1)
        image[...] += share * share * (3 - 2 * share) * (value - image)
        if name is not None:
            names = [f"{which}_{name}" if paired else name for which in ("left", "right")[: 1 + paired]]
            values = [1 + known.index(each) for each in names]
            label[...] = np.where(distance < 0, np.where(right, values[-1], values[0]), label)

    cerebrum, cerebellum = _distance(t, *CEREBRUM), _distance(side, *CEREBELLUM)
    waves = np.sin(0.24 * t[1] + 0.5) + np.sin(0.22 * t[2] + 0.09 * side[0]) + np.sin(0.23 * side[0] - 0.1 * t[1])
    fill(np.minimum(cerebrum, cerebellum) - FLUID_SPACE, FLUID)
    fissure = 1.5 - side[0]  # between the hemispheres
    fill(np.maximum(cerebrum, fissure), GREY, "cerebral_cortex")
    fill(np.maximum(np.abs(waves) - 0.15, np.abs(cerebrum + 3) - 3), 0.3)  # sulci, in the image alone
    fill(np.maximum(cerebrum + 8 + 2.5 * waves, fissure), WHITE, "cerebral_white_matter")
    fill(cerebellum, GREY - 0.03, "cerebellum_cortex")
    fill(cerebellum + 7 + 1.5 * np.sin(0.5 * t[2]), WHITE - 0.03, "cerebellum_white_matter")
    for name, (centre, radii, value) in STRUCTURES.items():
        fill(_distance(side, centre, radii), value, name)
    for name, (centre, radii, value) in MIDDLE.items():
        fill(_distance(t, centre, radii), value, name, paired=False)
    for name, (centre, radii, value) in (more or {}).items():
        fill(_distance(side, centre, radii), value, name, paired=False)
    return image, label
