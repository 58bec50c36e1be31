# SPDX-License-Identifier: Apache-2.0
"""Regularity of a deformation, from its Jacobian determinant."""

from __future__ import annotations

import torch
from torch import Tensor

LEARN2REG_OFFSET = 3.0


def check_mask(mask: Tensor | None, like: Tensor, name: str) -> Tensor:
    """The mask as bool, or a full one.

    Args:
        mask: (B, *S), non-zero where voxels count; None for all.
        like: the tensor whose shape (B, *S) the mask must have.
        name: what ``like`` is called in the message.

    Returns:
        (B, *S) bool.

    Raises:
        ValueError: if the shapes differ.
    """
    if mask is None:
        return torch.ones_like(like, dtype=torch.bool)
    if mask.shape != like.shape:
        raise ValueError(
            f"mask: expected the shape (B, *S) of the {name}, {tuple(like.shape)}, got {tuple(mask.shape)};"
            " drop the channel of a label map with mask[:, 0]."
        )
    return mask.bool()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` (B, *S) over the voxels of ``mask`` (B, *S) -> (B,); NaN where the mask is empty."""
    axes = list(range(1, values.dim()))
    return torch.where(mask, values, torch.zeros_like(values)).sum(axes) / mask.sum(axes)


def foldings_percent(determinant: Tensor, mask: Tensor | None = None) -> Tensor:
    """100 · |{x : |J(x)| ≤ 0}| / |{x}|, the share of voxels at which the map folds.

    A determinant that is NaN (a diverged field) makes its case NaN rather than free of foldings.

    Args:
        determinant: of id + ddf, (B, *S).
        mask: (B, *S), non-zero where voxels count; None for all.

    Returns:
        (B,) in percent; NaN where the mask is empty.

    Raises:
        ValueError: if ``determinant`` is not (B, H, W[, D]) or the mask's shape differs.
    """
    _check_determinant(determinant)
    folded = (determinant <= 0).to(determinant.dtype)
    folded = torch.where(torch.isnan(determinant), determinant, folded)
    return 100.0 * masked_mean(folded, check_mask(mask, determinant, "determinant"))


def sd_log_jacobian(determinant: Tensor, mask: Tensor | None = None, offset: float = 0.0) -> Tensor:
    """SDlogJ: standard deviation over voxels of log(clip(|J| + offset, 1e-9, 1e9)).

    Learn2Reg's evaluation adds 3 to the determinant before the logarithm and leaves out two voxels at each border,
    which about quarters the value. ``offset=0`` (default) is the quantity as defined; to compare with published
    Learn2Reg (OASIS) figures pass ``offset=LEARN2REG_OFFSET`` and crop the determinant by two voxels a side.

    Args:
        determinant: of id + ddf, (B, *S).
        mask: (B, *S), non-zero where voxels count; None for all.
        offset: added to the determinant.

    Returns:
        (B,), population standard deviation (divided by n); NaN where the mask is empty.

    Raises:
        ValueError: if ``determinant`` is not (B, H, W[, D]) or the mask's shape differs.

    Reference:
        Hering et al., IEEE TMI 2023 (Learn2Reg), section on metrics.
    """
    _check_determinant(determinant)
    mask = check_mask(mask, determinant, "determinant")
    logarithm = (determinant + offset).clamp(1e-9, 1e9).log()
    mean = masked_mean(logarithm, mask).reshape([-1] + [1] * (determinant.dim() - 1))
    return masked_mean((logarithm - mean).square(), mask).sqrt()


def _check_determinant(determinant: Tensor) -> None:
    if determinant.dim() not in (3, 4):
        raise ValueError(
            f"determinant: expected the shape (B, H, W[, D]), got {tuple(determinant.shape)};"
            " pass what jacobian_determinant returns, without a channel."
        )
