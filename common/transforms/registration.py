# SPDX-License-Identifier: Apache-2.0
"""From two images on their own grids to a network's input, and from its output back to the full grid of fixed.

With d = ``len(spatial_size)``, images have d axes, or d + 1 where the last one stacks slices that are registered one by
one, with a displacement of zero across them. S are the d axes of the fixed image, Z the number of slices.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor

from ..io.images import Image, resample_like
from ..spatial.jacobian import jacobian_determinant
from ..spatial.warp import identity_grid, sample
from .crop import auto_centre, crop_window
from .intensity import clip_percentiles, min_max
from .paste import from_stack, overlap, paste_field, to_stack

logger = logging.getLogger(__name__)


class CropPaird(Transform):
    """Cut moving and fixed to the network's size and scale each crop of each slice to [0, 1], as in training.

    The window lies on the grid of fixed, and moving is resampled onto it from its own grid: what it holds beside the
    field of view of fixed is seen too. What an image lacks is filled with its smallest value in the window (each
    slice's own). The images as stored, which are warped in the end, stay as they are.

    Adds ``image``: cat(moving, fixed) on channels, (2, *spatial_size[, Z]), a MetaTensor that carries the fixed grid's
    ``spatial_shape`` and ``original_affine`` (MONAI Label restores results by them); ``crop_start``: (d,) int64.

    Args:
        spatial_size: window in voxels of fixed, d numbers.
        crop_center: d voxel coordinates in the fixed image; "auto": where moving and fixed differ most, over the
            whole stack (``common.transforms.crop.auto_centre``); "middle": the geometric centre of fixed. Of larger
            images the network sees the window alone, and the log says which part that is.
        percentiles: lower and upper, in per cent, to which each file's intensities are clipped before anything else
            (``common.transforms.intensity.clip_percentiles``); None leaves them.

    Raises:
        ValueError: for sizes that are not positive whole numbers, or percentiles that are not two.
    """

    def __init__(
        self,
        spatial_size: Sequence[int],
        crop_center: str | Sequence[float] = "auto",
        percentiles: Sequence[float] | None = None,
    ) -> None:
        if not spatial_size or any(int(n) != n or n < 1 for n in spatial_size):
            raise ValueError(f"spatial_size: expected positive whole numbers, one an axis, got {spatial_size!r}.")
        if percentiles is not None and (isinstance(percentiles, str) or len(percentiles) != 2):
            raise ValueError(f"percentiles: expected two numbers like [1, 99], or None, got {percentiles!r}.")
        self.size = [int(n) for n in spatial_size]
        self.crop_center = crop_center
        self.percentiles = percentiles

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of the dictionary with the network's input.

        Raises:
            ValueError: for images with another number of axes than the network's, percentiles out of order, or a
                centre that is not d numbers inside the image.
        """
        dims, moving, fixed = len(self.size), data["moving_grid"], data["fixed_grid"]
        shape = tuple(fixed.array.shape)
        if len(shape) not in (dims, dims + 1):
            raise ValueError(
                f"moving and fixed: this configuration is for {dims}D volumes (spatial_size {self.size}), got "
                f"{len(shape)}D images, {data['image']} of shape {tuple(moving.array.shape)}; pass whole volumes, or "
                f"run a bundle for {len(shape)}D."
            )
        start, _, _ = crop_window(shape[:dims], self._centre(data, shape[:dims]).tolist(), self.size)
        self._log_cut(moving, fixed, start)
        window = _window(fixed, start, self.size)
        crops = torch.cat([self._seen(image, window) for image in (moving, fixed)], dim=1)
        flat = [number for number, crop in enumerate(crops) if any(channel.max() == 0 for channel in crop)]
        if flat:
            logger.warning("moving or fixed is constant in the crop of slice(s) %s: their fields mean nothing.", flat)
        meta = {
            "spatial_shape": np.array(shape),
            "original_affine": fixed.affine,
            "filename_or_obj": str(data["image"]),
        }
        stacked = from_stack(crops, sliced=len(shape) > dims)
        image = MetaTensor(stacked, affine=torch.from_numpy(fixed.affine), meta=meta)
        return {**data, "image": image, "crop_start": torch.tensor(start)}

    def _seen(self, image: Image, window: Image) -> Tensor:
        # (1, 1, *size), with slices (Z, 1, *size)
        dims, array = len(self.size), image.array
        array = array if self.percentiles is None else clip_percentiles(array, *self.percentiles)
        values, share = (
            to_stack(resample_like(image._replace(array=part), window, "bilinear").array[None], dims)
            for part in (array, torch.ones_like(array))
        )
        # share: how much of a voxel comes from the image; between 0 and 1 only where grids differ, at the border
        inside = torch.where(share > 0.999, values, torch.inf)
        least = inside.amin(dim=tuple(range(1, inside.dim())), keepdim=True)
        least = torch.where(least.isfinite(), least, 0.0)  # a slice that moving lacks altogether
        return min_max(values + (1 - share) * least, batched=True)

    def _centre(self, data: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
        given = self.crop_center
        if isinstance(given, str) and given == "auto":
            moving, fixed = (to_stack(data[key], len(shape)) for key in ("moving_image", "fixed_image"))
            centre = auto_centre(moving, fixed)
            logger.info("Crop centre found automatically: %s voxels.", [round(float(c), 1) for c in centre])
            return centre
        if isinstance(given, str) and given == "middle":
            return (torch.tensor(shape) - 1) / 2
        try:
            centre = torch.tensor([float(c) for c in given], dtype=torch.float32)
        except (TypeError, ValueError):
            centre = torch.full((0,), torch.nan)
        if len(centre) != len(shape) or not all(0 <= float(c) <= n - 1 for c, n in zip(centre, shape, strict=True)):
            raise ValueError(
                f"crop_center: expected 'auto', 'middle' or {len(shape)} voxel coordinates inside the image of "
                f'{shape}, got {given!r}; for example --crop_center "{[n // 2 for n in shape]}".'
            )
        return centre

    def _log_cut(self, moving: Image, fixed: Image, start: Sequence[int]) -> None:
        dims = len(self.size)
        relative = np.abs(np.linalg.inv(fixed.affine) @ moving.affine)[:3, :3]
        extent = 1 + relative @ (np.array([*moving.array.shape, 1][:3]) - 1)  # of moving, in voxels of fixed
        extents = {"moving": extent[:dims], "fixed": np.array(fixed.array.shape[:dims])}
        larger = [name for name, voxels in extents.items() if np.any(voxels > np.array(self.size) + 0.5)]
        if not larger:
            return
        first, last = overlap(start, self.size, fixed.array.shape[:dims])
        # A window that was asked for or searched is meant to cut; one in the middle is meant to hold the volumes.
        logger.log(
            logging.WARNING if self.crop_center == "middle" else logging.INFO,
            "Larger than spatial_size %s: %s. The network sees what lies around the centre, voxels %s to %s of fixed; "
            "outside, the displacement falls off to 0. Raise spatial_size to register all of it.",
            self.size, " and ".join(larger), first, last,
        )  # fmt: skip


class RegistrationResultd(Transform):
    """Turn the crop's displacement (``pred``) into results on the full grid of fixed.

    ``pred`` (d, *spatial_size[, Z]) becomes the warped moving image (1, *S[, Z]), intensities as stored, sampled once
    from its own grid, 0 where that has no data. Adds ``ddf`` (d, *S[, Z]) in voxels, without ``translation_mm``;
    ``jacobian_determinant`` (*S[, Z]), of the d-dimensional map: 2D in-plane for slices; and ``warped_label``, by
    nearest neighbour, where there is a label.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of the dictionary with the results.

        Raises:
            FloatingPointError: when the network's output is not finite.
        """
        start, moving, fixed, pred = data["crop_start"].tolist(), data["moving_grid"], data["fixed_grid"], data["pred"]
        dims = len(start)
        crop = to_stack(pred.as_subclass(Tensor).detach().cpu().float(), dims)
        if not torch.isfinite(crop).all():
            raise FloatingPointError("pred: expected finite displacements, got NaN or infinity; check the weights.")
        shape = fixed.array.shape[:dims]
        sliced = fixed.array.dim() > dims
        pasted = paste_field(crop, start, shape)
        determinant = jacobian_determinant(pasted)
        _log_outcome(pasted, determinant, overlap(start, crop.shape[2:], shape))
        ddf = from_stack(pasted, sliced)
        points = _moving_points(ddf, moving, fixed)
        warped = sample(moving.array[None, None], points[None], padding="zeros")[0]
        result = {
            **data,
            "pred": MetaTensor(warped, affine=torch.from_numpy(fixed.affine)),
            "ddf": ddf,
            "jacobian_determinant": from_stack(determinant[:, None], sliced)[0],
        }
        if data.get("label_grid") is not None:
            result["warped_label"] = _nearest(data["label_grid"].array, points)[None]
        return result


def _window(fixed: Image, start: Sequence[int], size: Sequence[int]) -> Image:
    """The grid of the crop, in all slices; its voxels hold nothing."""
    affine = fixed.affine.copy()
    affine[:3, 3] += affine[:3, : len(start)] @ np.array(start)
    return fixed._replace(array=torch.empty(*size, *fixed.array.shape[len(size) :]), affine=affine)


def _moving_points(ddf: Tensor, moving: Image, fixed: Image) -> Tensor:
    """Where x + ddf(x) lies in moving, in voxels of its own grid, (axes, *S[, Z])."""
    points = identity_grid(list(fixed.array.shape), ddf.device, ddf.dtype)
    points[: len(ddf)] += ddf
    axes = len(points)
    # 2D images lie in one plane (resample_like has seen to it): its two axes say all
    relative = torch.from_numpy(np.linalg.inv(moving.affine) @ fixed.affine).to(ddf.dtype)
    moved = torch.einsum("ij,j...->i...", relative[:axes, :axes], points)
    return moved + relative[:axes, 3].reshape([-1] + [1] * axes)


def _nearest(label: Tensor, points: Tensor) -> Tensor:
    index = points.round().long()
    limit = torch.tensor(label.shape).reshape([-1] + [1] * label.dim())
    inside = ((index >= 0) & (index < limit)).all(0)
    return label[tuple(index.clamp_min(0).minimum(limit - 1))] * inside


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
