# SPDX-License-Identifier: Apache-2.0
"""Strain of the heart's muscle from a displacement: how much it thickens and shortens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..spatial.jacobian import jacobian_matrix

NAMES = ("radial", "circumferential")


def green_strain(ddf: Tensor, spacing: Sequence[float]) -> Tensor:
    """Lagrangian Green strain E = ½ (FᵀF − I), F the deformation gradient in millimetres.

    Args:
        ddf: displacement from the first phase to another, (B, d, *S) in voxels of the first phase's grid.
        spacing: of the voxels, d numbers in one unit; only their ratios count.

    Returns:
        (B, d, d, *S), component (i, j) along array axes i and j, without a unit.

    Raises:
        ValueError: for another number of voxel sizes, or sizes that are not above 0.

    Reference:
        Fung, A First Course in Continuum Mechanics, 1994, Ch. 5.
    """
    dims = ddf.shape[1]
    if len(spacing) != dims or not all(size > 0 for size in spacing):
        raise ValueError(f"spacing: expected {dims} numbers above 0, the voxel's sizes, got {tuple(spacing)}.")
    sizes = ddf.new_tensor(list(spacing))
    ratios = (sizes[:, None] / sizes).reshape(1, dims, dims, *[1] * dims)
    gradient = jacobian_matrix(ddf) * ratios
    identity = torch.eye(dims, dtype=ddf.dtype, device=ddf.device).reshape(1, dims, dims, *[1] * dims)
    return 0.5 * (torch.einsum("bki...,bkj...->bij...", gradient, gradient) - identity)


def polar_strains(ddf: Tensor, muscle: Tensor, cavity: Tensor, spacing: Sequence[float]) -> Tensor:
    """Mean radial and circumferential strain of the muscle of each slice, around the middle of its cavity.

    E_rr = rᵀ E r with r the unit vector from the cavity's centre of mass at the first phase, E_cc = cᵀ E c with c
    perpendicular to r. 0.25 is a quarter more length, squared and halved: E = (λ² − 1) / 2 for a stretch λ.

    Args:
        ddf: as ``green_strain``, 2D, (B, 2, H, W).
        muscle: at the first phase, (B, H, W) bool.
        cavity: likewise.
        spacing: as ``green_strain``.

    Returns:
        (B, 2): radial, circumferential; NaN where a slice lacks one of both.

    Raises:
        ValueError: for displacements that are not 2D, masks of another shape, or as ``green_strain``.
    """
    if ddf.dim() != 4 or muscle.shape != ddf[:, 0].shape or cavity.shape != muscle.shape:
        raise ValueError(
            "ddf, muscle, cavity: expected slices (B, 2, H, W) and masks (B, H, W), got "
            f"{tuple(ddf.shape)}, {tuple(muscle.shape)} and {tuple(cavity.shape)}; radial and circumferential are of "
            "short-axis slices."
        )
    strain = green_strain(ddf, spacing)
    axes = [torch.arange(n, dtype=ddf.dtype, device=ddf.device) * size
            for n, size in zip(ddf.shape[2:], spacing, strict=True)]  # fmt: skip
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (2, H, W), mm
    weights = cavity.to(ddf.dtype)[:, None]
    centre = (places * weights).sum((2, 3)) / weights.sum((2, 3))
    away = places - centre[:, :, None, None]
    radial = away / away.norm(dim=1, keepdim=True).clamp(min=1e-6)
    around = torch.stack([-radial[:, 1], radial[:, 0]], dim=1)
    values = [torch.einsum("bi...,bij...,bj...->b...", unit, strain, unit) for unit in (radial, around)]
    means = [torch.where(muscle, value, 0).sum((1, 2)) / muscle.sum((1, 2)) for value in values]
    found = torch.stack(means, dim=1)
    return torch.where(cavity.flatten(1).any(1)[:, None], found, torch.nan)
