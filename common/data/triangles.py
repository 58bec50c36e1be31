# SPDX-License-Identifier: Apache-2.0
"""Triangles & Circles: generated pairs of random triangles and circles, filled or as outlines; in 3D tetrahedra, balls.

Lengths are fractions of the image's shortest side, from the first voxel's centre to the last one's. The radius is that
of the ball around the shape, uniform in [0.2, 0.4]; the orientation is uniform; the centre is uniform within 0.15 of
the image's centre along each axis, or within less, where the ball would come nearer than 0.05 to the image's border.
With the signed distance D, negative inside, and the edge's scale e = 1/80, but never less than half a voxel::

    filled   = 1 / (1 + exp(D / e)) = (1 - tanh(D / 2e)) / 2        0.5 on the boundary
    outlines = 4 filled (1 - filled) = 1 - tanh(D / 2e)^2           1 on the boundary, 3.5 e wide at half its height

Departures from the published data: the centre is drawn around that of the image, not uniformly in [0.4, 0.7] of its
sides, where shapes can leave the image; all images are in [0, 1], not the filled ones in [-1, 1]; D of a triangle is
the distance to its nearest side, not the one along the ray from its centre; the list of pairs is fixed, while there
6,000 images are paired anew in each epoch. As there, both images of a pair are drawn independently, so that a triangle
meets a circle as often as another triangle.

There are no files: every argument ``dataset_dir`` is "phantom", and a pair is generated from its entry in ``datalist``.

Reference: Greer et al., ICON, ICCV 2021 (the data set); Tian et al., GradICON, CVPR 2023, Sec. 6.1 (as outlines).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..checks import known_name

# What every data set offers, and here is that of all generated ones.
from .generated import LAYOUT, SPLITS, generator_of, ordered, root, split_of, subjects, write_example  # noqa: F401
from .layout import PHANTOM_NAME
from .shapes import SHAPES, draw_shape, signed_distance

LABELS = {"shape": 1}
ORIENTATION, SPACING, SPACING_RANGE = "RAS", None, None  # there is no physical unit
SPATIAL_SIZE = (64, 64)  # of the network's window
# How inference reads a pair of images; what is not said here is as in training.
INFERENCE = {
    "align": "physical", "orientation": ORIENTATION, "spacing": SPACING, "spacing_range": SPACING_RANGE,
    "crop_center": "middle", "percentiles": [1, 99],
}  # fmt: skip
PHANTOM = None
STYLES = ("outlines", "filled")

EDGE = 1 / 80  # of the shortest side
MIN_EDGE, MIN_SIZE = 0.5, 16  # voxels


def datalist(
    dataset_dir: str | Path = PHANTOM_NAME,
    split: str = "train",
    count: int | Mapping[str, int] | None = None,
    spatial_size: Sequence[int] = (128, 128),
    style: str = "outlines",
    seed: int = 0,
    shapes: Iterable[str] = SHAPES,
) -> list[dict[str, Any]]:
    """What the pairs of a split are generated from, in the order of ``load_pairs``.

    A pair depends on the other arguments, its split and its index, not on ``count``. The shapes drawn are the same for
    both styles.

    Args:
        dataset_dir: "phantom".
        split: 'train', 'validation' or 'test', disjoint random streams, or 'all': these three, one after the other.
        count: pairs of each split, or a dict of them by split; default, also for splits that the dict leaves out:
            ``COUNTS``.
        spatial_size: voxels, 2 or 3 numbers of at least 16.
        style: 'outlines' or 'filled'.
        seed: of everything random, >= 0.
        shapes: of 'triangle' and 'circle', those to draw from for moving and fixed, in any order.

    Returns:
        A dict a pair: ``subject``, and under ``generated`` the arguments of ``generate``. JSON-serialisable.

    Raises:
        DatasetLayoutError: for another ``dataset_dir``.
        ValueError: for an unknown split, style or shape, with the nearest known one, and numbers out of range.
    """
    names = ordered(dataset_dir, split, count)
    known_name("style", style, STYLES)
    wanted = set(shapes)
    for name in sorted(wanted):
        known_name("shapes", name, SHAPES)
    if len(spatial_size) not in (2, 3) or min(spatial_size) < MIN_SIZE:
        raise ValueError(
            f"spatial_size: expected 2 or 3 numbers of at least {MIN_SIZE} voxels, got {tuple(spatial_size)}; smaller "
            "shapes would be no more than a few voxels."
        )
    if not wanted or seed < 0:
        raise ValueError(f"expected at least one name in shapes and seed of 0 or more, got {wanted or ()} and {seed}.")
    how = {"spatial_size": [int(n) for n in spatial_size], "style": style, "seed": seed,
           "shapes": [name for name in SHAPES if name in wanted]}  # fmt: skip
    return [{"subject": name, "generated": how} for name in names]


def load_pairs(
    dataset_dir: str | Path = PHANTOM_NAME,
    split: str = "train",
    count: int | Mapping[str, int] | None = None,
    spatial_size: Sequence[int] = (128, 128),
    style: str = "outlines",
    seed: int = 0,
    shapes: Iterable[str] = SHAPES,
) -> list[dict[str, Any]]:
    """Generate the pairs of a split. A pair takes 10 bytes a voxel.

    Args:
        dataset_dir: see ``datalist``.
        split: see ``datalist``.
        count: see ``datalist``.
        spatial_size: see ``datalist``.
        style: see ``datalist``.
        seed: see ``datalist``.
        shapes: see ``datalist``.

    Returns:
        A dict a pair, see ``generate``.

    Raises:
        DatasetLayoutError, ValueError: as ``datalist``.
    """
    entries = datalist(dataset_dir, split, count, spatial_size, style, seed, shapes)
    return [generate(entry["subject"], **entry["generated"]) for entry in entries]


def example_pair(
    dataset_dir: str | Path = PHANTOM_NAME, spatial_size: Sequence[int] = (64, 64), style: str = "outlines"
) -> tuple[Path, Path]:
    """Write the first test pair as NIfTI, voxels of 1 mm, into a new temporary folder.

    Args:
        dataset_dir: "phantom".
        spatial_size: see ``datalist``; by default that of gradicon_triangles.
        style: see ``datalist``.

    Returns:
        Files of moving and fixed.
    """
    return write_example(load_pairs(dataset_dir, "test", 1, spatial_size, style)[0])


def generate(subject: str, spatial_size: Sequence[int], style: str, seed: int, shapes: Sequence[str]) -> dict[str, Any]:
    """Draw a pair.

    Args:
        subject: 'train_00017'.
        spatial_size: see ``datalist``.
        style: see ``datalist``.
        seed: see ``datalist``.
        shapes: in the order of ``SHAPES``.

    Returns:
        ``moving_image``, ``fixed_image``: float32 ``(1, *S)`` in [0, 1]; ``moving_label``, ``fixed_label``: uint8
        ``(1, *S)``, 1 inside the shape in both styles; ``centre``: float32 ``(d,)``, the image's, voxels; ``subject``;
        ``spacing``: float32 ``(d,)``, NaN, as there is no physical unit.
    """
    rng = generator_of(subject, seed)
    last = torch.tensor([n - 1.0 for n in spatial_size])
    edge = max(EDGE * float(last.min()), MIN_EDGE)
    pair: dict[str, Any] = {}
    for role in ("moving", "fixed"):
        shape = draw_shape(shapes[int(rng.integers(len(shapes)))], spatial_size, rng)
        distance = signed_distance(shape, spatial_size)[None]
        filled = torch.sigmoid(-distance.float() / edge)
        pair[f"{role}_image"] = filled if style == "filled" else 4 * filled * (1 - filled)
        pair[f"{role}_label"] = (distance <= 0).byte()
    return pair | {"centre": last / 2, "subject": subject, "spacing": torch.full((len(last),), torch.nan)}
