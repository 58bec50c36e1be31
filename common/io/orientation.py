# SPDX-License-Identifier: Apache-2.0
"""Images brought to one orientation and spacing, and which axis of a stack holds its slices."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import nibabel as nib
import numpy as np
from torch import Tensor

from .affine import sizes_text
from .images import Image
from .spacing import spacing_of_size

logger = logging.getLogger(__name__)

# An axis is clearly coarser, or shorter, than another where the ratio is at least this.
CLEAR = 1.5
# What a copy that has lost its header says of a file's own axes: NIfTI's identity.
PLACEHOLDER = "RAS"


class Axes(NamedTuple):
    """Axis i of a reoriented array is axis ``order[i]`` of the stored one, from its end where ``flipped[i]``."""

    order: tuple[int, ...]
    flipped: tuple[bool, ...]

    def apply(self, array: Tensor) -> Tensor:
        """From the stored array to the reoriented one.

        Args:
            array: (..., *S).

        Returns:
            (..., *S').
        """
        lead = array.dim() - len(self.order)
        moved = array.permute(*range(lead), *(lead + axis for axis in self.order))
        ends = [lead + axis for axis, flip in enumerate(self.flipped) if flip]
        return (moved.flip(ends) if ends else moved).contiguous()

    def restore(self, array: Tensor) -> Tensor:
        """From the reoriented array back to the stored one.

        Args:
            array: (..., *S').

        Returns:
            (..., *S).
        """
        lead = array.dim() - len(self.order)
        ends = [lead + axis for axis, flip in enumerate(self.flipped) if flip]
        back = (array.flip(ends) if ends else array).permute(
            *range(lead), *(lead + self.order.index(axis) for axis in range(len(self.order)))
        )
        return back.contiguous()


def slice_axis(image: Image) -> int:
    """Which axis of a stack (X, Y, Z) holds its slices.

    The one along which voxels are clearly larger (1.5 times at least) than along both others; where none is, the one
    with clearly fewer voxels.

    Args:
        image: a stack.

    Returns:
        Number of the axis.

    Raises:
        ValueError: for a 2D image, and where neither says it.
    """
    if image.array.dim() != 3:
        raise ValueError(f"slice_axis: expected a stack (X, Y, Z), got the shape {tuple(image.array.shape)}.")
    spacing, shape = np.array(image.spacing), np.array(image.array.shape)
    for extent in (spacing, 1 / shape):
        largest = int(extent.argmax())
        if extent[largest] >= CLEAR * np.delete(extent, largest).max() * (1 - 1e-6):
            return largest
    raise ValueError(
        f"expected a stack of slices, its voxels clearly larger along one axis or clearly fewer; got the shape "
        f"{tuple(image.array.shape)} with voxels of {sizes_text(image.spacing)} mm, which does "
        "not say which axis holds the slices. Set the spacing in the header, or pass slices as 2D files."
    )


def stored_axes(image: Image, orientation: str = "RAS", spatial_dims: int = 3) -> Axes:
    """How ``reorient`` permutes and flips the axes of an image.

    Args:
        image: as stored.
        orientation: where axes shall point, as "RAS".
        spatial_dims: 3, or 2 for slices.

    Returns:
        Order and flips.
    """
    dims = image.array.dim()
    free, last = list(range(dims)), []
    if spatial_dims == 2 and spacing_is_unknown(image):
        orientation = PLACEHOLDER
    if spatial_dims == 2 and dims == 3:
        last = [slice_axis(image)]
        free.remove(last[0])
    if image.form_codes == (0, 0):
        return Axes((*free, *last), (False,) * dims)
    wanted = _directions(orientation)[:, :dims]
    stored = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    candidates = []
    for order in itertools.permutations(free):
        for flipped in itertools.product((False, True), repeat=dims):
            turned = stored[:, [*order, *last]] * np.where(flipped, -1, 1)
            # Ties of oblique images are settled by where the axes point, never by how they are stored.
            closeness = round(float((turned * wanted).sum()), 5)
            candidates.append((closeness, turned.round(5).ravel().tolist(), Axes((*order, *last), flipped)))
    return max(candidates, key=lambda candidate: candidate[:2])[2]


def reorient(image: Image, orientation: str = "RAS", spatial_dims: int = 3) -> Image:
    """Permute and flip the axes, so that an image stored in any order gives the same array; nothing is interpolated.

    Where the header gives no orientation (both form codes 0) the axes stay as they are stored, apart from slices that
    are moved last, and the log says so.

    Args:
        image: 2D or 3D.
        orientation: where the axes point, as in "RAS" (right, anterior, superior).
        spatial_dims: 3: the axes lie closest to ``orientation``. 2, of a stack: slices last (``slice_axis``), and the
            two axes of the plane closest to its first two letters. 2D images are turned in their plane. Where the
            spacing of a stack is unknown, so is its orientation: the header is the identity of a copy, or of one stored
            otherwise, and the axes come as that copy has them.

    Returns:
        Image whose affine places every voxel where it was.

    Raises:
        ValueError: for an unknown orientation, or a stack whose slices cannot be told.
    """
    axes = stored_axes(image, orientation, spatial_dims)
    if image.form_codes == (0, 0):
        logger.info("The header gives no orientation (both form codes 0): axes are taken as they are stored.")
    return reoriented(image, axes)


def reoriented(image: Image, axes: Axes) -> Image:
    """An image with its axes permuted and flipped as ``axes`` says, its affine with them.

    Args:
        image: as stored.
        axes: order and flips.

    Returns:
        The image on its new axes.
    """
    if axes == Axes(tuple(range(image.array.dim())), (False,) * image.array.dim()):
        return image
    stored_from_new = np.eye(4)
    stored_from_new[:3, :3] = 0
    for new in range(3):
        if new >= len(axes.order):  # the plane of a 2D image stays
            stored_from_new[new, new] = 1
            continue
        old = axes.order[new]
        stored_from_new[old, new] = -1 if axes.flipped[new] else 1
        if axes.flipped[new]:
            stored_from_new[old, 3] = image.array.shape[old] - 1
    return image._replace(
        array=axes.apply(image.array),
        affine=image.affine @ stored_from_new,
        spacing=tuple(image.spacing[axis] for axis in axes.order),
    )


def spacing_is_unknown(image: Image) -> bool:
    """Whether all axes have 1 mm, as in copies of stacks that have lost their spacing.

    Args:
        image: any.

    Returns:
        True or False.
    """
    return bool(np.abs(np.array(image.spacing) - 1).max() < 1e-3)


def training_spacing(
    image: Image,
    spatial_dims: int,
    spacing: Sequence[float] | None,
    limits: Sequence[float] | None = None,
    resize: Sequence[int] | None = None,
) -> list[float]:
    """The spacing at which images are registered: the training's where that of the file lies far from it.

    Args:
        image: slices last, where it is a stack.
        spatial_dims: d, of the network; the other axes keep their spacing.
        spacing: of the training, mm along each of the d axes; None: that of the image.
        limits: lowest and highest spacing in mm that is left as it is; None: 1 % around ``spacing``. Where a network
            for slices meets voxels of 1 mm all round, the spacing counts as unknown and is left as well.
        resize: voxels to which the whole field of view is brought, in place of a spacing; None for none.

    Returns:
        mm, one number an axis of the image.
    """
    if resize is not None:
        return spacing_of_size(image, resize)
    if spacing is None or (spatial_dims == 2 and spacing_is_unknown(image)):
        return list(image.spacing)
    own, wanted = np.array(image.spacing[:spatial_dims]), np.array(spacing, dtype=float)
    low, high = (0.99 * wanted, 1.01 * wanted) if limits is None else limits
    if ((low <= own) & (own <= high)).all():
        return list(image.spacing)
    return [*wanted.tolist(), *image.spacing[spatial_dims:]]


def _directions(orientation: str) -> np.ndarray:
    try:
        axes = nib.orientations.axcodes2ornt(tuple(orientation.upper()))
        if np.isnan(axes).any() or sorted(axes[:, 0]) != [0, 1, 2]:
            raise ValueError
    except (ValueError, AttributeError, TypeError):
        raise ValueError(
            f"orientation: expected three of the letters R or L, A or P, S or I, like 'RAS', got {orientation!r}."
        ) from None
    directions = np.zeros((3, 3))
    directions[axes[:, 0].astype(int), range(3)] = axes[:, 1]
    return directions
