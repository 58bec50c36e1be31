# SPDX-License-Identifier: Apache-2.0
"""From two image files to a network's input, and from its output back to the full grid.

With d = ``len(spatial_size)``, images have d axes, or d + 1 where the last one stacks slices that are registered one by
one, with a displacement of zero across them. S are the d axes of the fixed image, Z the number of slices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor

from ..io.images import Image, load_image, load_label, open_nifti, resample_like, same_grid
from ..spatial.jacobian import jacobian_determinant
from ..spatial.warp import warp
from .crop import CropToCentred, auto_centre
from .intensity import min_max
from .paste import from_stack, overlap, paste_field, to_stack

logger = logging.getLogger(__name__)


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

    Where the grids differ, moving and its label are resampled onto the grid of fixed, and the log says so. Adds
    ``moving_image``, ``fixed_image`` (1, *S[, Z]) float32, intensities as stored; ``moving_label`` int32, likewise, and
    ``label_dtype``, the integer type in its file (None where that is not an integer type); ``fixed_grid``, the fixed
    ``common.io.images.Image``, for writing results.
    """

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
        result = {key: value for key, value in data.items() if key != "moving_label"}
        if data.get("moving_label") is not None:
            label, result["label_dtype"] = _moving_label(data["moving_label"], moving, data["image"])
            result["moving_label"] = _onto(label, fixed, "nearest").array[None]
        if not same_grid(moving, fixed):
            logger.info(
                "The grids differ, resampling moving %s %s onto that of fixed %s %s.",
                data["image"], tuple(moving.array.shape), data["fixed"], tuple(fixed.array.shape),
            )  # fmt: skip
            moving = _onto(moving, fixed, "bilinear")
            if moving.array.min() == moving.array.max():
                raise ValueError(
                    f"moving: {data['image']} and {data['fixed']} do not overlap in space; check their headers, or "
                    "align them (rigidly) first."
                )
        return result | {"moving_image": moving.array[None], "fixed_image": fixed.array[None], "fixed_grid": fixed}


class CropPaird(Transform):
    """Crop moving and fixed to the network's size and scale each crop of each slice to [0, 1], as in training.

    Adds ``image``: cat(moving, fixed) on channels, (2, *spatial_size[, Z]), a MetaTensor that carries the fixed grid's
    ``spatial_shape`` and ``original_affine`` (MONAI Label restores results by them); ``crop_start``: (d,) int64.

    Args:
        spatial_size: crop in voxels, d numbers. Smaller images are padded.
        crop_center: d voxel coordinates in the fixed image, or "auto": where moving and fixed differ most, over the
            whole stack (``common.transforms.crop.auto_centre``).
    """

    def __init__(self, spatial_size: Sequence[int], crop_center: str | Sequence[float] = "auto") -> None:
        self.crop = CropToCentred(("moving_image", "fixed_image"), spatial_size)
        self.crop_center = crop_center

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of the dictionary with the network's input.

        Raises:
            ValueError: for images with another number of axes than the network's, or a centre that is not d numbers
                inside the image.
        """
        dims = len(self.crop.size)
        moving, fixed = (to_stack(data[key], dims) for key in ("moving_image", "fixed_image"))
        centre = self._centre(moving, fixed)
        crops, start = [], torch.zeros(dims, dtype=torch.int64)
        for pair in zip(moving, fixed, strict=True):
            item = self.crop({"moving_image": pair[0], "fixed_image": pair[1], "centre": centre})
            crops.append(torch.cat([min_max(item["moving_image"]), min_max(item["fixed_image"])]))
            start = item["crop_start"]
        flat = [number for number, crop in enumerate(crops) if any(channel.max() == 0 for channel in crop)]
        if flat:
            logger.warning("moving or fixed is constant in the crop of slice(s) %s: their fields mean nothing.", flat)
        fixed_grid: Image = data["fixed_grid"]
        meta = {
            "spatial_shape": np.array(fixed_grid.array.shape),
            "original_affine": fixed_grid.affine,
            "filename_or_obj": str(data["image"]),
        }
        stacked = from_stack(torch.stack(crops), sliced=data["fixed_image"].dim() == dims + 2)
        image = MetaTensor(stacked, affine=torch.from_numpy(fixed_grid.affine), meta=meta)
        return {**data, "image": image, "crop_start": start}

    def _centre(self, moving: Tensor, fixed: Tensor) -> Tensor:
        if isinstance(self.crop_center, str) and self.crop_center == "auto":
            centre = auto_centre(moving, fixed)
            logger.info("Crop centre found automatically: %s voxels.", [round(float(c), 1) for c in centre])
            return centre
        shape = tuple(fixed.shape[2:])
        given = self.crop_center
        try:
            centre = torch.tensor([float(c) for c in given], dtype=torch.float32)
        except (TypeError, ValueError):
            centre = torch.full((0,), torch.nan)
        if len(centre) != len(shape) or not all(0 <= float(c) <= n - 1 for c, n in zip(centre, shape, strict=True)):
            raise ValueError(
                f"crop_center: expected 'auto' or {len(shape)} voxel coordinates inside the image of {shape}, got "
                f'{given!r}; for example --crop_center "{[n // 2 for n in shape]}".'
            )
        return centre


class RegistrationResultd(Transform):
    """Turn the crop's displacement (``pred``) into results on the full grid of fixed.

    ``pred`` (d, *spatial_size[, Z]) becomes the warped moving image (1, *S[, Z]), intensities as stored, 0 where it is
    sampled from outside moving. Adds ``ddf`` (d, *S[, Z]) in voxels; ``jacobian_determinant`` (*S[, Z]), of the
    d-dimensional map: 2D in-plane for slices; and ``warped_label``, by nearest neighbour, where there is a label.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of the dictionary with the results.

        Raises:
            FloatingPointError: when the network's output is not finite.
        """
        start, moving, pred = data["crop_start"].tolist(), data["moving_image"], data["pred"]
        dims = len(start)
        crop = to_stack(pred.as_subclass(Tensor).detach().cpu().float(), dims)
        if not torch.isfinite(crop).all():
            raise FloatingPointError("pred: expected finite displacements, got NaN or infinity; check the weights.")
        shape = moving.shape[1 : dims + 1]
        sliced = moving.dim() == dims + 2
        ddf = paste_field(crop, start, shape)
        determinant = jacobian_determinant(ddf)
        warped = from_stack(warp(to_stack(moving, dims), ddf), sliced)
        _log_outcome(ddf, determinant, overlap(start, crop.shape[2:], shape))
        result = {
            **data,
            "pred": MetaTensor(warped, affine=torch.from_numpy(data["fixed_grid"].affine)),
            "ddf": from_stack(ddf, sliced),
            "jacobian_determinant": from_stack(determinant[:, None], sliced)[0],
        }
        if data.get("moving_label") is not None:
            # float64 holds every int32 label
            label = to_stack(data["moving_label"], dims)
            result["warped_label"] = from_stack(warp(label, ddf.double(), mode="nearest"), sliced)
        return result


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


def _log_outcome(ddf: Tensor, determinant: Tensor, crop: tuple[list[int], list[int]]) -> None:
    # The share is of the crop, as in evaluation: the still surroundings would dilute it.
    folded = determinant <= 0
    inside = folded[(slice(None), *(slice(a, b + 1) for a, b in zip(*crop, strict=True)))]
    dims = ddf.shape[1]
    logger.info(
        "Largest displacement %.2f voxels; foldings (%s |J| <= 0): %.3g %% of the crop, %d voxels in all.",
        float(ddf.norm(dim=1).max()), "2D in-plane" if dims == 2 else f"{dims}D",
        100 * float(inside.float().mean()), int(folded.sum()),
    )  # fmt: skip
