# SPDX-License-Identifier: Apache-2.0
"""The page on a registration of two images: what its numbers say, and how it looks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..figures.page import Verdict
from ..figures.pair_report import Registered, pair_report
from ..io.orientation import Axes, stored_axes
from ..io.transforms import Transform
from ..metrics.verdict import GROWN, SHRUNK, doubts, looked_at

if TYPE_CHECKING:
    from .result import Result

SHOWN = "LPI"  # where the axes of the pictures point: left, back and down, as radiologists look at images


def write_pair_page(path: str | Path, result: Result, metrics: Mapping[str, Any], warped: Tensor) -> None:
    """Write ``report.html`` of a registration.

    Args:
        path: the file.
        result: of the pair.
        metrics: see ``pair_metrics``.
        warped: the moving image on the grid of fixed, (*F).
    """
    values = flat(metrics, result)
    reasons = doubts(values)
    pair_report(
        path, "Registration", Verdict(not reasons, reasons or looked_at(values)), _shown(result, warped),
        _rows(metrics), {"metrics": metrics, **result.provenance},
    )  # fmt: skip


def flat(metrics: Mapping[str, Any], result: Result) -> dict[str, float | None]:
    """The numbers of a registration by the names of ``metrics.verdict.doubts``.

    Args:
        metrics: see ``pair_metrics``.
        result: of the pair.

    Returns:
        Value by name; dissimilarity is 1 less the mutual information, which suits any two modalities.
    """
    determinant = result.jacobian_determinant
    strong = float(((determinant < SHRUNK) | (determinant > GROWN)).float().mean())
    values: dict[str, float | None] = {
        "foldings_percent": metrics["foldings_percent"],
        "inverse_error": metrics["inverse_error_voxels"]["mean"],
        "strong_change": strong,
    }
    for when, suffix in (("before", "_before"), ("after", "")):
        shared = metrics["similarity"][when]["mutual_information"]
        values[f"similarity{suffix}"] = None if shared is None else 1 - shared
        if "dice" in metrics:
            values[f"dice{suffix}"] = metrics["dice"][when]["mean"]
    return values


def _rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for group in ("similarity", "dice", "tre_mm"):
        for name, after in metrics.get(group, {}).get("after", {}).items():
            label = {"similarity": name.replace("_", " "), "dice": f"Dice {name}", "tre_mm": f"landmarks, mm: {name}"}[
                group
            ]
            rows.append([label, _number(metrics[group]["before"].get(name)), _number(after)])
    rows.append(["foldings, %", "", _number(metrics["foldings_percent"])])
    for name, value in metrics["inverse_error_voxels"].items():
        rows.append([f"there and back again, voxels: {name}", "", _number(value)])
    return rows


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}"


def _shown(result: Result, warped: Tensor) -> Registered:
    fixed = result.fixed
    axes = stored_axes(fixed, SHOWN, 2 if result.stack else 3)
    still = Transform(np.eye(4), None, fixed).apply(result.moving, "bilinear").array
    arrays = [_view(array, axes) for array in (still, fixed.array, warped, result.jacobian_determinant)]
    moving, still_fixed, moved, determinant = arrays
    spacing = [fixed.spacing[axis] for axis in axes.order]
    signs = [-1 if flipped else 1 for flipped in axes.flipped]
    return Registered(moving, still_fixed, moved, _turned(result, axes), determinant, spacing, result.stack, signs)


def _view(array: Tensor, axes: Axes) -> np.ndarray:
    """Along the axes that are shown, without a copy, as volumes may be large."""
    lead = array.dim() - len(axes.order)
    turned = array.numpy().transpose(*range(lead), *(lead + axis for axis in axes.order))
    return np.flip(turned, tuple(lead + axis for axis, flipped in enumerate(axes.flipped) if flipped))


def _turned(result: Result, axes: Axes) -> np.ndarray:
    """The displacement without the placement, along the axes that are shown, but for the components' signs."""
    ddf = result.pull.ddf
    if ddf is None:
        return np.broadcast_to(np.float32(0), (result.fixed.array.dim(), *_view(result.fixed.array, axes).shape))
    view = _view(ddf, axes)
    return view if list(axes.order) == sorted(axes.order) else view[list(axes.order)]
