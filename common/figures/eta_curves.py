# SPDX-License-Identifier: Apache-2.0
"""Measures over the weight of the log loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .curves import LINES
from .drawing import save_figure


def eta_curves(
    path: str | Path, etas: Sequence[float], means: Mapping[str, Sequence[float | None]], best: float | None = None
) -> None:
    """Draw each measure over η, an axes a measure; a broken line marks the best η.

    Args:
        path: image file to write; its suffix chooses the format.
        etas: values of η, ascending.
        means: by title a value an η, None or NaN where there is none.
        best: the η to mark; None marks none.

    Raises:
        ValueError: for no value or no measure, or a measure with another number of values.

    Reference:
        Chen et al., Spatially-varying regularization with conditional transformer, arXiv 2023, Fig. 4.
    """
    from matplotlib.figure import Figure

    if not etas or not means or any(len(values) != len(etas) for values in means.values()):
        raise ValueError(
            f"means: expected at least one measure with {len(etas)} values, one for each of at least one eta, got "
            f"{ {title: len(values) for title, values in means.items()} }."
        )
    figure = Figure(figsize=(3.4 * len(means), 2.9), layout="constrained")
    panels = figure.subplots(1, len(means), squeeze=False)[0]
    for axis, colour, (title, values) in zip(panels, LINES, means.items(), strict=False):
        marker = "o" if len(etas) <= 30 else None
        axis.plot(etas, np.array(values, dtype=float), color=colour, linewidth=1.4, marker=marker, markersize=3)
        if best is not None:
            axis.axvline(best, color="0.4", linestyle="--", linewidth=0.9)
            axis.annotate(f"η = {best:g}", (best, 1.0), xycoords=("data", "axes fraction"), fontsize=7, ha="center",
                          va="bottom", color="0.3")  # fmt: skip
        axis.set_title(title, fontsize=9, pad=14)
        axis.set_xlabel("weight η of the log loss", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(linewidth=0.4, color="0.88")
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
