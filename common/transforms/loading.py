# SPDX-License-Identifier: Apache-2.0
"""A pair in memory: moving placed in the space of fixed, by the headers, centre on centre or by a given affine."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from monai.transforms import MapTransform

from ..io.affine import sizes_text
from ..io.fields import check_grid
from ..io.images import Image, check_plane
from ..io.orientation import Axes, reoriented, spacing_is_unknown, stored_axes, training_spacing
from ..io.placement import checked_placement
from ..io.resampling import grid_only, share_within
from ..io.spacing import grid_of_spacing
from ..io.transforms import Transform
from .served import answers_client
from .sources import Source, entry, read_label, read_pair

logger = logging.getLogger(__name__)

ALIGNMENTS = ("physical", "centres")
# Two fields of view of which neither covers this share of the other are said.
SMALL_OVERLAP = 0.5


class Pair(NamedTuple):
    """One pair on its way from files to results. Plain entries of an item stay few: Deploy hands tensors on.

    moving, fixed: as their files have them, intensities and axes as stored; moving is not placed.
    label: label map of moving, None where there is none.
    working: the grid that the network works on, without values: the grid of fixed with axes and spacing as in training.
    axes: lead from the stored axes of fixed to it.
    name: what messages call moving.
    start: d voxel coordinates of the network's window on the working grid, negative where it is padded; set by
        ``CropPaird``.
    """

    moving: Image
    fixed: Image
    label: Image | None
    working: Image
    axes: Axes
    name: str
    start: tuple[int, ...] = ()


class LoadPaird(MapTransform):
    """Read a pair: paths, or one tensor in memory (``common.transforms.sources.read_pair`` says in which forms).

    Adds ``pair`` (``Pair``) and ``transform``, an ``io.transforms.Transform`` without displacement: its placement leads
    from fixed to where moving's file says, so that a result is for the files as they lie. The item may bring its own
    ``placement``, (4, 4) mm, RAS, for example of a rigid registration; ``align`` is of no effect then. An optional
    ``moving_label`` is a path.

    Args:
        spatial_dims: d, of the network. For 2 the slices of a stack are found (``common.io.orientation.slice_axis``)
            and lie last in the working grid.
        align: "physical": where the files' headers say. "centres": moving is translated so that the geometric centres
            of the two fields of view coincide, as ``common.data.hippocampus`` lays volumes for training: where all
            axes agree and voxels are equally large in the working grids, only to half a voxel, by the whole number of
            voxels that working grids of even size lead to, so that nothing is interpolated; else exactly. 2D images
            are translated within the plane of fixed.
        orientation: of the training's images, such as "RAS" (``common.io.orientation.reorient``).
        spacing: of the training's images, mm along each of the network's axes; None: that of the file.
        spacing_range: lowest and highest spacing in mm that is left as it is, see
            ``common.io.orientation.training_spacing``.
        resize: voxels to which the whole field of view is brought, one number an axis of the network, its aspect ratio
            lost, in place of a spacing; None for none.

    Raises:
        ValueError: for an unknown alignment, or spacings that are not one an axis or not above 0.
    """

    def __init__(
        self,
        spatial_dims: int,
        align: str = "physical",
        orientation: str = "RAS",
        spacing: Sequence[float] | None = None,
        spacing_range: Sequence[float] | None = None,
        resize: Sequence[int] | None = None,
    ) -> None:
        super().__init__("image", allow_missing_keys=True)
        if align not in ALIGNMENTS:
            raise ValueError(
                f"align: expected one of {ALIGNMENTS}, got {align!r}; 'centres' is for volumes that share no space."
            )
        for name, given, count in (("spacing", spacing, spatial_dims), ("spacing_range", spacing_range, 2)):
            if given is not None and (isinstance(given, str) or len(given) != count or not min(given) > 0):
                raise ValueError(f"{name}: expected {count} numbers above 0 in mm, or None, got {given!r}.")
        self.spatial_dims, self.align, self.orientation = int(spatial_dims), align, orientation
        self.spacing, self.spacing_range, self.resize = spacing, spacing_range, resize

    @answers_client
    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the dictionary with the pair read.

        Raises:
            FileNotFoundError: for a file that does not exist.
            ValueError: for another form than those, a file that ``common.io`` refuses (several frames, NaN, a constant
                image, ...), a 2D and a 3D image, images that do not overlap or have an axis of one voxel, a stack whose
                slices cannot be told, or a label that does not cover moving.
        """
        item = {str(key): value for key, value in data.items()}
        source = read_pair(item)
        moving, fixed = source.moving, source.fixed
        check_grid(fixed, "fixed")
        if moving.array.dim() != fixed.array.dim():
            raise ValueError(
                f"moving and fixed: expected two 2D images or two stacks, got {source.moving_name} of shape "
                f"{tuple(moving.array.shape)} and {source.fixed_name} of shape {tuple(fixed.array.shape)}; choose a "
                "slice."
            )
        working, axes = self._working("fixed", fixed)
        path = entry(item, "moving_label")
        label = None if path is None else read_label(path, source)
        transform = Transform(self._placement(item.get("placement"), moving, working), None, fixed)
        _check_overlap(transform.placed(moving), source)
        pair = Pair(moving, fixed, label, working, axes, source.moving_name)
        return {key: data[key] for key in data if key != "placement"} | {"pair": pair, "transform": transform}

    def _placement(self, given: Any, moving: Image, working: Image) -> np.ndarray:
        """From fixed to moving, (4, 4), mm, RAS."""
        if given is not None:
            return checked_placement(given)
        placement = np.eye(4)
        if self.align == "centres":
            placement[:3, 3] = _between_centres(self._working("moving", moving)[0], working)
            logger.info(
                "Centres aligned: moving is translated by %s mm (RAS); the field will be for the file where it lies.",
                np.round(-placement[:3, 3], 2).tolist(),
            )
        return placement

    def _working(self, name: str, image: Image) -> tuple[Image, Axes]:
        """The grid that the network works on, and the way to it from the stored axes."""
        try:
            axes = stored_axes(image, self.orientation, self.spatial_dims)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        turned = reoriented(grid_only(image), axes)
        seen = turned.array.shape[: self.spatial_dims]
        if min(seen) < 2:
            raise ValueError(
                f"{name}: expected at least 2 voxels along every axis that is registered, got {tuple(seen)} of the "
                f"stored shape {tuple(image.array.shape)}. Is it a single slice, stored across? Store it as (X, Y, 1)."
            )
        if axes.order != tuple(range(len(axes.order))) or any(axes.flipped):
            slices = self.spatial_dims == 2 and len(axes.order) == 3
            logger.info(
                "%s is brought from its stored axes to %s for the network%s; results are written as %s is stored.",
                name, self.orientation, f", its slices lie along axis {axes.order[2] + 1} of 3" if slices else "", name,
            )  # fmt: skip
        spacing = training_spacing(turned, self.spatial_dims, self.spacing, self.spacing_range, self.resize)
        if spacing != list(turned.spacing):
            logger.info("%s has voxels of %s mm: registered at %s mm.", name,
                        sizes_text(turned.spacing), sizes_text(spacing))  # fmt: skip
            turned = grid_only(grid_of_spacing(turned, spacing))
        elif self.spacing is not None and self.spatial_dims == 2 and spacing_is_unknown(turned):
            logger.info("%s has voxels of 1 mm all round: its spacing is taken as unknown.", name)
        return turned, axes


def _between_centres(moving: Image, fixed: Image) -> np.ndarray:
    """From the centre of fixed to that of moving, (3,) in mm, RAS; to half a voxel where the voxels agree."""
    relative = np.linalg.inv(fixed.affine) @ moving.affine
    sizes = [np.array([*image.array.shape, 1][:3]) for image in (moving, fixed)]
    shift = relative[:3] @ np.append((sizes[0] - 1) / 2, 1) - (sizes[1] - 1) / 2  # voxels of fixed
    axes = np.abs(relative[:3, :3].round())
    if np.abs(np.abs(relative[:3, :3]) - axes).max() < 1e-3 and np.array_equal(axes @ axes.T, np.eye(3)):
        # Centred on an even grid of g voxels, the first of n voxels lies at g / 2 - ceil(n / 2): crop.centre_on_grid.
        extent = axes @ sizes[0]
        placed = np.ceil(sizes[1] / 2) - np.ceil(extent / 2)
        shift += (sizes[1] - extent) / 2 - placed
    if fixed.array.dim() == 2:
        shift[2] = 0
    return fixed.affine[:3, :3] @ shift


def _check_overlap(moving: Image, source: Source) -> None:
    fixed, names = source.fixed, (source.moving_name, source.fixed_name)
    if fixed.array.dim() == 2:
        check_plane(moving, fixed, "moving and fixed", *names)
    share = max(share_within(moving, fixed), share_within(fixed, moving))
    if share == 0:
        raise ValueError(
            f"moving: {names[0]} and {names[1]} do not overlap in space; check their headers, or align them (rigidly) "
            "first."
        )
    if share < SMALL_OVERLAP:
        logger.warning(
            "moving and fixed: their fields of view overlap by %.0f %% only (%s and %s). What lies outside moving "
            "cannot be registered: check the headers, or align the images (rigidly) first.",
            100 * share, *names,
        )  # fmt: skip
