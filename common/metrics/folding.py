# SPDX-License-Identifier: Apache-2.0
"""Regularity of a deformation, from its Jacobian determinant."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spatial.jacobian import determinant_of
from .cases import Cases

LEARN2REG_OFFSET = 3.0
VOXELS = 2**20  # in whole planes, that folds are counted in at a time


class FieldMeasures:
    """Regularity of the field: ``foldings_percent``, and unless quick ``sd_log_jacobian`` and ``fold_count``."""

    headlines = ("foldings_percent",)

    def __call__(self, cases: Cases) -> dict[str, Tensor]:
        """Return the columns, each (B,)."""
        columns = {"foldings_percent": foldings_percent(cases.determinant)}
        if cases.thorough:
            columns["sd_log_jacobian"] = sd_log_jacobian(cases.determinant)
            columns["fold_count"] = fold_count(cases.ddf)
        return columns


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
    """Mean of values over the voxels of a mask.

    Args:
        values: (B, *S).
        mask: (B, *S), bool.

    Returns:
        (B,); NaN where the mask is empty.
    """
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


def fold_count(ddf: Tensor) -> Tensor:
    """Number of voxels at which the determinant by one-sided differences is below 0, as ICON and GradICON count folds.

    Forward differences in 2D and backward ones in 3D, as the published code takes them, over the Π (n − 1) voxels that
    have a neighbour along every axis. A determinant of 0 is no fold here, and is one to ``foldings_percent``.

    Args:
        ddf: displacement in voxels, (B, d, *S), at least two voxels an axis.

    Returns:
        (B,) float64; NaN where the field is not finite.

    Raises:
        ValueError: if the channels do not match the number of axes, or an axis has one voxel only.

    Reference:
        Greer et al., ICON, ICCV 2021.
    """
    dims = ddf.dim() - 2
    if ddf.shape[1] != dims or dims not in (2, 3) or min(ddf.shape[2:]) < 2:
        raise ValueError(
            f"ddf: expected the shape (B, d, *S) with d = 2 or 3 axes of at least 2 voxels, got {tuple(ddf.shape)};"
            " move the components to the channel axis."
        )
    # A few planes at a time, one of them shared: all at once takes ten times the memory of the field.
    planes = max(VOXELS // ddf[0, 0, 0].numel(), 1)
    starts = range(0, ddf.shape[2] - 1, planes)
    return torch.stack([_folds(ddf[:, :, start : start + planes + 1]) for start in starts]).sum(0)


def _folds(ddf: Tensor) -> Tensor:
    dims = ddf.dim() - 2
    backward = dims == 3
    columns = []
    for axis in range(2, dims + 2):
        difference = ddf.diff(dim=axis)
        for other in set(range(2, dims + 2)) - {axis}:
            difference = difference.narrow(other, int(backward), ddf.shape[other] - 1)
        columns.append(difference)
    matrix = torch.stack(columns, dim=2)
    eye = torch.eye(dims, device=ddf.device, dtype=ddf.dtype)
    determinant = determinant_of(matrix + eye.reshape([1, dims, dims] + [1] * dims))
    count = (determinant < 0).flatten(1).sum(1).double()
    return torch.where(ddf.isfinite().flatten(1).all(1), count, torch.nan)


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
