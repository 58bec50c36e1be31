# SPDX-License-Identifier: Apache-2.0
"""Where a NIfTI header places the voxels: the affine, its units, and what ITK accepts of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np

logger = logging.getLogger(__name__)

# ITK 5.4 refuses an sform whose axes, scaled to 1, are further than 1e-4 from orthonormal; it calculates in float32.
ORTHONORMAL = 0.99e-4
MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # the codes of metre and micron; mm, and no or another unit, count as mm


def file_affine(nifti: nib.Nifti1Pair, path: str | Path, argument: str = "path") -> np.ndarray:
    """The (4, 4) float64 RAS affine of an opened file, voxels to mm.

    The sform if the file has one, else the qform, else (both codes 0) spacing alone in ITK's reading: LPS axes and
    origin 0. Where the sform's voxels are not of the size that pixdim gives, as in ACDC's frames (sform of 1 mm), they
    are taken to be of pixdim's, as ITK does, and a warning says so. Metres and microns (``xyzt_units``) become mm.

    Args:
        nifti: the opened file.
        path: what errors and warnings call it.
        argument: the option that gave the path.

    Returns:
        (4, 4) float64.

    Raises:
        ValueError: if the affine is not invertible, or its axes are not orthogonal to ITK's tolerance.
    """
    qform_code, sform_code = int(nifti.header["qform_code"]), int(nifti.header["sform_code"])
    scale = _mm_per_unit(nifti)
    if qform_code == 0 and sform_code == 0:
        pixdim = _pixdim_mm(nifti)
        _check_sizes(pixdim, path, argument)
        logger.warning(
            "%s: %s gives no orientation (qform and sform codes are 0): its axes are taken as left, posterior, "
            "superior, as ITK does, but where they point is not known.", argument, path,
        )  # fmt: skip
        return np.diag([-pixdim[0], -pixdim[1], pixdim[2], 1.0])
    if sform_code == 0:
        _check_sizes(_pixdim_mm(nifti), path, argument)
    affine = np.array(nifti.affine, dtype=np.float64)
    affine[:3] *= scale
    if nifti.ndim == 2 and not affine[:3, 2].any():
        affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1]) / np.linalg.norm(affine[:3, 0])
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-9 * lengths.prod():
        raise ValueError(
            f"{argument}: expected an invertible affine; {path} has {affine.tolist()}. Repair its qform and sform."
        )
    if not is_orthonormal(affine):
        raise ValueError(
            f"{argument}: expected orthogonal axes, the only ones that ITK, ANTs and 3D Slicer know; {path} has a "
            f"sheared sform {affine.tolist()}. Resample it onto an orthogonal grid, or, where its qform is the true "
            "one, set the sform to that."
        )
    if sform_code > 0:
        affine = _sized_by_pixdim(nifti, affine, path, argument)
        if qform_code > 0:
            _warn_of_qform(nifti, affine, path, argument)
    return affine


def is_orthonormal(affine: np.ndarray) -> bool:
    """Whether ITK opens a file with this (4, 4) affine: its axes are orthogonal to ITK's tolerance.

    Args:
        affine: (4, 4).

    Returns:
        True or False.
    """
    axes = (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).astype(np.float32)
    return float(np.abs(axes @ axes.T - np.eye(3, dtype=np.float32)).max()) <= ORTHONORMAL


def largest_distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance in mm between where two (4, 4) affines place the voxels of a grid.

    Args:
        first: (4, 4).
        second: (4, 4).
        shape: of the grid.

    Returns:
        In mm.
    """
    # The distance is convex in the position, hence largest at a corner of the grid.
    sizes = (list(shape) + [1, 1])[:3]
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in sizes))])
    return float(np.linalg.norm(corners @ (first - second).T, axis=1).max())


def _mm_per_unit(nifti: nib.Nifti1Pair) -> float:
    return MM_PER_UNIT.get(int(nifti.header["xyzt_units"]) & 7, 1.0)


def _pixdim_mm(nifti: nib.Nifti1Pair) -> np.ndarray:
    return np.abs(np.asarray(nifti.header["pixdim"][1:4], dtype=np.float64)) * _mm_per_unit(nifti)


def _check_sizes(sizes: np.ndarray, path: str | Path, argument: str) -> None:
    """Refuse voxels of no size, which nothing else in the header replaces."""
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError(
            f"{argument}: expected voxels of a size above 0; {path} has {sizes_text(sizes)} mm (pixdim). Write the "
            "right voxel size into its header."
        )


def _sized_by_pixdim(nifti: nib.Nifti1Pair, affine: np.ndarray, path: str | Path, argument: str) -> np.ndarray:
    shape, lengths = nifti.shape[:3], np.linalg.norm(affine[:3, :3], axis=0)
    sizes = _pixdim_mm(nifti)
    sized = affine.copy()
    sized[:3, : len(shape)] *= (sizes / lengths)[: len(shape)]
    if not (sizes[: len(shape)] > 0).all() or largest_distance(sized, affine, shape) <= 0.01 * lengths.min():
        return affine
    warnings.warn(
        f"{argument}: {path}: pixdim and sform disagree, {sizes_text(sizes)} and {sizes_text(lengths)} mm; pixdim's"
        " voxels are taken, as ITK and ANTs do. Other tools may take the sform's: make the two equal.",
        stacklevel=4,
    )
    return sized


def _warn_of_qform(nifti: nib.Nifti1Pair, affine: np.ndarray, path: str | Path, argument: str) -> None:
    """ITK takes the directions from the qform where that is not the sform's."""
    shape, smallest = nifti.shape[:3], float(np.linalg.norm(affine[:3, :3], axis=0).min())
    apart = largest_distance(np.diag([*[_mm_per_unit(nifti)] * 3, 1.0]) @ nifti.get_qform(), affine, shape)
    if apart > 0.05 * smallest:  # below: a quaternion's rounding
        warnings.warn(
            f"{argument}: {path}: qform and sform disagree by up to {apart:.3g} mm; the sform is used. ITK and ANTs may"
            " use the qform: make them equal before exchanging transforms with them.",
            stacklevel=4,
        )


def sizes_text(sizes: Iterable[float]) -> str:
    """Sizes as messages show them: "1.5 x 1.5 x 10".

    Args:
        sizes: numbers.

    Returns:
        The text.
    """
    return " x ".join(f"{size:.4g}" for size in sizes)
