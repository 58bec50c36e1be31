# SPDX-License-Identifier: Apache-2.0
"""Random changes of training pairs."""

from __future__ import annotations

from monai.transforms import Compose, RandAffined, RandFlipd

KEYS = ("moving_image", "fixed_image")


def random_affine(
    spatial_dims: int,
    flip: float = 0.5,
    rotation: float = 0.1,
    scale: float = 0.1,
    shear: float = 0.1,
    translation: float = 2.0,
) -> Compose:
    """Flip both images of a pair alike, and give each an affine transform of its own.

    Flips show the network other anatomies, the transforms other differences between the two. Images keep their grid and
    are sampled linearly, what lies outside has the border's intensity. All numbers are drawn uniformly from
    [-value, value].

    Args:
        spatial_dims: 2 or 3.
        flip: probability of a flip, along each axis by itself.
        rotation: about each axis, in radians.
        scale: of each axis, as a share of its length.
        shear: of each pair of axes.
        translation: along each axis, in voxels.

    Returns:
        A transform of ``{"moving_image": (C, *S), "fixed_image": (C, *S)}``, its draws fixed by ``set_random_state``.
    """
    flips = [RandFlipd(KEYS, prob=flip, spatial_axis=axis) for axis in range(spatial_dims)]
    affines = [
        RandAffined(
            key,
            prob=1.0,
            rotate_range=[rotation] * (1 if spatial_dims == 2 else 3),
            shear_range=[shear] * (spatial_dims * (spatial_dims - 1)),
            scale_range=[scale] * spatial_dims,
            translate_range=[translation] * spatial_dims,
            padding_mode="border",
        )
        for key in KEYS
    ]
    return Compose([*flips, *affines])
