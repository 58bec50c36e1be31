# SPDX-License-Identifier: Apache-2.0
"""Local volume change of the map id + ddf."""

import torch
from torch import Tensor


def jacobian_matrix(ddf: Tensor) -> Tensor:
    """J = I + ∂u_i/∂x_j by central differences (one-sided at the border).

    Args:
        ddf: displacement in voxels, (B, d, *S), at least two voxels an axis.

    Returns:
        (B, d, d, *S), entry [i, j] = ∂(x + u)_i / ∂x_j.

    Raises:
        ValueError: if the channels do not match the number of axes, or an axis has one voxel only.
    """
    dims = ddf.dim() - 2
    if ddf.shape[1] != dims or min(ddf.shape[2:]) < 2:
        raise ValueError(
            f"jacobian: ddf must have shape (B, d, *S) with d axes of at least 2 voxels; got {tuple(ddf.shape)}."
            " For a stack registered slice by slice pass the in-plane field, slices on the batch axis."
        )
    columns = torch.gradient(ddf, dim=list(range(2, dims + 2)))
    matrix = torch.stack(columns, dim=2)
    eye = torch.eye(dims, device=ddf.device, dtype=ddf.dtype)
    return matrix + eye.reshape([1, dims, dims] + [1] * dims)


def jacobian_determinant(ddf: Tensor) -> Tensor:
    """|∂(x + u(x))/∂x|: 1 where volume is kept, ≤ 0 where the map folds. Unit-free, whatever the spacing.

    Args:
        ddf: displacement in voxels, (B, d, *S).

    Returns:
        (B, *S).

    Raises:
        ValueError: as ``jacobian_matrix``.
    """
    return determinant_of(jacobian_matrix(ddf))


def determinant_of(j: Tensor) -> Tensor:
    """Determinant of a 2 x 2 or 3 x 3 matrix at every voxel.

    Args:
        j: (B, d, d, *S).

    Returns:
        (B, *S).
    """
    if j.shape[1] == 2:
        return j[:, 0, 0] * j[:, 1, 1] - j[:, 0, 1] * j[:, 1, 0]
    return (
        j[:, 0, 0] * (j[:, 1, 1] * j[:, 2, 2] - j[:, 1, 2] * j[:, 2, 1])
        - j[:, 0, 1] * (j[:, 1, 0] * j[:, 2, 2] - j[:, 1, 2] * j[:, 2, 0])
        + j[:, 0, 2] * (j[:, 1, 0] * j[:, 2, 1] - j[:, 1, 1] * j[:, 2, 0])
    )
