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


def moved(field: Complex, ddf: Array, rng: Generator, correlation: float, along: float, across: float,
          axis: int = -1) -> Complex:  # fmt: skip
    """Scattering after the tissue has moved: c S(x + ddf(x)) + √(1 - c²) S', with S' drawn anew.

    S' stands for scatterers that have left or entered the beam: speckle loses its likeness in between two frames.

    Args:
        field: S, as ``scattering`` returns it.
        ddf: (d, *S), in voxels: the tissue at x was at x + ddf(x).
        rng: advanced by the draws.
        correlation: c, from 0 (all new) to 1 (all kept).
        along: see ``scattering``.
        across: see ``scattering``.
        axis: see ``scattering``.

    Returns:
        Shape of ``field``.

    Raises:
        ValueError: for a correlation outside of [0, 1].
    """
    if not 0 <= correlation <= 1:
        raise ValueError(f"correlation: expected 0 to 1, got {correlation}.")
    at = np.indices(field.shape) + ddf
    kept = [map_coordinates(part, at, order=3, mode="grid-wrap") for part in (field.real, field.imag)]
    fresh = scattering(field.shape, rng, along, across, axis)
    return correlation * (kept[0] + 1j * kept[1]) + np.sqrt(1 - correlation**2) * fresh


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
