# SPDX-License-Identifier: Apache-2.0
"""Synthetic retinas in the layout of DRIVE: trees of vessels, a photograph of each, and the camera's field of view.

Four vessels leave the optic disc, two of them in arcs around the macula, and branch: at each branching point the
daughters turn to both sides, and their radii obey Murray's law, r³ = r₁³ + r₂³. Lengths are fractions of the picture's
height.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw
from scipy.ndimage import gaussian_filter, zoom

from ..atomic import atomic_path
from .phantom_cache import Phantom
from .scanner import Array, smooth_texture

SHAPE = (565, 584)  # pixels to the right and downwards, of the data set
STEP = 0.012  # length of a piece of a vessel
THINNEST = 0.0019  # radius at which a vessel ends
REACH = 0.46  # radius of the field of view
FIRST = {"training": 21, "test": 1}  # number of the first image of each part
MOST = 20  # images of a part
Piece = tuple[Array, Array, float]  # from, to, radius


def _tree(rng: Generator) -> tuple[list[Piece], Array]:
    """Pieces of the vessels, and the disc from which they come; positions from the middle of the picture."""
    side = rng.choice([-1.0, 1.0])
    disc = np.array([side * rng.uniform(0.25, 0.32), rng.uniform(-0.04, 0.04)])
    pieces: list[Piece] = []
    for towards, up in ((-side, -1), (-side, 1), (side, -1), (side, 1)):
        heading = np.arctan2(up * rng.uniform(1.0, 1.8), towards)
        bend = towards * up * rng.uniform(0.9, 1.5) * (1 if towards == -side else 0.2)  # arcs close behind the macula
        _grow(pieces, disc, heading, bend, rng.uniform(0.0065, 0.0085), rng)
    return pieces, disc


def _grow(pieces: list[Piece], start: Array, heading: float, bend: float, radius: float, rng: Generator) -> None:
    """Follow a vessel to its end, and the daughters that it has on the way."""
    waiting = [(start, heading, bend, radius)]
    while waiting:
        place, heading, bend, radius = waiting.pop()
        until = rng.uniform(4, 9)
        while radius > THINNEST and np.hypot(*place) < REACH + 0.02:
            heading += bend * STEP + rng.normal(0, 0.12)
            end = place + STEP * np.array([np.cos(heading), np.sin(heading)])
            pieces.append((place, end, radius))
            place, until = end, until - 1
            if until <= 0:
                share = rng.uniform(0.08, 0.42)  # of the flow, which goes with r³
                turn = rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.0)
                waiting.append((place, heading + turn, 0.0, radius * share ** (1 / 3)))
                heading -= turn * share
                radius *= (1 - share) ** (1 / 3)
                until = rng.uniform(4, 9)


def _drawn(pieces: list[Piece], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The drawing of the vessels, (Y, X), 255 inside the field of view's vessels."""
    picture = Picture.new("L", shape)
    draw, unit, middle = ImageDraw.Draw(picture), shape[1], (np.array(shape) - 1) / 2
    for start, end, radius in pieces:
        (x0, y0), (x1, y1), half = middle + unit * start, middle + unit * end, unit * radius
        draw.line([(x0, y0), (x1, y1)], fill=255, width=max(round(2 * half), 1))
        draw.ellipse([x1 - half, y1 - half, x1 + half, y1 + half], fill=255)
    return np.asarray(picture) * _field_of_view(shape)


def _field_of_view(shape: tuple[int, int]) -> NDArray[np.uint8]:
    """1 inside the camera's circle, (Y, X)."""
    x, y = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="xy")
    return (np.hypot(x, y) <= REACH * shape[1]).astype(np.uint8)


def _photographed(vessels: NDArray[np.uint8], disc: Array, rng: Generator) -> NDArray[np.uint8]:
    """Colours, (Y, X, 3): dark vessels on a lit background, the bright disc, uneven light and noise; black outside."""
    shape = (vessels.shape[1], vessels.shape[0])
    unit, view = shape[1], _field_of_view(shape)
    x, y = np.meshgrid(*((np.arange(n) - (n - 1) / 2) / unit for n in shape), indexing="xy")
    coarse = smooth_texture((12, 12, 1), 1.0, rng)[..., 0]
    light = 1 - 0.8 * (x**2 + y**2) + 0.05 * zoom(coarse, np.array(vessels.shape) / 12, order=1)
    glow = np.exp(-((np.hypot(x - disc[0], y - disc[1]) / 0.055) ** 4))
    macula = np.exp(-((np.hypot(x + 0.3 * np.sign(disc[0]), y - disc[1]) / 0.07) ** 2))
    depth = gaussian_filter(vessels / 255.0, 0.0016 * unit)
    colours = np.stack(
        [
            level * light * (1 - dark * depth) * (1 - 0.25 * macula) + bright * glow
            for level, dark, bright in ((190, 0.25, 60), (95, 0.5, 110), (45, 0.3, 60))
        ],
        axis=-1,
    )
    noisy = colours + rng.normal(0, 4, colours.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8) * view[..., None]


def _save(path: Path, values: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        kind = {".gif": "GIF", ".tif": "TIFF"}[path.suffix]
        Picture.fromarray(values).save(temporary, format=kind)


def make_drive_phantom(
    root: str | Path, n_training: int = 10, n_test: int = 2, shape: tuple[int, int] = SHAPE, seed: int = 0
) -> Path:
    """Write synthetic retinas in the layout of DRIVE.

    ``training/{images/21_training.tif, 1st_manual/21_manual1.gif, mask/21_training_mask.gif}`` and the same of
    ``test``, from 01. An image depends on (seed, number) alone, not on how many are made. No deformation is stored: the
    pairs are made when they are read (``common.data.drive``).

    Args:
        root: folder to fill; must not hold ``training`` or ``test`` yet.
        n_training: number of training images, 21 to 40; from the fourth on one of five is validation.
        n_test: number of test images, 01 to 20.
        shape: pixels to the right and downwards, at least 64.
        seed: of everything random.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: a number is out of range.
        FileExistsError: ``root`` holds one of the folders already.

    Reference:
        Staal et al., IEEE TMI 23(4), 2004 (the data set whose layout is imitated).
    """
    root = Path(root)
    if not (1 <= n_training <= MOST and 0 <= n_test <= MOST) or min(shape) < 64 or seed < 0:
        raise ValueError(
            f"expected n_training 1 to {MOST}, n_test 0 to {MOST}, a shape of at least 64 pixels and a seed from 0, "
            f"got {n_training}, {n_test}, {tuple(shape)} and {seed}."
        )
    for part, count in (("training", n_training), ("test", n_test)):
        if (root / part).exists():
            raise FileExistsError(f"root: {root / part} exists already; name an empty folder or delete it first.")
        for number in range(FIRST[part], FIRST[part] + count):
            rng = np.random.default_rng((seed, number))
            pieces, disc = _tree(rng)
            vessels = _drawn(pieces, shape)
            _save(root / part / "1st_manual" / f"{number:02d}_manual1.gif", vessels)
            _save(root / part / "mask" / f"{number:02d}_{part}_mask.gif", 255 * _field_of_view(shape))
            _save(root / part / "images" / f"{number:02d}_{part}.tif", _photographed(vessels, disc, rng))
    return root


PHANTOM = Phantom(
    "drive_phantom",
    make_drive_phantom,
    small={"n_training": 9, "n_test": 1, "shape": (188, 195)},
    version=1,  # raise it whenever the written pixels change, so that no old cache is taken for a new one
    text="stands in for retinas of people; its results say nothing of real ones. Set dataset_dir to the folder of "
    "DRIVE (drive.grand-challenge.org) for those.",
)
