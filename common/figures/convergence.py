# SPDX-License-Identifier: Apache-2.0
"""Several trainings over their epochs, side by side, from their history files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .curves import LINES, finite_line, read_columns, style_axis
from .drawing import save_figure

# Measures that mean the same whatever a run minimises; its own penalty is none.
PANELS = (
    ("displacement/similarity", "similarity in training"),
    ("validation/dice", "validation Dice"),
    ("validation/foldings_percent", "validation foldings, %"),
)
DASHES = ("-", "--", ":", "-.")


def convergence_curves(histories: Mapping[str, Sequence[str | Path]], path: str | Path) -> None:
    """Draw similarity, validation Dice and foldings of several runs over their epochs, a colour a run, a line a seed.

    An axes is left out where no run has its column. The similarity is on a logarithmic axis if it is positive.

    Args:
        histories: history files of every run, one of each of its seeds, by the run's name for the legend.
        path: image file to write; its suffix chooses the format.

    Raises:
        FileNotFoundError: if a history file is absent.
        ValueError: if a file is no history, or none has anything to draw.

    Reference:
        Tian et al., GradICON, CVPR 2023, Fig. 3.
    """
    from matplotlib.figure import Figure

    runs = {name: [read_columns(Path(file))[0] for file in files] for name, files in histories.items()}
    every = [columns for seeds in runs.values() for columns in seeds]
    panels = [
        (column, title)
        for column, title in PANELS
        if any(np.isfinite(columns.get(column, np.nan)).any() for columns in every)
    ]
    if not panels:
        raise ValueError(
            f"histories: expected a column of {[column for column, _ in PANELS]} with values in one of"
            f" {[str(file) for files in histories.values() for file in files]}; got none. Was anything trained?"
        )
    epochs = np.concatenate([columns["epoch"] for columns in every])
    figure = Figure(figsize=(3.6 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (column, title) in zip(axes, panels, strict=True):
        drawn = [np.array([])]
        for index, (name, seeds) in enumerate(runs.items()):
            style = {"color": LINES[index % len(LINES)], "linestyle": DASHES[index // len(LINES) % len(DASHES)]}
            for number, columns in enumerate(seeds):
                x, y = finite_line(columns["epoch"], columns.get(column, np.full(len(columns["epoch"]), np.nan)))
                marker = "o" if np.isfinite(y).sum() <= 40 else None
                label = "_" if number else name  # one entry a run in the legend
                axis.plot(x, y, **style, linewidth=1.3, marker=marker, markersize=2.5, label=label)
                drawn.append(y[np.isfinite(y)])
        style_axis(axis, title, epochs)
        if column == "displacement/similarity" and np.concatenate(drawn).min() > 0:
            axis.set_yscale("log")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 4), fontsize=8, frameon=False)
    save_figure(figure, path)
