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

from ..atomic import atomic_path

# Okabe and Ito's palette, told apart with any colour vision, and bright enough on grey images.
MOVING_COLOUR, FIXED_COLOUR, FOLDING_COLOUR = "#E69F00", "#56B4E9", "#E00000"
LINE_COLOUR = "#0072B2"
DPI = 150
# Height of the row of colour bars over that of a row of panels.
BAR_RATIO = 0.04


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
    jacobian_determinant: ArrayLike | None = None,
    title: str = "",
) -> None:
    """One registration: images with label contours, differences before and after, deformation grid, maps.

    Args:
        path: image file to write; its suffix chooses the format (.png, .pdf, .svg).
        moving, fixed, warped: (H, W); for volumes pass a slice.
        ddf: (2, H, W), in-plane displacement in voxels. The grid shown is x + ddf(x).
        moving_label, fixed_label, warped_label: (H, W) integer, 0 the background; each structure is outlined.
        score: (H, W) in [0, 1].
        jacobian_determinant: (H, W), shown around 1, foldings (≤ 0) in red.
        title: heading.

    Raises:
        ValueError: if a shape differs from that of ``fixed`` or a value is not finite.
    """
    shape = np.asarray(fixed).shape
    images = _checked_all({"moving": moving, "fixed": fixed, "warped": warped}, shape)
    given = {"moving_label": moving_label, "fixed_label": fixed_label, "warped_label": warped_label}
    labels = _checked_all({name: array for name, array in given.items() if array is not None}, shape)
    given = {"score": score, "jacobian_determinant": jacobian_determinant}
    maps = _checked_all({name: array for name, array in given.items() if array is not None}, shape)
    field = _checked("ddf", ddf, (2, *shape))
    rows = [["moving", "fixed", "warped", "grid"], ["before", "after", *maps]]
    if not maps:
        rows = [rows[0][:3], ["before", "after", "grid"]]
    bars = ["difference_bar", "difference_bar", *(f"{name}_bar" for name in maps)]
    across = len(rows[0])
    rows = [row + ["."] * (across - len(row)) for row in (*rows, bars)]
    figure = _figure(across, 2, shape, title)
    axes = figure.subplot_mosaic(rows, height_ratios=[1, 1, BAR_RATIO])
    _draw_images(axes, images, labels)
    _draw_differences(figure, axes, images)
    _draw_grid(axes["grid"], field)
    if "score" in maps:
        picture = _show(axes["score"], maps["score"], "score", cmap="viridis", vmin=0, vmax=1)
        _colour_bar(figure, picture, axes["score_bar"])
    if "jacobian_determinant" in maps:
        picture = _draw_jacobian(axes["jacobian_determinant"], maps["jacobian_determinant"])
        _colour_bar(figure, picture, axes["jacobian_determinant_bar"])
    _legend(figure, labels)
    save_figure(figure, path)


def score_panel(path: str | Path, cases: Sequence[Mapping[str, Any]]) -> None:
    """What a score does to the residual, a row a case: source, target, warped, displacement, error, score, weighted.

    The error is (fixed − warped)², what the score weights in Eq. 3; error and score · error share one scale, and every
    column shares its scale over the rows.

    Args:
        path: image file to write; its suffix chooses the format.
        cases: a dictionary a row, with ``moving_image``, ``fixed_image``, ``warped_image`` and ``score`` (H, W),
            ``ddf`` (2, H, W) in voxels; optional ``moving_label``, ``fixed_label``, ``warped_label`` and ``title``.

    Raises:
        ValueError: if there are no cases, a key is missing, a shape differs from that of the fixed image, or a value
            is not finite.

    Reference: Zhang et al., AdaCS, ECCV 2024, Fig. 4.
    """
    if not cases:
        raise ValueError("score_panel: cases must hold at least one case; got none. Pass a list of dictionaries.")
    checked = [_checked_case(index, case) for index, case in enumerate(cases)]
    figure = _figure(7, len(checked), max((case["fixed"].shape for case in checked), key=lambda s: s[1] / s[0]), "")
    axes = figure.subplots(len(checked) + 1, 7, squeeze=False, height_ratios=[*[1] * len(checked), BAR_RATIO])
    longest = max(np.linalg.norm(case["ddf"], axis=0).max() for case in checked)
    largest = max(case["error"].max() for case in checked)
    for row, case in zip(axes[:-1], checked, strict=True):
        _draw_images(dict(zip(("moving", "fixed", "warped"), row[:3], strict=True)), case, case["labels"])
        row[0].set_ylabel(case["title"], fontsize=9)
        pictures = [_draw_displacement(row[3], case["ddf"], longest)]
        error = {"cmap": "magma", "vmin": 0, "vmax": largest or 1}
        pictures.append(_show(row[4], case["error"], "error", **error))
        pictures.append(_show(row[5], case["score"], "score", cmap="viridis", vmin=0, vmax=1))
        pictures.append(_show(row[6], case["score"] * case["error"], "score · error", **error))
    for axis, name in zip(axes[0], ("source (moving)", "target (fixed)", "warped source"), strict=False):
        axis.set_title(name, fontsize=9)
    for axis in axes[1:-1].flat:
        axis.set_title("")
    for axis in axes[-1, :3]:
        axis.set_axis_off()
    units = ("voxels", "(fixed − warped)²", "score", "score · (fixed − warped)²")
    for picture, axis, unit in zip(pictures, axes[-1, 3:], units, strict=True):
        _colour_bar(figure, picture, axis, unit)
    _legend(figure, {name: array for case in checked for name, array in case["labels"].items()})
    save_figure(figure, path)


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


def _figure(columns: int, rows: int, shape: tuple[int, ...], title: str) -> Any:
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


def _checked(name: str, array: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
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


def _checked_all(arrays: Mapping[str, ArrayLike], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: _checked(name, array, shape) for name, array in arrays.items()}


def _checked_case(index: int, case: Mapping[str, Any]) -> dict[str, Any]:
    needed = ("moving_image", "fixed_image", "warped_image", "ddf", "score")
    missing = [key for key in needed if key not in case]
    if missing:
        raise ValueError(f"score_panel: case {index} must have the keys {needed}; {missing} are missing. Add them.")
    shape = np.asarray(case["fixed_image"]).shape
    checked: dict[str, Any] = {
        key.removesuffix("_image"): _checked(key, case[key], shape) for key in needed if key != "ddf"
    }
    checked["ddf"] = _checked("ddf", case["ddf"], (2, *shape))
    checked["error"] = (checked["fixed"] - checked["warped"]) ** 2
    names = ("moving_label", "fixed_label", "warped_label")
    checked["labels"] = _checked_all({name: case[name] for name in names if case.get(name) is not None}, shape)
    checked["title"] = str(case.get("title", ""))
    return checked


def _show(axis: Any, array: np.ndarray, title: str, **options: Any) -> Any:
    picture = axis.imshow(array.T, origin="upper", interpolation="nearest", **options)
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    return picture


def _colour_bar(figure: Any, picture: Any, axis: Any, label: str = "") -> None:
    from matplotlib.ticker import MaxNLocator

    # In an axes of its own: bars that steal room from some panels of a row would leave them smaller than the others.
    bar = figure.colorbar(picture, cax=axis, orientation="horizontal", ticks=MaxNLocator(nbins=4))
    bar.ax.tick_params(labelsize=7, width=0.5)
    bar.outline.set_linewidth(0.5)
    if label:
        bar.set_label(label, fontsize=8)


def _outline(axis: Any, label: np.ndarray | None, colour: str) -> None:
    if label is None:
        return
    for value in np.unique(label[label != 0]):
        # Filled to the border, so that a structure cut by the crop is still outlined up to it.
        axis.contour((label == value).T.astype(float), levels=[0.5], colors=colour, linewidths=1.1)


def _draw_images(axes: Mapping[str, Any], images: Mapping[str, Any], labels: Mapping[str, np.ndarray]) -> None:
    for name in ("moving", "fixed", "warped"):
        # One scale for all three: a change of brightness by the warp must be seen.
        low = min(images[key].min() for key in ("moving", "fixed"))
        high = max(images[key].max() for key in ("moving", "fixed"))
        _show(axes[name], images[name], name, cmap="gray", vmin=low, vmax=high)
    _outline(axes["moving"], labels.get("moving_label"), MOVING_COLOUR)
    _outline(axes["fixed"], labels.get("fixed_label"), FIXED_COLOUR)
    _outline(axes["warped"], labels.get("fixed_label"), FIXED_COLOUR)
    _outline(axes["warped"], labels.get("warped_label"), MOVING_COLOUR)


def _draw_differences(figure: Any, axes: Mapping[str, Any], images: Mapping[str, np.ndarray]) -> None:
    before, after = (np.abs(images["fixed"] - images[name]) for name in ("moving", "warped"))
    largest = max(before.max(), after.max()) or 1.0
    for axis, values, name in ((axes["before"], before, "moving"), (axes["after"], after, "warped")):
        title = f"|fixed − {name}|, mean {values.mean():.3g}"
        picture = _show(axis, values, title, cmap="magma", vmin=0, vmax=largest)
    _colour_bar(figure, picture, axes["difference_bar"])


def _draw_grid(axis: Any, ddf: np.ndarray) -> None:
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


def _draw_displacement(axis: Any, ddf: np.ndarray, longest: float) -> Any:
    length = np.linalg.norm(ddf, axis=0)
    picture = _show(axis, length, "displacement", cmap="cividis", vmin=0, vmax=longest or 1)
    step = max(1, round(max(length.shape) / 16))
    start = step // 2
    x, y = np.meshgrid(*(np.arange(start, size, step) for size in length.shape), indexing="ij")
    u, v = ddf[:, start::step, start::step]
    axis.quiver(x, y, u, v, angles="xy", scale_units="xy", scale=1, color="white", width=0.007)
    return picture


def _draw_jacobian(axis: Any, determinant: np.ndarray) -> Any:
    from matplotlib.colors import CenteredNorm, ListedColormap

    # Extremes of single voxels must not wash out the rest.
    halfrange = max(float(np.percentile(np.abs(determinant - 1), 99.5)), 0.05)
    folded = determinant <= 0
    title = f"Jacobian determinant, {100 * folded.mean():.2g} % ≤ 0" + (" (red)" if folded.any() else "")
    picture = _show(axis, determinant, title, cmap="PRGn", norm=CenteredNorm(1.0, halfrange))
    if folded.any():
        overlay = np.where(folded, 1.0, np.nan)
        axis.imshow(overlay.T, origin="upper", interpolation="nearest", cmap=ListedColormap([FOLDING_COLOUR]))
    return picture


def _legend(figure: Any, labels: Mapping[str, np.ndarray]) -> None:
    from matplotlib.lines import Line2D

    entries = []
    if "moving_label" in labels or "warped_label" in labels:
        name = " and ".join(n for n in ("moving", "warped") if f"{n}_label" in labels)
        entries.append(Line2D([], [], color=MOVING_COLOUR, label=f"{name} label"))
    if "fixed_label" in labels:
        entries.append(Line2D([], [], color=FIXED_COLOUR, label="fixed label"))
    if entries:
        figure.legend(handles=entries, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
