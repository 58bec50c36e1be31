# SPDX-License-Identifier: Apache-2.0
"""What data sets of whole volumes on one grid share: the parts of a pair, and checks of their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from .layout import DatasetLayoutError
from .pickles import read_arrays

ROLES = ("moving", "fixed")


def parts_of(entry: Mapping[str, Any], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is decoded at once for a pair: the volume of each role, and the true displacement where there is one.

    Args:
        entry: of a ``datalist``.
        options: that every volume's reader is given besides.

    Returns:
        ``image``, and what there is of ``label`` and ``part``, with ``options``; ``true_ddf`` with ``image``.
    """
    parts = [
        {key: entry[f"{role}_{key}"] for key in ("image", "label", "part") if f"{role}_{key}" in entry} | dict(options)
        for role in ROLES
    ]
    return parts + ([{"true_ddf": entry["true_ddf"], "image": entry["fixed_image"]}] if "true_ddf" in entry else [])


def joined(
    entry: Mapping[str, Any], moving: Mapping[str, Any], fixed: Mapping[str, Any], *truth: Any
) -> dict[str, Any]:
    """A pair of its decoded parts.

    Args:
        entry: of a ``datalist``.
        moving: ``image``, perhaps ``label``, ``spacing``.
        fixed: likewise.
        truth: a dictionary with ``true_ddf``, or nothing.

    Returns:
        As ``load_pairs`` of the data sets.
    """
    volumes = dict(zip(ROLES, (moving, fixed), strict=True))
    pair = {f"{role}_{key}": volumes[role][key] for key in ("image", "label") for role in ROLES if key in volumes[role]}
    middle = (torch.tensor([float(n) for n in fixed["image"].shape[1:]]) - 1) / 2
    details = {"centre": middle, "subject": entry["subject"], "case": entry["case"], "spacing": fixed["spacing"]}
    return {**pair, **details, **(truth[0] if truth else {})}


def check_window(shape: Sequence[int], spatial_size: Sequence[int] | None, dataset_dir: str | Path) -> None:
    """Refuse a window that would cut the volumes.

    Args:
        shape: of the volumes, voxels.
        spatial_size: of the window; None is any.
        dataset_dir: where they lie.

    Raises:
        ValueError: naming the size that it takes.
    """
    if spatial_size is not None and any(n > s for n, s in zip(shape, spatial_size, strict=True)):
        raise ValueError(
            f"spatial_size: expected at least the {list(shape)} voxels of the volumes in {dataset_dir}, which a window "
            f"of {list(spatial_size)} would cut; give that size."
        )


def check_shape(image: Tensor, part: Mapping[str, Any], orientation: str) -> None:
    """Refuse a volume of another shape than the first.

    Args:
        image: ``(1, *S)``.
        part: with ``image``, its path, and perhaps ``shape``, what is expected.
        orientation: of the axes.

    Raises:
        DatasetLayoutError: naming the file.
    """
    expected = part.get("shape", list(image.shape))
    if list(image.shape) != expected:
        raise DatasetLayoutError(
            f"expected {expected[1:]} voxels along {orientation} in {part['image']}, as in the first volume of the "
            f"split, got {list(image.shape[1:])}; restore the published file."
        )


def pickled_volumes(path: str | Path, wanted: int) -> tuple[NDArray, ...]:
    """The volumes of a pickle, without running code in it.

    Args:
        path: the file.
        wanted: number of volumes.

    Returns:
        Arrays of one shape (X, Y, Z).

    Raises:
        DatasetLayoutError: for a damaged file, or other contents.
    """
    arrays = read_arrays(path)
    if len(arrays) != wanted or len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 3:
        raise DatasetLayoutError(
            f"expected {wanted} arrays of one shape (X, Y, Z) in {path}, images and then labels, got the shapes "
            f"{[array.shape for array in arrays]}; restore the published file."
        )
    return arrays
