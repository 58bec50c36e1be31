# SPDX-License-Identifier: Apache-2.0
"""Distributions over cases: box plots of methods, and a measure over another column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .drawing import LABEL_COLOURS, save_figure

MARKERS = "osD^vP*X"
STYLE: Any = {
    "patch_artist": True, "medianprops": {"color": "black"},
    "flierprops": {"marker": ".", "markersize": 3, "markeredgecolor": "0.5"},
}  # fmt: skip
UNITS = {"hd": "voxels", "hd95": "voxels", "asd": "voxels", "thickness": "voxels", "tre_mm": "mm"}


def box_plots(measures: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path) -> None:
    """Box plots of several measures, an axes a measure and a box a method.

    A box spans the quartiles around the median, whiskers reach the last case within 1.5 times its height, and cases
    beyond are dots. A diamond is the mean.

    Args:
        measures: cases' values by method, by measure; NaN (not scorable) is left out, and a method without a value
            keeps its place.
        path: image file to write; its suffix chooses the format.

    Raises:
        ValueError: if there is nothing to draw.

    Reference:
        Tukey, Exploratory Data Analysis, 1977.
    """
    from matplotlib.figure import Figure

    if not measures:
        raise ValueError("measures: expected at least one with values by method, got none.")
    longest = max(len(methods) for methods in measures.values())
    figure = Figure(figsize=((0.9 + 0.55 * longest) * len(measures) + 0.5, 3.8), layout="constrained")
    axes = figure.subplots(1, len(measures), squeeze=False)[0]
    for axis, (measure, methods) in zip(axes, measures.items(), strict=True):
        values = [_finite(cases) for cases in methods.values()]
        counts = [f"{name}\n({len(cases)})" for name, cases in zip(methods, values, strict=True)]
        boxes = axis.boxplot(
            values, widths=0.6, showmeans=True, **STYLE,
            meanprops={"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": "black"},
        )  # fmt: skip
        for index, box in enumerate(boxes["boxes"]):
            box.set(facecolor=LABEL_COLOURS[index % len(LABEL_COLOURS)], alpha=0.55)
        axis.set_xticks(range(1, len(counts) + 1), counts, rotation=45, ha="right", fontsize=7)
        axis.set_title(_with_unit(measure), fontsize=9)
        axis.tick_params(axis="y", labelsize=7)
        axis.grid(axis="y", linewidth=0.4, color="0.88")
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def structure_boxes(
    structures: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path, measure: str = "dice"
) -> None:
    """Box plots of one measure by structure, side by side a box a method; boxes are those of ``box_plots``.

    Args:
        structures: cases' values by method, by structure, all of the same methods; NaN is left out.
        path: image file to write; its suffix chooses the format.
        measure: what the vertical axis is called.

    Raises:
        ValueError: if there is nothing to draw.

    Reference:
        Chen et al., TransMorph, Medical Image Analysis 82, 2022 (Dice by structure).
    """
    from matplotlib.figure import Figure

    if not structures:
        raise ValueError("structures: expected at least one with values by method, got none.")
    methods = list(next(iter(structures.values())))
    places = np.arange(len(structures), dtype=np.float64)
    figure = Figure(figsize=(1.5 + len(structures) * (0.25 + 0.18 * len(methods)), 4.2), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(methods)
    for index, method in enumerate(methods):
        values = [_finite(cases[method]) for cases in structures.values()]
        where = places + (index - (len(methods) - 1) / 2) * width
        boxes = axis.boxplot(values, positions=where, widths=0.85 * width, **STYLE)
        for box in boxes["boxes"]:
            box.set(facecolor=LABEL_COLOURS[index % len(LABEL_COLOURS)], alpha=0.55)
        boxes["boxes"][0].set_label(method)
    axis.set_xticks(places, [name.replace("_", " ") for name in structures], rotation=45, ha="right", fontsize=7)
    axis.set_ylabel(_with_unit(measure), fontsize=8)
    axis.tick_params(axis="y", labelsize=7)
    axis.grid(axis="y", linewidth=0.4, color="0.88")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, ncols=len(methods), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save_figure(figure, path)


def dependence_plot(
    column: Sequence[float],
    methods: Mapping[str, Sequence[float]],
    path: str | Path,
    column_name: str,
    measure: str,
    groups: int = 5,
) -> None:
    """A measure of every case over another column, with means over groups of equally many cases.

    Args:
        column: one value a case.
        methods: the measure by method, one value a case; cases without one of the two are left out.
        path: image file to write; its suffix chooses the format.
        column_name: what the horizontal axis is called.
        measure: what the vertical axis is called.
        groups: number of means along a line; fewer where there are fewer cases than twice that.

    Raises:
        ValueError: if no case has both values.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, supplement, Fig. 9 (thin myocardium).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axis = figure.subplots()
    drawn = 0
    x = np.asarray(column, dtype=np.float64)
    for index, (name, values) in enumerate(methods.items()):
        y = np.asarray(values, dtype=np.float64)
        both = np.isfinite(x) & np.isfinite(y)
        drawn += int(both.sum())
        colour = LABEL_COLOURS[index % len(LABEL_COLOURS)]
        axis.plot(x[both], y[both], ".", color=colour, markersize=3, alpha=0.4)
        means = group_means(x[both], y[both], groups)
        axis.plot(*means, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=5, label=name)
    if not drawn:
        raise ValueError(f"column: expected cases that have both {column_name!r} and {measure!r}, got none.")
    axis.set_xlabel(_with_unit(column_name), fontsize=8)
    axis.set_ylabel(_with_unit(measure), fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(linewidth=0.4, color="0.88")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False)
    save_figure(figure, path)


def group_means(x: np.ndarray, y: np.ndarray, groups: int) -> tuple[list[float], list[float]]:
    """Means of x and y over groups of neighbouring x, equally many in each.

    Args:
        x: (N,).
        y: (N,).
        groups: how many; at most N / 2.

    Returns:
        Mean x and mean y of each group.
    """
    order = np.argsort(x, kind="stable")
    parts = np.array_split(order, max(1, min(groups, len(order) // 2))) if len(order) else []
    return [float(x[part].mean()) for part in parts], [float(y[part].mean()) for part in parts]


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _with_unit(column: str) -> str:
    unit = next((unit for name, unit in UNITS.items() if column == name or column.startswith(f"{name}_")), None)
    words = column.replace("_", " ")
    return words if unit is None or words.endswith((" mm", " voxels")) else f"{words}, {unit}"
