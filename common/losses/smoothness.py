# SPDX-License-Identifier: Apache-2.0
"""Smoothness of a field: displacement, velocity or score map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import known_name

WEIGHT_PLACES = ("start", "end")


class Diffusion(nn.Module):
    """Diffusion energy by forward differences.

    L = 1/d sum_i mean_x[ a(x) * mean_c (u_c(x + e_i) - u_c(x))^2 ], the mean over x taken over the differences that
    exist along axis i. Forward (not central) differences, so that a pattern of period 2 costs something.

    Args:
        weight_at: which voxel's weight multiplies a difference: that where it "start"s, or where it "end"s, a(x + e_i).

    Raises:
        ValueError: for another place.

    Reference:
        Balakrishnan et al., VoxelMorph, IEEE TMI 2019, Eq. 8; the weight a as in Wong and Soatto, CVPR 2019.
    """

    def __init__(self, weight_at: str = "start") -> None:
        super().__init__()
        self.first = WEIGHT_PLACES.index(known_name("weight_at", weight_at, WEIGHT_PLACES))

    def forward(self, field: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None) -> Tensor:
        """Return the energy, a scalar.

        Args:
            field: (B, C, *S), displacement or velocity in voxels, or a score map.
            weight: (B, 1, *S) factor on the squared difference that starts, or ends, at its voxel; None is 1
                everywhere.
            spacing: of voxels along each axis, of a displacement or velocity: differences are then of lengths over
                lengths, (s_c / s_i)² times those of voxels. None counts in voxels.

        Returns:
            A scalar.

        Raises:
            ValueError: an axis shorter than 2, or a weight of another grid or batch.
        """
        field = _checked(field, weight, least=2)
        if spacing is not None:
            sizes = torch.tensor(spacing, dtype=field.dtype, device=field.device)
            field = field * sizes.reshape(-1, *[1] * (field.ndim - 2))
        terms = []
        for axis in range(2, field.ndim):
            squared = field.diff(dim=axis).square()
            if weight is not None:
                squared = squared * weight.narrow(axis, self.first, weight.shape[axis] - 1)
            terms.append(squared.mean() if spacing is None else squared.mean() / spacing[axis - 2] ** 2)
        return torch.stack(terms).mean()


class Bending(nn.Module):
    """Bending energy: the mean of the squared second differences.

    L = 1/d² sum_ij mean_x[ a(x) * mean_c (D_ij u_c(x))² ], with D_ii u(x) = u(x + e_i) - 2 u(x) + u(x - e_i) and D_ij
    u(x) = u(x + e_i + e_j) - u(x + e_i) - u(x + e_j) + u(x) of i ≠ j, the mean over x taken where they exist. Affine
    fields cost nothing. Compact differences (MONAI's ``BendingEnergyLoss``, which adds up over i and j, repeats central
    ones, to which a pattern of period 2 is constant).

    Reference:
        Rueckert et al., IEEE TMI 1999, Eq. 3.
    """

    def forward(self, field: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the energy, a scalar.

        Args:
            field: (B, C, *S), displacement or velocity in voxels.
            weight: (B, 1, *S) factor on D_ii² at its voxel, and on D_ij² that starts there; None is 1 everywhere.

        Returns:
            A scalar.

        Raises:
            ValueError: an axis shorter than 3, or a weight of another grid or batch.
        """
        field = _checked(field, weight, least=3)
        terms = []
        for one in range(2, field.ndim):
            slope = field.diff(dim=one)
            for other in range(one, field.ndim):
                squared = slope.diff(dim=other).square()
                if weight is not None:
                    size = [weight.shape[0], 1, *squared.shape[2:]]
                    start = [int(axis == one == other) for axis in range(field.ndim)]
                    squared = squared * weight[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
                terms.append(squared.mean() * (1 if one == other else 2))
        return torch.stack(terms).sum() / (field.ndim - 2) ** 2


def _checked(field: Tensor, weight: Tensor | None, least: int) -> Tensor:
    """The field in the precision of its energy: squared differences in bfloat16 would lose the small ones."""
    if field.ndim < 3 or min(field.shape[2:]) < least:
        raise ValueError(f"field: expected (B, C, *S) with every axis of S at least {least}, got {tuple(field.shape)}")
    expected = (field.shape[0], 1, *field.shape[2:])
    if weight is not None and tuple(weight.shape) != expected:
        raise ValueError(
            f"weight: expected {expected}, got {tuple(weight.shape)}; "
            "bring it to the grid of the field with weighting.resample_weight"
        )
    return field if field.dtype == torch.float64 else field.float()
