# SPDX-License-Identifier: Apache-2.0
"""Affine maps of the unit cube as displacement fields."""

import torch
from torch import Tensor

from .units import unit_to_voxel
from .warp import identity_grid


def affine_ddf(matrix: Tensor, translation_unit: Tensor, size: list[int]) -> Tensor:
    """Displacement of x -> c + A (x - c) + t over the unit cube, c its centre. Scriptable.

    On an anisotropic grid a rotation of the cube is none in millimetres.

    Args:
        matrix: A, (B, d, d), rows and columns in the order of the array's axes.
        translation_unit: t, (B, d), in shares of the image's extent along each axis.
        size: of the grid, d numbers.

    Returns:
        (B, d, *size) in voxels. Along an axis of one voxel nothing moves.

    Raises:
        ValueError: for shapes that do not fit together.

    Reference:
        Greer et al., ICON, ICCV 2021 (affine maps about the centre of [0, 1]^d, as in its code).
    """
    dims = len(size)
    if matrix.shape[1:] != torch.Size([dims, dims]) or translation_unit.shape != matrix.shape[:2]:
        raise ValueError(
            f"affine_ddf: expected a matrix (B, d, d) and a translation (B, d) for a grid of d = {dims} axes, got "
            f"{list(matrix.shape)} and {list(translation_unit.shape)}; give one row an axis."
        )
    grid = identity_grid(size, matrix.device, matrix.dtype).flatten(1)
    middle = (torch.tensor(size, dtype=matrix.dtype, device=matrix.device) - 1.0).unsqueeze(1)
    offset = (grid - 0.5 * middle) / middle.clamp(min=1.0)
    change = matrix - torch.eye(dims, dtype=matrix.dtype, device=matrix.device)
    moved = translation_unit.unsqueeze(2)
    for axis in range(dims):  # not as a matrix product, which autocast would round
        moved = moved + change[:, :, axis : axis + 1] * offset[axis]
    moved = moved * (middle > 0).to(matrix.dtype)
    shape = [matrix.shape[0], dims]
    for n in size:
        shape.append(n)
    return unit_to_voxel(moved.reshape(shape))
