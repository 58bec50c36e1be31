# SPDX-License-Identifier: Apache-2.0
"""Composition and inversion of displacement fields."""

import torch
from torch import Tensor

from .warp import warp


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
    """Inverse displacement by fixed-point iteration: v(x) <- -u(x + v(x)).

    Converges where the field is a contraction around the identity (no foldings, |∇u| < 1) and is damped to half steps
    once an iteration stops improving.

    Args:
        ddf: (B, d, *S) in voxels.
        iterations: upper bound on the number of iterations.
        tolerance: stop when the largest residual |v(x) + u(x + v(x))| in voxels falls below it.

    Returns:
        (B, d, *S) in voxels: compose(ddf, invert(ddf)) ≈ 0 away from where the map leaves the grid.

    Reference: Chen et al., Medical Physics 35(1), 2008.
    """
    inverse = torch.zeros_like(ddf)
    step, previous = 1.0, float("inf")
    for _ in range(iterations):
        residual = inverse + warp(ddf, inverse, padding="border")
        error = float(residual.abs().max())
        if error < tolerance:
            break
        if error > previous:
            step = max(step * 0.5, 0.125)
        previous = error
        inverse = inverse - step * residual
    return inverse
