# SPDX-License-Identifier: Apache-2.0
"""Random triangles and circles, in 3D tetrahedra and balls, as signed distances.

Lengths are fractions of the image's shortest side; ``common.data.triangles`` states their ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import known_name

SHAPES = ("triangle", "circle")
RADIUS, SHIFT, MARGIN = (0.2, 0.4), 0.15, 0.05  # of the shortest side


class Shape(NamedTuple):
    """A ball or the regular simplex inside it, in a space of d = 2 or 3 dimensions.

    ``centre`` float64 ``(d,)``, voxels; ``radius`` in voxels; ``directions`` float64 ``(d + 1, d)``: unit vectors, the
    simplex's vertices are ``centre + radius * directions``; None for a ball.
    """

    centre: Tensor
    radius: float
    directions: Tensor | None


def draw_shape(kind: str, spatial_size: Sequence[int], rng: np.random.Generator) -> Shape:
    """Draw radius, centre and orientation at random, see ``common.data.triangles`` for the ranges.

    Args:
        kind: 'triangle' (3D: tetrahedron) or 'circle' (3D: ball).
        spatial_size: voxels of the image, one number an axis.
        rng: advanced by the draws.

    Returns:
        The shape.

    Raises:
        ValueError: for an unknown kind, with the nearest known one.
    """
    known_name("kind", kind, SHAPES)
    last = np.array(spatial_size) - 1.0
    unit, d = last.min(), len(last)
    radius = unit * rng.uniform(*RADIUS)
    reach = np.minimum(unit * SHIFT, last / 2 - radius - unit * MARGIN)
    centre = last / 2 + reach * rng.uniform(-1, 1, d)
    directions = None
    if kind == "triangle":
        # The polar factor of centred normal numbers has orthonormal columns that sum to 0, and is uniform among those
        # matrices: its rows are the vertices of a regular simplex in a uniform orientation.
        numbers = rng.standard_normal((d + 1, d))
        left, _, right = np.linalg.svd(numbers - numbers.mean(0), full_matrices=False)
        directions = torch.from_numpy(left @ right * np.sqrt((d + 1) / d))
    return Shape(torch.from_numpy(centre), float(radius), directions)


def signed_distance(shape: Shape, spatial_size: Sequence[int]) -> Tensor:
    """Signed distance D to a shape's boundary, negative inside.

    Ball: B(x) = |x - c| - r. Simplex, with n_i the outward normals of its faces, which are opposite the directions to
    the vertices: D(x) = max(max_i n_i (x - c) - r / d, B(x)). That is the Euclidean distance inside and beside the
    faces; beyond edges and corners it is a lower bound, which B, without effect inside, keeps from reaching far out.

    Args:
        shape: as ``draw_shape`` returns.
        spatial_size: voxels of the image.

    Returns:
        float64 ``(*S)``, voxels.
    """
    axes = [torch.arange(n, dtype=torch.float64) - c for n, c in zip(spatial_size, shape.centre, strict=True)]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    ball = offsets.square().sum(0).sqrt() - shape.radius
    if shape.directions is None:
        return ball
    faces = torch.tensordot(-shape.directions, offsets, dims=1) - shape.radius / len(axes)
    return torch.maximum(faces.amax(0), ball)
