# SPDX-License-Identifier: Apache-2.0
"""Affine maps between spaces in mm, RAS, and what they do to points and grids."""

from __future__ import annotations

import numpy as np

from .images import Image


def checked_placement(placement: np.ndarray) -> np.ndarray:
    """A placement as (4, 4) float64.

    Args:
        placement: mm of fixed to mm of moving, RAS.

    Returns:
        The matrix.

    Raises:
        ValueError: where it is no invertible affine.
    """
    matrix = np.asarray(placement, dtype=np.float64)
    affine = matrix.shape == (4, 4) and np.isfinite(matrix).all() and np.array_equal(matrix[3], [0, 0, 0, 1])
    if not affine or abs(np.linalg.det(matrix[:3, :3])) <= 1e-9 * np.linalg.norm(matrix[:3, :3], axis=0).prod():
        raise ValueError(
            "placement: expected an invertible affine (4, 4) with the last row 0 0 0 1, from mm of fixed to mm of "
            f"moving, RAS, got {np.asarray(placement).tolist()}."
        )
    return matrix


def checked_points(points_mm: np.ndarray) -> np.ndarray:
    """Points as (N, 3) float64.

    Args:
        points_mm: in mm, RAS.

    Returns:
        The array.

    Raises:
        ValueError: for another shape.
    """
    points = np.asarray(points_mm, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points_mm: expected (N, 3) in mm, RAS, got the shape {points.shape}.")
    return points


def mapped(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points through an affine.

    Args:
        affine: (4, 4).
        points: (N, 3).

    Returns:
        (N, 3).
    """
    return points @ affine[:3, :3].T + affine[:3, 3]


def carried(image: Image, matrix: np.ndarray) -> Image:
    """The image with each of its voxels, at p, put at matrix · p; nothing is resampled.

    Args:
        image: its voxels are not read.
        matrix: (4, 4), mm, RAS.

    Returns:
        The image on that grid; itself for the identity.
    """
    if np.array_equal(matrix, np.eye(4)):
        return image
    affine = matrix @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[: len(image.spacing)]
    return image._replace(affine=affine, spacing=tuple(float(mm) for mm in spacing))
