# SPDX-License-Identifier: Apache-2.0
"""What an ultrasound scanner makes of tissue, in 2D and 3D: speckle, attenuation, field of view, log compression.

A resolution cell holds many scatterers of random phase. Their sum, smoothed by the point-spread function, is a complex
Gaussian field S of unit variance; its magnitude, the envelope, has the Rayleigh distribution. An image is the envelope
times the square root of the tissue's echogenicity, weakened with depth, and shown in decibels.

The point-spread function is wide across the beam and narrow along it. It lies along the array's axes, as if all beams
ran along one of them: that differs from a sector's, whose beams fan out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from .scanner import Array

Complex = NDArray[np.complex128]


def scattering(shape: Sequence[int], rng: Generator, along: float, across: float, axis: int = -1) -> Complex:
    """Sum of the scatterers in each resolution cell, a complex Gaussian field S of unit variance.

    Args:
        shape: of the field, d numbers.
        rng: advanced by the draws.
        along: standard deviation of the point-spread function along the beam, in voxels.
        across: likewise across it, along all other axes.
        axis: of the array, along which the beams run.

    Returns:
        Shape ``shape``; ``np.abs`` of it is the envelope.
    """
    widths = np.full(len(shape), float(across))
    widths[axis] = along
    parts = [gaussian_filter(rng.standard_normal(shape), widths, mode="wrap", truncate=3.0) for _ in range(2)]
    field = parts[0] + 1j * parts[1]
    return field / np.sqrt(np.mean(np.abs(field) ** 2))


def carried(field: Complex, ddf: Array) -> Complex:
    """Scattering that moves with the tissue: S(x + ddf(x)).

    Args:
        field: S, as ``scattering`` returns it.
        ddf: (d, *S), in voxels: the tissue at x was at x + ddf(x).

    Returns:
        Shape of ``field``.
    """
    at = np.indices(field.shape) + ddf
    real, imaginary = (map_coordinates(part, at, order=3, mode="grid-wrap") for part in (field.real, field.imag))
    return real + 1j * imaginary


def moved(field: Complex, ddf: Array, rng: Generator, correlation: Array | float, along: float, across: float,
          axis: int = -1) -> Complex:  # fmt: skip
    """Scattering after the tissue has moved: c S(x + ddf(x)) + √(1 - c²) S', with S' drawn anew.

    S' stands for scatterers that have left or entered the beam: speckle loses its likeness in between two frames.

    Args:
        field: S, as ``scattering`` returns it.
        ddf: see ``carried``.
        rng: advanced by the draws.
        correlation: c, from 0 (all new) to 1 (all kept); a number, or one at each voxel.
        along: see ``scattering``.
        across: see ``scattering``.
        axis: see ``scattering``.

    Returns:
        Shape of ``field``.

    Raises:
        ValueError: for a correlation outside of [0, 1].
    """
    if np.min(correlation) < 0 or np.max(correlation) > 1:
        raise ValueError(f"correlation: expected 0 to 1, got {correlation}.")
    fresh = scattering(field.shape, rng, along, across, axis)
    return correlation * carried(field, ddf) + np.sqrt(1 - np.square(correlation)) * fresh


def correlation_at(depth: Array, correlation: float) -> Array:
    """Likeness of speckle between two frames, which is lost with depth, where beams are wide and turned the most.

    c = √(1 − f²), the fresh part f growing twentyfold from the probe to the end: f = √(1 − c₀²) 20^(t − ¾), at most
    0.98.

    Args:
        depth: t, 0 at the probe and 1 at the end of the field of view.
        correlation: c₀, at three quarters of the depth.

    Returns:
        Shape of ``depth``.
    """
    fresh = np.sqrt(1 - correlation**2) * 20 ** (np.clip(depth, 0, 1) - 0.75)
    return np.sqrt(1 - np.minimum(fresh, 0.98) ** 2)


def speckle(shape: Sequence[int], rng: Generator, along: float, across: float, axis: int = -1) -> Array:
    """Envelope of ``scattering``: Rayleigh, mean square 1.

    Args:
        shape: see ``scattering``.
        rng: see ``scattering``.
        along: see ``scattering``.
        across: see ``scattering``.
        axis: see ``scattering``.

    Returns:
        Shape ``shape``.
    """
    return np.abs(scattering(shape, rng, along, across, axis))


def attenuation(depth: Array, half: float) -> Array:
    """Factor by which the amplitude falls with depth, 2^(-depth / half).

    Args:
        depth: from the probe, in any unit of length.
        half: depth at which the amplitude has halved, in that unit.

    Returns:
        Shape of ``depth``.
    """
    return np.exp2(-depth / half)


def sector(offset: Array, half_angles: Sequence[float], near: float, far: float, axis: int = -1) -> NDArray[np.bool_]:
    """Field of view of a probe: in 2D a fan, in 3D a pyramid with a rounded base.

    Args:
        offset: (d, *S), positions relative to the probe's apex, in any unit of length.
        half_angles: half the opening angle towards each of the other axes, in radians, d - 1 numbers.
        near: smallest distance from the apex.
        far: largest distance from the apex.
        axis: of the d, along which the middle beam runs.

    Returns:
        (*S), True inside.
    """
    reach = np.sqrt(np.square(offset).sum(0))
    others = np.delete(offset, axis, axis=0)
    inside = (reach >= near) & (reach <= far)
    for part, half_angle in zip(others, half_angles, strict=True):
        inside &= np.abs(np.arctan2(part, offset[axis])) <= half_angle
    return inside


def log_compressed(amplitude: Array, decibels: float) -> Array:
    """What the screen shows: 1 + 20 log10(amplitude) / decibels, limited to [0, 1].

    Args:
        amplitude: 1 is shown as white.
        decibels: dynamic range; amplitudes that far below 1 are black.

    Returns:
        Shape of ``amplitude``.
    """
    return np.clip(1 + 20 * np.log10(np.maximum(amplitude, 1e-12)) / decibels, 0, 1)


def shown_deviation(steady: Array, spread: Array, decibels: float) -> Array:
    """Standard deviation of ``log_compressed(|steady + spread n|)``, n complex Gaussian, E|n|² = 1.

    Numbers between 0 and 1 as the screen shows them; 5.57 dB where nothing is steady, 6.14 dB spread / steady where
    little is not, less where the screen is black or white. By numerical integration, to about one per cent.

    Args:
        steady: amplitude of what stays, from 0.
        spread: amplitude of what is drawn anew, from 0, the same shape.
        decibels: dynamic range, see ``log_compressed``.

    Returns:
        Shape of ``steady``.
    """
    spread = np.maximum(spread, 1e-9)
    ratios, sizes, table = _deviations(float(decibels))
    at = [np.arcsinh(steady / spread) / ratios[1], (np.log(spread) - sizes[0]) / (sizes[1] - sizes[0])]
    return map_coordinates(table, at, order=1, mode="nearest")


@lru_cache(maxsize=4)
def _deviations(decibels: float) -> tuple[Array, Array, Array]:
    """Axes asinh(steady / spread) and log(spread), and the table over both."""
    ratios, sizes = np.linspace(0, 8, 121), np.log(10) * np.linspace(-5, 1, 181)
    radius = np.sqrt(-np.log1p(-(np.arange(128) + 0.5) / 128))[:, None]
    angle = np.pi * (np.arange(24) + 0.5) / 24
    noise = (radius * np.exp(1j * angle)).ravel()
    amplitudes = np.abs(np.sinh(ratios)[:, None] + noise)
    table = [log_compressed(np.exp(size) * amplitudes, decibels).std(1) for size in sizes]
    return ratios, sizes, np.stack(table, axis=1)
