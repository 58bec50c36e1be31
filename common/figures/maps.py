# SPDX-License-Identifier: Apache-2.0
"""Parts of a panel that show a displacement: deformation grid, arrows, Jacobian determinant.

Arrays are (X, Y), shown with axis 0 to the right and axis 1 downwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .drawing import LINE_COLOUR, Window, show

FOLDING_COLOUR = "#E00000"


def draw_grid(axis: Any, ddf: np.ndarray) -> None:
    """Draw the grid x + ddf(x).

    Args:
        axis: of matplotlib.
        ddf: (2, H, W) in voxels.
    """
    from matplotlib.collections import LineCollection

    height, width = ddf.shape[1:]
    points = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")) + ddf
    step = max(1, round(max(height, width) / 32))
    lines = [points[:, index].T for index in sorted({*range(0, height, step), height - 1})]
    lines += [points[:, :, index].T for index in sorted({*range(0, width, step), width - 1})]
    axis.add_collection(LineCollection(lines, colors=LINE_COLOUR, linewidths=0.7))
    axis.set(xlim=(-0.5, height - 0.5), ylim=(width - 0.5, -0.5), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set(linewidth=0.5, color="0.6")
    axis.set_title(f"deformation grid, |u| ≤ {np.linalg.norm(ddf, axis=0).max():.3g} voxels", fontsize=9)


def draw_displacement(axis: Any, ddf: np.ndarray, longest: float) -> Any:
    """Draw length and arrows of a displacement.

    Args:
        axis: of matplotlib.
        ddf: (2, H, W) in voxels.
        longest: end of the scale in voxels.

    Returns:
        What ``imshow`` returns.
    """
    length = np.linalg.norm(ddf, axis=0)
    picture = show(axis, length, "displacement", cmap="cividis", vmin=0, vmax=longest or 1)
    step = max(1, round(max(length.shape) / 16))
    start = step // 2
    x, y = np.meshgrid(*(np.arange(start, size, step) for size in length.shape), indexing="ij")
    u, v = ddf[:, start::step, start::step]
    axis.quiver(x, y, u, v, angles="xy", scale_units="xy", scale=1, color="white", width=0.007)
    return picture


def draw_deviation(axis: Any, deviation: np.ndarray, largest: float) -> Any:
    """Draw a standard deviation from 0.

    Args:
        axis: of matplotlib.
        deviation: (H, W) in intensities.
        largest: end of the scale.

    Returns:
        What ``imshow`` returns.
    """
    return show(axis, deviation, "standard deviation σ", cmap="viridis", vmin=0, vmax=largest or 1)


def draw_jacobian(axis: Any, determinant: np.ndarray, window: Window | None = None) -> Any:
    """Draw a Jacobian determinant around 1, foldings in red; the scale ends where 99 % of the values in the window do.

    Args:
        axis: of matplotlib.
        determinant: (H, W).
        window: first and last voxel; None is the whole slice.

    Returns:
        What ``imshow`` returns.
    """
    from matplotlib.colors import ListedColormap, TwoSlopeNorm

    # Extremes of single voxels must not wash out the rest; shrinking and growing need not be alike.
    inside = slice(None) if window is None else tuple(slice(int(a), int(b) + 1) for a, b in zip(*window, strict=True))
    low, high = np.percentile(determinant[inside], [0.5, 99.5])
    folded = determinant <= 0
    title = f"Jacobian determinant, {100 * folded.mean():.2g} % ≤ 0" + (" (red)" if folded.any() else "")
    norm = TwoSlopeNorm(1.0, min(float(low), 0.95), max(float(high), 1.05))
    picture = show(axis, determinant, title, cmap="PRGn", norm=norm)
    if folded.any():
        overlay = np.where(folded, 1.0, np.nan)
        axis.imshow(overlay.T, origin="upper", interpolation="nearest", cmap=ListedColormap([FOLDING_COLOUR]))
    return picture
