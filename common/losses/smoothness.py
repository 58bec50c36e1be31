# SPDX-License-Identifier: Apache-2.0
"""Smoothness of a field: displacement, velocity or score map."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Diffusion(nn.Module):
    """Diffusion energy by forward differences.

    L = 1/d sum_i mean_x[ a(x) * mean_c (u_c(x + e_i) - u_c(x))^2 ], the mean over x taken over the differences that
    exist along axis i. Forward (not central) differences, so that a pattern of period 2 costs something.

    Reference:
        Balakrishnan et al., VoxelMorph, IEEE TMI 2019, Eq. 8; the weight a as in Wong and Soatto, CVPR 2019.
    """

    def forward(self, field: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the energy, a scalar.

        Args:
            field: (B, C, *S), displacement or velocity in voxels, or a score map.
            weight: (B, 1, *S) factor on the squared difference that starts at its voxel; None is 1 everywhere.

        Returns:
            A scalar.

        Raises:
            ValueError: an axis shorter than 2, or a weight of another grid or batch.
        """
        if field.ndim < 3 or min(field.shape[2:]) < 2:
            raise ValueError(f"field: expected (B, C, *S) with every axis of S at least 2, got {tuple(field.shape)}")
        expected = (field.shape[0], 1, *field.shape[2:])
        if weight is not None and tuple(weight.shape) != expected:
            raise ValueError(
                f"weight: expected {expected}, got {tuple(weight.shape)}; "
                "bring it to the grid of the field with weighting.resample_weight"
            )
        # Squared differences of a bfloat16 field would lose the small ones.
        field = field if field.dtype == torch.float64 else field.float()
        terms = []
        for axis in range(2, field.ndim):
            squared = field.diff(dim=axis).square()
            if weight is not None:
                squared = squared * weight.narrow(axis, 0, weight.shape[axis] - 1)
            terms.append(squared.mean())
        return torch.stack(terms).mean()
