# SPDX-License-Identifier: Apache-2.0
"""Numbers of one registered pair: similarity, foldings, inverse consistency, Dice, landmarks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..io.images import Image
from ..io.landmarks import Landmarks
from ..io.placement import mapped
from ..io.transforms import Transform
from ..losses.mi import MI
from ..losses.similarity import GlobalNCC
from ..metrics.folding import fold_count, foldings_percent
from ..metrics.overlap import count_overlap
from ..transforms.intensity import clip_percentiles, min_max

if TYPE_CHECKING:
    from .result import Result

# Points at which forward and inverse are composed, and the share of the image at each border that is left out.
POINTS, MARGIN = 20_000, 0.1
# Voxels at which similarities are taken: every second, third, ... of larger images.
SAMPLE = 2_000_000


def pair_metrics(result: Result, inverse: Transform) -> dict[str, Any]:
    """Measure a registration.

    Args:
        result: of the pair.
        inverse: of its transform.

    Returns:
        "similarity": of the images before (where their headers place them) and after, in the part of fixed that moving
        covers: "ncc", the correlation coefficient, and "mutual_information" in nats, of intensities between their
        percentiles. "foldings_percent", "fold_count". "inverse_error_voxels": the distance of points of
        the inner fixed image from where forward and inverse bring them. With both label maps "dice" of each label and
        their mean, before and after; with both sets of landmarks "tre_mm".
    """
    transform, determinant = result.pull, result.jacobian_determinant
    still = Transform(np.eye(4), None, result.fixed)
    metrics: dict[str, Any] = {
        "similarity": {
            "before": image_similarity(result.moving, result.fixed, still),
            "after": image_similarity(result.moving, result.fixed, transform),
        },
        "foldings_percent": float(foldings_percent(determinant[None])),
        "fold_count": None if transform.ddf is None or result.stack else int(fold_count(transform.ddf[None])),
        "inverse_error_voxels": inverse_error(result.transform, inverse, result.moving),
    }
    if result.moving_label is not None and result.fixed_label is not None:
        metrics["dice"] = {
            "before": label_dice(result.moving_label, result.fixed_label, still),
            "after": label_dice(result.moving_label, result.fixed_label, transform),
        }
    if result.moving_points is not None and result.fixed_points is not None:
        metrics["tre_mm"] = {
            "before": landmark_error(result.moving_points, result.fixed_points, still),
            "after": landmark_error(result.moving_points, result.fixed_points, transform),
        }
    return metrics


def image_similarity(moving: Image, fixed: Image, transform: Transform) -> dict[str, float | None]:
    """Correlation and mutual information where both images have voxels.

    Args:
        moving: image.
        fixed: image.
        transform: on the grid of fixed.

    Returns:
        "ncc" and "mutual_information"; None where they share no voxels.
    """
    warped = transform.apply(moving, "bilinear").array
    inside = transform.apply(moving._replace(array=torch.ones(moving.array.shape)), "bilinear").array >= 0.5
    values, covered = [], _sampled(inside, int(inside.sum()))
    for image, source in ((warped, moving), (fixed.array, fixed)):
        low, high = torch.aminmax(clip_percentiles(_sampled(source.array, source.array.numel())[None].float()))
        values.append(_sampled(image, int(inside.sum()))[covered].clamp(low, high))
    if len(values[0]) < 2:
        return {"ncc": None, "mutual_information": None}
    pair = [min_max(kept[None])[None, None] for kept in values]
    return {"ncc": 1 - float(GlobalNCC()(*pair).mean()), "mutual_information": -float(MI()(*pair).mean())}


def _sampled(array: Tensor, counted: int) -> Tensor:
    """Every k-th voxel, k odd, so that it does not always meet the same place of a row; all of small images."""
    return array.flatten()[:: (counted // SAMPLE) | 1]


def inverse_error(transform: Transform, inverse: Transform, moving: Image) -> dict[str, float | None]:
    """How far forward and inverse together move points of the inner fixed image that show something of moving.

    Args:
        transform: φ.
        inverse: φ⁻¹.
        moving: whose field of view counts.

    Returns:
        "mean", "q99" (99th percentile) and "max" in voxels of fixed; None where there is no such point.
    """
    grid = transform.grid
    dims, shape = grid.array.dim(), np.array(grid.array.shape)
    random = np.random.default_rng(0)
    voxels = np.zeros((POINTS, 3))
    voxels[:, :dims] = (shape - 1) * random.uniform(MARGIN, 1 - MARGIN, (POINTS, dims))
    points = mapped(grid.affine, voxels)
    there = transform.points(points)
    seen = mapped(np.linalg.inv(moving.affine), there)[:, :dims]
    size = np.array(moving.array.shape)
    kept = ((seen >= MARGIN * size) & (seen <= (1 - MARGIN) * size - 1)).all(1)
    if not kept.any():
        return {"mean": None, "q99": None, "max": None}
    off = (inverse.points(there[kept]) - points[kept]) @ np.linalg.inv(grid.affine)[:3, :3].T
    distance = np.linalg.norm(off[:, :dims], axis=1)
    return {"mean": float(distance.mean()), "q99": float(np.quantile(distance, 0.99)), "max": float(distance.max())}


def label_dice(moving_label: Image, fixed_label: Image, transform: Transform) -> dict[str, float | None]:
    """Dice of each label that the fixed map holds, after warping by nearest neighbour.

    Args:
        moving_label: label map of moving.
        fixed_label: label map of fixed, on any grid.
        transform: on the grid of fixed.

    Returns:
        Dice by label, and "mean".
    """
    warped = transform.on(fixed_label).apply(moving_label, "nearest").array
    return _dice(warped, fixed_label.array)


def _dice(warped: Tensor, reference: Tensor) -> dict[str, float | None]:
    labels = [value for value in reference.unique().tolist() if value != 0]
    dice = {
        str(label): float(count_overlap(warped[None, None] == label, reference[None, None] == label).dice())
        for label in labels
    }
    known = [value for value in dice.values() if not math.isnan(value)]
    return {**dice, "mean": sum(known) / len(known) if known else None}


def landmark_error(moving: Landmarks, fixed: Landmarks, transform: Transform) -> dict[str, float]:
    """Distance of the carried fixed landmarks to the moving ones, φ(fixed) − moving.

    Args:
        moving: landmarks.
        fixed: as many, in the same order.
        transform: φ.

    Returns:
        "mean", "median" and "max" in mm.

    Raises:
        ValueError: for different numbers of points.
    """
    if len(moving.points_mm) != len(fixed.points_mm):
        raise ValueError(
            f"moving_points and fixed_points: expected as many points in the same order, got {len(moving.points_mm)} "
            f"and {len(fixed.points_mm)}."
        )
    distance = np.linalg.norm(transform.points(fixed.points_mm) - moving.points_mm, axis=1)
    return {"mean": float(distance.mean()), "median": float(np.median(distance)), "max": float(distance.max())}
