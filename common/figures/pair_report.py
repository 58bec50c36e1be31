# SPDX-License-Identifier: Apache-2.0
"""A page on one registration: what to think of it, and how it looks in each plane.

Arrays have axes that point left, to the back and down (LPI), so that pictures lie as radiologists look at them; of 2D
images and stacks that know no directions, as they come.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .drawing import new_figure
from .maps import draw_grid, draw_jacobian
from .page import Verdict, checkerboard, details, figure_png, grid, picture, section, table, verdict_box, write_page

VOLUME = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
MOST_VALUES = 4_000_000  # that percentiles and histograms are of
QUARTERS = (0.25, 0.5, 0.75)  # of a stack, the slices that are shown


class Registered(NamedTuple):
    """What is shown of a registration, on the grid of fixed.

    Attributes:
        moving: (*F) before registration, 0 where there is none; intensities as they come.
        fixed: (*F).
        warped: (*F), in the intensities of ``moving``.
        ddf: (axes, *F), voxels along the axes of F, each component but for its sign.
        determinant: (*F), of the Jacobian.
        spacing: mm an axis of F.
        stack: whether the last axis holds slices that were registered one by one.
        signs: of the components of ``ddf``; negating a large field takes as much memory again.
    """

    moving: np.ndarray
    fixed: np.ndarray
    warped: np.ndarray
    ddf: np.ndarray
    determinant: np.ndarray
    spacing: Sequence[float]
    stack: bool = False
    signs: Sequence[int] = (1, 1, 1)


class Plane(NamedTuple):
    """A plane of an image.

    Attributes:
        name: for captions.
        axes: the two that it shows.
        where: what an array is reduced by, a slice or a number an axis.
    """

    name: str
    axes: tuple[int, int]
    where: tuple[slice | int, ...]


def pair_report(
    path: str | Path, title: str, verdict: Verdict, registered: Registered, rows: Sequence[Sequence[str]],
    provenance: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write the page.

    Args:
        path: the .html file.
        title: heading.
        verdict: what to think of it.
        registered: what is shown.
        rows: of the table of measures: name, before, after.
        provenance: settings, versions and files, shown folded.

    Raises:
        ValueError: for arrays of different shapes.
    """
    _check(registered)
    # From the 1st to the 99th percentile; the warped image as moving, whose intensities it has.
    of_moving, of_fixed = (np.percentile(sampled(image), [1, 99]) for image in (registered.moving, registered.fixed))
    ranges = {"moving": of_moving, "fixed": of_fixed, "warped": of_moving}
    parts = [verdict_box(verdict), section("Measures", table(["measure", "before", "after"], rows))]
    for plane in planes(registered.fixed.shape, registered.stack):
        shown = {name: _scaled(getattr(registered, name)[plane.where], *ends) for name, ends in ranges.items()}
        shape = _millimetres(shown["fixed"].shape, [registered.spacing[axis] for axis in plane.axes])
        boards = [
            checkerboard(shown["fixed"], shown[name], f"{plane.name}: fixed and {text}", shape)
            for name, text in (("moving", "moving, before"), ("warped", "warped, after"))
        ]
        field = np.stack([registered.signs[axis] * registered.ddf[axis][plane.where] for axis in plane.axes])
        parts.append(section(plane.name.capitalize(), grid([*boards, _maps(plane, field, registered)])))
    parts.append(section("Change of volume", _histogram(registered.determinant)))
    parts.append(
        section("Provenance", details("versions, settings, files", json.dumps(provenance, indent=2, default=str)))
    )
    write_page(path, title, parts)


def planes(shape: Sequence[int], stack: bool) -> list[Plane]:
    """The planes that are shown: of a volume three through its middle, of a stack some slices.

    Args:
        shape: of the image.
        stack: whether its last axis holds slices.

    Returns:
        At least one plane.
    """
    if len(shape) == 2:
        return [Plane("image", (0, 1), (slice(None), slice(None)))]
    if stack:
        numbers = sorted({int(share * (shape[2] - 1) + 0.5) for share in QUARTERS})
        return [Plane(f"slice {n + 1} of {shape[2]}", (0, 1), (slice(None), slice(None), n)) for n in numbers]
    found = []
    for name, axes in VOLUME.items():
        index = tuple(slice(None) if axis in axes else shape[axis] // 2 for axis in range(3))
        found.append(Plane(name, axes, index))
    return found


def _check(registered: Registered) -> None:
    shape = registered.fixed.shape
    expected = {"moving": shape, "warped": shape, "determinant": shape, "ddf": (len(shape), *shape)}
    for name, wanted in expected.items():
        found = getattr(registered, name).shape
        if found != wanted or len(shape) not in (2, 3):
            raise ValueError(f"{name}: expected the shape {wanted}, that of fixed in 2D or 3D, got {found}.")


def sampled(image: np.ndarray) -> np.ndarray:
    """Values for percentiles and histograms: all of small images, every k-th along each axis of large ones.

    Args:
        image: (*F).

    Returns:
        (N,).
    """
    step = max(1, math.ceil((image.size / MOST_VALUES) ** (1 / image.ndim)))
    return image[(slice(None, None, step),) * image.ndim].ravel()


def _scaled(image: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((image.astype(np.float32) - low) / ((high - low) or 1.0), 0, 1)


def _millimetres(shape: Sequence[int], spacing: Sequence[float]) -> tuple[float, float]:
    return float(shape[0] * spacing[0]), float(shape[1] * spacing[1])


def _maps(plane: Plane, field: np.ndarray, registered: Registered) -> str:
    """Deformation grid and Jacobian determinant of a plane."""
    figure = new_figure(2, 1, field.shape[1:], "")
    axes = figure.subplots(1, 2)
    draw_grid(axes[0], field)
    draw_jacobian(axes[1], registered.determinant[plane.where])
    ratio = registered.spacing[plane.axes[1]] / registered.spacing[plane.axes[0]]
    for axis in axes:
        axis.set_aspect(ratio)
    return picture(figure_png(figure), f"{plane.name}: deformation grid and Jacobian determinant")


def _histogram(determinant: np.ndarray) -> str:
    from matplotlib.figure import Figure

    values = sampled(determinant)
    values = values[np.isfinite(values)]
    low, high = (float(end) for end in np.percentile(values, [0.05, 99.95]))
    figure = Figure(figsize=(6, 2.8), layout="constrained")
    axis = figure.subplots()
    axis.hist(np.clip(values, low, high), bins=80, log=True, color="C0")
    axis.axvline(1, color="0.4", linestyle=":")
    axis.axvline(0, color="C3", linestyle="--")
    axis.set_xlim(min(low, -0.05), max(high, 1.05))
    axis.set_xlabel("Jacobian determinant; 1 keeps volume, 0 and less folds")
    axis.set_ylabel("voxels")
    folded = 100 * float((determinant <= 0).mean())
    return picture(
        figure_png(figure),
        f"Jacobian determinant from {np.nanmin(determinant):.3g} to {np.nanmax(determinant):.3g}; "
        f"{folded:.2g} % of the voxels fold.",
    )
