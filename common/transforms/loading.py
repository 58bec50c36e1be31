# SPDX-License-Identifier: Apache-2.0
"""Two image files in memory: moving placed in the space of fixed, by the files' headers or centre on centre."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Transform

from ..io.images import Image, load_image, load_label, open_nifti, resample_like, same_grid

logger = logging.getLogger(__name__)

ALIGNMENTS = ("physical", "centres")


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

    Adds ``fixed_grid``, ``moving_grid``, ``label_grid``: the ``common.io.images.Image`` of each file, intensities as
    stored, the two of moving placed by ``align``; ``translation_mm``: (3,) float64, RAS, from where moving is placed to
    where its file says, added to the displacement when it is written; ``label_dtype``, the integer type in the label's
    file (None where that is not an integer type). For a view of both on the grid of fixed, resampled where the grids
    differ (the log says so), 0 outside moving: ``moving_image``, ``fixed_image`` (1, *S[, Z]) float32;
    ``moving_label`` int32.

    Args:
        align: "physical": where the files' headers say. "centres": moving is translated so that the geometric centres
            of the two fields of view coincide, as ``common.data.hippocampus`` lays volumes for training: where all
            axes agree (or swap and flip) and voxels are equally large, only to half a voxel, by the whole number of
            voxels that working grids of even size lead to, so that nothing is interpolated; else exactly. 2D images
            are translated within the plane of fixed.

    Raises:
        ValueError: for an unknown alignment.
    """

    def __init__(self, align: str = "physical") -> None:
        if align not in ALIGNMENTS:
            raise ValueError(
                f"align: expected one of {ALIGNMENTS}, got {align!r}; 'centres' is for volumes that share no space."
            )
        self.align = align

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of the dictionary with the images read.

        Raises:
            KeyError: when ``image`` or ``fixed`` is missing.
            FileNotFoundError: for a file that does not exist.
            ValueError: for a file that ``common.io`` refuses (several frames, NaN, a constant image, ...), a 2D and a
                3D image, images that do not overlap, or a label on another grid than moving.
        """
        absent = [key for key in ("image", "fixed") if data.get(key) is None]
        if absent:
            raise KeyError(f"LoadPaird: expected file paths under 'image' (moving) and 'fixed', {absent} is missing.")
        moving, fixed = load_image(data["image"]), load_image(data["fixed"])
        if moving.array.dim() != fixed.array.dim():
            raise ValueError(
                f"moving and fixed: expected two 2D images or two stacks, got {data['image']} of shape "
                f"{tuple(moving.array.shape)} and {data['fixed']} of shape {tuple(fixed.array.shape)}; choose a slice."
            )
        translation_mm = self._translation_mm(moving, fixed)
        result = {key: value for key, value in data.items() if key != "moving_label"}
        if data.get("moving_label") is not None:
            label, result["label_dtype"] = _moving_label(data["moving_label"], moving, data["image"])
            result["label_grid"] = _moved(label, translation_mm)
            result["moving_label"] = _onto(result["label_grid"], fixed, "nearest").array[None]
        moving = _moved(moving, translation_mm)
        view = _onto(moving, fixed, "bilinear").array[None]
        if not same_grid(moving, fixed):
            logger.info(
                "The grids differ, resampling moving %s %s onto that of fixed %s %s.",
                data["image"], tuple(moving.array.shape), data["fixed"], tuple(fixed.array.shape),
            )  # fmt: skip
            if view.min() == view.max():
                raise ValueError(
                    f"moving: {data['image']} and {data['fixed']} do not overlap in space; check their headers, or "
                    "align them (rigidly) first."
                )
        result |= {"moving_grid": moving, "fixed_grid": fixed, "translation_mm": translation_mm}
        return result | {"moving_image": view, "fixed_image": fixed.array[None]}

    def _translation_mm(self, moving: Image, fixed: Image) -> np.ndarray:
        if self.align == "physical":
            return np.zeros(3)
        translation_mm = _between_centres(moving, fixed)
        logger.info(
            "Centres aligned: moving is translated by %s mm (RAS); the field will be for the file where it lies.",
            np.round(-translation_mm, 2).tolist(),
        )
        return translation_mm


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


def _moving_label(path: str | Path, moving: Image, moving_path: str | Path) -> tuple[Image, np.dtype | None]:
    label = load_label(path)
    if not same_grid(label, moving):
        raise ValueError(
            f"moving_label: expected the grid of the moving image {moving_path}, shape {tuple(moving.array.shape)}, "
            f"got {path} of shape {tuple(label.array.shape)} or with another affine; resample it (nearest) first."
        )
    stored = open_nifti(Path(path)).get_data_dtype()
    return label, stored if np.issubdtype(stored, np.integer) else None


def _onto(image: Image, fixed: Image, mode: str) -> Image:
    return image if same_grid(image, fixed) else resample_like(image, fixed, mode)
