# SPDX-License-Identifier: Apache-2.0
"""Synthetic short-axis cardiac MR in the layout of the ACDC release, with the true displacement beside it.

Lengths are in reference pixels of 1.5625 mm (a pixel of the default 160 x 144 image); other shapes scale the anatomy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import map_coordinates

from ..atomic import atomic_path
from .heart import GROUPS, draw_patient, paint, polar, true_displacement
from .phantom_cache import Phantom, write_reproducible_nifti
from .scanner import acquire, smooth_texture

REFERENCE_SHAPE, PIXEL_MM, SLICE_MM = (160, 144), 1.5625, 10.0


def _make_patient(folder: Path, number: int, shape: tuple[int, int], n_slices: int, seed: int) -> None:
    """Draw one patient from (seed, number) alone and write the seven files of the folder."""
    rng = np.random.default_rng((seed, number))
    group = list(GROUPS)[(number - 1 + (number - 1) // 5) % len(GROUPS)]  # shifts, so that digits 4, 9 meet every group
    patient, es_frame = draw_patient(group, rng), int(rng.integers(9, 15))
    unit = min(shape[0] / REFERENCE_SHAPE[0], shape[1] / REFERENCE_SHAPE[1])
    size = (*shape, n_slices)
    middle = (np.array(shape)[:, None, None, None] - 1) / 2
    voxels = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in size), indexing="ij"))
    points = (voxels[:2] - middle) / unit
    level = (np.arange(n_slices)[None, None] + 0.5) / n_slices
    ddf = (true_displacement(points, patient, level, unit) * unit).astype(np.float32)
    extent = np.array(shape) / (2 * unit)
    texture, fresh = smooth_texture(size, 1.6 * unit, rng), smooth_texture(size, 1.6 * unit, rng)
    coil = np.exp(0.2 * smooth_texture(size, 35 * unit, rng, 4.0) - 0.006 * (points[1] + 0.5 * points[0]))
    # Rises towards a place far from all coils, as the noise of parallel imaging does.
    noise_factor = 0.22 * 14 ** np.exp(-0.5 * (polar(points, rng.normal(0, 25, (2, 1, 1, 1)))[0] / 36) ** 2)
    affine = np.diag([-PIXEL_MM / unit, -PIXEL_MM / unit, SLICE_MM, 1.0])  # LPS, as the release
    for frame, es in ((1, False), (es_frame, True)):
        if es:  # the anatomy is evaluated where the tissue was at ED; a part of its pattern has moved in from elsewhere
            at = np.concatenate([voxels[:2] + ddf, voxels[2:]])
            texture = 0.8 * map_coordinates(texture, at, order=1, mode="nearest") + 0.6 * fresh
            points = points + ddf / unit
        signal, label = paint(points, patient, level, 1.3 / unit, extent, texture, es)
        stem = f"patient{number:03d}_frame{frame:02d}"
        image, noise = acquire(signal, coil, noise_factor, rng, unit)
        write_reproducible_nifti(folder / f"{stem}.nii.gz", image, affine)
        write_reproducible_nifti(folder / f"{stem}_gt.nii.gz", label, affine)
    write_reproducible_nifti(folder / f"{stem}_noise.nii.gz", noise, affine)
    truth = folder / f"patient{number:03d}_frame01_to_frame{es_frame:02d}_ddf.nii.gz"
    write_reproducible_nifti(truth, np.moveaxis(ddf, 0, -1), affine)
    height, weight = round(rng.normal(170, 9), 1), round(rng.normal(75, 12), 1)
    facts = {"ED": 1, "ES": es_frame, "Group": group, "Height": height, "NbFrame": 30, "Weight": weight}
    with atomic_path(folder / "Info.cfg") as path:
        path.write_text("".join(f"{key}: {value}\n" for key, value in facts.items()), encoding="utf-8")


def _first_patients(n_train: int) -> list[int]:
    """The lowest numbers that hold ``n_train`` patients for training; 4 and 9 as the last digit are for validation."""
    training = [number for number in range(1, 101) if number % 10 not in (4, 9)]
    return sorted({*range(1, training[n_train - 1] + 1), 4})


def _check(n_train: int, n_test: int, shape: tuple[int, int], n_slices: int, seed: int) -> None:
    if not 1 <= n_train <= 80:
        raise ValueError(f"n_train: expected 1 to 80 (patients 001 to 100 hold 80 for training), got {n_train}.")
    if not 0 <= n_test <= 50:
        raise ValueError(f"n_test: expected 0 to 50 (patients 101 to 150), got {n_test}.")
    if len(shape) != 2 or min(shape) < 32:
        raise ValueError(f"shape: expected two numbers of at least 32 voxels, got {tuple(shape)}.")
    if n_slices < 1 or seed < 0:
        raise ValueError(f"expected n_slices of 1 or more and seed of 0 or more, got {n_slices} and {seed}.")


def make_acdc_phantom(
    root: str | Path,
    n_train: int = 16,
    n_test: int = 2,
    shape: tuple[int, int] = (160, 144),
    n_slices: int = 8,
    seed: int = 0,
) -> Path:
    """Write synthetic cardiac MR patients in the layout of the ACDC release.

    ``training/patientNNN`` and ``testing/patient1NN`` each hold Info.cfg, image and label (1 RV, 2 myocardium, 3 LV) of
    ED and ES, and the truth ``patientNNN_frame01_to_frameMM_ddf.nii.gz``: (X, Y, Z, 2) float32 displacement in voxels,
    in the plane, with ES(x) ~ ED(x + ddf(x)); and ``patientNNN_frameMM_noise.nii.gz``, float32, the standard deviation
    of ES's noise at each voxel, in grey levels. The anatomy of ES is the continuous ED anatomy evaluated at x + ddf(x);
    papillary muscles, trabeculae, blood signal and some basal and apical slices then differ on purpose, as what moves
    through the plane has no counterpart in ED. A patient depends on (seed, number) alone, not on how many are made.

    Args:
        root: folder to fill; must not hold ``training`` or ``testing`` yet.
        n_train: number of training patients; those between them whose number ends in 4 or 9 (validation) come besides,
            patient 004 always. 16 gives patients 001 to 020.
        n_test: number of patients from 101 on, in ``testing``.
        shape: voxels (X, Y) of a slice; the field of view is kept, so that smaller shapes have larger voxels.
        n_slices: slices from base to apex, 10 mm apart.
        seed: of everything random.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: a number is out of range.
        FileExistsError: ``root`` holds ``training`` or ``testing`` already.

    Reference:
        Bernard et al., IEEE TMI 2018 (the data set whose layout and statistics are imitated).
    """
    root = Path(root)
    _check(n_train, n_test, shape, n_slices, seed)
    for name in ("training", "testing"):
        if (root / name).exists():
            raise FileExistsError(f"root: {root / name} exists already; name an empty folder or delete it first.")
    for number in [*_first_patients(n_train), *range(101, 101 + n_test)]:
        part = "training" if number <= 100 else "testing"
        _make_patient(root / part / f"patient{number:03d}", number, (shape[0], shape[1]), n_slices, seed)
    return root


PHANTOM = Phantom(
    "acdc_phantom",
    make_acdc_phantom,
    small={"n_train": 3, "n_test": 1, "shape": (96, 88), "n_slices": 3},
    version=3,  # raise it whenever the written voxels change, so that no old cache is taken for a new one
    text="stands in for patients of ACDC; its results say nothing of real hearts. Set dataset_dir to the folder of "
    "the ACDC release for those.",
)
