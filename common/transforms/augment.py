# SPDX-License-Identifier: Apache-2.0
"""Random changes of training pairs."""

from __future__ import annotations

from monai.transforms import Compose, RandAffined


def random_affine(
    spatial_dims: int,
    rotation: float = 0.1,
    scale: float = 0.1,
    shear: float = 0.1,
    translation: float = 2.0,
) -> Compose:
    """Give each image of a pair an affine transform of its own.

    Images keep their grid and are sampled linearly, what lies outside has the border's intensity. All numbers are drawn
    uniformly from [-value, value]. There are no flips: images that all lie alike have no mirrored ones among them.

    Args:
        spatial_dims: 2 or 3.
        rotation: about each axis, in radians.
        scale: of each axis, as a share of its length.
        shear: of each pair of axes.
        translation: along each axis, in voxels.

    Returns:
        A transform of ``{"moving_image": (C, *S), "fixed_image": (C, *S)}``, its draws fixed by ``set_random_state``.
    """
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
        for key in ("moving_image", "fixed_image")
    ]
    return Compose(affines)
