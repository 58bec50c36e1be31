# SPDX-License-Identifier: Apache-2.0
"""Whether a method's uncertainty knows where, and by how much, the images still differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from .cases import Cases
from .sparsification import Array, Sparsification, by_case, official_ause, sorted_errors, sparsification

BINS = 10
FLOOR = 1e-3  # the least σ that is believed, of intensities in [0, 1], as in ``losses.likelihood``
CURVES = {"sparsification": "ause", "sparsification_displacement": "ause_displacement"}  # tables, and their area
RELIABILITY = "reliability"


def rank_correlation(one: Tensor, other: Tensor, mask: Tensor | None = None) -> Tensor:
    """Spearman's rank correlation over the pixels of each case, equal values at their mean rank.

    Args:
        one: (B, *S).
        other: (B, *S).
        mask: (B, *S), non-zero where pixels count; None for all.

    Returns:
        (B,) float64 in [-1, 1]; NaN where one of the two is constant or not finite, or no pixel counts.

    Raises:
        ValueError: if the shapes differ or are not (B, H, W[, D]).
    """

    def correlation(a: Array, b: Array) -> Array:
        constant = np.ptp(a) == 0 or np.ptp(b) == 0
        return np.atleast_1d(np.nan if constant else stats.spearmanr(a, b).statistic)

    return by_case(correlation, 1, mask, one=one, other=other)[:, 0]


class Reliability(NamedTuple):
    """What was predicted and what was found in bins of equally many pixels, from the most certain to the least.

    Attributes:
        variance: mean of σ², (B, K).
        error: mean squared residual, (B, K).
    """

    variance: Tensor
    error: Tensor

    def ence(self) -> Tensor:
        """Expected normalised calibration error: mean over bins of |√variance − √error| / √variance.

        Returns:
            (B,), 0 where every bin is calibrated; NaN where no pixel counts.

        Reference:
            Levi et al., Evaluating and Calibrating Uncertainty Prediction in Regression Tasks, Sensors 2022.
        """
        predicted, observed = self.variance.sqrt(), self.error.sqrt()
        return ((predicted - observed).abs() / predicted).nanmean(1)


def reliability(
    error: Tensor, deviation: Tensor, mask: Tensor | None = None, bins: int = BINS, floor: float = FLOOR
) -> Reliability:
    """Predicted variance and squared residual in bins of equally many pixels, by σ.

    Pixels of equal σ all have their mean error, so that a constant σ gives bins that are all alike.

    Args:
        error: squared residual, (B, *S).
        deviation: predicted standard deviation σ of the residual, (B, *S).
        mask: (B, *S), non-zero where pixels count; None for all.
        bins: their number K.
        floor: σ counts as at least this.

    Returns:
        Float64 on the CPU; NaN in bins without a pixel (fewer pixels than bins), and where a value is not finite.

    Raises:
        ValueError: if the shapes differ or are not (B, H, W[, D]).
    """

    def binned(values: Array, sigma: Array) -> Array:
        sigma = np.maximum(sigma, floor)
        parts = (np.array_split(v, bins) for v in (np.sort(sigma) ** 2, sorted_errors(values, sigma)))
        return np.array([part.mean() if len(part) else np.nan for split in parts for part in split])

    rows = by_case(binned, 2 * bins, mask, error=error, deviation=deviation)
    return Reliability(rows[:, :bins], rows[:, bins:])


def mean_square_z(error: Tensor, deviation: Tensor, mask: Tensor | None = None, floor: float = FLOOR) -> Tensor:
    """Mean of r² / σ²: 1 where σ is right on average, above 1 where it is too small.

    Args:
        error: squared residual r², (B, *S).
        deviation: predicted standard deviation σ, (B, *S).
        mask: (B, *S), non-zero where pixels count; None for all.
        floor: σ counts as at least this.

    Returns:
        (B,) float64; NaN where no pixel counts, or a value is not finite.

    Raises:
        ValueError: if the shapes differ or are not (B, H, W[, D]).
    """

    def mean(values: Array, sigma: Array) -> Array:
        return np.atleast_1d((values / np.maximum(sigma, floor) ** 2).mean())

    return by_case(mean, 1, mask, error=error, deviation=deviation)[:, 0]


class UncertaintyMeasures:
    """Whether the method's uncertainty knows where the residual r = fixed − warped is large.

    Of an estimator's σ, or 1 − S of a score: ``ause``, ``ause_official`` (always of the whole image),
    ``spearman_residual`` with |r|, and ``spearman_noise`` with the true standard deviation of the noise where the data
    hold ``noise_level``. Of a σ also ``ence`` and ``z_square``, the mean of r²/σ². Of the displacement's σ
    ``ause_displacement``, how it ranks r². The quick variant has no columns.

    Of the whole evaluation: the mean curves and their standard deviations over cases (``sparsification``, in units of
    each case's mean squared residual), and ``reliability``.

    Args:
        mask: key of the data whose non-zero pixels count, (B, 1, *S); None counts all.
        required: False leaves the columns out where the method has no uncertainty (a solver in its place).
    """

    headlines = ("ause",)

    def __init__(self, mask: str | None = None, required: bool = True) -> None:
        self.mask, self.required = mask, bool(required)

    def __call__(self, cases: Cases) -> dict[str, Tensor]:
        """Return the columns, each (B,).

        Raises:
            ValueError: where the method has no uncertainty and it is required, or the data hold no mask.
        """
        if not cases.thorough:
            return {}
        maps = {name: values[:, 0] for name, values in cases.uncertainty.items()}
        if self.required and not maps:
            raise ValueError(
                "uncertainty: expected a method with an estimator (score or log variance) or a displacement's "
                "deviation, got one without; leave the measure out of 'measures', or give it required: false."
            )
        (fixed,) = cases.of("uncertainty", "fixed_image")
        residual = (fixed - cases.warped_image)[:, 0]
        mask = None if self.mask is None else cases.of("uncertainty", self.mask)[0][:, 0] > 0
        columns: dict[str, Tensor] = {}
        if "noise_deviation" in maps or "score" in maps:
            image = maps["noise_deviation"] if "noise_deviation" in maps else 1 - maps["score"]
            columns |= self._ranking(cases, residual, image, mask)
        if "noise_deviation" in maps:
            bins = reliability(residual.square(), maps["noise_deviation"], mask)
            cases.sums[RELIABILITY] = _moments(torch.stack(bins, dim=1).flatten(1))
            z_square = mean_square_z(residual.square(), maps["noise_deviation"], mask)
            columns |= {"ence": bins.ence(), "z_square": z_square}
        if "displacement_deviation" in maps:
            curves = sparsification(residual.square(), maps["displacement_deviation"], mask)
            columns["ause_displacement"] = _kept(cases, "sparsification_displacement", curves)
        return columns

    def _ranking(self, cases: Cases, residual: Tensor, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        error = residual.square()
        columns = {
            "ause": _kept(cases, "sparsification", sparsification(error, image, mask)),
            "ause_official": official_ause(error, image),
            "spearman_residual": rank_correlation(image, residual.abs(), mask),
        }
        if "noise_level" in cases.batch:
            columns["spearman_noise"] = rank_correlation(image, cases.batch["noise_level"][:, 0], mask)
        return columns

    def of_evaluation(self, sums: Mapping[str, Tensor]) -> dict[str, list[dict[str, float]]]:
        """The tables ``sparsification``, ``sparsification_displacement`` and ``reliability``, where measured.

        Args:
            sums: by name, each summed over all cases.

        Returns:
            Rows by the table's name: ``fraction``, ``curve``, ``curve_sd``, ``oracle``, ``oracle_sd``; and ``bin``,
            ``predicted`` and ``observed``, roots of the means over cases.
        """
        tables = {}
        for name in CURVES.keys() & sums.keys():
            mean, deviation = _mean_and_deviation(sums[name])
            count = len(mean) // 2
            tables[name] = [
                {"fraction": k / count, "curve": float(mean[k]), "curve_sd": float(deviation[k])}
                | {"oracle": float(mean[count + k]), "oracle_sd": float(deviation[count + k])}
                for k in range(count)
            ]
        if RELIABILITY in sums:
            roots = _mean_and_deviation(sums[RELIABILITY])[0].sqrt().reshape(2, -1).T.tolist()
            tables[RELIABILITY] = [{"bin": k, "predicted": p, "observed": o} for k, (p, o) in enumerate(roots)]
        return tables


def _kept(cases: Cases, name: str, curves: Sparsification) -> Tensor:
    """Leave the normalised curves for the evaluation's mean, and return their AUSE."""
    both = torch.cat([curves.curve, curves.oracle], dim=1)
    cases.sums[name] = _moments(both / curves.random[:, None])
    return curves.ause


def _moments(values: Tensor) -> Tensor:
    """Number, sum and sum of squares of what is not NaN, (B, 3, K) from (B, K)."""
    known = ~values.isnan()
    filled = values.nan_to_num(nan=0.0)
    return torch.stack([known.double(), filled, filled.square()], dim=1)


def _mean_and_deviation(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n − 1) from summed moments (3, K); NaN where there are too few values."""
    number, total, squares = moments
    mean = total / number
    variance = (squares - number * mean.square()).clamp(min=0) / (number - 1)
    return mean, torch.where(number > 1, variance, torch.nan).sqrt()
