# SPDX-License-Identifier: Apache-2.0
"""Centres of the windows that are cut out of stacks of slices."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..transforms.crop import auto_centre, centroid
from .layout import DatasetLayoutError

CROP_CENTERS = ("middle_slice", "slice", "volume", "auto")


def slice_centres(stacks: Mapping[str, torch.Tensor], crop_center: str, label: int) -> list[torch.Tensor]:
    """Where to crop each slice of a stack.

    Args:
        stacks: ``moving_image``, ``fixed_image`` and ``moving_label``, (Z, 1, X, Y).
        crop_center: one of ``CROP_CENTERS``, see ``acdc.load_pairs``.
        label: value of the myocardium.

    Returns:
        A centre (2,) a slice, in voxels.

    Raises:
        DatasetLayoutError: where the stack holds no myocardium.
    """
    count = len(stacks["moving_image"])
    if crop_center == "auto":
        return [auto_centre(stacks["moving_image"], stacks["fixed_image"])] * count
    myocardium = stacks["moving_label"][:, 0] == label
    own = [centroid(mask) for mask in myocardium]
    present = {z: point for z, point in enumerate(own) if point is not None}
    whole = centroid(myocardium)
    if whole is None:
        raise DatasetLayoutError(
            f"expected myocardium (label {label}) at ED to centre the crop on, got none; use crop_center='auto'."
        )
    if crop_center == "volume":
        return [whole[1:]] * count
    middle = present[min(present, key=lambda z: abs(z - count // 2))]
    return [present.get(z, middle) if crop_center == "slice" else middle for z in range(count)]
