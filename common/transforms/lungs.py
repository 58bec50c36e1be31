# SPDX-License-Identifier: Apache-2.0
"""CT of the chest: where the lungs are, and the intensities that a network for lungs sees."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..io.images import Image
from ..io.orientation import reoriented, stored_axes

logger = logging.getLogger(__name__)

AIR = -400.0  # HU, below which a voxel may be lung
COARSE = 2.0  # mm, at which lungs are searched
CLOSING = 3.0  # mm, radius: vessels and airway walls up to twice as thick are lung
LEAST = 0.2  # of the largest part, that a part needs to be lung


def lung_mask(image: Image) -> Tensor:
    """Lungs in a CT image, found by threshold, connected parts and closing.

    Air below -400 HU, looked at about every 2 mm. Parts that touch the image's border to the left, right, front or back
    are the air around the body; of the others the largest is lung, and each of at least a fifth of its size (the other
    lung). Closing by a ball of 3 mm and filling holes adds vessels. The airways outside the lungs stay in. This is the
    project's own, for images without a mask; it was not compared with masks by experts.

    Args:
        image: CT in HU, (X, Y, Z).

    Returns:
        (X, Y, Z) bool.

    Raises:
        ValueError: where there is no such air.
    """
    axes = stored_axes(image, "LPS")  # so that the order of axes in the file does not matter
    turned = reoriented(image, axes)
    steps = [max(round(COARSE / mm), 1) for mm in turned.spacing]
    coarse = turned.array[tuple(slice(step // 2, None, step) for step in steps)].numpy()
    parts, count = ndimage.label(coarse < AIR)
    outer = [np.take(parts, end, axis) for axis in (0, 1) for end in (0, -1)]  # lungs may reach top and bottom
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[np.unique(np.concatenate([face.ravel() for face in outer]))] = 0
    sizes[0] = 0
    if not sizes.any():
        raise ValueError(
            f"expected a CT of the chest in HU, with lungs below {AIR:g} HU inside the body; got values from "
            f"{float(coarse.min()):g} to {float(coarse.max()):g} and no such air. Give a mask of the lungs, or check "
            "the image's unit."
        )
    lungs = np.isin(parts, np.flatnonzero(sizes >= LEAST * sizes.max()))
    closed = ndimage.binary_fill_holes(_closed(lungs, np.array(turned.spacing) * steps))
    both = zip(turned.array.shape, steps, closed.shape, strict=True)
    nearest = [np.minimum(np.arange(n) // step, m - 1) for n, step, m in both]
    return axes.restore(torch.from_numpy(closed[np.ix_(*nearest)]))


def _closed(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Closing by a ball, by distances; the mask may touch the border."""
    border = [(int(np.ceil(CLOSING / mm)) + 1,) * 2 for mm in spacing]
    grown = ndimage.distance_transform_edt(~np.pad(mask, border), spacing) <= CLOSING
    shrunk = ndimage.distance_transform_edt(grown, spacing) > CLOSING
    return shrunk[tuple(slice(before, -after) for before, after in border)] | mask


class LungIntensities:
    """HU → [0, 1] between two values, 0 outside the lungs.

    Args:
        low: HU that becomes 0, and everything below.
        high: HU that becomes 1, and everything above.
        masked: 0 outside the lungs.

    Raises:
        ValueError: for values out of order.

    Reference:
        Tian et al., GradICON, CVPR 2023, Sec. 8 (-1000 to 0 HU, masked; there the masks are given).
    """

    def __init__(self, low: float = -1000.0, high: float = 0.0, masked: bool = True) -> None:
        if not low < high:
            raise ValueError(f"low, high: expected two HU in order, as -1000 and 0, got {low} and {high}.")
        self.low, self.high, self.masked = float(low), float(high), bool(masked)

    def __call__(self, image: Image, mask: Tensor | None = None) -> Image:
        """Return the image with such intensities.

        Args:
            image: CT in HU, (X, Y, Z).
            mask: (X, Y, Z), not 0 in the lungs; None finds them (``lung_mask``).

        Returns:
            The image in [0, 1].

        Raises:
            ValueError: as ``lung_mask``, and for a mask of another shape.
        """
        scaled = ((image.array - self.low) / (self.high - self.low)).clamp(0, 1)
        if not self.masked:
            return image._replace(array=scaled)
        inside = lung_mask(image) if mask is None else mask
        if inside.shape != scaled.shape:
            raise ValueError(
                f"mask: expected the shape {tuple(scaled.shape)} of its image, got {tuple(inside.shape)}; resample the "
                "mask to the image's grid (nearest neighbour)."
            )
        return image._replace(array=scaled * (inside != 0))


def mirrored_axis(fits: Sequence[float], margin: float = 0.1) -> int | None:
    """Which axis something was mirrored along, from how well it fits as it is and mirrored.

    Left and right are nearly alike, so that a mirroring between them can pass unseen.

    Args:
        fits: share that fits as it is, then mirrored along each axis.
        margin: by which a mirrored one must fit better.

    Returns:
        Number of the axis; None where it lies as it should, or no mirroring explains it.
    """
    best = int(np.argmax(fits))
    return best - 1 if fits[best] > fits[0] + margin else None
