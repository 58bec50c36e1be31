# SPDX-License-Identifier: Apache-2.0
"""Where the points of a fixed image lie in a moving one. The only home of how placement and displacement go together.

Points are in mm, RAS, as the affines of ``common.io.images`` give them; LPS is for files alone (``io.fields``,
``io.composite``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..spatial.fields import lengths
from ..spatial.inversion import invert
from ..spatial.warp import sample
from .images import Image, check_plane
from .resampling import SLAB, grid_only, nearest_values, points_in, relative_affine, warped_by, warped_values

WORTHWHILE = 0.9  # of the voxels that are off; a step of ``inverse_on`` that leaves more was the last
READERS: dict[str, Callable[[Image, Tensor], Tensor]] = {"bilinear": warped_values, "nearest": nearest_values}


@dataclass(frozen=True, eq=False)
class Transform:
    """φ(p) = P · G (x + u(x)) with x = G⁻¹ p: from a point of the fixed image to the one of moving that it shows.

    The displacement acts first, on the fixed grid; the placement then carries the point into the space of moving. An
    image is pulled the other way: warped(p) = moving(φ(p)).

    Attributes:
        placement: P, (4, 4) float64, mm, RAS, fixed space to moving space; any invertible affine. The identity where
            the two files share one space.
        ddf: u, (axes, *F) in voxels of ``grid``, all of its axes; None: none. Between voxels it is linear, beyond the
            grid it goes on with its border's value.
        grid: G, the fixed image's grid; its voxels are not read.

    Raises:
        ValueError: for a placement that is no invertible affine, or a field of another shape.
    """

    placement: np.ndarray
    ddf: Tensor | None
    grid: Image

    def __post_init__(self) -> None:
        object.__setattr__(self, "placement", checked_placement(self.placement))
        object.__setattr__(self, "grid", grid_only(self.grid))
        shape = tuple(self.grid.array.shape)
        if self.ddf is not None and tuple(self.ddf.shape) != (len(shape), *shape):
            raise ValueError(
                f"ddf: expected the shape {(len(shape), *shape)}, a channel an axis of the grid, got "
                f"{tuple(self.ddf.shape)}; drop the batch axis, and give slices a component of 0 across them."
            )

    def placed(self, image: Image) -> Image:
        """An image of moving's space where the placement puts it in fixed's, P⁻¹ · A; nothing is resampled.

        Args:
            image: on a grid in moving's space.

        Returns:
            The image on a grid in fixed's space.
        """
        return _carried(image, np.linalg.inv(self.placement))

    def apply(self, image: Image, mode: str) -> Image:
        """Pull an image or label map of moving's space onto the fixed grid, sampled once from its own.

        Args:
            image: with values, on any grid of as many axes.
            mode: "bilinear" (trilinear in 3D) for images, "nearest" for labels, which keep their type.

        Returns:
            Image on ``grid``, 0 where ``image`` has no data.

        Raises:
            ValueError: for an unknown mode, another number of axes, or 2D images of different planes.
        """
        if mode not in READERS:
            raise ValueError(f"mode: expected 'bilinear' (images) or 'nearest' (labels), got {mode!r}.")
        placed = self.placed(image)
        _check_axes(placed, self.grid)
        return self.grid._replace(array=warped_by(placed, self.grid, self._field(), READERS[mode]), stored=image.stored)

    def points(self, points_mm: np.ndarray) -> np.ndarray:
        """Carry points of the fixed image into the moving one, φ(p); ``inverse().points`` carries them back.

        Args:
            points_mm: (N, 3) in mm, RAS; of 2D images too, which keep their distance from the plane.

        Returns:
            (N, 3) float64 in mm, RAS.

        Raises:
            ValueError: for another shape.
        """
        points = np.asarray(points_mm, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"points_mm: expected (N, 3) in mm, RAS, got the shape {points.shape}.")
        voxels = _mapped(np.linalg.inv(self.grid.affine), points)
        if self.ddf is not None:
            where = voxels[:, : len(self.ddf)].T.copy()
            for axis, component in enumerate(self.ddf.detach().cpu().numpy()):  # read where it lies, not copied
                voxels[:, axis] += ndimage.map_coordinates(component, where, np.float64, order=1, mode="nearest")
        return _mapped(self.placement @ self.grid.affine, voxels)

    def after(self, first: Transform) -> Transform:
        """Composition φ ∘ φ_first: ``first`` is applied first to points, last to images.

        self.after(first).apply(image) is first.apply(self.apply(image)) without the second interpolation.

        Args:
            first: from a third image to the fixed one of this transform.

        Returns:
            Transform on the grid of ``first``, exact at its voxels.

        Raises:
            ValueError: for grids of different numbers of axes, or 2D ones of different planes.
        """
        placement = self.placement @ first.placement
        carried = _carried(first.grid, first.placement)
        _check_axes(carried, self.grid)
        if self.ddf is None:
            return Transform(placement, first.ddf, first.grid)
        axes = len(self.ddf)
        whole = self.ddf.new_empty(axes, *first.grid.array.shape)
        turn = torch.from_numpy(relative_affine(carried, self.grid)[:axes, :axes]).to(whole.dtype)
        for planes, inner in first._slabs():
            outer = sample(self.ddf[None], points_in(self.grid, carried, inner, planes.start)[None])[0]
            whole[:, planes] = inner + torch.einsum("ij,j...->i...", turn, outer)
        return Transform(placement, whole, first.grid)

    def on(self, grid: Image) -> Transform:
        """The same transform with its field at the voxels of another grid of fixed's space.

        Args:
            grid: of fixed's space.

        Returns:
            The transform.
        """
        return self.after(Transform(np.eye(4), None, grid))

    def inverse(self, iterations: int = 50, tolerance: float = 1e-4) -> Transform:
        """φ⁻¹, from points of moving to points of fixed.

        φ⁻¹ = G (id + v) G⁻¹ · P⁻¹ has placement P⁻¹ and field v on the grid P · G, which is the fixed grid carried into
        moving's space: nothing but the field is inverted. ``inverse().on(moving)`` brings it to the grid of moving.

        Args:
            iterations: most steps of ``common.spatial.inversion.invert``.
            tolerance: in voxels, likewise.

        Returns:
            The inverse.

        Raises:
            ValueError: for a field that is not finite. Where the map folds, a warning.
        """
        ddf = None if self.ddf is None else invert(self.ddf[None], iterations, tolerance)[0]
        return Transform(np.linalg.inv(self.placement), ddf, _carried(self.grid, self.placement))

    def inverse_on(self, grid: Image, iterations: int = 10, tolerance: float = 1e-3) -> Transform:
        """φ⁻¹ with its field at the voxels of a grid of moving's space, solved for there.

        ``inverse().on(grid)`` interpolates φ⁻¹ once more than is needed: what φ makes of it is subtracted until less
        than the tolerance is left, at every voxel where that helps.

        Args:
            grid: of moving's space.
            iterations: most steps.
            tolerance: in voxels of ``grid``.

        Returns:
            The inverse.

        Raises:
            ValueError: as ``inverse``.
        """
        found = self.inverse().on(grid)
        if found.ddf is None:
            return found
        field, left, before = found.ddf, self.after(found).displacement(), math.inf
        for _ in range(iterations):
            off = lengths(left, 0)
            missed = int((off > tolerance).sum())
            if not missed or missed > WORTHWHILE * before:  # where the map folds nothing helps
                break
            trial, before = field - left, missed
            after = self.after(Transform(found.placement, trial, found.grid)).displacement()
            better = lengths(after, 0) < off
            field = torch.where(better, trial, field)
            left = torch.where(better, after, 0.5 * left)
        return Transform(found.placement, field, found.grid)

    def displacement(self) -> Tensor:
        """Placement and displacement in one field, G⁻¹ P G (x + u(x)) − x.

        Returns:
            (axes, *F) in voxels of ``grid``; of 2D images the part in their plane.
        """
        axes = self.grid.array.dim()
        # P − I: a translation has no linear part, and adds nothing but a constant.
        shift = np.linalg.inv(self.grid.affine) @ (self.placement - np.eye(4)) @ self.grid.affine
        if not shift.any():
            return self._field()
        moved = torch.empty_like(self._field())
        linear, constant = (torch.from_numpy(part).to(moved.dtype) for part in (shift[:axes, :axes], shift[:axes, 3]))
        for planes, field in self._slabs():
            moved[:, planes] = field + constant.reshape([-1] + [1] * axes)
            if linear.any():
                points = points_in(self.grid, self.grid, field, planes.start)
                moved[:, planes] += torch.einsum("ij,j...->i...", linear, points)
        return moved

    def _field(self) -> Tensor:
        return torch.zeros(self.grid.array.dim(), *self.grid.array.shape) if self.ddf is None else self.ddf

    def _slabs(self) -> Iterator[tuple[slice, Tensor]]:
        """A few planes of the first axis at a time, and the field there: large fields are not held several times."""
        shape = self.grid.array.shape
        for first in range(0, shape[0], SLAB):
            planes = slice(first, min(first + SLAB, shape[0]))
            size = (len(shape), planes.stop - first, *shape[1:])
            yield planes, torch.zeros(size) if self.ddf is None else self.ddf[:, planes]


def checked_placement(placement: np.ndarray) -> np.ndarray:
    """A placement as (4, 4) float64.

    Args:
        placement: mm of fixed to mm of moving, RAS.

    Returns:
        The matrix.

    Raises:
        ValueError: where it is no invertible affine.
    """
    matrix = np.asarray(placement, dtype=np.float64)
    affine = matrix.shape == (4, 4) and np.isfinite(matrix).all() and np.array_equal(matrix[3], [0, 0, 0, 1])
    if not affine or abs(np.linalg.det(matrix[:3, :3])) <= 1e-9 * np.linalg.norm(matrix[:3, :3], axis=0).prod():
        raise ValueError(
            "placement: expected an invertible affine (4, 4) with the last row 0 0 0 1, from mm of fixed to mm of "
            f"moving, RAS, got {np.asarray(placement).tolist()}."
        )
    return matrix


def _carried(image: Image, matrix: np.ndarray) -> Image:
    """The image with each of its voxels at matrix · p."""
    if np.array_equal(matrix, np.eye(4)):
        return image
    affine = matrix @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[: len(image.spacing)]
    return image._replace(affine=affine, spacing=tuple(float(mm) for mm in spacing))


def _check_axes(image: Image, grid: Image) -> None:
    if image.array.dim() != grid.array.dim():
        raise ValueError(
            f"image: expected {grid.array.dim()} axes, as the grid has, got the shape {tuple(image.array.shape)}."
        )
    if grid.array.dim() == 2:
        check_plane(image, grid, "image", "the image, placed,", "the fixed grid")


def _mapped(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ affine[:3, :3].T + affine[:3, 3]
