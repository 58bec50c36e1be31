# SPDX-License-Identifier: Apache-2.0
"""Parts of a panel: images, outlines, grids, maps and legends on matplotlib's axes.

Arrays are (X, Y), shown with axis 0 to the right and axis 1 downwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import atomic_path

# Okabe and Ito's palette, told apart with any colour vision, and bright enough on grey images: a colour a label.
LABEL_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
FOLDING_COLOUR, LINE_COLOUR, WINDOW_COLOUR, LETTER_COLOUR = "#E00000", "#0072B2", "#FFFFFF", "#F0E442"
# Of labels with more values than this the legend names the first ones.
LEGEND_LABELS = 14
Window = tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
DPI = 150
# Height of the row of colour bars over that of a row of panels.
BAR_RATIO = 0.04


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a matplotlib figure atomically.

    Args:
        figure: a ``matplotlib.figure.Figure``.
        path: image file to (over)write; its suffix chooses the format.

    Raises:
        ValueError: if the suffix names no format that matplotlib writes.
    """
    known = figure.canvas.get_supported_filetypes()
    if Path(path).suffix.lstrip(".").lower() not in known:
        raise ValueError(
            f"path: expected a name that ends in one of {sorted(known)}; got {path}. Use .png, for example."
        )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="white")


def new_figure(columns: int, rows: int, shape: tuple[int, ...], title: str) -> Any:
    """A figure for panels of images of a shape (H, W), with room for a row of colour bars."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    width = 2.1 if columns > 4 else 2.7
    # Panels keep the image's proportions; extreme crops must not make extreme pages.
    height = width * float(np.clip(shape[1] / shape[0], 0.4, 2.5))
    size = (columns * width + 0.8, rows * (height + 0.3) + 0.9)
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.05, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=size, layout=layout)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def show(axis: Any, array: np.ndarray, title: str, **options: Any) -> Any:
    """An image (H, W) on an axes, options as for ``imshow``."""
    picture = axis.imshow(array.T, origin="upper", interpolation="nearest", **options)
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    return picture


def colour_bar(figure: Any, picture: Any, axis: Any, label: str = "") -> None:
    """A horizontal colour bar that fills an axes; of a scale with a centre, its ends and centre are marked."""
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.ticker import MaxNLocator

    norm = picture.norm
    centred = isinstance(norm, TwoSlopeNorm)
    ticks = [norm.vmin, norm.vcenter, norm.vmax] if centred else MaxNLocator(nbins=4)
    # In an axes of its own: bars that steal room from some panels of a row would leave them smaller than the others.
    bar = figure.colorbar(picture, cax=axis, orientation="horizontal", ticks=ticks)
    if centred:
        bar.ax.set_xticklabels([f"{tick:.2g}" for tick in ticks])
    bar.ax.tick_params(labelsize=7, width=0.5)
    bar.outline.set_linewidth(0.5)
    if label:
        bar.set_label(label, fontsize=8)


def _label_colour(value: float) -> str:
    return LABEL_COLOURS[(int(value) - 1) % len(LABEL_COLOURS)]


def _outline(axis: Any, label: np.ndarray | None, style: str = "solid") -> None:
    if label is None:
        return
    for value in np.unique(label[label != 0]):
        # Filled to the border, so that a structure cut by the crop is still outlined up to it.
        mask = (label == value).T.astype(float)
        axis.contour(mask, levels=[0.5], colors=_label_colour(value), linewidths=1.1, linestyles=style)


def zoom(
    window: tuple[Sequence[int], Sequence[int]], shape: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[np.ndarray, np.ndarray]]:
    """The part of a slice to show, and the window in it."""
    first, last = (np.array(end, dtype=int) for end in window)
    size = last - first + 1
    if 10 * size.prod() > np.prod(shape):
        return tuple(slice(0, n) for n in shape), (first, last)
    low, high = np.maximum(first - size // 2, 0), np.minimum(last + size // 2, np.array(shape) - 1)
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True)), (first - low, last - low)


def draw_window(axis: Any, window: Window) -> None:
    """Outline the voxels from the first to the last of a window."""
    from matplotlib.patches import Rectangle

    first, last = (np.asarray(end, dtype=float) for end in window)
    box = Rectangle(tuple(first - 0.5), *(last - first + 1), fill=False, edgecolor=WINDOW_COLOUR, linewidth=1.0)
    box.set_linestyle((0, (4, 2)))
    box.set_clip_on(False)  # a window as large as the slice lies on its border
    axis.add_patch(box)


def draw_directions(axis: Any, directions: Sequence[str]) -> None:
    """Letters at the edges of a panel: where axes 0 and 1 point, and their opposites."""
    from matplotlib.patheffects import withStroke

    across, down = directions
    edge = [withStroke(linewidth=1.5, foreground="black")]
    places = {(0.02, 0.5): OPPOSITE[across], (0.98, 0.5): across, (0.5, 0.98): OPPOSITE[down], (0.5, 0.02): down}
    for (x, y), letter in places.items():
        horizontal = "left" if x < 0.1 else "right" if x > 0.9 else "center"
        vertical = "bottom" if y < 0.1 else "top" if y > 0.9 else "center"
        style = {"ha": horizontal, "va": vertical, "fontsize": 8, "color": LETTER_COLOUR, "path_effects": edge}
        axis.text(x, y, letter, transform=axis.transAxes, **style)


def draw_images(axes: Mapping[str, Any], images: Mapping[str, Any], labels: Mapping[str, np.ndarray]) -> None:
    """Moving, fixed and warped, on axes of these names, with outlines of the labels."""
    for name in ("moving", "fixed", "warped"):
        # One scale for all three: a change of brightness by the warp must be seen.
        low = min(images[key].min() for key in ("moving", "fixed"))
        high = max(images[key].max() for key in ("moving", "fixed"))
        show(axes[name], images[name], name, cmap="gray", vmin=low, vmax=high)
    _outline(axes["moving"], labels.get("moving_label"))
    _outline(axes["fixed"], labels.get("fixed_label"), "dashed")
    _outline(axes["warped"], labels.get("fixed_label"), "dashed")
    _outline(axes["warped"], labels.get("warped_label"))


def draw_differences(figure: Any, axes: Mapping[str, Any], images: Mapping[str, np.ndarray]) -> None:
    """What moving and warped differ from fixed, on the axes "before" and "after"."""
    before, after = (np.abs(images["fixed"] - images[name]) for name in ("moving", "warped"))
    largest = max(before.max(), after.max()) or 1.0
    for axis, values, name in ((axes["before"], before, "moving"), (axes["after"], after, "warped")):
        title = f"|fixed − {name}|, mean {values.mean():.3g}"
        picture = show(axis, values, title, cmap="magma", vmin=0, vmax=largest)
    colour_bar(figure, picture, axes["difference_bar"])


def draw_grid(axis: Any, ddf: np.ndarray) -> None:
    """The grid x + ddf(x), ddf (2, H, W) in voxels."""
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
    """Length and arrows of a displacement (2, H, W) in voxels; ``longest`` ends the scale."""
    length = np.linalg.norm(ddf, axis=0)
    picture = show(axis, length, "displacement", cmap="cividis", vmin=0, vmax=longest or 1)
    step = max(1, round(max(length.shape) / 16))
    start = step // 2
    x, y = np.meshgrid(*(np.arange(start, size, step) for size in length.shape), indexing="ij")
    u, v = ddf[:, start::step, start::step]
    axis.quiver(x, y, u, v, angles="xy", scale_units="xy", scale=1, color="white", width=0.007)
    return picture


def draw_jacobian(axis: Any, determinant: np.ndarray, window: Window | None = None) -> Any:
    """A determinant (H, W) around 1, foldings in red; the scale ends where 99 % of the values in the window do."""
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


def draw_legend(
    figure: Any, labels: Mapping[str, np.ndarray], names: Mapping[int, str], windowed: bool = False
) -> None:
    """Name the labels' colours (``names`` of values), what lines are broken, and the window where one is drawn."""
    from matplotlib.lines import Line2D

    values = sorted({int(value) for label in labels.values() for value in np.unique(label) if value != 0})
    entries = [
        Line2D([], [], color=_label_colour(value), label=names.get(value, f"label {value}"))
        for value in values[:LEGEND_LABELS]
    ]
    if len(values) > LEGEND_LABELS:
        entries.append(Line2D([], [], color="none", label=f"and {len(values) - LEGEND_LABELS} more"))
    if "fixed_label" in labels and len(labels) > 1:
        entries += [
            Line2D([], [], color="0.4", label="of moving, warped"),
            Line2D([], [], color="0.4", linestyle="dashed", label="of fixed"),
        ]
    if windowed:
        entries.append(Line2D([], [], color="0.6", linestyle=(0, (4, 2)), label="what the network sees"))
    if entries:
        figure.legend(
            handles=entries, loc="outside lower center", ncols=min(len(entries), 6), fontsize=8, frameon=False
        )
