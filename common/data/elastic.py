# SPDX-License-Identifier: Apache-2.0
"""Random elastic deformations whose displacement is known, for pairs that are made of one image each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import zoom
from torch import Tensor

from ..spatial.fields import compose
from ..spatial.jacobian import jacobian_determinant

# Standard deviation in pixels, and points an axis, of the control grids of the ICON code's retina images.
RETINA = ((25.0, 3), (12.0, 6))
RETINA_SIZE = 584  # pixels, the longer side of those images
DRAWS = 50


def elastic_displacement(
    shape: Sequence[int], rng: np.random.Generator, stages: Sequence[tuple[float, int]] = RETINA
) -> Tensor:
    """Displacement of several random deformations, one after the other, none of which folds.

    Each has its own grid of control points over the whole image, whose corners are the image's. Every component of
    every control point is drawn from N(0, σ²) and interpolated by cubic splines. An image is deformed by the first, the
    result by the second, and so on. Where the whole map folds, all are drawn anew.

    Departure: the ICON code keeps maps that fold. Images of another size are deformed in proportion.

    Args:
        shape: pixels along each axis, 2 or 3 numbers of at least 2.
        rng: advanced by the draws.
        stages: σ in pixels of an image whose longest side has 584, and control points an axis, of each.

    Returns:
        ``(d, *shape)`` float32, voxels: deformed(x) = image(x + u(x)).

    Raises:
        ValueError: for sizes or stages that are out of range, or where each of 50 draws folds.

    Reference:
        Greer et al., ICON, ICCV 2021 (its code: elastic deformations of retinal images).
    """
    if len(shape) not in (2, 3) or min(shape) < 2:
        raise ValueError(f"shape: expected 2 or 3 numbers of at least 2 pixels, got {tuple(shape)}.")
    if not stages or any(sigma < 0 or points < 2 for sigma, points in stages):
        raise ValueError(
            f"stages: expected a standard deviation from 0 and at least 2 control points each, got {stages}."
        )
    scale = max(shape) / RETINA_SIZE
    for _ in range(DRAWS):
        total = torch.zeros(1, len(shape), *shape)
        for sigma, points in stages:
            control = rng.normal(0, sigma * scale, (len(shape), *[points] * len(shape)))
            total = compose(total, _interpolated(control, shape))
        if float(jacobian_determinant(total).min()) > 0:
            return total[0]
    raise ValueError(
        f"stages: each of {DRAWS} draws of {stages} folds on an image of {tuple(shape)}; lower the standard deviations."
    )


def _interpolated(control: np.ndarray, shape: Sequence[int]) -> Tensor:
    """Control points (d, p, …), the outer ones on the image's corners -> (1, d, *shape)."""
    dense, points = control, control.shape[1]
    for axis, size in enumerate(shape):
        along = zoom(np.eye(points), (size / points, 1), order=3, mode="mirror")  # (size, points), cubic splines
        dense = np.moveaxis(np.tensordot(along, dense, (1, axis + 1)), 0, axis + 1)
    return torch.from_numpy(dense).float()[None]
