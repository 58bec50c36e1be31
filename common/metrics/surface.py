# SPDX-License-Identifier: Apache-2.0
"""Distances between the surfaces of masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree


class SurfaceDistances(NamedTuple):
    """Hausdorff distance, its 95th percentile and the average surface distance; NaN where a surface is empty."""

    hd: float
    hd95: float
    asd: float

    def scaled(self, size: float) -> SurfaceDistances:
        """In mm, from distances in voxels.

        Args:
            size: width of a voxel in mm, equal along every axis.

        Returns:
            The distances in mm.
        """
        return SurfaceDistances(*(value * size for value in self))


@dataclass(eq=False)
class Surface:
    """A surface as points, and a search tree that is built once, however many surfaces are measured against it.

    Attributes:
        points: (N, d), in voxels as ``of`` returns them, or in mm.
    """

    points: NDArray[np.float64]

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> Surface:
        """Edge voxels: those with a face neighbour outside; beyond the border of the image all is outside.

        Args:
            mask: (*S) bool.

        Returns:
            The surface, in voxels.

        Raises:
            TypeError: if the mask is not bool.
        """
        if mask.dtype != bool:
            raise TypeError(
                f"mask: expected bool, got {mask.dtype}; compare the label map with the label (label == 2)."
            )
        # The bounding box, since a structure fills little of a volume. Nothing of the mask lies outside of it.
        boxes = find_objects(mask.view(np.uint8))
        if not boxes:
            return cls(np.empty((0, mask.ndim)))
        inside = mask[boxes[0]]
        corner = np.array([part.start for part in boxes[0]], dtype=np.float64)
        return cls(np.argwhere(inside & ~binary_erosion(inside)) + corner)

    def in_mm(self, spacing: Sequence[float]) -> Surface:
        """The same surface in mm.

        Args:
            spacing: voxel size in mm along each array axis.

        Returns:
            The surface, in mm.

        Raises:
            ValueError: if ``spacing`` has not one positive number an axis.
        """
        dims = self.points.shape[1]
        if len(spacing) != dims or not all(math.isfinite(size) and size > 0 for size in spacing):
            raise ValueError(
                f"spacing: expected {dims} positive numbers in mm, one an array axis, got {list(spacing)};"
                " measure in voxels where the voxel size is not known."
            )
        return Surface(self.points * np.asarray(spacing, dtype=np.float64))

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(self.points, leafsize=32)  # twice the default: faster for a tree that is asked once or twice

    def distances_to(self, other: Surface) -> NDArray[np.float32]:
        """Distance of every edge voxel to the nearest one of another surface, (N,); none may be empty.

        Args:
            other: a surface that is not empty.

        Returns:
            (N,).
        """
        return other._tree.query(self.points)[0].astype(np.float32)


def surface_distances(predicted: Surface, reference: Surface) -> SurfaceDistances:
    """Hausdorff, 95 % Hausdorff and average distance of two surfaces.

    With D(A→B) the distances from every edge voxel of A to the nearest edge voxel of B:

    - hd = max over both directions of max D;
    - hd95 = max over both directions of the 95th percentile of D;
    - asd = mean of the union of D(P→R) and D(R→P).

    Values equal MONAI's ``compute_hausdorff_distance`` and ``compute_average_surface_distance`` except that an empty
    mask gives NaN here, never inf. Learn2Reg's hd95 weights by surface area and can differ by a fraction of a voxel.

    Args:
        predicted: of the warped mask.
        reference: of the fixed mask, in the same unit.

    Returns:
        hd, hd95, asd in the unit of the surfaces.

    Reference:
        Huttenlocher et al., IEEE TPAMI 1993 (Hausdorff); Heimann et al., IEEE TMI 2009, Eq. 3 (symmetric average).
    """
    if not len(predicted.points) or not len(reference.points):
        return SurfaceDistances(math.nan, math.nan, math.nan)
    forth, back = predicted.distances_to(reference), reference.distances_to(predicted)
    return SurfaceDistances(
        hd=float(max(forth.max(), back.max())),
        hd95=float(max(np.percentile(forth, 95), np.percentile(back, 95))),
        asd=float(np.concatenate((forth, back)).mean()),
    )


def directed_distance(start: Surface, end: Surface) -> float:
    """Mean distance from the edge voxels of one surface to another, one direction.

    Args:
        start: where distances begin.
        end: to whose nearest edge voxel they lead.

    Returns:
        In voxels or mm, as the surfaces; NaN where one is empty.
    """
    if not len(start.points) or not len(end.points):
        return math.nan
    return float(start.distances_to(end).mean())
