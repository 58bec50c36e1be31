# SPDX-License-Identifier: Apache-2.0
"""Inverse of a displacement field, at every voxel of its grid or at other points."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from .fields import all_finite, lengths
from .warp import identity_grid, sample

logger = logging.getLogger(__name__)
LONGEST_STEP = 4.0  # voxels that one iteration moves at most
SHORTEST_SHARE = 1 / 16  # of a step; a voxel that would need less is stuck
FIXED_POINT_STEPS = 5  # of the whole grid at first: each costs a tenth of one of Newton's
POINTS = 2**17  # that are worked on at a time: they stay in the cache


def invert(ddf: Tensor, iterations: int = 50, tolerance: float = 1e-4, points: Tensor | None = None) -> Tensor:
    """Inverse displacement v, v(x) + u(x + v(x)) = 0, by Newton's method at each point x; computed in float64.

    A few fixed-point iterations v <- -u(x + v) bring most points close. What is not converged then goes on by itself:
    steps halve where the residual would grow, and a point that gets stuck starts again from its neighbours, so that a
    map that does not fold, not even between its voxels, is inverted however much it stretches or shrinks. Beyond the
    grid u continues with its border value, so that points whose origin lies outside have an inverse too: the whole grid
    is covered. What does not converge, since the map folds there, is said in a warning, with the number of points and
    how far off they are.

    Args:
        ddf: (B, d, *S) in voxels, without gradient.
        iterations: upper bound on the number of Newton's iterations.
        tolerance: the residual |v(x) + u(x + v(x))| in voxels that counts as converged.
        points: x, (d, *T) in voxels of the grid, themselves a grid of any number, for all of the batch; None: the
            voxels of the grid.

    Returns:
        v in voxels, (B, d, *T), or (B, d, *S): compose(ddf, invert(ddf)) ≈ 0.

    Raises:
        ValueError: for a field that is not finite, less than one iteration, a tolerance not above 0, or points of
            another number of axes.
    """
    if not all_finite(ddf):
        raise ValueError("ddf: expected finite displacements, got NaN or infinity; check the registration they are of.")
    if iterations < 1 or not tolerance > 0:
        raise ValueError(
            f"iterations, tolerance: expected at least 1 and above 0, got {iterations} and {tolerance}; "
            "the defaults are 50 and 1e-4."
        )
    if points is not None and (points.dim() < 2 or len(points) != ddf.shape[1]):
        raise ValueError(
            f"points: expected ({ddf.shape[1]}, *T), a channel an axis of the field, got {tuple(points.shape)}."
        )
    points = identity_grid(list(ddf.shape[2:]), ddf.device) if points is None else points.to(ddf.device)
    found, errors = zip(*[_inverted(field, points, iterations, tolerance) for field in ddf.detach()], strict=True)
    error = torch.stack(errors)
    missed = int((error > tolerance).sum())
    if missed:
        logger.warning(
            "invert: %d of %d points are not inverted to %g voxel after %d iterations, the worst is off by %.3g "
            "voxels: the map folds there, or iterations are too few. Regularise the registration more, or raise them.",
            missed, error.numel(), tolerance, iterations, float(error.max()),
        )  # fmt: skip
    return torch.stack(found).to(ddf.dtype)


class _Field(NamedTuple):
    """A field as a list of voxels: ``values`` (N, d), read in the type of the points, and the grid's shape."""

    values: Tensor
    shape: tuple[int, ...]

    def at(self, points: Tensor) -> Tensor:
        """The field at any points: multilinear between voxels, constant outside.

        Args:
            points: (P, d) in voxels.

        Returns:
            Values u, (P, d).
        """
        values = torch.zeros_like(points)
        for there, _, weights in self._corners(points):
            values += there * _product(weights)[:, None]
        return values

    def with_slopes(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """As ``at``, with the slopes.

        Args:
            points: (P, d) in voxels.

        Returns:
            Values u, (P, d), and slopes ∂u_i / ∂x_j, (P, d, d).
        """
        slopes = points.new_zeros(len(points), len(self.shape), len(self.shape))
        values = torch.zeros_like(points)
        for there, corner, weights in self._corners(points):
            values += there * _product(weights)[:, None]
            for axis, side in enumerate(corner):
                others = _product(weights[:axis] + weights[axis + 1 :])
                slopes[:, :, axis] += there * (others if side else -others)[:, None]
        inside = (points >= 0) & (points <= torch.tensor(self.shape, device=points.device) - 1)
        return values, slopes * inside[:, None]

    def _corners(self, points: Tensor) -> Iterator[tuple[Tensor, tuple[int, ...], list[Tensor]]]:
        """The voxels around points: values there, (P, d), which corner, and its weight along each axis, (P)."""
        last = torch.tensor(self.shape, device=points.device) - 1
        clamped = points.clamp(min=torch.zeros_like(last), max=last)
        low = clamped.long().clamp(max=(last - 1).clamp(min=0))
        share = clamped - low
        for corner in product((0, 1), repeat=len(self.shape)):
            index = torch.zeros_like(low[:, 0])
            for axis, size in enumerate(self.shape):
                index = index * size + (low[:, axis] + corner[axis]).clamp(max=size - 1)
            weights = [share[:, axis] if side else 1 - share[:, axis] for axis, side in enumerate(corner)]
            yield self.values[index].to(points.dtype), corner, weights


def _product(factors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(factors)).prod(dim=0)


class _Unknowns(NamedTuple):
    """What is solved for, at a grid of points: changed in place."""

    places: Tensor  # x, (N, d)
    shape: tuple[int, ...]  # of the grid of points
    inverse: Tensor  # v, (N, d)
    error: Tensor  # |v(x) + u(x + v(x))|, (N)


def _inverted(field: Tensor, points: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Inverse of one field (d, *S) at points (d, *T), (d, *T), and the residuals' lengths, (N)."""
    places, grid = _listed(points), _Field(_listed(field), tuple(field.shape[1:]))
    single = field.float()
    starts = [_fixed_point(grid, single, some) for some in places.split(POINTS)]
    start, error = (torch.cat(parts) for parts in zip(*starts, strict=True))
    unknown = _Unknowns(places, tuple(points.shape[1:]), start, error)
    left = torch.nonzero(unknown.error > tolerance)[:, 0]
    share = unknown.error.new_ones(len(left))
    for _ in range(iterations):
        for rows, shares in zip(left.split(POINTS), share.split(POINTS), strict=True):
            _improve(grid, unknown, rows, shares)
        stuck = (share < SHORTEST_SHARE) & (unknown.error[left] > tolerance)
        if bool(stuck.any()):
            again = left[stuck]
            unknown.inverse[again] = _neighbours(unknown, unknown.error <= tolerance, again)
            unknown.error[again] = _residual(grid, unknown.places[again], unknown.inverse[again]).norm(dim=1)
            share[stuck] = 1.0
        going = unknown.error[left] > tolerance
        left, share = left[going], share[going]
        if not len(left):
            break
    return unknown.inverse.T.reshape(points.shape), unknown.error


def _listed(grid: Tensor) -> Tensor:
    return grid.flatten(1).T.contiguous()


def _fixed_point(grid: _Field, single: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """What a few fixed-point iterations give at places (P, d), (P, d) in float64, and its residual's length, (P).

    A point stays where its last iteration raised the residual. They are done in ``single``, float32, whose error of
    1e-5 voxels the last residual takes account of.
    """
    points = places.T.float()
    after = -sample(single[None], points[None])[0]
    inverse, best, least = after, after, torch.full_like(after[0], math.inf)
    for _ in range(FIXED_POINT_STEPS):
        after = -sample(single[None], (points + inverse)[None])[0]
        error = lengths(inverse - after, 0)
        better = error < least
        best, least = torch.where(better, inverse, best), torch.where(better, error, least)
        inverse = torch.where(better, after, best)
    start = inverse.T.to(torch.float32 if places.device.type == "mps" else torch.float64)  # MPS has no float64
    return start, _residual(grid, places, start).norm(dim=1)


def _residual(grid: _Field, places: Tensor, inverse: Tensor) -> Tensor:
    """v(x) + u(x + v(x)) at some places, (P, d)."""
    return inverse + grid.at(places + inverse)


def _improve(grid: _Field, unknown: _Unknowns, rows: Tensor, share: Tensor) -> None:
    """One step of Newton's at some points, where it lowers the residual; ``unknown`` and ``share`` are changed."""
    places, now = unknown.places[rows], unknown.inverse[rows]
    values, slopes = grid.with_slopes(places + now)
    trial = now - share[:, None] * _newton_step(slopes, now + values)
    after = _residual(grid, places, trial).norm(dim=1)
    better = after < unknown.error[rows]
    unknown.inverse[rows[better]] = trial[better]
    unknown.error[rows[better]] = after[better]
    share.copy_(torch.where(better, (2 * share).clamp(max=1), share / 2))


def _newton_step(slopes: Tensor, residual: Tensor) -> Tensor:
    """(I + ∇u)^-1 residual by Cramer's rule, at most ``LONGEST_STEP`` voxels; the residual where that is singular."""
    dims = residual.shape[1]
    matrix = slopes + torch.eye(dims, dtype=slopes.dtype, device=slopes.device)
    columns = matrix.unbind(dim=2)
    replaced = [[residual if i == j else column for j, column in enumerate(columns)] for i in range(dims)]
    step = torch.stack([_determinant(own) for own in replaced], dim=1) / _determinant(columns)[:, None]
    step = torch.where(step.isfinite().all(dim=1, keepdim=True), step, residual)
    return step * (LONGEST_STEP / step.norm(dim=1, keepdim=True).clamp(min=LONGEST_STEP))


def _determinant(columns: Sequence[Tensor]) -> Tensor:
    """Of matrices given by their columns, d of (P, d)."""
    if len(columns) == 2:
        return columns[0][:, 0] * columns[1][:, 1] - columns[0][:, 1] * columns[1][:, 0]
    return (columns[0] * torch.linalg.cross(columns[1], columns[2])).sum(dim=1)


def _neighbours(unknown: _Unknowns, converged: Tensor, rows: Tensor) -> Tensor:
    """Mean of the inverse over those of a point's neighbours that have converged; itself where there are none."""
    inverse, shape = unknown.inverse, unknown.shape
    total, count = torch.zeros_like(inverse[rows]), inverse.new_zeros(len(rows), 1)
    place, last = torch.stack(torch.unravel_index(rows, shape), dim=1), [size - 1 for size in shape]
    for offset in product((-1, 0, 1), repeat=len(shape)):
        there = place + torch.tensor(offset, device=rows.device)
        inside = (there >= 0).all(dim=1) & (there <= torch.tensor(last, device=rows.device)).all(dim=1)
        index = torch.zeros_like(rows)
        for axis, size in enumerate(shape):
            index = index * size + there[:, axis].clamp(0, size - 1)
        weight = (inside & converged[index]).to(inverse.dtype)[:, None]
        total, count = total + weight * inverse[index], count + weight
    return torch.where(count > 0, total / count.clamp(min=1), inverse[rows])
