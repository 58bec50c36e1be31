# SPDX-License-Identifier: Apache-2.0
"""Two ways to measure one thing, by Bland and Altman: their difference over their mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .drawing import save_figure

WITHIN = 1.96  # standard deviations, of 95 % of normal differences


class Agreement(NamedTuple):
    """Agreement of two ways to measure.

    Attributes:
        bias: mean difference.
        deviation: of the differences (n - 1); NaN of one.
        lower: limit of agreement, bias - 1.96 deviations.
        upper: limit of agreement, bias + 1.96 deviations.
        n: number of pairs, those that are not NaN.
    """

    bias: float
    deviation: float
    lower: float
    upper: float
    n: int


def agreement(measured: Sequence[float], reference: Sequence[float]) -> Agreement:
    """Bias and limits of agreement of measured - reference.

    Args:
        measured: a number a subject.
        reference: of the same subjects, as many.

    Returns:
        Bias and limits, in the unit of the measures, over the pairs that are not NaN.

    Raises:
        ValueError: for lists of different lengths, or no pair.

    Reference:
        Bland and Altman, Statistical methods for assessing agreement between two methods of clinical measurement, The
        Lancet 327, 1986.
    """
    differences = _pairs(measured, reference)[0]
    bias = float(differences.mean())
    deviation = float(differences.std(ddof=1)) if len(differences) > 1 else float("nan")
    return Agreement(bias, deviation, bias - WITHIN * deviation, bias + WITHIN * deviation, len(differences))


def bland_altman(
    path: str | Path, measured: Sequence[float], reference: Sequence[float], name: str, unit: str
) -> Agreement:
    """Draw measured - reference over their mean, with bias and limits of agreement.

    Args:
        path: image file to write; its suffix chooses the format.
        measured: a number a subject.
        reference: of the same subjects, as many.
        name: of what is measured, for the axes.
        unit: of both.

    Returns:
        What the lines stand for.

    Raises:
        ValueError: as ``agreement``.
    """
    from matplotlib.figure import Figure

    differences, means = _pairs(measured, reference)
    found = agreement(measured, reference)
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axis = figure.subplots()
    axis.plot(means, differences, "o", markersize=4, color="C0")
    axis.axhline(0, color="0.7", linewidth=0.8)
    for value, style, text in (
        (found.bias, "-", f"bias {found.bias:+.1f}"),
        (found.upper, "--", f"{found.upper:+.1f}"),
        (found.lower, "--", f"{found.lower:+.1f}"),
    ):
        if np.isfinite(value):
            axis.axhline(value, color="C3", linestyle=style, linewidth=1.2)
            axis.annotate(text, (1, value), xycoords=("axes fraction", "data"), xytext=(-4, 3),
                          textcoords="offset points", ha="right", color="C3", fontsize=8)  # fmt: skip
    axis.set_xlabel(f"mean of both, {name}, {unit}")
    axis.set_ylabel(f"registered − labelled, {unit}")
    axis.set_title(f"{found.n} subjects, limits of agreement ±1.96 SD", fontsize=9)
    save_figure(figure, path)
    return found


def _pairs(measured: Sequence[float], reference: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    one, other = (np.asarray(values, dtype=float) for values in (measured, reference))
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"measured, reference: expected as many numbers, got {one.shape} and {other.shape}.")
    known = np.isfinite(one) & np.isfinite(other)
    if not known.any():
        raise ValueError("measured, reference: expected at least one pair of numbers, got none that is not NaN.")
    return (one - other)[known], ((one + other) / 2)[known]
