# SPDX-License-Identifier: Apache-2.0
"""Pairs of chest CT on one working grid: intensities, lungs, landmarks; for ``common.data.copdgene``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..io.images import Image
from ..io.orientation import reorient
from ..io.spacing import resample_to_spacing
from ..transforms.crop import centre_on_grid, crop_window
from ..transforms.lungs import AIR, LungIntensities, lung_mask, mirrored_axis
from . import dirlab
from .copdgene_folder import PHASES
from .layout import DatasetLayoutError
from .reading import read_case, read_displacement, read_image

logger = logging.getLogger(__name__)

ORIENTATION, SPACING = "LPS", (2.0, 2.0, 2.0)  # mm
DIRECTIONS = ("from left to right", "from front to back", "from top to bottom")
NEAR = 3  # voxels from the lungs, within which landmarks lie


def read_pair(part: Mapping[str, Any]) -> dict[str, Tensor]:
    """Decode both volumes of a subject, and its landmarks or true displacement where there are any.

    Args:
        part: an entry of ``datalist``, and ``spatial_size``.

    Returns:
        The tensors of ``load_pairs``.

    Raises:
        DatasetLayoutError: naming the subject, for files that are not as published.
    """
    pair: dict[str, Tensor] = {}
    try:
        size = part["spatial_size"]
        for role in PHASES:
            image, mask = _read_volume(part, role)
            seen = resample_to_spacing(LungIntensities()(image, mask), SPACING, "bilinear")
            lungs = resample_to_spacing(image._replace(array=(mask != 0).byte()), SPACING, "nearest")
            _warn_of_cut(part[f"{role}_image"], lungs.array, size)
            pair[f"{role}_image"] = centre_on_grid(seen.array[None], size).contiguous()
            pair[f"{role}_label"] = centre_on_grid(lungs.array[None], size, label=True).contiguous()
        if "true_ddf" in part:
            ddf = read_displacement(part["true_ddf"], seen, ORIENTATION, 3)
            pair["true_ddf"] = centre_on_grid(ddf, size, label=True).contiguous()
        if "grid" in part:
            stored = dirlab.read_image(part["fixed_image"], part["grid"])
            for key, points in dirlab.read_landmarks(part).items():
                pair[key] = _on_working_grid(points, stored, seen, size, part[key])
                _check_side(pair[key], pair[key.replace("points", "label")][0], part[key])
    except (DatasetLayoutError, ValueError) as error:
        raise DatasetLayoutError(f"{part['case']}: {error}") from error
    return pair | {"centre": (torch.tensor([float(n) for n in size]) - 1) / 2, "spacing": torch.tensor(SPACING)}


def _read_volume(part: Mapping[str, Any], role: str) -> tuple[Image, Tensor]:
    """HU on the file's voxels, its axes those of ``ORIENTATION``, and the lungs."""
    path, labels = part[f"{role}_image"], part.get(f"{role}_label")
    if labels is not None:
        image, mask = read_case(path, labels, range(1 << 16), orientation=ORIENTATION)
        air = image.array < AIR
        inside = mask.array != 0
        if not inside.any():
            raise DatasetLayoutError(f"expected a mask of the lungs in {labels}, it is empty; restore the file.")
        fits = [float(air[side].float().mean()) for side in (inside, *(inside.flip(axis) for axis in range(3)))]
        axis = mirrored_axis(fits)
        if axis is not None:
            raise DatasetLayoutError(
                f"expected lungs in {labels} to lie where {path} has air: {fits[0]:.0%} do, but {fits[axis + 1]:.0%} "
                f"when mirrored {DIRECTIONS[axis]}. The two headers contradict each other; correct the wrong one."
            )
        return image, mask.array
    image = (
        reorient(dirlab.read_image(path, part["grid"]), ORIENTATION)
        if "grid" in part
        else read_image(path, ORIENTATION)
    )
    logger.info("%s has no mask of the lungs; one is made from the CT.", path)
    return image, lung_mask(image).byte()


def _warn_of_cut(path: str, lungs: Tensor, size: Sequence[int]) -> None:
    inside = int(centre_on_grid(lungs[None], size, label=True).sum())
    if inside < int(lungs.sum()):
        logger.warning(
            "%s: %.1f %% of the lungs lie outside spatial_size %s, centred on the volume. Raise spatial_size.",
            path, 100 * (1 - inside / int(lungs.sum())), list(size),
        )  # fmt: skip


def _on_working_grid(points: Tensor, stored: Image, seen: Image, size: Sequence[int], path: str) -> Tensor:
    """Voxels (N, 3) of the stored image -> of the working grid."""
    to_seen = np.linalg.inv(seen.affine) @ stored.affine
    middle = [(n - 1) / 2 for n in seen.array.shape]
    start = crop_window(seen.array.shape, middle, size)[0]
    moved = points.numpy() @ to_seen[:3, :3].T + to_seen[:3, 3] - np.array(start)
    outside = ((moved < -0.5) | (moved > np.array(size) - 0.5)).any(1)
    if outside.any():
        raise DatasetLayoutError(
            f"expected the landmarks of {path} inside the working grid of {list(size)} voxels of 2 mm; "
            f"{outside.sum()} of {len(moved)} lie outside. Raise spatial_size."
        )
    return torch.from_numpy(moved).float()


def _check_side(points: Tensor, lungs: Tensor, path: str) -> None:
    """Landmarks lie in the lungs: where they do not, but would when mirrored, axes contradict."""
    near = ndimage.binary_dilation(lungs.numpy() > 0, iterations=NEAR)
    where = tuple(np.clip(np.rint(points.numpy()), 0, np.array(near.shape) - 1).astype(int).T)
    fits = [float(side[where].mean()) for side in (near, *(np.flip(near, axis) for axis in range(3)))]
    axis = mirrored_axis(fits)
    if axis is not None:
        raise DatasetLayoutError(
            f"expected the landmarks of {path} in the lungs: {fits[0]:.0%} are, but {fits[axis + 1]:.0%} when "
            f"mirrored {DIRECTIONS[axis]}. Are image and landmarks of one case, and their axes as published (x "
            "to the left, y to the back, z downwards)?"
        )
