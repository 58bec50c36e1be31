# SPDX-License-Identifier: Apache-2.0
"""What the weight of the log loss makes of the smoothness's weights and of the deformation.

Arrays are (X, Y), shown with axis 0 to the right and axis 1 downwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from .drawing import BAR_RATIO, colour_bar, new_figure, save_figure, show
from .maps import draw_grid
from .panels import checked_array

KEYS = ("moving_image", "fixed_image", "warped_image", "weight_volume", "ddf")


def weight_volume_panel(path: str | Path, cases: Mapping[str, Mapping[str, ArrayLike]]) -> None:
    """Warped image, weight volume ω and deformation grid of one pair, a column for each weight η of the log loss.

    The first column shows the pair itself. All maps of ω share the scale from 0 to 1.

    Args:
        path: image file to write; its suffix chooses the format.
        cases: by the text above the column, the registrations of one pair: ``moving_image``, ``fixed_image``,
            ``warped_image`` and ``weight_volume``, (H, W), and ``ddf``, (2, H, W) in voxels.

    Raises:
        ValueError: for no case, a missing key, a shape other than that of the fixed image, or a value that is not
            finite.

    Reference:
        Chen et al., Spatially-varying regularization with conditional transformer, arXiv 2023, Fig. 2.
    """
    if not cases:
        raise ValueError("cases: expected at least one registration with 'weight_volume' and 'ddf', got none.")
    columns = {name: _checked(name, case) for name, case in cases.items()}
    first = next(iter(columns.values()))
    figure = new_figure(len(columns) + 1, 3, first["fixed_image"].shape, "")
    axes = figure.subplots(4, len(columns) + 1, squeeze=False, height_ratios=[1, 1, 1, BAR_RATIO])
    ends = {"cmap": "gray", "vmin": first["fixed_image"].min(), "vmax": first["fixed_image"].max()}
    show(axes[0, 0], first["moving_image"], "moving", **ends)
    show(axes[1, 0], first["fixed_image"], "fixed", **ends)
    for axis in (axes[2, 0], *axes[3]):
        axis.set_axis_off()
    for column, (name, case) in zip(axes.T[1:], columns.items(), strict=True):
        show(column[0], case["warped_image"], f"warped, {name}" if name else "warped", **ends)
        weight = case["weight_volume"]
        picture = show(column[1], weight, f"ω, mean {weight.mean():.2f}", cmap="viridis", vmin=0, vmax=1)
        draw_grid(column[2], case["ddf"])
        column[2].set_title(f"|u| ≤ {np.linalg.norm(case['ddf'], axis=0).max():.3g} voxels", fontsize=9)
    axes[3, -1].set_axis_on()
    colour_bar(figure, picture, axes[3, -1], "weight ω of the smoothness")
    save_figure(figure, path)


def _checked(name: str, case: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    missing = [key for key in KEYS if key not in case]
    if missing:
        raise ValueError(f"cases: expected the keys {list(KEYS)}; case '{name}' lacks {missing}. Add them.")
    shape = np.asarray(case["fixed_image"]).shape
    return {key: checked_array(key, case[key], (2, *shape) if key == "ddf" else shape) for key in KEYS}
