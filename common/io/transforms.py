# SPDX-License-Identifier: Apache-2.0
"""Where the points of a fixed image lie in a moving one. The only home of how placement and displacement go together.

Points are in mm, RAS, as the affines of ``common.io.images`` give them; LPS is for files alone (``io.fields``,
``io.composite``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..spatial.inversion import invert
from ..spatial.warp import sample
from .images import Image, check_plane
from .placement import carried, checked_placement, checked_points, mapped
from .resampling import SLAB, grid_only, nearest_values, points_in, relative_affine, warped_by, warped_values

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
        return carried(image, np.linalg.inv(self.placement))

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
        """Carry points of the fixed image into the moving one, φ(p); ``inverse_points`` carries them back.

        Args:
            points_mm: (N, 3) in mm, RAS; of 2D images too, which keep their distance from the plane.

        Returns:
            (N, 3) float64 in mm, RAS.

        Raises:
            ValueError: for another shape.
        """
        voxels = mapped(np.linalg.inv(self.grid.affine), checked_points(points_mm))
        if self.ddf is not None:
            where = voxels[:, : len(self.ddf)].T.copy()
            for axis, component in enumerate(self.ddf.detach().cpu().numpy()):  # read where it lies, not copied
                voxels[:, axis] += ndimage.map_coordinates(component, where, np.float64, order=1, mode="nearest")
        return mapped(self.placement @ self.grid.affine, voxels)

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
        source = carried(first.grid, first.placement)
        _check_axes(source, self.grid)
        if self.ddf is None:
            return Transform(placement, first.ddf, first.grid)
        axes = len(self.ddf)
        whole = self.ddf.new_empty(axes, *first.grid.array.shape)
        turn = torch.from_numpy(relative_affine(source, self.grid)[:axes, :axes]).to(whole.dtype)
        for planes, inner in first._slabs():
            outer = sample(self.ddf[None], points_in(self.grid, source, inner, planes.start)[None])[0]
            whole[:, planes] = inner + torch.einsum("ij,j...->i...", turn, outer)
        return Transform(placement, whole, first.grid)

    def on(self, grid: Image) -> Transform:
        """The same transform with its field at the voxels of another grid of fixed's space.

        Args:
            grid: of fixed's space.

        Returns:
            The transform; itself where it is on that grid.
        """
        if grid.array.shape == self.grid.array.shape and np.array_equal(grid.affine, self.grid.affine):
            return self
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
        return Transform(np.linalg.inv(self.placement), ddf, carried(self.grid, self.placement))

    def inverse_on(self, grid: Image) -> Transform:
        """φ⁻¹ with its field at the voxels of a grid of moving's space, solved for there.

        ``inverse().on(grid)`` is the same but for an interpolation.

        Args:
            grid: of moving's space.

        Returns:
            The inverse.

        Raises:
            ValueError: as ``inverse_after``.
        """
        return self.inverse_after(Transform(np.eye(4), None, grid))

    def inverse_after(self, first: Transform) -> Transform:
        """Composition φ⁻¹ ∘ φ_first, solved for at the voxels of ``first``.

        Args:
            first: from a third image to the moving one of this transform.

        Returns:
            Transform on the grid of ``first``, from the third image to the fixed one of this transform.

        Raises:
            ValueError: as ``after``, and for a field that is not finite. Where the map folds, a warning.
        """
        placement = np.linalg.inv(self.placement) @ first.placement
        source = carried(first.grid, placement)
        _check_axes(source, self.grid)
        if self.ddf is None:
            return Transform(placement, first.ddf, first.grid)
        axes, inner = len(self.ddf), first._field()
        found = invert(self.ddf[None], points=points_in(self.grid, source, inner))[0]
        turn = torch.from_numpy(relative_affine(source, self.grid)[:axes, :axes]).to(found.dtype)
        return Transform(placement, inner + torch.einsum("ij,j...->i...", turn, found), first.grid)

    def inverse_points(self, points_mm: np.ndarray) -> np.ndarray:
        """Carry points of the moving image into the fixed one, φ⁻¹(p), solved for at each.

        Args:
            points_mm: as of ``points``.

        Returns:
            (N, 3) float64 in mm, RAS.

        Raises:
            ValueError: as ``points``, and for a field that is not finite. Where the map folds, a warning.
        """
        voxels = mapped(np.linalg.inv(self.placement @ self.grid.affine), checked_points(points_mm))
        if self.ddf is not None and len(voxels):
            axes = len(self.ddf)
            voxels[:, :axes] += invert(self.ddf[None], points=torch.from_numpy(voxels[:, :axes].T))[0].T.numpy()
        return mapped(self.grid.affine, voxels)

    def displacement(self) -> Tensor:
        """Placement and displacement in one field, G⁻¹ P G (x + u(x)) − x.

        Returns:
            (axes, *F) in voxels of ``grid``; of 2D images the part in their plane.
        """
        axes = self.grid.array.dim()
        # P − I: a translation has no linear part, and adds nothing but a constant.
        shift = np.linalg.inv(self.grid.affine) @ (self.placement - np.eye(4)) @ self.grid.affine
        if not shift.any():
            return self._field().contiguous()
        moved = torch.empty_like(self._field())
        linear, constant = (torch.from_numpy(part).to(moved.dtype) for part in (shift[:axes, :axes], shift[:axes, 3]))
        for planes, field in self._slabs():
            moved[:, planes] = field + constant.reshape([-1] + [1] * axes)
            if linear.any():
                points = points_in(self.grid, self.grid, field, planes.start)
                moved[:, planes] += torch.einsum("ij,j...->i...", linear, points)
        return moved

    def _field(self) -> Tensor:
        """To be read; no displacement takes no memory."""
        if self.ddf is not None:
            return self.ddf
        return torch.zeros(()).expand(self.grid.array.dim(), *self.grid.array.shape)

    def _slabs(self) -> Iterator[tuple[slice, Tensor]]:
        """A few planes of the first axis at a time, and the field there: large fields are not held several times."""
        field, size = self._field(), self.grid.array.shape[0]
        for first in range(0, size, SLAB):
            planes = slice(first, min(first + SLAB, size))
            yield planes, field[:, planes]


def _check_axes(image: Image, grid: Image) -> None:
    if image.array.dim() != grid.array.dim():
        raise ValueError(
            f"image: expected {grid.array.dim()} axes, as the grid has, got the shape {tuple(image.array.shape)}."
        )
    if grid.array.dim() == 2:
        check_plane(image, grid, "image", "the image, placed,", "the fixed grid")
