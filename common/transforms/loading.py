# SPDX-License-Identifier: Apache-2.0
"""Two image files in memory: moving placed in the space of fixed, by the files' headers or centre on centre."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Transform

from ..io.fields import check_grid
from ..io.images import Image, check_plane, load_image, load_label, same_grid
from ..io.nifti import sizes_text
from ..io.orientation import Axes, grid_of_spacing, reoriented, spacing_is_unknown, stored_axes, training_spacing
from .resampling import excess_voxels, grid_only, share_within

logger = logging.getLogger(__name__)

ALIGNMENTS = ("physical", "centres")
# Two fields of view of which neither covers this share of the other are said.
SMALL_OVERLAP = 0.5


def input_files(
    moving: str | Path | None,
    fixed: str | Path | None,
    moving_label: str | Path | None,
    dataset_dir: str | Path,
    example: Callable[[str | Path], tuple[Path, Path]],
) -> dict[str, str]:
    """The item to register: the user's files, or an example where she names none.

    Args:
        moving, fixed: image files; both or neither.
        moving_label: label map of the moving image, optional.
        dataset_dir: what ``example`` is given.
        example: returns moving and fixed of a data set; called only when it is needed.

    Returns:
        Paths under ``image`` (moving, the key under which MONAI Label delivers it), ``fixed``, ``moving_label``.

    Raises:
        ValueError: for one image without the other, or a label without the images.
    """
    if moving is None and fixed is None and moving_label is None:
        logger.warning("No moving and fixed image given: registering an example of dataset_dir=%s.", dataset_dir)
        moving, fixed = example(dataset_dir)
    if moving is None or fixed is None:
        raise ValueError(
            f"moving and fixed: expected two image files, got moving={moving}, fixed={fixed}, "
            f"moving_label={moving_label}; pass --moving FILE --fixed FILE, or none of them for an example."
        )
    files = {"image": moving, "fixed": fixed, "moving_label": moving_label}
    return {key: str(path) for key, path in files.items() if path is not None}


class LoadPaird(Transform):
    """Read the moving image (path under ``image``), the fixed one (``fixed``) and optionally ``moving_label``.

    Adds ``fixed_grid``, ``moving_grid``, ``label_grid``: the ``common.io.images.Image`` of each file, intensities and
    axes as stored, the two of moving placed by ``align``; ``translation_mm``: (3,) float64, RAS, from where moving is
    placed to where its file says, added to the displacement when it is written; ``label_dtype``, the integer type in
    the label's file (None where that is not an integer type). The network works on ``working_grid``: the grid of fixed
    with axes and spacing as in training, without values; ``fixed_axes``: the ``common.io.orientation.Axes`` that lead
    from the stored axes of fixed to it.

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
    ) -> None:
        if align not in ALIGNMENTS:
            raise ValueError(
                f"align: expected one of {ALIGNMENTS}, got {align!r}; 'centres' is for volumes that share no space."
            )
        for name, given, count in (("spacing", spacing, spatial_dims), ("spacing_range", spacing_range, 2)):
            if given is not None and (isinstance(given, str) or len(given) != count or not min(given) > 0):
                raise ValueError(f"{name}: expected {count} numbers above 0 in mm, or None, got {given!r}.")
        self.spatial_dims, self.align, self.orientation = int(spatial_dims), align, orientation
        self.spacing, self.spacing_range = spacing, spacing_range

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of the dictionary with the images read.

        Raises:
            KeyError: when ``image`` or ``fixed`` is missing.
            FileNotFoundError: for a file that does not exist.
            ValueError: for a file that ``common.io`` refuses (several frames, NaN, a constant image, ...), a 2D and a
                3D image, images that do not overlap or have an axis of one voxel, a stack whose slices cannot be told,
                or a label that does not cover moving.
        """
        absent = [key for key in ("image", "fixed") if data.get(key) is None]
        if absent:
            raise KeyError(f"LoadPaird: expected file paths under 'image' (moving) and 'fixed', {absent} is missing.")
        logger.info("Reading moving %s and fixed %s.", data["image"], data["fixed"])
        moving, fixed = load_image(data["image"], "moving"), load_image(data["fixed"], "fixed")
        check_grid(fixed, "fixed")
        if moving.array.dim() != fixed.array.dim():
            raise ValueError(
                f"moving and fixed: expected two 2D images or two stacks, got {data['image']} of shape "
                f"{tuple(moving.array.shape)} and {data['fixed']} of shape {tuple(fixed.array.shape)}; choose a slice."
            )
        working, axes = self._working("fixed", fixed)
        translation_mm = np.zeros(3)
        if self.align == "centres":
            translation_mm = _between_centres(self._working("moving", moving)[0], working)
            logger.info(
                "Centres aligned: moving is translated by %s mm (RAS); the field will be for the file where it lies.",
                np.round(-translation_mm, 2).tolist(),
            )
        result = {key: value for key, value in data.items() if key != "moving_label"}
        if data.get("moving_label") is not None:
            label = _moving_label(data["moving_label"], moving, data["image"])
            result |= {"label_grid": _moved(label, translation_mm), "label_dtype": label.stored}
        moving = _moved(moving, translation_mm)
        _check_overlap(moving, fixed, str(data["image"]), str(data["fixed"]))
        result |= {"moving_grid": moving, "fixed_grid": fixed, "translation_mm": translation_mm}
        return result | {"working_grid": working, "fixed_axes": axes}

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
        spacing = training_spacing(turned, self.spatial_dims, self.spacing, self.spacing_range)
        if spacing != list(turned.spacing):
            logger.info("%s has voxels of %s mm: registered at %s mm, as in training.", name,
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
        # Laid on an even grid of g voxels, the first of n voxels lies at g / 2 - ceil(n / 2): see crop.centre_on_grid.
        extent = axes @ sizes[0]
        laid = np.ceil(sizes[1] / 2) - np.ceil(extent / 2)
        shift += (sizes[1] - extent) / 2 - laid
    if fixed.array.dim() == 2:
        shift[2] = 0
    return fixed.affine[:3, :3] @ shift


def _moved(image: Image, translation_mm: np.ndarray) -> Image:
    affine = image.affine.copy()
    affine[:3, 3] -= translation_mm
    return image._replace(affine=affine)


def _check_overlap(moving: Image, fixed: Image, moving_path: str, fixed_path: str) -> None:
    if fixed.array.dim() == 2:
        check_plane(moving, fixed, "moving and fixed", moving_path, fixed_path)
    share = max(share_within(moving, fixed), share_within(fixed, moving))
    if share == 0:
        raise ValueError(
            f"moving: {moving_path} and {fixed_path} do not overlap in space; check their headers, or align them "
            "(rigidly) first."
        )
    if share < SMALL_OVERLAP:
        logger.warning(
            "moving and fixed: their fields of view overlap by %.0f %% only (%s and %s). What lies outside moving "
            "cannot be registered: check the headers, or align the images (rigidly) first.",
            100 * share, moving_path, fixed_path,
        )  # fmt: skip


def _moving_label(path: str | Path, moving: Image, moving_path: str | Path) -> Image:
    label = load_label(path, "moving_label")
    shapes = f"{path} of shape {tuple(label.array.shape)} and {moving_path} of shape {tuple(moving.array.shape)}"
    if label.array.dim() != moving.array.dim():
        raise ValueError(f"moving_label: expected as many axes as moving, got {shapes}; pass moving's own label map.")
    if not same_grid(label, moving):
        beyond = excess_voxels(moving, label)
        across = 0.0 if moving.array.dim() == 3 else abs(np.linalg.inv(label.affine) @ moving.affine)[2, 3]
        if beyond > 1 or across > 0.5:
            raise ValueError(
                f"moving_label: expected a label map that covers the moving image, got {shapes}, of which moving "
                f"reaches {beyond:.3g} voxels beyond the label; pass the label of this image."
            )
        logger.info("moving_label lies on another grid than moving, and is read where the two headers place it.")
    return label
