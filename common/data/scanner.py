# SPDX-License-Identifier: Apache-2.0
"""What a scanner adds to a phantom: smooth texture, coil shading and noise."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

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


def acquire(signal: Array, coil: Array, noise_factor: Array, rng: Generator, unit: float) -> NDArray[np.int16]:
    """Scanner: coil shading with a part of its own in each frame, and Rician noise that varies over the image.

    Args:
        signal: in [0, 1].
        coil: shading, a factor.
        noise_factor: of each voxel.
        rng: advanced by the draws.
        unit: voxels a reference pixel.

    Returns:
        Grey levels.
    """
    own = np.exp(0.06 * smooth_texture(signal.shape, 28 * unit, rng, 2.0))
    noise = 0.022 * noise_factor * rng.standard_normal((2, *signal.shape))
    return np.rint(400 * np.hypot(signal * coil * own + noise[0], noise[1])).astype(np.int16)
