# SPDX-License-Identifier: Apache-2.0
"""The picture of one registration: a slice of fixed as the network sees it, and what becomes of moving there."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import torch
from torch import Tensor

from ..figures.panels import registration_panel
from ..io.images import Image
from ..io.orientation import Axes, reoriented, spacing_is_unknown
from ..io.resampling import grid_only, nearest_values, points_in, sampled_onto
from .intensity import clip_percentiles
from .loading import Pair
from .paste import window_on


def draw_registration(path: str | Path, data: Mapping[Hashable, Any]) -> None:
    """Draw what ``RegistrationResultd`` computed, in the middle of the window, with axes as the network sees them.

    Moving and fixed are shown from their 1st to 99th percentile.

    Args:
        path: image file to write.
        data: the dictionary that ``RegistrationResultd`` returned.
    """
    pair: Pair = data["pair"]
    fixed, axes, dims = pair.fixed, pair.axes, len(pair.start)
    moving = data["transform"].placed(pair.moving)
    turned = reoriented(grid_only(fixed), axes)
    window = window_on(turned, pair.working, pair.start, data["image"].shape[1 : dims + 1])
    number, title = 0, ""
    if len(axes.order) == 3:
        slices = turned.array.shape[2]
        number = slices // 2 if dims == 2 else (window[0][2] + window[1][2] + 1) // 2
        title = f"slice {number + 1} of {slices}"
    plane = _plane_of(turned, number)
    shown, _ = sampled_onto(moving, plane)
    label = None if pair.label is None else data["transform"].placed(pair.label)
    field = _plane(data["ddf"], axes, number)
    signs = [-1.0 if flipped else 1.0 for flipped in axes.flipped[:2]]
    registration_panel(
        path,
        _scaled(shown.reshape(turned.array.shape[:2]), moving),
        _scaled(_plane(fixed.array, axes, number), fixed),
        _scaled(_plane(data["warped_image"][0], axes, number), moving),
        torch.stack([field[axis] * sign for axis, sign in zip(axes.order[:2], signs, strict=True)]),
        moving_label=None if label is None else _nearest(label, plane).reshape(turned.array.shape[:2]),
        warped_label=None if label is None else _plane(data["warped_label"][0], axes, number),
        jacobian_determinant=_plane(data["jacobian_determinant"], axes, number),
        title=title,
        window=(window[0][:2], window[1][:2]),
        directions=_directions(turned, dims),
    )


def _directions(turned: Image, dims: int) -> tuple[str, ...] | None:
    # Stacks that have lost their spacing have lost their orientation with it.
    if turned.form_codes == (0, 0) or (dims == 2 and spacing_is_unknown(turned)):
        return None
    return nib.aff2axcodes(turned.affine)[:2]


def _plane_of(turned: Image, number: int) -> Image:
    """The grid of one slice, its last axis of one voxel; of a 2D image itself."""
    if turned.array.dim() == 2:
        return turned
    affine = turned.affine.copy()
    affine[:3, 3] += number * affine[:3, 2]
    return turned._replace(array=turned.array[..., :1], affine=affine)


def _plane(array: Tensor, axes: Axes, number: int) -> Tensor:
    """Slice ``number`` of the reoriented array, (..., X, Y), from the stored one, (..., *F)."""
    if len(axes.order) == 2:
        return axes.apply(array)
    across, lead = axes.order[2], array.dim() - 3
    stored = array.shape[lead + across] - 1 - number if axes.flipped[2] else number
    left = tuple(axis - (axis > across) for axis in axes.order[:2])
    return Axes(left, axes.flipped[:2]).apply(array.select(lead + across, stored))


def _nearest(label: Image, plane: Image) -> Tensor:
    still = torch.zeros(plane.array.dim(), *plane.array.shape)
    return nearest_values(label, points_in(label, plane, still))


def _scaled(image: Tensor, source: Image) -> Tensor:
    # Two scanners' intensities have nothing to do with each other, and a few voxels far brighter than all tissue would
    # leave the rest black; the warped image keeps the moving image's scale.
    low, high = torch.aminmax(clip_percentiles(source.array))
    return ((image - low) / (high - low)).clamp(0, 1)
