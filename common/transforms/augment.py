# SPDX-License-Identifier: Apache-2.0
"""Random changes of training pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.transforms import Compose, RandAffined, RandFlipd

from ..checks import known_name
from .released import KINDS, ROLES, RandomSwap, ReleasedAugmentation


def random_flips(spatial_dims: int, probability: float = 0.5) -> Compose:
    """Mirror a pair along each axis at random, both images together, with their labels and masks where present.

    A flip of a brain exchanges its sides, and labels keep their side's name: of both images alike.

    Args:
        spatial_dims: 2 or 3.
        probability: of each axis, independently.

    Returns:
        A transform as that of ``random_affine``; values keep their type. Its draws are fixed by ``set_random_state``.

    Reference:
        Chen et al., TransMorph, Medical Image Analysis 82, 2022 (its code, of IXI: all three axes, ½ each).
    """
    keys = [f"{role}_{kind}" for role in ROLES for kind in KINDS]
    return Compose([RandFlipd(keys, probability, axis, allow_missing_keys=True) for axis in range(spatial_dims)])


def random_affine(
    spatial_dims: int,
    rotation: float = 0.1,
    scale: float = 0.1,
    shear: float = 0.1,
    translation: float = 2.0,
) -> Compose:
    """Give each image of a pair an affine transform of its own; its label and mask, where present, move with it.

    Images keep their grid and are sampled linearly, labels and masks at the nearest voxel; what lies outside has the
    border's value. All numbers are drawn uniformly from [-value, value], the same ones whether there are labels or not.
    There are no flips: images that all lie alike have no mirrored ones among them.

    Args:
        spatial_dims: 2 or 3.
        rotation: about each axis, in radians.
        scale: of each axis, as a share of its length.
        shear: of each pair of axes.
        translation: along each axis, in voxels.

    Returns:
        A transform of ``{"moving_image": (C, *S), "fixed_image": (C, *S)}`` and optionally ``moving_label``,
        ``fixed_label``, ``moving_mask``, ``fixed_mask``, of the same shapes, which become float32. Its draws are fixed
        by ``set_random_state``.
    """
    affines = [
        RandAffined(
            [f"{role}_{kind}" for kind in KINDS],
            prob=1.0,
            rotate_range=[rotation] * (1 if spatial_dims == 2 else 3),
            shear_range=[shear] * (spatial_dims * (spatial_dims - 1)),
            scale_range=[scale] * spatial_dims,
            translate_range=[translation] * spatial_dims,
            mode=["bilinear", "nearest", "nearest"],
            padding_mode="border",
            allow_missing_keys=True,
        )
        for role in ROLES
    ]
    return Compose(affines)


AUGMENTATIONS: dict[str, Callable[[int], Any]] = {
    "affine": random_affine,
    "flips": random_flips,
    "swap": lambda spatial_dims: RandomSwap(),
    "released": lambda spatial_dims: ReleasedAugmentation(),
}


def augmentation(augment: bool | str | None, spatial_dims: int) -> Any:
    """What a bundle's key ``augment`` asks for.

    Args:
        augment: False or None for nothing; "affine" (also True), "flips", "swap" (of moving and fixed), or "released"
            (that of GradICON's released networks, see ``released.ReleasedAugmentation``).
        spatial_dims: 2 or 3.

    Returns:
        A random transform of a pair, or None.

    Raises:
        ValueError: for another name, with the nearest.
    """
    if augment is None or augment is False:
        return None
    return AUGMENTATIONS["affine" if augment is True else known_name("augment", augment, AUGMENTATIONS)](spatial_dims)
