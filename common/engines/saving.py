# SPDX-License-Identifier: Apache-2.0
"""The files of a registration, and how labels and large fields get into them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..checks import known_name
from ..io.composite import save_transform
from ..io.images import Image, save_image, write_nifti
from ..io.landmarks import Landmarks, save_landmarks
from ..io.spacing import grid_of_spacing
from ..io.transforms import Transform
from ..transforms.picture import draw_registration
from ..transforms.save import DESCRIPTIONS
from .pair_metrics import inverse_error
from .pair_page import write_pair_page

if TYPE_CHECKING:
    from .result import Result

# Fields on finer grids are inverted, and written to .h5 in double precision, on a coarser one: to spare memory.
MOST_VOXELS = 8_000_000
# Voxels by which an inverse may be off between its own, and the largest field that is written to hold it to that.
BETWEEN, MOST_FINER = 0.05, 2_000_000


def write_result(folder: Path, result: Result, inverse: Transform, interpolation: str = "nearest") -> None:
    """Write all that there is of a registration.

    Args:
        folder: an empty one.
        result: of the pair.
        inverse: of its transform, see ``inverse_on_moving``.
        interpolation: of the warped label.

    Raises:
        ValueError: where ITK cannot express a grid.
    """
    # The transforms first: they are the files that a grid can make impossible.
    for name, transform in (("forward", result.transform), ("inverse", inverse)):
        save_transform(folder / f"{name}.nii.gz", transform)
        save_transform(folder / f"{name}.h5", compact(transform))
    fixed = result.fixed
    warped = result.pull.apply(result.moving, "bilinear").array
    save_image(folder / "warped.nii.gz", warped, fixed)
    kind = "2D in-plane" if result.stack or fixed.array.dim() == 2 else "3D"
    scalars = {"jacobian": (result.jacobian_determinant, f"Jacobian determinant, {kind}")}
    scalars |= {name: (values, DESCRIPTIONS[name]) for name, values in result.maps.items()}
    for name, (values, description) in scalars.items():
        array = values.numpy()
        stored = array[..., None] if fixed.slice_axis else array
        write_nifti(folder / f"{name}.nii.gz", stored, fixed, description=description)
    if result.moving_label is not None:
        label = warped_label(result.pull, result.moving_label, interpolation)
        save_image(folder / "warped_label.nii.gz", label.array, fixed, dtype=result.moving_label.stored)
    _write_points(folder, "moving_points_in_fixed", result.moving_points, inverse)
    _write_points(folder, "fixed_points_in_moving", result.fixed_points, result.transform)
    if result.item is not None:
        draw_registration(folder / "registration.png", result.item)
    metrics = result.metrics()
    write_pair_page(folder / "report.html", result, metrics, warped)
    _write_json(folder / "metrics.json", metrics)
    _write_json(folder / "provenance.json", dict(result.provenance))


def warped_label(transform: Transform, label: Image, interpolation: str = "nearest") -> Image:
    """A label map pulled through a transform.

    Args:
        transform: from points of its grid to points of the label map's space.
        label: with values.
        interpolation: "nearest" or "one_hot", see ``Result.warp_label``.

    Returns:
        On the grid of the transform.

    Raises:
        ValueError: for an unknown interpolation.
    """
    if known_name("interpolation", interpolation, ("nearest", "one_hot")) == "nearest":
        return transform.apply(label, "nearest")
    best = result = None
    for value in label.array.unique().tolist():
        share = transform.apply(label._replace(array=(label.array == value).float()), "bilinear").array
        if best is None or result is None:
            best, result = torch.full_like(share, 0.0), torch.zeros(share.shape, dtype=label.array.dtype)
        larger = share > best
        result[larger] = value
        best = torch.maximum(best, share)
    assert result is not None
    return transform.grid._replace(array=result, stored=label.stored)


def compact(transform: Transform) -> Transform:
    """The transform with its field on a grid of at most ``MOST_VOXELS`` voxels.

    Args:
        transform: of any size.

    Returns:
        Itself where it is small enough.
    """
    voxels = transform.grid.array.numel()
    if transform.ddf is None or voxels <= MOST_VOXELS:
        return transform
    factor = (voxels / MOST_VOXELS) ** (1 / transform.grid.array.dim())
    grid = grid_of_spacing(transform.grid, [factor * mm for mm in transform.grid.spacing])
    return transform.on(grid)


def inverse_on_moving(transform: Transform, moving: Image) -> Transform:
    """The inverse of a transform, its field at the voxels of moving, and half way between them where that is needed.

    It is needed where interpolation between voxels misses the map by more than ``BETWEEN`` at one point in a hundred,
    and spared where it would take more than ``MOST_FINER`` voxels.

    Args:
        transform: from points of fixed to points of moving.
        moving: whose grid the inverse lies on; grids of more than ``MOST_VOXELS`` receive it by interpolation.

    Returns:
        The inverse.
    """
    small = compact(transform)
    if moving.array.numel() > MOST_VOXELS:
        return small.inverse().on(moving)
    inverse = small.inverse_on(moving)
    if inverse.ddf is None:
        return inverse
    # Slices that were registered one by one have nothing between them.
    finer = _halved(moving, [bool(component.abs().max() > BETWEEN) for component in inverse.ddf])
    if finer.array.numel() > MOST_FINER or (inverse_error(small, inverse, moving)["q99"] or 0) <= BETWEEN:
        return inverse
    return small.inverse_on(finer)


def _halved(image: Image, along: list[bool]) -> Image:
    """The grid of an image with further voxels half way between its own, along some axes."""
    parts = np.where(along, 2, 1)
    shape = parts * (np.array(image.array.shape) - 1) + 1
    affine = image.affine.copy()
    affine[:3, : len(parts)] /= parts
    spacing = tuple(mm / n for mm, n in zip(image.spacing, parts.tolist(), strict=True))
    return image._replace(array=torch.empty(*shape.tolist(), device="meta"), affine=affine, spacing=spacing)


def _write_points(folder: Path, name: str, landmarks: Landmarks | None, transform: Transform) -> None:
    if landmarks is None:
        return
    carried = Landmarks(transform.points(landmarks.points_mm), landmarks.names)
    for suffix in ("csv", "fcsv"):
        save_landmarks(folder / f"{name}.{suffix}", carried)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
