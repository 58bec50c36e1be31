# SPDX-License-Identifier: Apache-2.0
"""The weights of the scales of a similarity in the course of an optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .drawing import save_figure

COLOURS = ("#D55E00", "#E69F00", "#009E73", "#56B4E9", "#0072B2")
SCALES = ("full", "smooth", "smooth 1/2", "smooth 1/4", "smooth 1/8")


def scale_weights(path: str | Path, weights: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Draw the weight of each scale over the iterations, an axes a similarity.

    Args:
        path: image file to write; its suffix chooses the format.
        weights: by title a row an iteration of a weight a scale, the finest first.

    Raises:
        ValueError: for no similarity, or rows that are none or of more than five scales.

    Reference:
        Tian et al., GradICON, CVPR 2023, Fig. 2.
    """
    from matplotlib.figure import Figure

    rows = {title: np.asarray(values, dtype=float) for title, values in weights.items()}
    if not rows or any(values.ndim != 2 or not 1 <= values.shape[1] <= len(SCALES) for values in rows.values()):
        raise ValueError(
            f"weights: expected a row an iteration of up to {len(SCALES)} weights for at least one similarity, got "
            f"{ {title: values.shape for title, values in rows.items()} }."
        )
    figure = Figure(figsize=(4.2 * len(rows), 3.1), layout="constrained")
    axes = figure.subplots(1, len(rows), squeeze=False, sharey=True)[0]
    for axis, (title, values) in zip(axes, rows.items(), strict=True):
        for scale, (name, colour) in enumerate(zip(SCALES, COLOURS, strict=True)):
            if scale < values.shape[1]:
                axis.plot(range(1, len(values) + 1), values[:, scale], color=colour, linewidth=1.3, label=name)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("iteration", fontsize=8)
        axis.set_ylim(-0.02, 1.02)
        axis.tick_params(labelsize=7)
        axis.grid(linewidth=0.4, color="0.88")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("weight", fontsize=8)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    save_figure(figure, path)
