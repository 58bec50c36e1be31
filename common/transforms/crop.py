# SPDX-License-Identifier: Apache-2.0
"""Where to crop, and cropping windows of one fixed size out of images of any size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers import GaussianFilter
from monai.transforms import MapTransform

from .intensity import min_max

CHUNK = 16
ALONG = ("true_ddf", "noise_level")  # cropped with the images where an item has them


def centroid(mask: torch.Tensor) -> torch.Tensor | None:
    """Mean voxel position of a mask.

    Args:
        mask: ``(*S)``, non-zero inside.

    Returns:
        ``(d,)`` float32 in voxels, or None for an empty mask.
    """
    positions = mask.nonzero()
    return positions.double().mean(0).float() if len(positions) else None


def auto_centre(
    moving: torch.Tensor,
    fixed: torch.Tensor,
    mask: torch.Tensor | None = None,
    sigma: float = 16.0,
    fraction: float = 0.8,
) -> torch.Tensor:
    """Find where two images differ most: a crop centre that needs no label.

    With the map ``m = G_sigma * mean_n |moving_n - fixed_n|``, every image scaled to [0, 1] over what both show,
    the centre of mass of ``max(m - fraction max m, 0)``: steadier than the peak alone, which jumps between the walls of
    a large ventricle. The mean is over the slices of the stack that both have at a place, so that all slices of one
    heart share a centre.

    Args:
        moving: stack of images of one subject ``(N, C, *S)``.
        fixed: the same shape.
        mask: the same shape, True where both images have voxels; None: everywhere. Nothing is compared elsewhere.
        sigma: standard deviation of the Gaussian, in voxels.
        fraction: of the map's peak, in [0, 1); what lies below has no weight.

    Returns:
        ``(d,)`` float32 in voxels; the middle of the image where the two do not differ at all.

    Raises:
        ValueError: when the shapes differ or have no spatial axes, or ``fraction`` is outside [0, 1).
    """
    if moving.shape != fixed.shape or moving.ndim < 3:
        raise ValueError(
            f"moving and fixed: expected two stacks of one shape (N, C, *S), got {tuple(moving.shape)} and "
            f"{tuple(fixed.shape)}; resample both to one grid and add the stack and channel axes."
        )
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction: expected a number in [0, 1), got {fraction!r}; 0.8 is the default.")
    total, count = (torch.zeros(moving.shape[2:], device=moving.device) for _ in range(2))
    for first in range(0, len(moving), CHUNK):  # a few slices at a time, to spare memory
        part = slice(first, first + CHUNK)
        own, other = moving[part].contiguous(), fixed[part].contiguous()
        both = torch.ones_like(own, dtype=torch.bool) if mask is None else mask[part].contiguous()
        scaled = [min_max(images, batched=True, inside=both) for images in (own, other)]
        total += ((scaled[0] - scaled[1]).abs() * both).sum((0, 1))
        count += both.sum((0, 1))
    difference = total / count.clamp_min(1)
    # The filter pads with zeros, which favours the middle of the field of view: that is where the organ is planned.
    smooth = GaussianFilter(difference.ndim, sigma)(difference[None, None])[0, 0]
    peak = smooth.max()
    if peak == 0:
        return (torch.tensor(smooth.shape) - 1) / 2
    weight = (smooth - fraction * peak).clamp_min(0)
    positions = weight.nonzero()
    mass = weight[tuple(positions.T)].double()
    return ((positions * mass[:, None]).sum(0) / mass.sum()).float().cpu()


def crop_window(
    shape: Sequence[int], centre: Sequence[float], size: Sequence[int], shift: bool = True
) -> tuple[list[int], list[slice], list[tuple[int, int]]]:
    """Place a window of a given size around a centre.

    Along each axis the window is shifted to stay inside an image that is large enough; a smaller image is kept whole
    in the middle of the window, and padded. ``shift=False`` places it as the published AdaCS preprocessing does: from
    round(centre) - size // 2, whether it leaves the image or not.

    Args:
        shape: spatial shape of the image, d voxels.
        centre: d voxel coordinates of the wanted centre; a window of s voxels from a has its centre at a + (s - 1) / 2.
        size: d voxels, the window.
        shift: keep the window inside the image where it fits.

    Returns:
        ``start``: d voxel coordinates of the window's first voxel, negative where padded; ``slices``: what to take of
        the image; ``padding``: d pairs (before, after) in voxels.

    Raises:
        ValueError: when the lengths differ or the centre is not finite.
    """
    if not len(shape) == len(centre) == len(size):
        raise ValueError(
            f"crop_window: expected shape, centre and size of one length, got {list(shape)}, {list(centre)} and "
            f"{list(size)}; give one number for each spatial axis."
        )
    start, slices, padding = [], [], []
    for n, c, s in zip(shape, centre, size, strict=True):
        if c != c or c in (float("inf"), float("-inf")):
            raise ValueError(
                f"centre: expected finite voxel coordinates, got {list(centre)}; check the label it is of."
            )
        if not shift:
            first = round(c) - s // 2
            inside = slice(min(max(first, 0), n), max(min(first + s, n), 0))
            before = min(max(-first, 0), s)
            slices.append(inside)
            padding.append((before, s - before - (inside.stop - inside.start)))
        elif n >= s:
            first = min(max(int((c - (s - 1) / 2 + 0.5) // 1), 0), n - s)
            slices.append(slice(first, first + s))
            padding.append((0, 0))
        else:
            first = -((s - n) // 2)
            slices.append(slice(0, n))
            padding.append((-first, s - n + first))
        start.append(first)
    return start, slices, padding


def centre_on_grid(image: torch.Tensor, size: Sequence[int], label: bool = False) -> torch.Tensor:
    """Lay an image with its geometric centre on that of a grid, to half a voxel; nothing is interpolated.

    Args:
        image: ``(C, *S)``.
        size: the grid, one number an axis; what does not fit is cut off.
        label: pad with 0 instead of the image's smallest value.

    Returns:
        ``(C, *size)``.
    """
    middle = [(n - 1) / 2 for n in image.shape[1:]]
    _, slices, padding = crop_window(image.shape[1:], middle, size)
    return _cut(image, slices, padding, label)


class CropToCentred(MapTransform):
    """Crop entries of a dictionary to one window around the point stored in it.

    Padding, where an image is smaller than the window: 0 for keys that end in ``label``, ``mask``, ``ddf`` or
    ``level``; the smallest value inside the window for images, so that a min-max normalisation of the crop does not see
    the padding. What there is of ``ALONG`` is cropped along; a displacement in voxels does not change with the window.
    ``crop_start``, ``(d,)`` int64, is added, so that a result can be pasted back.
    ``shift=False``: windows are placed as ``crop_window`` says there, and 0 is what lies outside, for images too.

    Args:
        keys: entries to crop, ``(C, *S)`` on one grid.
        size: window in voxels, one number an axis.
        centre_key: entry with the centre, ``(d,)`` in voxels.
        jitter: the centre moves by whole voxels drawn uniformly from [-jitter, jitter] along each axis, in calls that
            are given a generator; other calls are exact.
        shift: move windows inside the image, as ``crop_window``.
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        size: Sequence[int],
        centre_key: str = "centre",
        jitter: int = 0,
        shift: bool = True,
    ) -> None:
        super().__init__(keys)
        if not size or any(int(s) != s or s < 1 for s in size):
            raise ValueError(f"size: expected positive whole numbers, one for each spatial axis, got {size!r}.")
        if int(jitter) != jitter or jitter < 0:
            raise ValueError(f"jitter: expected a whole number of voxels >= 0, got {jitter!r}; 0 switches it off.")
        self.size = [int(s) for s in size]
        self.centre_key = centre_key
        self.jitter, self.shift = int(jitter), bool(shift)

    def __call__(self, data: Mapping[Hashable, Any], generator: torch.Generator | None = None) -> dict[Hashable, Any]:
        """Return a copy of the dictionary with the entries cropped and ``crop_start`` added.

        Raises:
            KeyError: when the centre or an entry is missing.
            ValueError: when entries lie on different grids, or their axes are not those of ``size``.
        """
        absent = [key for key in (self.centre_key, *self.keys) if key not in data]
        if absent:
            raise KeyError(f"CropToCentred: expected the keys {absent} in the item, got {sorted(map(str, data))}.")
        centre = [float(c) for c in data[self.centre_key].tolist()]
        if generator is not None and self.jitter:
            offset = torch.randint(-self.jitter, self.jitter + 1, (len(self.size),), generator=generator)
            centre = [c + o for c, o in zip(centre, offset.tolist(), strict=True)]
        shape = data[self.keys[0]].shape[1:]
        start, slices, padding = crop_window(shape, centre, self.size, self.shift)
        result = dict(data)
        for key in (*self.keys, *(key for key in ALONG if key in data and key not in self.keys)):
            if data[key].shape[1:] != shape:
                raise ValueError(
                    f"{key}: expected the spatial shape {tuple(shape)} of {self.keys[0]}, got "
                    f"{tuple(data[key].shape[1:])}; resample all entries to one grid before cropping."
                )
            zero = not self.shift or str(key).endswith(("label", "mask", "ddf", "level"))
            result[key] = _cut(data[key], slices, padding, zero)
        result["crop_start"] = torch.tensor(start)
        return result


def _cut(image: torch.Tensor, slices: list[slice], padding: list[tuple[int, int]], zero: bool) -> torch.Tensor:
    part = image[(slice(None), *slices)]
    if not any(before or after for before, after in padding):
        return part
    # torch pads from the last axis on
    flat = [amount for pair in reversed(padding) for amount in pair]
    return F.pad(part, flat, value=0.0 if zero else float(part.min()))
