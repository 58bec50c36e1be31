# SPDX-License-Identifier: Apache-2.0
"""Curves of a training run, from its history file."""

from __future__ import annotations

import csv
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from .drawing import save_figure

# Axes in reading order: the columns drawn in them, and a title.
PANELS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("displacement/total", "displacement/similarity"), "displacement loss"),
    (("displacement/smoothness",), "displacement smoothness"),
    (("score/ucs",), r"$\mathcal{L}_{ucs}$, weighted residual"),
    (("score/reg",), r"$\mathcal{L}_{reg}$, score away from 1"),
    (("score/smooth",), r"$\mathcal{L}_{smooth}$, score smoothness"),
    (("score/mu",), r"$\mu_T$, mean residual"),
    (("score/momentum",), r"$m_T$, momentum weight"),
    (("score/mean", "score/deviation", "score/min", "score/max"), "score"),
    (("validation/dice",), "validation Dice"),
)
# Parts of terms' names that are no words as they stand.
WORDS = {
    "percent": "in %", "dice": "Dice", "hd": "Hausdorff distance", "hd95": "95 % Hausdorff distance", "ucs": "UCS",
    "asd": "surface distance", "mm": "in mm", "epe": "endpoint error", "nll": "NLL", "reg": "regularisation",
    "sd": "standard deviation of", "lv": "LV", "rv": "RV", "mu": "mean residual",
}  # fmt: skip
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
SHADES = ("#F0E442", "#56B4E9", "#CC79A7", "#009E73")


def training_curves(history_csv: str | Path, path: str | Path) -> None:
    """Draw every loss term, the momentum and the validation of a run over its epochs, an axes a quantity.

    Columns ``epoch`` and any of ``update/term`` (``displacement/similarity``, ``score/ucs``, ``validation/dice`` …) are
    drawn where they exist (a learning rate only where it changes); a line is broken where a term was not trained. With
    a column ``active`` (the updates of the epoch, joined by ``+``), epochs in which only some updates of the run were
    trained are shaded.

    Args:
        history_csv: history file, a header line and a row an epoch; empty cells where there is no value.
        path: image file to write; its suffix chooses the format.

    Raises:
        FileNotFoundError: if there is no history file.
        ValueError: if it has no rows, no ``epoch``, nothing to draw, or a cell that is not a number.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, Figs. 5 and 6.
    """
    from matplotlib.figure import Figure

    columns, active = read_columns(Path(history_csv))
    panels = _panels(columns, Path(history_csv))
    across = min(len(panels), 4 if len(panels) > 6 else 3)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(3.1 * across, 2.3 * down + 0.6), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    epochs = columns["epoch"]
    for axis, (names, title) in zip(axes, panels, strict=False):
        for colour, name in zip(LINES, names, strict=False):
            x, y = finite_line(epochs, columns[name])
            marker = "o" if np.isfinite(y).sum() <= 30 else None
            axis.plot(x, y, color=colour, linewidth=1.3, marker=marker, markersize=2.5, label=words(name, brief=True))
        style_axis(axis, title, epochs)
        if len(names) > 1:
            axis.legend(fontsize=7, frameon=False)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    _shade(figure, axes[: len(panels)], epochs, active)
    figure.suptitle(_summary(columns), fontsize=9, color="0.3")
    save_figure(figure, path)


def read_columns(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read a history file's numbers.

    Args:
        path: of the file.

    Returns:
        ``epoch``, ``updates``, ``seconds`` and every ``update/term`` as float64 ``(epochs,)``, NaN in empty cells; and
        the updates that were active in each epoch, joined by ``+``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has no rows, no ``epoch``, or a cell that is not a number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"history_csv: expected a file; {path} does not exist. It is written while training.")
    with open(path, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        header, rows = list(reader.fieldnames or []), list(reader)
    if "epoch" not in header:
        raise ValueError(f"history_csv: expected a column 'epoch' in {path}; got {header}. Is it a history file?")
    if not rows:
        raise ValueError(f"history_csv: expected a row an epoch; {path} has none. Train for one epoch at least.")
    numeric = [name for name in header if name in ("epoch", "updates", "seconds") or "/" in name]
    columns = {
        name: np.array([_number(row[name], path, line, name) for line, row in enumerate(rows, start=2)])
        for name in numeric
    }
    if np.isnan(columns["epoch"]).any():
        raise ValueError(f"history_csv: expected a number for every epoch in {path}; got empty cells. Repair the file.")
    return columns, [(row.get("active") or "").strip() for row in rows]


def _number(cell: str | None, path: Path, line: int, name: str) -> float:
    # A last line cut short by a killed run has missing cells (None), which count as empty.
    if cell is None or not cell.strip():
        return np.nan
    try:
        return float(cell)
    except ValueError as error:
        raise ValueError(
            f"history_csv: expected a number in line {line}, column {name!r} of {path}; got {cell!r}. Repair it or"
            " leave it empty."
        ) from error


def _panels(columns: dict[str, np.ndarray], path: Path) -> list[tuple[tuple[str, ...], str]]:
    drawable = [
        name
        for name, values in columns.items()
        if "/" in name and np.isfinite(values).any() and not (name.endswith("/learning_rate") and np.ptp(values) == 0)
    ]
    known = [(tuple(name for name in names if name in drawable), title) for names, title in PANELS]
    placed = {name for names, _ in known for name in names}
    # Terms of other methods get an axes each, in the file's order.
    panels = [panel for panel in known if panel[0]] + [((n,), words(n)) for n in drawable if n not in placed]
    if not panels:
        raise ValueError(
            f"history_csv: expected columns such as 'displacement/similarity' with values in {path}; got"
            f" {list(columns)}. Was anything trained?"
        )
    return panels


def words(column: str, brief: bool = False) -> str:
    """A history's column in words: "displacement/inverse_consistency" is "inverse consistency (displacement update)".

    Args:
        column: ``update/term``.
        brief: leave out the update.

    Returns:
        The words.
    """
    update, _, term = column.partition("/")
    text = " ".join(WORDS.get(part, part) for part in term.split("_"))
    if brief:
        return text
    return f"{text} ({update})" if update == "validation" else f"{text} ({update.replace('_', ' ')} update)"


def finite_line(epochs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points to draw: those with a value, and NaN between them where the line is to break.

    Args:
        epochs: (N,).
        values: (N,), NaN where there are none.

    Returns:
        Epochs and values.
    """
    # Validation every few epochs is one line; a term that paused for a phase is two.
    x, y = epochs[np.isfinite(values)], values[np.isfinite(values)]
    if len(x) < 3:
        return x, y
    gaps = np.flatnonzero(np.diff(x) > 1.5 * np.median(np.diff(x))) + 1
    return np.insert(x, gaps, np.nan), np.insert(y, gaps, np.nan)


def style_axis(axis: Any, title: str, epochs: np.ndarray) -> None:
    """Title, grid and ticks of an axes over these epochs.

    Args:
        axis: of matplotlib.
        title: heading.
        epochs: those shown.
    """
    from matplotlib.ticker import MaxNLocator

    axis.set_title(title, fontsize=9)
    axis.set_xlabel("epoch", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.ticklabel_format(axis="y", scilimits=(-2, 4), useMathText=True)
    axis.yaxis.offsetText.set_fontsize(7)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axis.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
    axis.grid(linewidth=0.4, color="0.88")
    axis.spines[["top", "right"]].set_visible(False)


def _shade(figure: Any, axes: list[Any], epochs: np.ndarray, active: list[str]) -> None:
    from matplotlib.patches import Patch

    updates = {name for entry in active for name in entry.split("+") if name}
    partial = sorted({entry for entry in active if entry and set(entry.split("+")) != updates})
    colours = dict(zip(partial, SHADES, strict=False))
    for entry, run in groupby(zip(epochs, active, strict=True), key=lambda pair: pair[1]):
        span = [epoch for epoch, _ in run]
        if entry in colours:
            for axis in axes:
                axis.axvspan(span[0] - 0.5, span[-1] + 0.5, color=colours[entry], alpha=0.25, linewidth=0)
    if colours:
        patches = [Patch(color=colour, alpha=0.25, label=f"{entry} alone") for entry, colour in colours.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8, frameon=False)


def _summary(columns: dict[str, np.ndarray]) -> str:
    parts = [f"{len(columns['epoch'])} epochs"]
    updates, seconds = (columns.get(name, np.array([])) for name in ("updates", "seconds"))
    if np.isfinite(updates).any():
        parts.append(f"{int(np.nanmax(updates)):,} updates")
    if np.isfinite(seconds).any():
        total = np.nansum(seconds)
        parts.append(f"{total / 3600:.1f} h of training" if total >= 3600 else f"{total:.0f} s of training")
    return ", ".join(parts)
