# SPDX-License-Identifier: Apache-2.0
"""Whether an uncertainty ranks pixels as their errors do: sparsification curves and their area."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from torch import Tensor

from .folding import check_mask

FRACTIONS = 100  # of the pixels, at which a curve is kept: 0, 0.01, … 0.99
Array = NDArray[np.float64]


class Sparsification(NamedTuple):
    """Mean squared residual of what remains when a share of the pixels is removed.

    Attributes:
        fractions: shares removed, (K,), from 0 to just below 1.
        curve: the most uncertain pixels removed first, (B, K).
        oracle: the largest residuals removed first, (B, K); no ranking lies below it.
        random: removed at random, (B,): the mean over all pixels whatever the share.
        ause: area between curve and oracle over [0, 1), in units of ``random``, (B,).
    """

    fractions: Tensor
    curve: Tensor
    oracle: Tensor
    random: Tensor
    ause: Tensor


def sparsification(
    error: Tensor, uncertainty: Tensor, mask: Tensor | None = None, count: int = FRACTIONS
) -> Sparsification:
    """Sparsification curves and the area under the sparsification error (AUSE).

    Pixels are removed one at a time, so that the curve is a step function of the share: its area is exact, whatever
    ``count``. Pixels of equal uncertainty are removed in random order, of which the mean is taken: each of them has
    their mean error. AUSE is 0 for a perfect ranking; dividing by the mean squared residual makes methods comparable
    whose residuals differ (the published one does not divide, see ``official_ause``).

    Args:
        error: squared residual, (B, *S).
        uncertainty: (B, *S), larger where less certain; its scale is of no consequence.
        mask: (B, *S), non-zero where pixels count; None for all.
        count: number K of shares at which the curves are returned.

    Returns:
        The curves, float64 on the CPU; NaN where no pixel counts, all residuals are 0, or a value is not finite.

    Raises:
        ValueError: if the shapes differ or are not (B, H, W[, D]).

    Reference:
        Ilg et al., ECCV 2018 (normalised curves, AUSE); Zhang et al., MICCAI 2024, Sec. 5.3.
    """

    def curves(values: Array, ranked: Array) -> Array:
        own, best = (_mean_from(sorted_errors(values, by)) for by in (-ranked, -values))
        if own[0] == 0:
            return np.full(2 * count + 2, np.nan)
        steps = np.arange(count) * len(values) // count
        return np.concatenate([own[steps], best[steps], [own[0], (own - best).mean() / own[0]]])

    rows = by_case(curves, 2 * count + 2, mask, error=error, uncertainty=uncertainty)
    shares = torch.arange(count, dtype=torch.float64) / count
    return Sparsification(shares, rows[:, :count], rows[:, count : 2 * count], rows[:, -2], rows[:, -1])


def official_ause(error: Tensor, uncertainty: Tensor, intervals: int = 50) -> Tensor:
    """AUSE as the published code computes it.

    Departures from ``sparsification``: pixels are kept whose −uncertainty reaches its percentiles over the whole image
    (linear interpolation; of equal values all or none are kept), the curves end with a 0 at the share 1, the area is
    that of trapezoids, and it is in squared intensities, not divided by the mean squared residual.

    Args:
        error: squared residual, (B, *S).
        uncertainty: (B, *S), larger where less certain.
        intervals: number of percentiles.

    Returns:
        (B,) float64; NaN where a value is not finite.

    Raises:
        ValueError: if the shapes differ or are not (B, H, W[, D]).

    Reference:
        Zhang et al., MICCAI 2024, ``ause.py`` of the published code.
    """
    percentiles = 100.0 / intervals * np.arange(intervals)
    shares = np.arange(intervals + 1) / intervals

    def curve(values: Array, ranked: Array) -> Array:
        order = np.argsort(ranked, kind="stable")
        kept = np.searchsorted(ranked[order], np.percentile(ranked, percentiles), side="left")
        return np.append(_mean_from(values[order])[kept], 0.0)

    def area(values: Array, ranked: Array) -> Array:
        return np.atleast_1d(trapezoid(curve(values, -ranked) - curve(values, -values), shares))

    return by_case(area, 1, None, error=error, uncertainty=uncertainty)[:, 0]


def sorted_errors(values: Array, by: Array) -> Array:
    """Values in ascending order of another; those of equal ``by`` all have their mean.

    Args:
        values: (n,), n > 0.
        by: (n,).

    Returns:
        (n,).
    """
    order = np.argsort(by, kind="stable")
    starts = np.flatnonzero(np.diff(by[order], prepend=np.nan) != 0)
    lengths = np.diff(starts, append=len(by))
    return np.repeat(np.add.reduceat(values[order], starts) / lengths, lengths)


def by_case(function: Callable[..., Array], size: int, mask: Tensor | None, **maps: Tensor) -> Tensor:
    """A function of the pixels of each case, one case at a time, on the CPU whatever the device.

    Args:
        function: the counted pixels of each map, (n,) with n > 0, all finite -> (size,).
        size: of what it returns.
        mask: (B, *S), non-zero where pixels count; None for all.
        maps: (B, *S), by the name that an error calls them.

    Returns:
        (B, size) float64; NaN where no pixel counts or a value is not finite.

    Raises:
        ValueError: if the shapes differ or are not (B, H, W[, D]).
    """
    rows = [np.full(size, np.nan) if pixels is None else function(*pixels) for pixels in _counted(mask, maps)]
    return torch.from_numpy(np.stack(rows).astype(np.float64))


def _mean_from(values: Array) -> Array:
    """Mean of the k-th and all later values, (n,)."""
    return values[::-1].cumsum()[::-1] / np.arange(len(values), 0, -1)


def _counted(mask: Tensor | None, maps: Mapping[str, Tensor]) -> Iterator[list[Array] | None]:
    shapes = [tuple(values.shape) for values in maps.values()]
    if len(set(shapes)) > 1 or len(shapes[0]) not in (3, 4):
        raise ValueError(
            f"{' and '.join(maps)}: expected maps of one shape (B, H, W[, D]), got "
            f"{' and '.join(map(str, shapes))}; drop the channel with map[:, 0]."
        )
    inside = check_mask(mask, next(iter(maps.values())), "maps").cpu().numpy()
    arrays = [values.detach().cpu().double().numpy() for values in maps.values()]
    for index, counts in enumerate(inside):
        pixels = [array[index][counts] for array in arrays]
        yield pixels if len(pixels[0]) and all(np.isfinite(values).all() for values in pixels) else None
