# SPDX-License-Identifier: Apache-2.0
"""Measures over a grid of two options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .drawing import save_figure


def heat_maps(
    maps: Mapping[str, np.ndarray],
    path: str | Path,
    rows: tuple[str, Sequence[Any]],
    columns: tuple[str, Sequence[Any]],
) -> None:
    """Draw a heat map a measure, each with a colour scale of its own and its values written in.

    Args:
        maps: (rows, columns) by title; NaN is left white.
        path: image file to write; its suffix chooses the format.
        rows: name of the option that changes downwards, and its values.
        columns: the same of the option that changes to the right.

    Raises:
        ValueError: if there is no map, or one has another shape.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, Fig. 6 (sensitivity to α and β).
    """
    from matplotlib.figure import Figure

    shape = (len(rows[1]), len(columns[1]))
    if not maps or any(np.shape(values) != shape for values in maps.values()):
        raise ValueError(
            f"maps: expected at least one of shape {shape}, a value a row and column, got "
            f"{ {title: np.shape(values) for title, values in maps.items()} }."
        )
    width, height = (0.85 * n + 1.2 for n in (shape[1], shape[0]))
    figure = Figure(figsize=(width * len(maps), height), layout="constrained")
    for axis, (title, values) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
        picture = axis.imshow(values, cmap="cividis")
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(shape[1]), [str(value) for value in columns[1]], fontsize=7)
        axis.set_yticks(range(shape[0]), [str(value) for value in rows[1]], fontsize=7)
        axis.set_xlabel(columns[0], fontsize=8)
        axis.set_ylabel(rows[0], fontsize=8)
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "black" if picture.norm(value) > 0.5 else "white"
                axis.text(j, i, f"{value:.4g}", ha="center", va="center", fontsize=7, color=colour)
    save_figure(figure, path)
