# SPDX-License-Identifier: Apache-2.0
"""Parts of a panel: images, outlines, windows and legends on matplotlib's axes.

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
LINE_COLOUR, WINDOW_COLOUR, LETTER_COLOUR = "#0072B2", "#FFFFFF", "#F0E442"
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
    """A figure for panels of images of one shape, with room for a row of colour bars.

    Args:
        columns: number of panels across.
        rows: number of panels down.
        shape: (H, W) of the images.
        title: heading.

    Returns:
        The figure.
    """
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
    """Show an image.

    Args:
        axis: of matplotlib.
        array: (H, W).
        title: heading.
        options: of ``imshow``.

    Returns:
        What ``imshow`` returns.
    """
    picture = axis.imshow(array.T, origin="upper", interpolation="nearest", **options)
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    return picture


def colour_bar(figure: Any, picture: Any, axis: Any, label: str = "") -> None:
    """A horizontal colour bar that fills an axes; of a scale with a centre, its ends and centre are marked.

    Args:
        figure: of matplotlib.
        picture: what ``show`` returned.
        axis: to fill.
        label: text under the bar.
    """
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.ticker import MaxNLocator

    norm = picture.norm
    marks = [norm.vmin, norm.vcenter, norm.vmax] if isinstance(norm, TwoSlopeNorm) else None
    # In an axes of its own: bars that steal room from some panels of a row would leave them smaller than the others.
    bar = figure.colorbar(picture, cax=axis, orientation="horizontal", ticks=marks or MaxNLocator(nbins=4))
    if marks:
        bar.ax.set_xticklabels([f"{mark:.2g}" for mark in marks])
    bar.ax.tick_params(labelsize=7, width=0.5)
    bar.outline.set_linewidth(0.5)
    if label:
        bar.set_label(label, fontsize=8)


def label_colour(value: float) -> str:
    """The colour of a label.

    Args:
        value: of the label, from 1.

    Returns:
        "#RRGGBB".
    """
    return LABEL_COLOURS[(int(value) - 1) % len(LABEL_COLOURS)]


def outline(axis: Any, label: np.ndarray | None, style: str = "solid") -> None:
    """Outline every label of a map in its colour.

    Args:
        axis: of matplotlib.
        label: (H, W), 0 the background; None draws nothing.
        style: of the lines.
    """
    if label is None:
        return
    for value in np.unique(label[label != 0]):
        # Filled to the border, so that a structure cut by the crop is still outlined up to it.
        mask = (label == value).T.astype(float)
        axis.contour(mask, levels=[0.5], colors=label_colour(value), linewidths=1.1, linestyles=style)


def zoom(
    window: tuple[Sequence[int], Sequence[int]], shape: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[np.ndarray, np.ndarray]]:
    """The part of a slice to show, and the window in it.

    Args:
        window: first and last voxel of what the network saw.
        shape: (H, W) of the slice.

    Returns:
        A slice object an axis, and first and last voxel in that part.
    """
    first, last = (np.array(end, dtype=int) for end in window)
    size = last - first + 1
    if 10 * size.prod() > np.prod(shape):
        return tuple(slice(0, n) for n in shape), (first, last)
    low, high = np.maximum(first - size // 2, 0), np.minimum(last + size // 2, np.array(shape) - 1)
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True)), (first - low, last - low)


def draw_window(axis: Any, window: Window) -> None:
    """Outline the voxels from the first to the last of a window.

    Args:
        axis: of matplotlib.
        window: first and last voxel.
    """
    from matplotlib.patches import Rectangle

    first, last = (np.asarray(end, dtype=float) for end in window)
    box = Rectangle(tuple(first - 0.5), *(last - first + 1), fill=False, edgecolor=WINDOW_COLOUR, linewidth=1.0)
    box.set_linestyle((0, (4, 2)))
    box.set_clip_on(False)  # a window as large as the slice lies on its border
    axis.add_patch(box)


def draw_directions(axis: Any, directions: Sequence[str]) -> None:
    """Letters at the edges of a panel: where axes 0 and 1 point, and their opposites.

    Args:
        axis: of matplotlib.
        directions: of axes 0 and 1, two of R, L, A, P, S, I.
    """
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
    """Moving, fixed and warped, on axes of these names, with outlines of the labels.

    Args:
        axes: "moving", "fixed" and "warped".
        images: (H, W), of the same names.
        labels: (H, W), by ``moving_label`` and so on.
    """
    for name in ("moving", "fixed", "warped"):
        # One scale for all three: a change of brightness by the warp must be seen.
        low = min(images[key].min() for key in ("moving", "fixed"))
        high = max(images[key].max() for key in ("moving", "fixed"))
        show(axes[name], images[name], name, cmap="gray", vmin=low, vmax=high)
    outline(axes["moving"], labels.get("moving_label"))
    outline(axes["fixed"], labels.get("fixed_label"), "dashed")
    outline(axes["warped"], labels.get("fixed_label"), "dashed")
    outline(axes["warped"], labels.get("warped_label"))


def draw_differences(figure: Any, axes: Mapping[str, Any], images: Mapping[str, np.ndarray]) -> None:
    """What moving and warped differ from fixed, on the axes "before" and "after".

    Args:
        figure: of matplotlib.
        axes: "before", "after" and "difference_bar".
        images: (H, W), by name.
    """
    before, after = (np.abs(images["fixed"] - images[name]) for name in ("moving", "warped"))
    largest = max(before.max(), after.max()) or 1.0
    for axis, values, name in ((axes["before"], before, "moving"), (axes["after"], after, "warped")):
        title = f"|fixed − {name}|, mean {values.mean():.3g}"
        picture = show(axis, values, title, cmap="magma", vmin=0, vmax=largest)
    colour_bar(figure, picture, axes["difference_bar"])


def draw_legend(
    figure: Any, labels: Mapping[str, np.ndarray], names: Mapping[int, str], windowed: bool = False
) -> None:
    """Name the labels' colours, what lines are broken, and the window where one is drawn.

    Args:
        figure: of matplotlib.
        labels: (H, W), by ``moving_label`` and so on.
        names: of label values.
        windowed: whether a window is drawn.
    """
    from matplotlib.lines import Line2D

    values = sorted({int(value) for label in labels.values() for value in np.unique(label) if value != 0})
    entries = [
        Line2D([], [], color=label_colour(value), label=names.get(value, f"label {value}"))
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
