# SPDX-License-Identifier: Apache-2.0
"""One case as several methods register it, a row a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .drawing import BAR_RATIO, LEGEND_LABELS, colour_bar, label_colour, new_figure, outline, save_figure, show
from .maps import draw_grid
from .panels import checked_array

FILLED = 0.45  # opacity of the fixed labels


def comparison_panel(
    path: str | Path,
    moving: ArrayLike,
    fixed: ArrayLike,
    methods: Mapping[str, Mapping[str, ArrayLike]],
    moving_label: ArrayLike | None = None,
    fixed_label: ArrayLike | None = None,
    title: str = "",
    undeformed: str = "undeformed",
    label_names: Mapping[int, str] | None = None,
) -> None:
    """Warped image, its labels over those of the fixed image, |fixed − warped| and deformation grid of each method.

    The first row shows the pair as it was, with the fixed image in the place of the grid. All images share one scale of
    brightness, and all differences one scale.

    Args:
        path: image file to write; its suffix chooses the format.
        moving: (H, W); for volumes pass a slice.
        fixed: (H, W).
        methods: by the text beside the row: ``warped`` (H, W), ``ddf`` (2, H, W) in voxels, and ``warped_label``
            (H, W) where there are labels.
        moving_label: (H, W) integer, 0 the background; outlined.
        fixed_label: (H, W) integer; filled.
        title: heading.
        undeformed: text beside the first row.
        label_names: names of label values for the legend; others are "label 3".

    Raises:
        ValueError: if there is no method, a shape differs from that of ``fixed``, or a value is not finite.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, Figs. 3, 7 and 10 (fixed myocardium in yellow under the warped one).
    """
    if not methods:
        raise ValueError("methods: expected at least one with 'warped' and 'ddf', got none.")
    shape = np.asarray(fixed).shape
    target = checked_array("fixed", fixed, shape)
    images = {undeformed: checked_array("moving", moving, shape)}
    images |= {name: checked_array(f"{name}: warped", arrays["warped"], shape) for name, arrays in methods.items()}
    labels = {undeformed: moving_label} | {name: arrays.get("warped_label") for name, arrays in methods.items()}
    below = None if fixed_label is None else checked_array("fixed_label", fixed_label, shape)
    grids = {name: checked_array(f"{name}: ddf", arrays["ddf"], (2, *shape)) for name, arrays in methods.items()}
    columns = ["image", *([] if below is None else ["labels"]), "difference", "grid"]
    figure = new_figure(len(columns), len(images), shape, title)
    axes = figure.subplots(len(images) + 1, len(columns), squeeze=False, height_ratios=[*[1] * len(images), BAR_RATIO])
    grey = _grey([target, *images.values()])
    largest = max(np.abs(target - image).max() for image in images.values()) or 1.0
    for row, (name, image) in zip(axes[:-1], images.items(), strict=True):
        cells = dict(zip(columns, row, strict=True))
        role = "moving" if name == undeformed else "warped"
        show(cells["image"], image, role, **grey).axes.set_ylabel(name, fontsize=8)
        if below is not None:
            _draw_labels(cells["labels"], target, below, labels[name], grey)
        heading = f"|fixed − {role}|, mean {np.abs(target - image).mean():.3g}"
        picture = show(cells["difference"], np.abs(target - image), heading, cmap="magma", vmin=0, vmax=largest)
        if name in grids:
            draw_grid(cells["grid"], grids[name])
        else:
            show(cells["grid"], target, "fixed", **grey)
    _finish(figure, dict(zip(columns, axes[-1], strict=True)), picture, below, label_names or {})
    save_figure(figure, path)


def _grey(images: Sequence[np.ndarray]) -> dict[str, Any]:
    ends = {"vmin": min(image.min() for image in images), "vmax": max(image.max() for image in images)}
    return {"cmap": "gray"} | ends


def _draw_labels(axis: Any, fixed: np.ndarray, below: np.ndarray, above: ArrayLike | None, grey: Any) -> None:
    from matplotlib.colors import ListedColormap

    show(axis, fixed, "outline: labels moved, filled: fixed", **grey)
    for value in np.unique(below[below != 0]):
        mask = np.where(below == value, 1.0, np.nan).T
        axis.imshow(mask, cmap=ListedColormap([label_colour(value)]), alpha=FILLED, interpolation="nearest")
    outline(axis, None if above is None else checked_array("label", above, fixed.shape))


def _finish(
    figure: Any, axes: dict[str, Any], picture: Any, label: np.ndarray | None, names: Mapping[int, str]
) -> None:
    """The colour bar of the differences in its row, and the legend of the labels."""
    from matplotlib.patches import Patch

    colour_bar(figure, picture, axes.pop("difference"))
    for axis in axes.values():
        axis.set_axis_off()
    values = [] if label is None else [int(value) for value in np.unique(label) if value != 0][:LEGEND_LABELS]
    patches = [Patch(color=label_colour(value), label=names.get(value, f"label {value}")) for value in values]
    if patches:
        ncols = min(len(patches), 6)
        figure.legend(handles=patches, loc="outside lower center", ncols=ncols, fontsize=8, frameon=False)
