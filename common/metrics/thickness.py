# SPDX-License-Identifier: Apache-2.0
"""How thick a labelled structure is."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

# Surface over the number of faces of its voxels, of a surface that turns into every direction (Cauchy and Crofton).
SURFACE_OF_A_FACE = {2: math.pi / 4, 3: 2 / 3}


def mean_thickness(mask: Tensor) -> Tensor:
    """Mean thickness of a wall: 2 · volume / surface, in 2D 2 · area / perimeter.

    Of an annulus and of a plate this is the distance of their two sides, of a disc its radius, of a thin shell the
    distance of its sides up to (thickness / radius)². The surface is the number of voxel faces between inside and
    outside, times π/4 in 2D and 2/3 in 3D, which is unbiased for a surface that turns into every direction (a circle, a
    sphere) and too small for one along the axes. The border of the image counts as outside.

    Args:
        mask: (B, 1, *S) bool.

    Returns:
        (B,) in voxels; NaN of an empty mask.

    Reference:
        Parfitt et al., Journal of Clinical Investigation 1983 (2 V / S); Lehmann and Legland, Insight Journal 2012
        (Crofton's formula).
    """
    dims = mask.dim() - 2
    padded = functional.pad(mask, [1, 1] * dims).to(torch.int8)
    faces = sum((padded.diff(dim=axis) != 0).flatten(1).sum(1) for axis in range(2, dims + 2))
    return 2 * mask.flatten(1).sum(1) / (SURFACE_OF_A_FACE[dims] * torch.as_tensor(faces))
