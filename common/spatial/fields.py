# SPDX-License-Identifier: Apache-2.0
"""Composition, inversion and resizing of displacement fields."""

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .warp import warp

logger = logging.getLogger(__name__)
LONGEST_STEP = 4.0  # voxels that one iteration of an inversion moves at most
SHORTEST_SHARE = 1 / 16  # of a step; a voxel that would need less is stuck


def compose(outer: Tensor, inner: Tensor, padding: str = "border") -> Tensor:
    """Displacement of the map (id + outer) ∘ (id + inner): x -> x + inner(x) + outer(x + inner(x)).

    Pulling an image through the result equals pulling it through ``outer`` first and the outcome through ``inner``:
    warp(image, compose(outer, inner)) = warp(warp(image, outer), inner).

    Args:
        outer: (B, d, *S) in voxels, the map applied last to points.
        inner: (B, d, *S) in voxels, the map applied first to points.
        padding: continuation of ``outer`` beyond the grid ("border", "zeros" or "reflection").

    Returns:
        (B, d, *S) in voxels.
    """
    return inner + warp(outer, inner, padding=padding)


def invert(ddf: Tensor, iterations: int = 50, tolerance: float = 1e-4) -> Tensor:
    """Inverse displacement v, v(x) + u(x + v(x)) = 0, by Newton's method at each voxel; computed in float64.

    Steps halve where the residual would grow, and a voxel that gets stuck starts again from its neighbours, so that a
    map that does not fold, not even between its voxels, is inverted however much it stretches or shrinks. Beyond the
    grid u continues with its border value, so that points whose origin lies outside have an inverse too: the whole grid
    is covered. What does not converge, since the map folds there, is said in a warning, with the number of voxels and
    how far off they are.

    Args:
        ddf: (B, d, *S) in voxels, without gradient.
        iterations: upper bound on the number of iterations.
        tolerance: the residual |v(x) + u(x + v(x))| in voxels that counts as converged.

    Returns:
        (B, d, *S) in voxels: compose(ddf, invert(ddf)) ≈ 0.

    Raises:
        ValueError: for a field that is not finite, less than one iteration or a tolerance not above 0.
    """
    if not ddf.isfinite().all():
        raise ValueError("ddf: expected finite displacements, got NaN or infinity; check the registration they are of.")
    if iterations < 1 or not tolerance > 0:
        raise ValueError(
            f"iterations, tolerance: expected at least 1 and above 0, got {iterations} and {tolerance}; "
            "the defaults are 50 and 1e-4."
        )
    field = ddf.detach() if ddf.device.type == "mps" else ddf.detach().double()  # MPS has no float64
    inverse = -field
    residual, error = _residual(field, inverse)
    share = torch.ones_like(error)
    for _ in range(iterations):
        if float(error.max()) <= tolerance:
            break
        trial = inverse - share * _newton_step(field, inverse, residual)
        better = _residual(field, trial)[1] < error
        share = torch.where(better, (2 * share).clamp(max=1), share / 2)
        inverse = torch.where(better, trial, inverse)
        stalled = (share < SHORTEST_SHARE) & (error > tolerance)
        if bool(stalled.any()):
            inverse = torch.where(stalled, _neighbours(inverse, error <= tolerance), inverse)
            share = torch.where(stalled, 1.0, share)
        residual, error = _residual(field, inverse)
    missed = int((error > tolerance).sum())
    if missed:
        logger.warning(
            "invert: %d of %d voxels are not inverted to %g voxel after %d iterations, the worst is off by %.3g "
            "voxels: the map folds there, or iterations are too few. Regularise the registration more, or raise them.",
            missed, error.numel(), tolerance, iterations, float(error.max()),
        )  # fmt: skip
    return inverse.to(ddf.dtype)


def resized(ddf: Tensor, size: Sequence[int]) -> Tensor:
    """The displacement on another grid over the same field of view, in voxels of that grid.

    Fields of view reach half a voxel beyond their outer voxels' centres: x' + ½ = (x + ½) n' / n along each axis.
    Between voxels u is linear, in the outer half voxel constant; each component is multiplied by n' / n of its axis.
    That is how volumes are brought to one size; ``integrate.resize_field`` keeps the outer voxels' centres instead.

    Args:
        ddf: (B, d, *S) in voxels.
        size: voxels n' of the other grid, d numbers.

    Returns:
        (B, d, *size) in voxels of the other grid.

    Raises:
        ValueError: for a size that is not d numbers above 0.
    """
    dims = ddf.shape[1]
    if len(size) != dims or min(size) < 1:
        raise ValueError(f"size: expected {dims} numbers above 0, one an axis of the field, got {list(size)}.")
    field = F.interpolate(ddf, list(size), mode="bilinear" if dims == 2 else "trilinear", align_corners=False)
    scale = torch.tensor([new / old for new, old in zip(size, ddf.shape[2:], strict=True)])
    return field * scale.to(ddf).reshape(1, dims, *[1] * dims)


def _residual(field: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """v(x) + u(x + v(x)), (B, d, *S), and its length, (B, 1, *S)."""
    residual = inverse + warp(field, inverse, padding="border")
    return residual, residual.norm(dim=1, keepdim=True)


def _neighbours(inverse: Tensor, converged: Tensor) -> Tensor:
    """Mean of the inverse over those of a voxel's neighbours that have converged; itself where there are none."""
    pool = F.avg_pool2d if inverse.dim() == 4 else F.avg_pool3d
    weight = converged.to(inverse.dtype)
    share = pool(weight, 3, 1, 1)
    return torch.where(share > 0, pool(inverse * weight, 3, 1, 1) / share.clamp(min=1e-9), inverse)


def _newton_step(field: Tensor, inverse: Tensor, residual: Tensor) -> Tensor:
    """(I + ∇u)^-1 residual at x + v(x), at most ``LONGEST_STEP`` voxels; the residual where that is singular."""
    dims = field.shape[1]
    with torch.enable_grad():
        where = inverse.detach().requires_grad_()
        values = warp(field, where, padding="border")
        # Displacements of different voxels do not depend on each other: a sum has each one's own slope.
        rows = [torch.autograd.grad(values[:, i].sum(), where, retain_graph=i < dims - 1)[0] for i in range(dims)]
    slopes = torch.stack(rows, dim=1).movedim((1, 2), (-2, -1)) + torch.eye(
        dims, dtype=field.dtype, device=field.device
    )
    step = torch.linalg.solve_ex(slopes, residual.movedim(1, -1)[..., None])[0][..., 0].movedim(-1, 1)
    step = torch.where(step.isfinite().all(dim=1, keepdim=True), step, residual)
    return step * (LONGEST_STEP / step.norm(dim=1, keepdim=True).clamp(min=LONGEST_STEP))
