# SPDX-License-Identifier: Apache-2.0
"""Panels of one or more registrations.

Arrays are stored (X, Y) and shown transposed with the origin at the top left: axis 0 runs to the right and axis 1
downwards, which puts hearts of ACDC and CAMUS upright. Matplotlib is used through Figure objects, never pyplot: no
display is needed and no global state is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .drawing import (
    BAR_RATIO,
    colour_bar,
    draw_differences,
    draw_directions,
    draw_images,
    draw_legend,
    draw_window,
    new_figure,
    save_figure,
    show,
    zoom,
)
from .maps import draw_deviation, draw_displacement, draw_grid, draw_jacobian

UNITS = {  # of the last columns of ``score_panel``
    "score": ("(fixed − warped)²", "score", "score · (fixed − warped)²"),
    "noise_deviation": ("(fixed − warped)²", "intensity", "(fixed − warped)² / σ²"),
}


def registration_panel(
    path: str | Path,
    moving: ArrayLike,
    fixed: ArrayLike,
    warped: ArrayLike,
    ddf: ArrayLike,
    moving_label: ArrayLike | None = None,
    fixed_label: ArrayLike | None = None,
    warped_label: ArrayLike | None = None,
    score: ArrayLike | None = None,
    noise_deviation: ArrayLike | None = None,
    jacobian_determinant: ArrayLike | None = None,
    title: str = "",
    window: tuple[Sequence[int], Sequence[int]] | None = None,
    directions: Sequence[str] | None = None,
    label_names: Mapping[int, str] | None = None,
) -> None:
    """One registration: images with label contours, differences before and after, deformation grid, maps.

    Args:
        path: image file to write; its suffix chooses the format (.png, .pdf, .svg).
        moving: (H, W); for volumes pass a slice.
        fixed: (H, W); for volumes pass a slice.
        warped: (H, W); for volumes pass a slice.
        ddf: (2, H, W), in-plane displacement in voxels. The grid shown is x + ddf(x).
        moving_label: (H, W) integer, 0 the background; each structure is outlined in a colour of its own.
        fixed_label: (H, W) integer, outlined by broken lines.
        warped_label: (H, W) integer.
        score: (H, W) in [0, 1].
        noise_deviation: (H, W), standard deviation σ of the noise in intensities.
        jacobian_determinant: (H, W), white at 1, foldings (≤ 0) in red; the bar ends where 99 % of the
            values in the window do.
        title: heading.
        window: first and last voxel, two numbers each, of what the network saw: outlined on moving and fixed. Where it
            is a tenth of the slice or less, the panels show it and as much again around it.
        directions: where axes 0 and 1 point, two of the letters R, L, A, P, S, I, written at the panels' edges.
        label_names: names of label values for the legend; others are "label 3".

    Raises:
        ValueError: if a shape differs from that of ``fixed`` or a value is not finite.
    """
    shape = np.asarray(fixed).shape
    images = _checked_all({"moving": moving, "fixed": fixed, "warped": warped}, shape)
    given = {"moving_label": moving_label, "fixed_label": fixed_label, "warped_label": warped_label}
    labels = _checked_all(_given(given), shape)
    given = {"score": score, "noise_deviation": noise_deviation, "jacobian_determinant": jacobian_determinant}
    maps = _checked_all(_given(given), shape)
    field = checked_array("ddf", ddf, (2, *shape))
    box = None
    if window is not None:
        part, box = zoom(window, shape)
        images, labels, maps = ({k: v[part] for k, v in arrays.items()} for arrays in (images, labels, maps))
        field = field[(slice(None), *part)]
        if images["fixed"].shape != shape:
            title = f"{title}, around the network's window" if title else "around the network's window"
    figure, axes = _registration_axes(list(maps), images["fixed"].shape, title)
    draw_images(axes, images, labels)
    draw_differences(figure, axes, images)
    draw_grid(axes["grid"], field)
    _draw_maps(figure, axes, maps, box)
    _draw_marks(axes, box, directions)
    draw_legend(figure, labels, label_names or {}, windowed=box is not None)
    save_figure(figure, path)


def _registration_axes(maps: Sequence[str], shape: tuple[int, ...], title: str) -> tuple[Any, dict[str, Any]]:
    """Figure and axes by name: images and the grid, differences and maps, and the maps' bars below them."""
    rows = [["moving", "fixed", "warped", "grid"], ["before", "after", *maps]]
    if not maps:
        rows = [rows[0][:3], ["before", "after", "grid"]]
    bars = ["difference_bar", "difference_bar", *(f"{name}_bar" for name in maps)]
    across = len(rows[0])
    rows = [row + ["."] * (across - len(row)) for row in (*rows, bars)]
    figure = new_figure(across, 2, shape, title)
    return figure, figure.subplot_mosaic(rows, height_ratios=[1, 1, BAR_RATIO])


def _draw_marks(axes: Mapping[str, Any], box: Any, directions: Sequence[str] | None) -> None:
    """The network's window, and where the axes point."""
    for name in ("moving", "fixed", "warped"):
        if box is not None and name != "warped":
            draw_window(axes[name], box)
        if directions is not None:
            draw_directions(axes[name], directions)


def _draw_maps(figure: Any, axes: Mapping[str, Any], maps: Mapping[str, np.ndarray], box: Any) -> None:
    if "score" in maps:
        picture = show(axes["score"], maps["score"], "score", cmap="viridis", vmin=0, vmax=1)
        colour_bar(figure, picture, axes["score_bar"])
    if "noise_deviation" in maps:
        picture = draw_deviation(axes["noise_deviation"], maps["noise_deviation"], maps["noise_deviation"].max())
        colour_bar(figure, picture, axes["noise_deviation_bar"], "intensity")
    if "jacobian_determinant" in maps:
        picture = draw_jacobian(axes["jacobian_determinant"], maps["jacobian_determinant"], box)
        colour_bar(figure, picture, axes["jacobian_determinant_bar"])


def score_panel(
    path: str | Path, cases: Sequence[Mapping[str, Any]], label_names: Mapping[int, str] | None = None
) -> None:
    """What an estimator does to the residual, a row a case: source, target, warped, displacement, error, map, weighted.

    The error is (fixed − warped)², what the score weights in Eq. 3; error and score · error share one scale. Of a
    standard deviation the last column is error / σ², from 0 to 9: 1 where σ is right on average. Every column shares
    its scale over the rows.

    Args:
        path: image file to write; its suffix chooses the format.
        cases: a dictionary a row, with ``moving_image``, ``fixed_image``, ``warped_image`` (H, W), ``ddf`` (2, H, W) in
            voxels, and ``score`` in [0, 1] or ``noise_deviation`` σ in intensities (H, W), the same in all; optional
            ``moving_label``, ``fixed_label``, ``warped_label`` and ``title``.
        label_names: names of label values for the legend.

    Raises:
        ValueError: if there are no cases, a key is missing, a shape differs from that of the fixed image, or a value
            is not finite.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, Fig. 4.
    """
    if not cases:
        raise ValueError("score_panel: cases must hold at least one case; got none. Pass a list of dictionaries.")
    kind = "noise_deviation" if "noise_deviation" in cases[0] else "score"
    checked = [_checked_case(index, case, kind) for index, case in enumerate(cases)]
    figure = new_figure(7, len(checked), max((case["fixed"].shape for case in checked), key=lambda s: s[1] / s[0]), "")
    axes = figure.subplots(len(checked) + 1, 7, squeeze=False, height_ratios=[*[1] * len(checked), BAR_RATIO])
    longest = max(np.linalg.norm(case["ddf"], axis=0).max() for case in checked)
    largest = {name: max(case[name].max() for case in checked) for name in ("error", kind)}
    for row, case in zip(axes[:-1], checked, strict=True):
        draw_images(dict(zip(("moving", "fixed", "warped"), row[:3], strict=True)), case, case["labels"])
        row[0].set_ylabel(case["title"], fontsize=9)
        pictures = [draw_displacement(row[3], case["ddf"], longest), *_draw_estimated(row[4:], case, kind, largest)]
    for axis, name in zip(axes[0], ("source (moving)", "target (fixed)", "warped source"), strict=False):
        axis.set_title(name, fontsize=9)
    for axis in axes[1:-1].flat:
        axis.set_title("")
    for axis in axes[-1, :3]:
        axis.set_axis_off()
    for picture, axis, unit in zip(pictures, axes[-1, 3:], ("voxels", *UNITS[kind]), strict=True):
        colour_bar(figure, picture, axis, unit)
    drawn = [case["labels"] for case in checked]
    names = sorted({name for labels in drawn for name in labels})
    everything = {name: np.concatenate([labels[name].ravel() for labels in drawn if name in labels]) for name in names}
    draw_legend(figure, everything, label_names or {})
    save_figure(figure, path)


def _draw_estimated(axes: Sequence[Any], case: Mapping[str, Any], kind: str, largest: Mapping[str, float]) -> list[Any]:
    """The error, the estimator's map, and the error that it weighs."""
    error = {"cmap": "magma", "vmin": 0, "vmax": largest["error"] or 1}
    pictures = [show(axes[0], case["error"], "error", **error)]
    if kind == "score":
        pictures.append(show(axes[1], case["score"], "score", cmap="viridis", vmin=0, vmax=1))
        return [*pictures, show(axes[2], case["score"] * case["error"], "score · error", **error)]
    pictures.append(draw_deviation(axes[1], case["noise_deviation"], largest["noise_deviation"]))
    weighted = case["error"] / np.maximum(case["noise_deviation"] ** 2, np.finfo(float).tiny)
    return [*pictures, show(axes[2], weighted, "error / σ²", cmap="magma", vmin=0, vmax=9)]


def checked_array(name: str, array: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a panel as float64.

    Args:
        name: what the error calls it.
        array: any.
        shape: that it must have: (H, W), or (2, H, W) of a displacement.

    Returns:
        Array of that shape.

    Raises:
        ValueError: for another shape, or a value that is not finite.
    """
    values = np.asarray(array)
    if len(shape) not in (2, 3) or values.shape != shape:
        raise ValueError(
            f"{name}: must have shape {shape if len(shape) > 1 else '(H, W)'}, 2D as fixed; got {values.shape}. Drop"
            " batch and channel axes, and pass one slice of a volume."
        )
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: must be finite; got NaN or infinite values. Mask or replace them before drawing.")
    return values


def _given(arrays: Mapping[str, ArrayLike | None]) -> dict[str, ArrayLike]:
    return {name: array for name, array in arrays.items() if array is not None}


def _checked_all(arrays: Mapping[str, ArrayLike], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: checked_array(name, array, shape) for name, array in arrays.items()}


def _checked_case(index: int, case: Mapping[str, Any], kind: str) -> dict[str, Any]:
    needed = ("moving_image", "fixed_image", "warped_image", "ddf", kind)
    missing = [key for key in needed if key not in case]
    if missing:
        raise ValueError(f"score_panel: case {index} must have the keys {needed}; {missing} are missing. Add them.")
    shape = np.asarray(case["fixed_image"]).shape
    checked: dict[str, Any] = {
        key.removesuffix("_image"): checked_array(key, case[key], shape) for key in needed if key != "ddf"
    }
    checked["ddf"] = checked_array("ddf", case["ddf"], (2, *shape))
    checked["error"] = (checked["fixed"] - checked["warped"]) ** 2
    names = ("moving_label", "fixed_label", "warped_label")
    checked["labels"] = _checked_all(_given({name: case.get(name) for name in names}), shape)
    checked["title"] = str(case.get("title", ""))
    return checked
