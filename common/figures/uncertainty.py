# SPDX-License-Identifier: Apache-2.0
"""What an uncertainty is worth: sparsification and reliability curves, and its maps beside the images.

Arrays are (X, Y), shown with axis 0 to the right and axis 1 downwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .curves import LINES
from .drawing import BAR_RATIO, colour_bar, new_figure, save_figure, show
from .panels import checked_array

DASHES = ("-", "-.")  # of methods beyond the colours; broken lines are the oracles'
Rows = Sequence[Mapping[str, float]]


class Map(NamedTuple):
    """A column of a panel of maps: its key in the cases, heading, unit and colours."""

    key: str
    title: str
    unit: str
    colours: str


def sparsification_plot(path: str | Path, methods: Mapping[str, Rows], ause: Mapping[str, float | None]) -> None:
    """Mean squared residual of the remaining pixels over the share removed: each method, its oracle, and chance.

    The line of a method falls the faster the better its uncertainty finds the errors; removing pixels at random leaves
    it at 1. The band is one standard deviation over the cases.

    Args:
        path: image file to write; its suffix chooses the format.
        methods: by name a row a share as in ``sparsification.csv``: ``fraction``, ``curve``, ``curve_sd`` (NaN draws
            no band), ``oracle``; in units of the mean squared residual.
        ause: area between curve and oracle by method, for the legend; None where a method has none.

    Raises:
        ValueError: for no method, or one without rows.

    Reference:
        Zhang et al., MICCAI 2024, Fig. 3; Ilg et al., ECCV 2018.
    """
    from matplotlib.lines import Line2D

    figure, axis = _axes("sparsification", methods)
    for index, (name, rows) in enumerate(methods.items()):
        style = _style(index)
        share, curve, spread, oracle = _columns(rows, "fraction", "curve", "curve_sd", "oracle")
        axis.plot(share, curve, **style, label=_labelled(name, "AUSE", ause.get(name)))
        axis.fill_between(share, curve - spread, curve + spread, color=style["color"], alpha=0.15, linewidth=0)
        axis.plot(share, oracle, **style | {"linestyle": "--", "linewidth": 0.9})
    axis.axhline(1.0, color="0.4", linestyle=":", linewidth=1.0)
    axis.set_xlim(0, 1)
    axis.set_ylim(bottom=0)
    _name_axes(axis, "share of pixels removed", "mean squared residual of the rest / that of all")
    others = [
        Line2D([], [], color="0.4", linestyle="--", linewidth=0.9, label="oracle: largest residual first"),
        Line2D([], [], color="0.4", linestyle=":", linewidth=1.0, label="random"),
    ]
    axis.legend(handles=[*axis.get_legend_handles_labels()[0], *others], fontsize=7, frameon=False)
    save_figure(figure, path)


def reliability_plot(path: str | Path, methods: Mapping[str, Rows], ence: Mapping[str, float | None]) -> None:
    """Root mean squared residual over the predicted σ, in bins of equally many pixels; the diagonal is calibrated.

    Above the diagonal σ is too small. Both axes are logarithmic.

    Args:
        path: image file to write; its suffix chooses the format.
        methods: by name a row a bin as in ``reliability.csv``: ``predicted`` and ``observed`` in intensities.
        ence: expected normalised calibration error by method, for the legend; None where a method has none.

    Raises:
        ValueError: for no method, or one without rows.

    Reference:
        Levi et al., Sensors 2022.
    """
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure, axis = _axes("reliability", methods)
    ends = []
    for index, (name, rows) in enumerate(methods.items()):
        predicted, observed = _columns(rows, "predicted", "observed")
        positive = (predicted > 0) & (observed > 0)  # false of NaN
        points = predicted[positive], observed[positive]
        axis.plot(*points, **_style(index), marker="o", markersize=3.5, label=_labelled(name, "ENCE", ence.get(name)))
        ends += [*points[0], *points[1]]
    if ends:
        low, high = min(ends) / 1.2, max(ends) * 1.2
        axis.plot([low, high], [low, high], color="0.4", linestyle=":", linewidth=1.0, label="calibrated")
        axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(LogLocator(subs=(1, 2, 5)))
            side.set_major_formatter(StrMethodFormatter("{x:g}"))
            side.set_minor_locator(NullLocator())
    _name_axes(axis, "predicted σ", "root mean squared residual")
    axis.legend(fontsize=7, frameon=False)
    save_figure(figure, path)


def weight_panel(path: str | Path, cases: Sequence[Mapping[str, Any]]) -> None:
    """Fixed and warped image, σ of the noise, and the weight that the data term gives to each pixel, a row a case.

    Args:
        path: image file to write; its suffix chooses the format.
        cases: a dictionary a row, with ``fixed_image``, ``warped_image``, ``noise_deviation`` σ in intensities and
            ``weight``, (H, W); optional ``title``.

    Raises:
        ValueError: if there are no cases, a key is missing, a shape differs from that of the fixed image, or a value
            is not finite.

    Reference:
        Zhang et al., MICCAI 2024, Figs. 3 and 6.
    """
    maps = (
        Map("noise_deviation", "standard deviation σ", "intensity", "viridis"),
        Map("weight", "weight", "", "magma"),
    )
    _map_panel(path, cases, ("fixed_image", "warped_image"), maps)


def displacement_deviation_panel(path: str | Path, cases: Sequence[Mapping[str, Any]]) -> None:
    """The displacement's σ_z of several methods beside each other, on one scale, a row a case.

    Args:
        path: image file to write; its suffix chooses the format.
        cases: a dictionary a row, with ``moving_image``, ``fixed_image`` (H, W) and ``deviations``, σ_z (H, W) in
            voxels by method, of the same methods in all; optional ``title``.

    Raises:
        ValueError: as ``weight_panel``, and where a case has no deviation.

    Reference:
        Zhang et al., MICCAI 2024, supplement, Fig. 4.
    """
    names = list(cases[0].get("deviations", ())) if cases else []
    if cases and not names:
        raise ValueError("deviations: expected σ_z of at least one method in each case, got none.")
    flat = [dict(case) | {f"σ_z, {name}": array for name, array in case["deviations"].items()} for case in cases]
    maps = [Map(f"σ_z, {name}", rf"$\sigma_z$, {name}", "voxels", "viridis") for name in names]
    _map_panel(path, flat, ("moving_image", "fixed_image"), maps, one_scale=True)


def _map_panel(
    path: str | Path,
    cases: Sequence[Mapping[str, Any]],
    images: Sequence[str],
    maps: Sequence[Map],
    one_scale: bool = False,
) -> None:
    """Images on the case's own scale of grey, and maps from 0 on the scale of their column, or of all columns."""
    if not cases:
        raise ValueError("cases: expected at least one dictionary of arrays (H, W), got none.")
    keys = [*images, *(column.key for column in maps)]
    checked = [_checked(index, case, keys) for index, case in enumerate(cases)]
    largest = {column.key: max(case[column.key].max() for case in checked) for column in maps}
    if one_scale:
        largest = dict.fromkeys(largest, max(largest.values()))
    widest = max((case[keys[0]].shape for case in checked), key=lambda shape: shape[1] / shape[0])
    figure = new_figure(len(keys), len(cases), widest, "")
    axes = figure.subplots(len(cases) + 1, len(keys), squeeze=False, height_ratios=[*[1] * len(cases), BAR_RATIO])
    for row, case, given in zip(axes[:-1], checked, cases, strict=True):
        ends = {"vmin": min(case[key].min() for key in images), "vmax": max(case[key].max() for key in images)}
        for axis, key in zip(row, images, strict=False):
            show(axis, case[key], key.removesuffix("_image"), cmap="gray", **ends)
        pictures = [
            show(axis, case[column.key], column.title, cmap=column.colours, vmin=0, vmax=largest[column.key] or 1)
            for axis, column in zip(row[len(images) :], maps, strict=True)
        ]
        row[0].set_ylabel(str(given.get("title", "")), fontsize=9)
    for axis in axes[1:-1].flat:
        axis.set_title("")
    for axis in axes[-1, : len(images)]:
        axis.set_axis_off()
    for picture, axis, column in zip(pictures, axes[-1, len(images) :], maps, strict=True):
        colour_bar(figure, picture, axis, column.unit)
    save_figure(figure, path)


def _checked(index: int, case: Mapping[str, ArrayLike], keys: Sequence[str]) -> dict[str, np.ndarray]:
    missing = [key for key in keys if key not in case]
    if missing:
        raise ValueError(f"cases: expected the keys {list(keys)}; case {index} lacks {missing}. Add them.")
    shape = np.asarray(case[keys[0]]).shape
    return {key: checked_array(key, case[key], shape) for key in keys}


def _axes(name: str, methods: Mapping[str, Rows]) -> tuple[Any, Any]:
    """Figure and axes of a plot of curves, once it is sure that there is something to draw."""
    from matplotlib.figure import Figure

    empty = [method for method, rows in methods.items() if not rows]
    if empty or not methods:
        raise ValueError(f"methods: expected rows as in {name}.csv of at least one method, got none {empty or ''}.")
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.tick_params(labelsize=7)
    axis.grid(linewidth=0.4, color="0.88")
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _name_axes(axis: Any, across: str, up: str) -> None:
    axis.set_xlabel(across, fontsize=8)
    axis.set_ylabel(up, fontsize=8)


def _style(index: int) -> dict[str, Any]:
    dashes = DASHES[index // len(LINES) % len(DASHES)]
    return {"color": LINES[index % len(LINES)], "linestyle": dashes, "linewidth": 1.4}


def _columns(rows: Rows, *names: str) -> list[np.ndarray]:
    return [np.array([row[name] for row in rows], dtype=np.float64) for name in names]


def _labelled(name: str, measure: str, value: float | None) -> str:
    return name if value is None else f"{name}, {measure} {value:.3g}"
