# SPDX-License-Identifier: Apache-2.0
"""Synthetic DESS MR of knees, in the layout of ``common.data.oai``: femur, tibia, fibula and two cartilages.

One anatomy, given by implicit functions of coordinates u in mm: outwards (towards the fibula), to the back, upwards. A
subject is that anatomy seen through u(x) = R (x - shift) / size + smooth waves, so that any two subjects correspond.
Knees are half as wide as a person's and a quarter as high.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .phantom_cache import Phantom, write_reproducible_nifti
from .scanner import Array, magnitude, smooth_texture

SHAPE, SPACING = (40, 48, 48), (1.4, 0.73, 0.73)  # voxels and mm, to the left, the back and upwards
FIRST = {"train": 9000001, "val": 9500001, "test": 9700001}  # number of the first knee of each part
SIGNAL = {"air": 0.02, "muscle": 0.35, "fat": 0.55, "bone": 0.15, "fluid": 0.95, "cartilage": 0.75}
FEMORAL, TIBIAL = 1, 2
THICKNESS = (2.0, 2.4)  # mm, of the cartilages
EDGE = 0.7  # mm


def _bones(u: Array) -> tuple[Array, Array, Array]:
    """Approximate distances from femur, tibia and fibula in mm, negative inside."""
    x, y, z = u
    condyles = [
        np.sqrt(((x - side) / 7.5) ** 2 + (y / 7.5) ** 2 + ((z - 7) / 6.5) ** 2) * 6.5 - 6.5 for side in (-8.5, 8.5)
    ]
    shaft = np.maximum(np.hypot(x / 1.6, y + 1) - 4.5, 6 - z)
    femur = np.minimum(np.minimum(*condyles), shaft)
    plateau = np.sqrt((x / 18) ** 2 + (y / 9) ** 2 + ((z + 8.2) / 4) ** 8) * 4 - 4
    tibia = np.minimum(plateau, np.maximum(np.hypot(x / 1.7, y) - 4.5, z + 9))
    fibula = np.maximum(np.hypot(x - 17, y - 6) - 2.2, z + 10)
    return femur, tibia, fibula


def _paint(u: Array, texture: Array) -> tuple[Array, NDArray[np.uint8]]:
    """Signal in [0, 1] and label at coordinates (3, X, Y, Z)."""
    x, y, z = u
    femur, tibia, fibula = _bones(u)
    skin = (np.hypot(x / 1.55, y) - 15.5) * 0.9
    image = np.where(skin < 0, SIGNAL["fat"], SIGNAL["air"]) + 0.03 * texture
    inner = np.where(np.hypot(x / 1.4, y) < 12, SIGNAL["muscle"], image) + 0.02 * texture
    image = np.where(skin < 0, inner, image)
    image = _fill(image, SIGNAL["fluid"], np.maximum(np.abs(z + 1.2) - 2.8, np.hypot(x / 1.6, y) - 9))
    cartilages = (
        np.maximum(femur - THICKNESS[0], z - 7 + 0.4 * np.abs(y)),
        np.maximum(tibia - THICKNESS[1], np.maximum(-z - 6.5, np.hypot(x / 1.9, y) - 8.5)),
    )
    for distance in cartilages[::-1]:  # the femoral one lies over the tibial one where they touch
        image = _fill(image, SIGNAL["cartilage"] + 0.03 * texture, distance)
    label = np.where(cartilages[1] < 0, TIBIAL, 0)
    label = np.where(cartilages[0] < 0, FEMORAL, label)
    for bone in (femur, tibia, fibula):
        image, label = _fill(image, SIGNAL["bone"] + 0.02 * texture, bone), np.where(bone < 0, 0, label)
    return np.clip(image, 0, 1), label.astype(np.uint8)


def _fill(image: Array, value: Array | float, distance: Array) -> Array:
    t = np.clip(0.5 - distance / EDGE, 0, 1)
    return image + t * t * (3 - 2 * t) * (value - image)


def _anatomical(points: Array, rng: Generator) -> Array:
    """Positions (3, ...) in mm from the middle -> coordinates u of the common anatomy, of a subject that is drawn."""
    rotation = Rotation.from_rotvec(rng.normal(0, 0.06, 3)).as_matrix()
    shift, size = rng.normal(0, 0.8, 3), rng.normal(1, 0.04, 3)
    vectors = rng.standard_normal((3, 3, 3))
    vectors *= 2 * np.pi / rng.uniform(18, 40, (3, 3, 1)) / np.linalg.norm(vectors, axis=-1, keepdims=True)
    amplitudes, phases = rng.normal(0, 0.45, (3, 3, 1, 1, 1)), rng.uniform(0, 2 * np.pi, (3, 3, 1, 1, 1))
    posed = np.moveaxis((np.moveaxis(points, 0, -1) - shift) @ rotation.T / size, -1, 0)
    angle = np.einsum("cnk,k...->cn...", vectors, posed) + phases
    return posed + (amplitudes * np.sin(angle)).sum(1)


def _make_knee(root: Path, number: int, seed: int) -> str:
    """Write a knee; the stem of its files. Odd numbers are left knees, even ones right knees."""
    rng, left = np.random.default_rng((seed, number)), number % 2 == 1
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(SHAPE, SPACING, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    points[0] *= 1 if left else -1  # outwards is to the left in a left knee
    texture = smooth_texture(SHAPE, 1.0, rng, 1.0)
    signal, label = _paint(_anatomical(points, rng), texture)
    bias = np.exp(0.1 * smooth_texture(SHAPE, 10.0, rng, 10.0))
    image = np.rint(900 * magnitude(signal * bias, 0.025, rng)).astype(np.int16)
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    stem = f"{number}_20050101_SAG_3D_DESS_{'LEFT' if left else 'RIGHT'}_01660000{number % 10}"
    write_reproducible_nifti(root / "images" / f"{stem}_image.nii.gz", image, affine)
    write_reproducible_nifti(root / "images" / f"{stem}_label_all.nii.gz", label, affine)
    return stem


def make_oai_phantom(
    root: str | Path, n_train: int = 10, n_validation: int = 4, n_test: int = 2, seed: int = 0
) -> Path:
    """Write synthetic knees in the layout of the ICON repository's lists.

    ``splits/{train,val,test}/pair_path_list.txt`` and ``pair_name_list.txt``, each knee with the next one;
    ``images/NAME_image.nii.gz`` and ``NAME_label_all.nii.gz`` (1 femoral, 2 tibial cartilage), half of them right
    knees. A knee depends on (seed, number) alone.

    Args:
        root: folder to fill; must not hold ``splits`` or ``images`` yet.
        n_train: knees for training.
        n_validation: knees for validation.
        n_test: knees for testing.
        seed: of everything random.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: a number is out of range.
        FileExistsError: ``root`` holds one of the folders already.

    Reference:
        Osteoarthritis Initiative, nda.nih.gov/oai, whose DESS images are imitated.
    """
    root, counts = Path(root), {"train": n_train, "val": n_validation, "test": n_test}
    if not all(2 <= count <= 1000 for count in counts.values()) or seed < 0:
        raise ValueError(f"expected 2 to 1000 knees in every part and a seed from 0, got {counts} and {seed}.")
    for name in ("splits", "images"):
        if (root / name).exists():
            raise FileExistsError(f"root: {root / name} exists already; name an empty folder or delete it first.")
    for part, count in counts.items():
        stems = [_make_knee(root, number, seed) for number in range(FIRST[part], FIRST[part] + count)]
        pairs = list(zip(stems, [*stems[1:], stems[0]], strict=True))
        folder = root / "splits" / part
        folder.mkdir(parents=True)
        kinds = ("image", "image", "label_all", "label_all")
        rows = [" ".join(f"images/{s}_{k}.nii.gz" for s, k in zip(pair * 2, kinds, strict=True)) for pair in pairs]
        (folder / "pair_path_list.txt").write_text("".join(f"{row}\n" for row in rows), encoding="ascii")
        (folder / "pair_name_list.txt").write_text("".join(f"{a}_{b}\n" for a, b in pairs), encoding="ascii")
    return root


PHANTOM = Phantom(
    "oai_phantom",
    make_oai_phantom,
    small={"n_train": 4, "n_validation": 2, "n_test": 2},
    version=1,  # raise it whenever the written voxels change, so that no old cache is taken for a new one
    text="stands in for MR of knees; its results say nothing of real ones, and its knees are smaller. Set dataset_dir "
    "to a folder of OAI images (nda.nih.gov/oai) for those.",
)
