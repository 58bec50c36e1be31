# SPDX-License-Identifier: Apache-2.0
"""From two images on their own grids to a network's input, and from its output back to the grid of fixed.

With d = ``len(spatial_size)``, images have d axes, or d + 1 of which one stacks slices that are registered one by one,
with a displacement of zero across them. The network sees a window of the working grid (``LoadPaird``): S are its d
axes, then come the Z slices. F are the axes of the fixed file as they are stored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from ..io.images import Image
from ..io.orientation import Axes, reoriented
from ..io.resampling import grid_only, relative_affine, sampled_onto
from ..io.transforms import Transform
from .crop import auto_centre, crop_window
from .intensity import clipped, min_max
from .loading import Pair
from .paste import (
    determinant_of,
    from_stack,
    map_on_fixed,
    overlap,
    paste_field,
    resampled_field,
    stored_field,
    to_stack,
    window_on,
)
from .served import answers_client

logger = logging.getLogger(__name__)

# Foldings above this share of the window, in per cent, are a warning.
MANY_FOLDINGS = 0.5


class CropPaird(MapTransform):
    """Cut moving and fixed to the network's size and scale each crop of each slice to [0, 1], as in training.

    The window lies on the working grid, and both images are read onto it from their files' own grids: copied where
    voxels coincide, else interpolated once. What moving holds beside the field of view of fixed is seen too. What an
    image lacks is filled with its smallest value in the window (each slice's own). The images as stored, which are
    warped in the end, stay as they are.

    Adds ``image``: cat(moving, fixed) on channels, (2, *spatial_size[, Z]), a MetaTensor that carries the fixed grid's
    ``spatial_shape`` (three entries) and ``original_affine``: MONAI Label restores results by them. It is the item's
    only tensor, since MONAI Deploy gives every tensor to the network. Sets ``start`` of ``pair``.

    Args:
        spatial_size: window in voxels of the working grid, d numbers; None: the whole of it, all axes.
        crop_center: d voxel coordinates in the fixed image as it is stored (of a stack, in its plane); "auto": where
            moving and fixed differ most, over the whole stack (``common.transforms.crop.auto_centre``); "middle": the
            geometric centre of fixed. Of larger images the network sees the window alone, and the log says which part
            that is.
        percentiles: lower and upper, in per cent, to which each file's intensities are clipped before anything else
            (``common.transforms.intensity.clipped``); None leaves them.
        intensities: what is made of each file's values then, as ``common.transforms.lungs.LungIntensities``; None
            leaves them.

    Raises:
        ValueError: for sizes that are not positive whole numbers, or percentiles that are not two in order.
    """

    def __init__(
        self,
        spatial_size: Sequence[int] | None,
        crop_center: str | Sequence[float] = "auto",
        percentiles: Sequence[float] | None = None,
        intensities: Callable[[Image], Image] | None = None,
    ) -> None:
        super().__init__("image", allow_missing_keys=True)
        if spatial_size is not None and (not spatial_size or any(int(n) != n or n < 1 for n in spatial_size)):
            raise ValueError(f"spatial_size: expected positive whole numbers, one an axis, got {spatial_size!r}.")
        clipped(torch.zeros(1), percentiles)  # before anything is read
        self.size = None if spatial_size is None else [int(n) for n in spatial_size]
        self.crop_center = crop_center
        self.percentiles = percentiles
        self.intensities = intensities

    @answers_client
    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the dictionary with the network's input.

        Raises:
            ValueError: for images with another number of axes than the network's, or a centre that is not d numbers
                inside the image.
        """
        pair: Pair = data["pair"]
        working, fixed = pair.working, pair.fixed
        size = list(working.array.shape) if self.size is None else self.size
        dims = len(size)
        if fixed.array.dim() not in (dims, dims + 1):
            raise ValueError(
                f"moving and fixed: this configuration is for {dims}D volumes (spatial_size {size}), got "
                f"{fixed.array.dim()}D images, {pair.name} of shape {tuple(pair.moving.array.shape)}; pass whole "
                f"volumes, or run a bundle for {fixed.array.dim()}D."
            )
        moving, fixed = (self._scaled(image) for image in (data["transform"].placed(pair.moving), fixed))
        centre = self._centre(moving, fixed, pair, dims)
        start, _, _ = crop_window(working.array.shape[:dims], centre.tolist(), size)
        if self.size is not None:
            self._log_cut(moving, working, start, self.size)
        window = _window(working, start, size)
        crops = torch.cat([_seen(image, window, dims) for image in (moving, fixed)], dim=1)
        flat = [number for number, crop in enumerate(crops) if any(channel.max() == 0 for channel in crop)]
        if flat:
            logger.warning("moving or fixed is constant in the crop of slice(s) %s: their fields mean nothing.", flat)
        meta = {
            "spatial_shape": np.array([*fixed.array.shape, 1][:3]),
            "original_affine": fixed.affine,
            "filename_or_obj": pair.name,
        }
        stacked = from_stack(crops, sliced=working.array.dim() > dims)
        image = MetaTensor(stacked, affine=torch.from_numpy(fixed.affine), meta=meta)
        return {**data, "image": image, "pair": pair._replace(start=tuple(start))}

    def _scaled(self, image: Image) -> Image:
        image = image._replace(array=clipped(image.array, self.percentiles))
        return image if self.intensities is None else self.intensities(image)

    def _centre(self, moving: Image, fixed: Image, pair: Pair, dims: int) -> Tensor:
        """On the working grid, (d,) in voxels."""
        given, working, axes = self.crop_center, pair.working, pair.axes
        if isinstance(given, str) and given == "auto":
            (seen, inside), (other, there) = (sampled_onto(image, working) for image in (moving, fixed))
            both = inside & there
            if not both.any():
                raise ValueError(
                    "crop_center: 'auto' compares moving and fixed where both have voxels, and they share none; check "
                    "their headers, or give the centre."
                )
            moved, still, mask = (to_stack(array[None], dims) for array in (seen, other, both))
            centre = auto_centre(moved, still, mask)
            logger.info("Crop centre found automatically: voxels %s of fixed.", _on_file(centre, fixed, working, axes))
            return centre
        if isinstance(given, str) and given == "middle":
            return (torch.tensor(working.array.shape[:dims]) - 1) / 2
        plane = sorted(axes.order[:dims])
        shape = tuple(fixed.array.shape[axis] for axis in plane)
        try:
            point = [float(c) for c in given]
        except (TypeError, ValueError):
            point = []
        if len(point) != dims or not all(0 <= c <= n - 1 for c, n in zip(point, shape, strict=True)):
            raise ValueError(
                f"crop_center: expected 'auto', 'middle' or {dims} voxel coordinates inside the image of "
                f'{shape}, got {given!r}; for example --crop_center "{[n // 2 for n in shape]}".'
            )
        stored = np.zeros(fixed.array.dim())
        stored[plane] = point
        relative = relative_affine(working, fixed)
        return torch.from_numpy(relative[:dims, :-1] @ stored + relative[:dims, -1]).float()

    def _log_cut(self, moving: Image, working: Image, start: Sequence[int], size: Sequence[int]) -> None:
        dims = len(size)
        relative = np.abs(np.linalg.inv(working.affine) @ moving.affine)[:3, :3]
        extent = 1 + relative @ (np.array([*moving.array.shape, 1][:3]) - 1)  # of moving, in voxels of working
        extents = {"moving": extent[:dims], "fixed": np.array(working.array.shape[:dims])}
        larger = [name for name, voxels in extents.items() if np.any(voxels > np.array(size) + 0.5)]
        if not larger:
            return
        first, last = overlap(start, size, working.array.shape[:dims])
        # A window that was asked for or searched is meant to cut; one in the middle is meant to hold the volumes.
        logger.log(
            logging.WARNING if self.crop_center == "middle" else logging.INFO,
            "Larger than spatial_size %s: %s. The network sees what lies around the centre, voxels %s to %s of fixed "
            "as it sees it; outside, the displacement falls off to 0. Crop the files to what matters, or move the "
            "window with crop_center; weights are good at the spatial_size of their training only.",
            size, " and ".join(larger), first, last,
        )  # fmt: skip


def _seen(image: Image, window: Image, dims: int) -> Tensor:
    # (1, 1, *size), with slices (Z, 1, *size)
    values, inside = (to_stack(array[None], dims) for array in sampled_onto(image, window))
    return min_max(values, batched=True, inside=inside)


class RegistrationResultd(MapTransform):
    """Turn the network's displacement of the window (``pred``) into results on the stored grid of fixed.

    ``pred`` (d, *spatial_size[, Z]) stays as it is, and so is ``window_maps``, by name (C, *spatial_size[, Z]), where
    there is such. ``transform`` receives the displacement, also given as ``ddf``
    (axes of F, *F) in voxels, 0 across slices, without the placement. Adds ``jacobian_determinant`` (*F), of the
    d-dimensional map id + ddf: 2D in-plane for slices; ``warped_image`` (1, *F), intensities of moving as stored,
    sampled once from its own grid, 0 where that has no data; and, where there is a label, ``warped_label`` (1, *F), by
    nearest neighbour; and, of window_maps, ``maps``, by name (*F), 0 outside the window; ``displacement_deviation`` in
    mm by the header of fixed, over different voxel sizes or several channels the root of the mean square. Field and
    maps are put back exactly where the working grid differs from that of fixed in the order and direction of axes
    alone, else interpolated linearly.
    """

    def __init__(self) -> None:
        super().__init__("pred")

    @answers_client
    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the dictionary with the results.

        Raises:
            FloatingPointError: when the output of a network is not finite.
        """
        pair: Pair = data["pair"]
        dims = len(pair.start)
        crop = to_stack(data["pred"].as_subclass(Tensor).detach().cpu().float(), dims)
        if not torch.isfinite(crop).all():
            raise FloatingPointError("pred: expected finite displacements, got NaN or infinity; check the weights.")
        ddf, determinant = _on_fixed(crop, pair)
        transform = Transform(data["transform"].placement, ddf, pair.fixed)
        logger.info("Warping moving%s.", "" if pair.label is None else " and its label")
        results: dict[Hashable, Any] = {"warped_image": transform.apply(pair.moving, "bilinear").array[None]}
        if pair.label is not None:
            results["warped_label"] = transform.apply(pair.label, "nearest").array[None]
        if "window_maps" in data:
            results["maps"] = {name: _map(name, values, pair) for name, values in data["window_maps"].items()}
        return {**data, "transform": transform, "ddf": ddf, "jacobian_determinant": determinant, **results}


def _on_fixed(crop: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
    """The window's displacement and its determinant on the grid of fixed, as that is stored."""
    dims, start, working, fixed = len(pair.start), pair.start, pair.working, pair.fixed
    logger.info("Putting the displacement back on the grid of fixed, %s voxels.", tuple(fixed.array.shape))
    pasted = from_stack(paste_field(crop, start, working.array.shape[:dims]), working.array.dim() > dims)
    turned = reoriented(grid_only(fixed), pair.axes)
    field = resampled_field(pasted, working, turned)
    determinant = determinant_of(field, dims)
    _log_outcome(field, determinant, window_on(turned, working, start, crop.shape[2:]))
    return stored_field(field, pair.axes), pair.axes.restore(determinant)


def _map(name: str, window: Tensor, pair: Pair) -> Tensor:
    """A map of the window on the grid of fixed, (*F)."""
    window = window.detach().cpu().float()
    if not torch.isfinite(window).all():
        raise FloatingPointError(f"{name}: expected finite values, got NaN or infinity; check the estimator's weights.")
    if name == "displacement_deviation":
        sizes = window.new_tensor(pair.working.spacing[: len(pair.start)]).reshape(-1, *[1] * (window.dim() - 1))
        window = (window * sizes).square().mean(0, keepdim=True).sqrt()
    return map_on_fixed(window, pair.start, pair.working, pair.fixed, pair.axes)


def _window(working: Image, start: Sequence[int], size: Sequence[int]) -> Image:
    """The grid of the crop, in all slices; its voxels hold nothing."""
    affine = working.affine.copy()
    affine[:3, 3] += affine[:3, : len(start)] @ np.array(start)
    shape = (*size, *working.array.shape[len(size) :])
    return working._replace(array=torch.empty(shape, device="meta"), affine=affine)


def _on_file(centre: Tensor, fixed: Image, working: Image, axes: Axes) -> list[float]:
    """A point of the working grid in voxels of the fixed file, along the axes that are registered."""
    relative = relative_affine(fixed, working)
    point = relative[:-1, : len(centre)] @ centre.numpy() + relative[:-1, -1]
    return [round(float(point[axis]), 1) for axis in sorted(axes.order[: len(centre)])]


def _log_outcome(ddf: Tensor, determinant: Tensor, window: tuple[list[int], list[int]]) -> None:
    # The share is of the window, as in evaluation: the still surroundings would dilute it.
    folded = determinant <= 0
    inside = folded[tuple(slice(a, b + 1) for a, b in zip(*window, strict=True))]
    percent = 100 * float(inside.float().mean())
    logger.info(
        "Largest displacement %.2f voxels; foldings (%s |J| <= 0): %.3g %% of the crop, %d voxels in all.",
        sum(channel.square() for channel in ddf).max().item() ** 0.5,
        "2D in-plane" if len(ddf) == 2 else f"{len(ddf)}D", percent, int(folded.sum()),
    )  # fmt: skip
    if percent > MANY_FOLDINGS:
        logger.warning(
            "The map folds in %.3g %% of the crop, more than %g %%: do not trust it there. Check that the images are "
            "of the kind that the weights were trained on, that spatial_size is that of the training and that the "
            "window holds the same anatomy in both (registration.png shows it).",
            percent, MANY_FOLDINGS,
        )  # fmt: skip
