# SPDX-License-Identifier: Apache-2.0
"""What a scanner adds to a phantom: smooth texture, coil shading and noise."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import i0e, i1e

Array = NDArray[np.float64]


def smooth_texture(shape: tuple[int, ...], sigma: float, rng: Generator, depth: float = 0.6) -> Array:
    """Smooth random field of unit variance.

    Args:
        shape: of the field.
        sigma: width in the plane, in voxels.
        rng: advanced by the draws.
        depth: width across the slices.

    Returns:
        The field.
    """
    field = gaussian_filter(rng.standard_normal(shape), (sigma, sigma, depth))
    return field / field.std()


def magnitude(signal: Array, deviation: Array | float, rng: Generator) -> Array:
    """Magnitude image of a signal with Gaussian noise in both of its channels: Rician.

    Args:
        signal: (*S), from 0.
        deviation: of the noise of a channel, (*S) or a number.
        rng: advanced by the draws.

    Returns:
        (*S).
    """
    noise = deviation * rng.standard_normal((2, *signal.shape))
    return np.hypot(signal + noise[0], noise[1])


def rician_deviation(signal: Array, deviation: Array | float) -> Array:
    """Standard deviation of ``magnitude``: σ where the signal is strong, σ √(2 − π/2) where there is none.

    Var = 2σ² + ν² − (π/2) σ² L(−ν²/2σ²)², L the Laguerre polynomial of degree ½.

    Args:
        signal: ν, (*S), from 0.
        deviation: σ of a channel, above 0, (*S) or a number.

    Returns:
        (*S).

    Reference:
        Gudbjartsson and Patz, Magnetic Resonance in Medicine 34(6), 1995.
    """
    half = np.square(signal / deviation) / 4
    laguerre = (1 + 2 * half) * i0e(half) + 2 * half * i1e(half)
    return deviation * np.sqrt(np.maximum(2 + 4 * half - np.pi / 2 * laguerre**2, 0))


def acquire(
    signal: Array, coil: Array, noise_factor: Array, rng: Generator, unit: float
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Scanner: coil shading with a part of its own in each frame, and Rician noise that varies over the image.

    Args:
        signal: in [0, 1].
        coil: shading, a factor.
        noise_factor: of each voxel.
        rng: advanced by the draws.
        unit: voxels a reference pixel.

    Returns:
        Grey levels, and the standard deviation of each, rounding included.
    """
    own = np.exp(0.06 * smooth_texture(signal.shape, 28 * unit, rng, 2.0))
    seen, deviation = signal * coil * own, 0.022 * noise_factor
    image = np.rint(400 * magnitude(seen, deviation, rng)).astype(np.int16)
    return image, np.sqrt((400 * rician_deviation(seen, deviation)) ** 2 + 1 / 12).astype(np.float32)
