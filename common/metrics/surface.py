# SPDX-License-Identifier: Apache-2.0
"""Distances between the surfaces of label maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance
from scipy.ndimage import find_objects
from torch import Tensor

from .overlap import check_label_maps

Box = tuple[slice, ...]


class SurfaceDistances(NamedTuple):
    """Hausdorff distance, its 95th percentile and the average surface distance, each (B, K)."""

    hd: Tensor
    hd95: Tensor
    asd: Tensor


def surface_distances(
    predicted: Tensor,
    reference: Tensor,
    labels: Sequence[int],
    spacing: Sequence[float] | None = None,
    symmetric: bool = True,
) -> SurfaceDistances:
    """Hausdorff, 95 % Hausdorff and average surface distance of each label, from one edge extraction a pair.

    With D(A→B) the distances from every edge voxel of A to the nearest edge voxel of B (an edge voxel has a face
    neighbour outside; the border of the image counts as outside), P the prediction and R the reference:

    - hd = max over both directions of max D;
    - hd95 = max over both directions of the 95th percentile of D;
    - asd = mean of the union of D(P→R) and D(R→P), or of D(R→P) alone (``symmetric=False``), the direction fixed →
      warped in which published code takes it. hd and hd95 are symmetric in either case.

    Values equal MONAI's ``compute_hausdorff_distance`` and ``compute_average_surface_distance`` except that a label
    missing in either map is NaN here, never inf. Learn2Reg's hd95 weights by surface area and can differ by a fraction
    of a voxel. Computed on the CPU, whatever the device. Voxels and millimetres of isotropic images differ by a
    factor only: call once and multiply.

    Args:
        predicted: warped label map, (B, 1, *S), integer.
        reference: fixed label map, (B, 1, *S), integer.
        labels: the K labels to score, each ≥ 0.
        spacing: voxel size in mm along each array axis, one for the whole batch; distances are then in mm.
            None: distances in voxels.
        symmetric: average the surface distance over both directions.

    Returns:
        hd, hd95, asd, each (B, K) float32 on the device of ``predicted``.

    Raises:
        ValueError: if ``spacing`` has not one positive number an axis; otherwise as ``check_label_maps``.
        TypeError: as ``check_label_maps``.

    Reference:
        Huttenlocher et al., IEEE TPAMI 1993 (Hausdorff); Heimann et al., IEEE TMI 2009, Eq. 3 (symmetric average).
    """
    check_label_maps(predicted, reference, labels)
    _check_spacing(spacing, predicted.dim() - 2)
    values = np.full((3, predicted.shape[0], len(labels)), np.nan, dtype=np.float32)
    maps_p, maps_r = (_as_numpy(value)[:, 0] for value in (predicted, reference))
    for case, (map_p, map_r) in enumerate(zip(maps_p, maps_r, strict=True)):
        boxes_p, boxes_r = _label_boxes(map_p, labels), _label_boxes(map_r, labels)
        for column, label in enumerate(labels):
            box_p, box_r = boxes_p[column], boxes_r[column]
            if box_p is not None and box_r is not None:
                box = _union(box_p, box_r)
                forth, back = _directed_distances(map_p[box] == label, map_r[box] == label, spacing)
                values[0, case, column] = max(forth.max(), back.max())
                values[1, case, column] = max(np.percentile(forth, 95), np.percentile(back, 95))
                values[2, case, column] = np.concatenate((forth, back)).mean() if symmetric else back.mean()
    return SurfaceDistances(*torch.from_numpy(values).to(predicted.device))


def _check_spacing(spacing: Sequence[float] | None, dims: int) -> None:
    if spacing is None:
        return
    if len(spacing) != dims or not all(math.isfinite(size) and size > 0 for size in spacing):
        raise ValueError(
            f"spacing: expected {dims} positive numbers in mm, one an array axis, got {list(spacing)};"
            " pass None where the voxel size is not known (distances are then in voxels)."
        )


def _as_numpy(labels: Tensor) -> np.ndarray:
    # find_objects wants signed integers; as_subclass keeps MetaTensor's bookkeeping out of the loop
    return labels.detach().as_subclass(Tensor).cpu().to(torch.int64).numpy()


def _label_boxes(labels_map: np.ndarray, labels: Sequence[int]) -> list[Box | None]:
    """Bounding box of each label (None where absent), one pass for all of them."""
    # find_objects ignores 0 and below: shifted by one so that the background can be scored too
    boxes = find_objects(np.clip(labels_map, -1, max(labels) + 1) + 1)
    boxes += [None] * (max(labels) + 2 - len(boxes))
    return [boxes[label] for label in labels]


def _union(first: Box, second: Box) -> Box:
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))


def _directed_distances(
    predicted: np.ndarray, reference: np.ndarray, spacing: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """D(P→R) and D(R→P) of two non-empty masks."""
    edges_p, edges_r = get_mask_edges(predicted, reference, crop=False)
    # lists, since MONAI tells a sequence from a number by its type
    sampling = None if spacing is None else [float(size) for size in spacing]
    forth = get_surface_distance(edges_p, edges_r, spacing=sampling)
    back = get_surface_distance(edges_r, edges_p, spacing=sampling)
    return np.asarray(forth), np.asarray(back)
