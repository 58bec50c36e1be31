# SPDX-License-Identifier: Apache-2.0
"""Synthetic T1 MR crops around a hippocampus, in the layout of Task04 of the Medical Segmentation Decathlon.

One anatomy, given by implicit functions of continuous coordinates u in mm: first axis towards the middle of the brain,
second towards the front, third upwards, the origin in the middle of a crop. A subject is that anatomy, seen through
u(x) = R (x - shift) / size + smooth waves, and evaluated on the subject's own grid: nothing is interpolated. So any two
subjects correspond. What does not, on purpose, is folds and sulci below, the width of the temporal horn, and the image
formation.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .phantom_cache import Phantom, write_reproducible_nifti
from .scanner import Array, magnitude, rician_deviation, smooth_texture

SHAPE_RANGE = ((31, 43), (40, 59), (24, 47))  # voxels, smallest and largest of the data set
AFFINE = np.array([[1.0, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
WHITE, GREY, FLUID = 0.86, 0.50, 0.10
BORDER = 4.0  # mm on the long axis: anterior lies in front of it
NOISE = "noiseTr"  # folder of the phantom's noise levels, which the data set does not have
BLUR = 1.3  # mm, width of an edge in the image


class _Subject(NamedTuple):
    """What distinguishes a subject; mm and radians."""

    shape: tuple[int, int, int]
    rotation: Array  # (3, 3)
    shift: Array  # (3,) of the hippocampus from the middle of the crop
    size: Array  # (3,)
    waves: Array  # (3, n, 5): for each component of the deformation n waves of amplitude, wave vector, phase
    horn: float  # width of the temporal horn
    folds: Array  # (2, 3): two folds of amplitude, wave number, phase


def _draw_subject(rng: Generator) -> _Subject:
    lengths = rng.normal([35.5, 50.0, 35.7], [1.9, 3.4, 4.2])
    shape = tuple(int(np.clip(round(n), *limits)) for n, limits in zip(lengths, SHAPE_RANGE, strict=True))
    n_waves = 4
    vectors = rng.standard_normal((3, n_waves, 3))
    vectors *= 2 * np.pi / rng.uniform(22, 50, (3, n_waves, 1)) / np.linalg.norm(vectors, axis=-1, keepdims=True)
    amplitudes, phases = rng.normal(0, 0.75, (3, n_waves, 1)), rng.uniform(0, 2 * np.pi, (3, n_waves, 1))
    return _Subject(
        shape=(shape[0], shape[1], shape[2]),
        rotation=Rotation.from_rotvec(rng.normal(0, 0.09, 3)).as_matrix(),
        shift=rng.normal(0, 1.2, 3),
        size=rng.normal(1, 0.05, 3),
        waves=np.concatenate([amplitudes, vectors, phases], axis=-1),
        horn=rng.uniform(1.5, 3.0),
        folds=np.stack([rng.uniform(0.5, 1.5, 2), rng.uniform(0.3, 0.5, 2), rng.uniform(0, 2 * np.pi, 2)], axis=-1),
    )


def _anatomical(points: Array, subject: _Subject) -> Array:
    """Positions (3, ...) in mm from the middle of the crop -> coordinates u (3, ...) of the common anatomy."""
    offset = np.moveaxis(points, 0, -1) - subject.shift
    posed = np.moveaxis(offset @ subject.rotation.T / subject.size, -1, 0)
    amplitude, phase = subject.waves[..., 0], subject.waves[..., 4]
    angle = np.einsum("cnk,k...->cn...", subject.waves[..., 1:4], posed) + _broadcast(phase, posed)
    return posed + (_broadcast(amplitude, posed) * np.sin(angle)).sum(1)


def _broadcast(values: Array, like: Array) -> Array:
    return values.reshape(*values.shape, *[1] * (like.ndim - 1))


def _bump(y: Array, centre: float, width: float) -> Array:
    return np.exp(-0.5 * ((y - centre) / width) ** 2)


def _axis(y: Array) -> tuple[Array, Array]:
    """The hippocampus's curved long axis: first and third coordinate where the second is ``y``."""
    return 0.012 * (y + 3) ** 2 - 3.8, 0.004 * y**2 - 0.32 * y - 2.2


def _hippocampus(u: Array) -> Array:
    """Approximate signed distance (mm, negative inside): a tube that is wide and flat at the head, thin at the tail."""
    x, y, z = u
    middle_x, middle_z = _axis(y)
    wide = 5.4 + 4.8 * _bump(y, 11, 5)
    high = 4.4 + 0.5 * _bump(y, 11, 5)
    level = ((x - middle_x) / wide) ** 2 + ((z - middle_z) / high) ** 2 + ((y + 1) / 20) ** 8
    return (np.sqrt(level) - 1) * high


def _fill(image: Array, value: Array | float, distance: Array) -> Array:
    """Give a region its signal; its edge is ``BLUR`` wide."""
    t = np.clip(0.5 - distance / BLUR, 0, 1)
    return image + t * t * (3 - 2 * t) * (value - image)


def _paint(u: Array, subject: _Subject, texture: Array) -> tuple[Array, NDArray[np.uint8]]:
    """Signal in [0, 1] and label at anatomical coordinates (3, X, Y, Z)."""
    x, y, z = u
    middle_x, middle_z = _axis(y)
    distance = _hippocampus(u)
    image = WHITE + 0.025 * texture
    # Below: the parahippocampal cortex, folded differently in everyone, a sulcus, and grey matter again.
    folded = sum(a * np.sin(k * (x + 0.3 * y) + p) for a, k, p in subject.folds)
    depth = middle_z - z - 10 + folded
    image = _fill(image, GREY + 0.1 + 0.03 * texture, np.abs(depth) - 2.0)
    image = _fill(image, FLUID + 0.05, np.abs(depth - 2.6) - 0.5)
    image = _fill(image, 0.62 + 0.05 * np.sin(1.1 * depth + x / 3) + 0.03 * texture, 5.0 - depth)
    # Towards the middle: the cistern between temporal lobe and brain stem; above: thalamus and, at the head, amygdala.
    image = _fill(image, FLUID, np.abs(x - 13.5 - 0.15 * z) - 1.2)
    thalamus = np.sqrt(((x - 8) / 11) ** 2 + ((y + 12) / 15) ** 2 + ((z - 19) / 9) ** 2) - 1
    image = _fill(image, GREY + 0.2 + 0.03 * texture, 9 * thalamus)
    amygdala = np.sqrt(((x - 1) / 9) ** 2 + ((y - 16) / 8) ** 2 + ((z - 7) / 7) ** 2) - 1
    image = _fill(image, GREY + 0.06 + 0.03 * texture, 7 * amygdala)
    # The temporal horn wraps the head's outer and upper side, and thins out along the body.
    side = 1 / (1 + np.exp((x - middle_x - 0.8 * (z - middle_z)) / 1.5))
    horn = distance - subject.horn * side * (0.5 + 0.5 / (1 + np.exp(-(y - 1) / 3)))
    image = _fill(image, FLUID + 0.02 * texture, horn)
    image = _fill(image, GREY + 0.02 + 0.03 * texture, distance)
    label = np.where(distance < 0, np.where(y > BORDER, 1, 2), 0)
    return np.clip(image, 0, 1), label.astype(np.uint8)


def _noise(shape: tuple[int, ...]) -> Array:
    """Deviation of a channel's noise: it rises twelvefold with the distance from the coil at the side of the head."""
    return np.broadcast_to(0.009 * 12 ** np.linspace(0, 1, shape[0])[:, None, None], shape)


def _acquire(signal: Array, rng: Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scanner: bias field, Rician noise, a few voxels far brighter than all tissue, and units of its own.

    Returns the image, and the standard deviation of its noise, rounding included.
    """
    bias = np.exp(0.12 * smooth_texture(signal.shape, 12.0, rng, 12.0))
    deviation = _noise(signal.shape)
    image, level = magnitude(signal * bias, deviation, rng), rician_deviation(signal * bias, deviation)
    image.flat[rng.choice(image.size, 4, replace=False)] = rng.uniform(2, 5, 4)
    unit = np.exp(rng.uniform(np.log(100), np.log(5e5)))  # as far apart as in the data set
    return np.rint(unit * image).astype(np.float32), np.sqrt((unit * level) ** 2 + 1 / 12).astype(np.float32)


def _make_subject(root: Path, number: int, seed: int) -> None:
    """Draw one subject from (seed, number) alone and write its image, labels and noise."""
    rng = np.random.default_rng((seed, number))
    subject = _draw_subject(rng)
    points = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in subject.shape), indexing="ij"))
    texture = smooth_texture(subject.shape, 1.0, rng, 1.0)
    signal, label = _paint(_anatomical(points, subject), subject, texture)
    name = f"hippocampus_{number:03d}.nii.gz"
    image, level = _acquire(signal, rng)
    for part, values in (("imagesTr", image), ("labelsTr", label), (NOISE, level)):
        write_reproducible_nifti(root / part / name, values, AFFINE)


def make_hippocampus_phantom(root: str | Path, n_train: int = 12, n_validation: int = 4, seed: int = 0) -> Path:
    """Write synthetic hippocampi in the layout of Task04_Hippocampus.

    ``imagesTr/hippocampus_NNN.nii.gz`` (float32, the scanner's units, different for each) and ``labelsTr/…`` (uint8: 1
    anterior, 2 posterior), 1 mm, the subjects' shapes differing as in the data set; and ``noiseTr/…`` (float32), the
    standard deviation of the image's noise at each voxel, in its units (but for four voxels that are far too bright). A
    subject depends on (seed, number) alone, not on how many are made. No displacement is stored: between subjects none
    is exact on a grid.

    Args:
        root: folder to fill; must not hold ``imagesTr``, ``labelsTr`` or ``noiseTr`` yet.
        n_train: number of subjects for training: the lowest numbers that do not end in 4 or 9.
        n_validation: number of subjects for validation: the lowest numbers that do.
        seed: of everything random.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: a number is out of range.
        FileExistsError: ``root`` holds one of them already.

    Reference:
        Antonelli et al., Nature Communications 13, 2022 (the data set whose layout and statistics are imitated).
    """
    root = Path(root)
    training, validation = ([n for n in range(1, 1000) if (n % 5 == 4) == held_out] for held_out in (False, True))
    for name, count, largest in (
        ("n_train", n_train, len(training)), ("n_validation", n_validation, len(validation))
    ):  # fmt: skip
        if not 0 <= count <= largest:
            raise ValueError(f"{name}: expected 0 to {largest} (numbers have three digits), got {count}.")
    if n_train + n_validation == 0 or seed < 0:
        raise ValueError(
            f"expected at least one subject and a seed of 0 or more, got n_train {n_train}, n_validation "
            f"{n_validation} and seed {seed}."
        )
    for name in ("imagesTr", "labelsTr", NOISE):
        if (root / name).exists():
            raise FileExistsError(f"root: {root / name} exists already; name an empty folder or delete it first.")
    for number in sorted(training[:n_train] + validation[:n_validation]):
        _make_subject(root, number, seed)
    return root


PHANTOM = Phantom(
    "hippocampus_phantom",
    make_hippocampus_phantom,
    small={"n_train": 3, "n_validation": 2},
    version=2,  # raise it whenever the written voxels change, so that no old cache is taken for a new one
    text="stands in for MR of people; its results say nothing of real hippocampi. Set dataset_dir to the folder of "
    "Task04_Hippocampus (Medical Segmentation Decathlon, medicaldecathlon.com) for those.",
)
