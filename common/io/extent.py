# SPDX-License-Identifier: Apache-2.0
"""Where the field of view of one image lies on the grid of another."""

from __future__ import annotations

from itertools import product

import numpy as np

from .images import Image


def extent_in(image: Image, grid: Image) -> tuple[np.ndarray, np.ndarray]:
    """The box around an image's field of view, half a voxel beyond its outer voxels' centres, on another grid.

    Args:
        image, grid: of as many axes; 2D ones lie in one plane. Their voxels are not read.

    Returns:
        Lowest and highest coordinate along each axis of ``grid``, (d,) each, in its voxels. The field of view of
        ``grid`` itself reaches from -0.5 to n - 0.5.
    """
    relative = np.linalg.inv(grid.affine) @ image.affine
    if image.array.dim() == 2:
        relative = relative[np.ix_([0, 1, 3], [0, 1, 3])]
    edges = np.array([(*corner, 1) for corner in product(*((-0.5, n - 0.5) for n in image.array.shape))])
    corners = (edges @ relative.T)[:, :-1]
    return corners.min(0), corners.max(0)
