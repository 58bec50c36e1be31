# SPDX-License-Identifier: Apache-2.0
"""Self-similarity context: an image described by how like its patches are to one another, not by its intensities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checks import is_whole, positive
from .pairs import paired

# The variance estimate stays within these factors of its mean over the image, as published.
LEAST, MOST = 0.001, 1000.0


def _crop(image: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    for axis, (first, length) in enumerate(zip(start, size, strict=True), 2):
        image = image.narrow(axis, first, length)
    return image


def _patch_mean(image: Tensor, radius: int) -> Tensor:
    """Mean over patches of 2 radius + 1 voxels an axis, those that lie inside: (B, C, *S) to S - 2 radius."""
    width = 2 * radius + 1
    for axis in range(2, image.ndim):
        length = image.shape[axis] - 2 * radius
        total = image.narrow(axis, 0, length)
        for start in range(1, width):
            total = total + image.narrow(axis, start, length)
        image = total
    return image / width ** (image.ndim - 2)


def patch_distances(image: Tensor, radius: int = 1, dilation: int = 2) -> Tensor:
    """Mean squared differences between the patches around every two neighbours of a voxel that are not opposite.

    The neighbours of x are x ± dilation e_i: six in 3D, four in 2D. Two on different axes i < j lie √2 dilation apart:
    12 pairs in 3D, 4 in 2D. Beyond its border the image continues with the border's value. The distance between
    x + a and x - b is, for the same patches, that between y - a and y + b at another voxel y: half of the distances
    are shifted copies of the other half, and only one half is computed.

    Args:
        image: (B, C, *S), two or three axes of any size.
        radius: of the patches, 2 radius + 1 voxels an axis.
        dilation: voxels between a voxel and its neighbours.

    Returns:
        (B, C, K, *S), K = 4 in 2D and 12 in 3D, in squared intensity.
    """
    dims, size = image.ndim - 2, list(image.shape[2:])
    margin = radius + dilation
    padded = functional.pad(image, [margin] * (2 * dims), mode="replicate")
    distances = []
    for i, j in combinations(range(dims), 2):
        for sign in (1, -1):
            # The patches that the pairs (+i, +sign j) and, shifted, (-i, -sign j) compare: `dilation` voxels more
            # along i and j. `start` is where the first patch begins in the padded image.
            start, length = [dilation] * dims, [n + 2 * radius for n in size]
            start[i], start[j] = 0, 0 if sign > 0 else dilation
            length[i], length[j] = length[i] + dilation, length[j] + dilation
            along_i, along_j = list(start), list(start)
            along_i[i] += dilation
            along_j[j] += sign * dilation
            difference = _crop(padded, along_i, length) - _crop(padded, along_j, length)
            patches = _patch_mean(difference.square(), radius)
            near, far = [0] * dims, [0] * dims
            near[i], near[j], far[j] = dilation, dilation if sign > 0 else 0, 0 if sign > 0 else dilation
            distances += [_crop(patches, near, size), _crop(patches, far, size)]
    return torch.stack(distances, dim=2)


class MIND(nn.Module):
    """Squared difference of the images' self-similarity contexts (MIND-SSC), the mean over descriptor and channels.

    With D_k the K distances of `patch_distances`, less their least one, the descriptor of an image is exp(-D_k / V),
    V the mean of the D_k at the voxel, kept within 0.001 and 1000 times its mean over the image. The map lies in
    [0, 1]. Intensities may differ by any linear function, also of negative slope, from image to image; where the
    relation changes from tissue to tissue (MR and CT), edges still agree.
    Departures: patches are averaged with equal weights (paper: Gaussian; the authors' later code: equal weights, as
    here), beyond the border the image continues before patches are taken, the bounds of V are of each image and channel
    (code: of the batch) and carry a gradient, and `variance_floor` bounds V from below, so that an image without
    contrast has the descriptor 1 everywhere. Memory for the backward pass: some 60 maps in 3D (24 in 2D) of the
    image's size, against the 5 of `lncc`.

    Reference:
        Heinrich et al., Towards Realtime Multimodal Fusion for Image-Guided Interventions Using
        Self-Similarities, MICCAI 2013; Heinrich et al., MIND, Medical Image Analysis 2012, Eqs. 4-7.
    """

    def __init__(self, radius: int = 1, dilation: int = 2, variance_floor: float = 1e-8) -> None:
        """Choose the patches.

        Args:
            radius: of the patches, 2 radius + 1 voxels an axis; 0 compares single voxels.
            dilation: voxels between a voxel and the neighbours whose patches are compared.
            variance_floor: least V, in squared intensity: far below that of an image whose contrast is 0.01.

        Raises:
            ValueError: for a value out of its range.
        """
        super().__init__()
        for name, value, least in (("radius", radius, 0), ("dilation", dilation, 1)):
            if not is_whole(value, least):
                raise ValueError(
                    f"{name}: expected a whole number of voxels from {least}, got {value!r}; 1 or 2 is usual"
                )
        self.radius, self.dilation = int(radius), int(dilation)
        self.variance_floor = positive("variance_floor", variance_floor)

    def descriptor(self, image: Tensor) -> Tensor:
        """The self-similarity context of an image.

        Args:
            image: (B, C, *S), float32 or float64, two or three axes.

        Returns:
            (B, C, K, *S) in (0, 1], K = 4 in 2D and 12 in 3D, the largest of each voxel 1.
        """
        distances = patch_distances(image, self.radius, self.dilation)
        distances = distances - distances.amin(dim=2, keepdim=True)
        variance = distances.mean(dim=2, keepdim=True)
        average = variance.mean(dim=tuple(range(3, variance.ndim)), keepdim=True)
        variance = torch.minimum(torch.maximum(variance, LEAST * average), MOST * average)
        return torch.exp(-distances / variance.clamp(min=self.variance_floor))

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Compare two images.

        Args:
            warped: (B, C, *S), two or three axes.
            fixed: the same shape.

        Returns:
            Map (B, 1, *S).

        Raises:
            ValueError: where the shapes differ, or have one axis or more than three.
        """
        warped, fixed = paired(warped, fixed)
        if warped.ndim not in (4, 5):
            raise ValueError(
                f"warped: mind expects (B, C, H, W) or (B, C, H, W, D), got {tuple(warped.shape)}; "
                "self-similarity compares neighbours along different axes"
            )
        return (self.descriptor(warped) - self.descriptor(fixed)).square().mean(dim=(1, 2)).unsqueeze(1)
