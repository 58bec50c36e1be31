# SPDX-License-Identifier: Apache-2.0
"""A breathing chest: two lungs with a tree of vessels each, at inspiration and at expiration, with landmarks.

Positions are mm from the middle of the chest at inspiration: x to the left, y to the back, z upwards. What lies at y at
expiration lies at ψ(y) at inspiration, and nothing is interpolated: both images are painted from the same anatomy. With
t = (top − z) / H, H the height of the lungs, clipped to [0, 1]::

    ψ(y) = y + (0.06 x, 0.09 y, −A) · (3t² − 2t³) + smooth waves

The base of the lungs moves by A, a fifth of their height, their top not at all. So tissue expands most in the middle.
Lungs are lighter at inspiration, as they hold more air.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .scanner import Array, smooth_texture

FIELD = np.array([96.0, 80.0, 96.0])  # mm, of the volume: about a quarter of a chest's
HEIGHT, TOP = 64.0, 32.0  # mm, of the lungs
LUNGS = ((-18.0, 14.5), (18.0, 14.0))  # middle along x and half width, right and left
DEPTH = 21.0  # mm, half of the lungs' extent from front to back
AIR, TISSUE, FAT, VESSEL = -1000.0, 40.0, -90.0, 60.0  # HU
LUNG = {"inspiration": -860.0, "expiration": -740.0}
GENERATIONS = 6


class Chest(NamedTuple):
    """One chest; mm.

    reach: A, how far the base of the lungs moves. waves: (3, n, 5), for each component n waves of amplitude, wave
    vector, phase. pieces: (n, 7), pieces of vessels: both ends and radius. ends: (m, 3), where vessels branch.
    """

    reach: float
    waves: Array
    pieces: Array
    ends: Array


def draw_chest(rng: Generator) -> Chest:
    """Draw a chest.

    Args:
        rng: advanced by the draws.

    Returns:
        The chest.
    """
    vectors = rng.standard_normal((3, 3, 3))
    vectors *= 2 * np.pi / rng.uniform(45, 80, (3, 3, 1)) / np.linalg.norm(vectors, axis=-1, keepdims=True)
    waves = np.concatenate([rng.normal(0, 0.35, (3, 3, 1)), vectors, rng.uniform(0, 2 * np.pi, (3, 3, 1))], axis=-1)
    trees = [_tree(middle, rng) for middle, _ in LUNGS]
    pieces = np.concatenate([pieces for pieces, _ in trees])
    return Chest(rng.uniform(0.18, 0.24) * HEIGHT, waves, pieces, np.concatenate([ends for _, ends in trees]))


def _tree(middle: float, rng: Generator) -> tuple[Array, Array]:
    """A tree that starts at the hilum and keeps inside its lung."""
    pieces, ends = [], []
    level = [(np.array([0.45 * middle, 0.0, 2.0]), np.array([np.sign(middle), 0.0, -0.2]), 1.9)]
    for generation in range(GENERATIONS):
        following = []
        for start, heading, radius in level:
            for _ in range(8):  # towards another side, where the lung ends
                towards = heading + (rng.normal(0, 0.6, 3) if generation else 0)
                end = start + towards / np.linalg.norm(towards) * rng.uniform(6, 11) * 0.95**generation
                if generation == 0 or inside_lungs(end[:, None], margin=0.92)[0]:
                    pieces.append([*start, *end, radius])
                    ends.append(end)
                    outwards = (end - start) / np.linalg.norm(end - start)
                    following += [(end, outwards + rng.normal(0, 0.8, 3), 0.8 * radius) for _ in range(2)]
                    break
        level = following
    return np.array(pieces), np.array(ends)


def inside_lungs(points: Array, margin: float = 1.0) -> NDArray[np.bool_]:
    """Whether positions at inspiration lie in a lung.

    Args:
        points: (3, ...), mm.
        margin: share of the lungs' half-axes.

    Returns:
        (...).
    """
    x, y, z = points
    base = -TOP + 0.012 * (x**2 / 2 + y**2)  # the dome of the diaphragm, upside down: lower at the edge
    dome = -TOP + 14 * np.exp(-(((np.abs(x) - 16) / 13) ** 2) - (y / 18) ** 2)
    inside = np.zeros(x.shape, dtype=bool)
    for middle, half in LUNGS:
        taper = np.clip((TOP - z) / 16, 0, 1) ** 0.5  # narrow at the top
        level = ((x - middle) / (margin * half * taper + 1e-6)) ** 2 + (y / (margin * DEPTH * taper + 1e-6)) ** 2
        inside |= (level < 1) & (z < margin * TOP) & (z > np.maximum(dome, base - 40) + (1 - margin) * TOP)
    return inside


def to_inspiration(points: Array, chest: Chest) -> Array:
    """ψ: where what lies somewhere at expiration lies at inspiration.

    Args:
        points: (3, ...), mm.
        chest: whose.

    Returns:
        (3, ...), mm.
    """
    x, y, z = points
    t = np.clip((TOP - z) / (HEIGHT - chest.reach), 0, 1)
    share = t * t * (3 - 2 * t)
    moved = points + np.stack([0.06 * x, 0.09 * y, np.full_like(z, -chest.reach)]) * share
    ones = (1,) * (points.ndim - 1)
    angle = np.einsum("cnk,k...->cn...", chest.waves[..., 1:4], points) + chest.waves[..., 4].reshape(3, -1, *ones)
    return moved + (chest.waves[..., 0].reshape(3, -1, *ones) * np.sin(angle)).sum(1)


def to_expiration(points: Array, chest: Chest) -> Array:
    """The inverse of ψ, by iteration: where what lies somewhere at inspiration lies at expiration.

    Args:
        points: (3, ...), mm.
        chest: whose.

    Returns:
        (3, ...), mm, to 1e-4 mm.

    Raises:
        ArithmeticError: where the iteration does not end there.
    """
    found = points.copy()
    for _ in range(200):
        error = points - to_inspiration(found, chest)
        if np.abs(error).max() < 1e-4:
            return found
        found = found + 0.7 * error
    raise ArithmeticError(f"expected the map of the chest to be inverted to 1e-4 mm, got {np.abs(error).max():.2g} mm.")


def positions(shape: Sequence[int], spacing: Sequence[float]) -> Array:
    """Voxels of a volume whose middle is that of the chest.

    Args:
        shape: voxels to the left, the back and upwards.
        spacing: mm along each.

    Returns:
        (3, *shape), mm.
    """
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def paint(points: Array, chest: Chest, phase: str, width: float, rng: Generator) -> tuple[Array, NDArray[np.uint8]]:
    """CT of a phase.

    Args:
        points: (3, X, Y, Z), mm, of that phase.
        chest: whose.
        phase: "inspiration" or "expiration".
        width: mm, of the edges of vessels.
        rng: of the noise, advanced by the draws.

    Returns:
        HU (X, Y, Z), and the lungs, 1 inside.
    """
    anatomy = points if phase == "inspiration" else to_inspiration(points, chest)
    x, y, _ = anatomy
    lungs = inside_lungs(anatomy)
    body = (x / 44) ** 2 + (y / 34) ** 2
    image = np.where(body < 0.8, TISSUE, np.where(body < 1, FAT, AIR))
    parenchyma = LUNG[phase] + 12 * smooth_texture(x.shape, 1.2, rng, 1.2)
    image = np.where(lungs, parenchyma, image)
    near = np.flatnonzero(lungs.ravel())
    distance = _distance(anatomy.reshape(3, -1)[:, near], chest.pieces)
    share = np.clip(0.5 - distance / width, 0, 1)
    flat = image.ravel()
    flat[near] += share * (VESSEL - flat[near])
    return flat.reshape(image.shape) + rng.normal(0, 12, image.shape), lungs.astype(np.uint8)


def _distance(points: Array, pieces: Array) -> Array:
    """Distance (N,) of points (3, N) from the surface of the nearest vessel, negative inside."""
    nearest = np.full(points.shape[1], np.inf)
    for piece in pieces:
        start, along, radius = piece[:3, None], (piece[3:6] - piece[:3])[:, None], piece[6]
        t = np.clip(((points - start) * along).sum(0) / (along**2).sum(), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(points - start - t * along, axis=0) - radius)
    return nearest
