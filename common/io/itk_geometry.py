# SPDX-License-Identifier: Apache-2.0
"""Where ITK's images and transforms place voxels and points: LPS there, RAS here."""

from __future__ import annotations

from typing import Any

import numpy as np

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS and back


def ras_affine(direction: np.ndarray, spacing: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """ITK's geometry as an affine.

    Args:
        direction: (d, d), a column an axis.
        spacing: (d,) mm.
        origin: (d,) mm, LPS.

    Returns:
        (4, 4) float64, voxels to mm, RAS. Of 2D images the third axis points up and is 1 mm long.
    """
    dims, affine = len(spacing), np.eye(4)
    affine[:dims, :dims] = np.asarray(direction, dtype=np.float64) * np.asarray(spacing, dtype=np.float64)
    affine[:dims, 3] = origin
    affine = LPS @ affine
    if dims == 2:
        affine[:, 2] = [0, 0, 1, 0]
    return affine


def image_affine(image: Any) -> np.ndarray:
    """The affine of an ``itk.Image``, of two or three axes.

    Args:
        image: of ITK.

    Returns:
        (4, 4), voxels to mm, RAS.
    """
    import itk

    return ras_affine(
        itk.array_from_matrix(image.GetDirection()),
        np.array(list(image.GetSpacing())),
        np.array(list(image.GetOrigin())),
    )


def set_geometry(image: Any, affine: np.ndarray) -> None:
    """Give an ``itk.Image`` or a ``SimpleITK.Image`` the place that an affine says.

    Args:
        image: of two or three axes; changed.
        affine: (4, 4), voxels to mm, RAS; of 2D images in the plane z = constant.
    """
    direction, spacing, origin = geometry(affine, image.GetImageDimension() if _is_itk(image) else image.GetDimension())
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    if _is_itk(image):
        import itk

        image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(direction)))
    else:
        image.SetDirection(direction.ravel().tolist())


def geometry(affine: np.ndarray, dims: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse of ``ras_affine``.

    Args:
        affine: (4, 4), voxels to mm, RAS.
        dims: 2 or 3.

    Returns:
        Direction (d, d), spacing (d,) in mm and origin (d,) in mm, LPS.
    """
    own = (LPS @ affine)[[*range(dims), 3]][:, [*range(dims), 3]]
    spacing = np.linalg.norm(own[:dims, :dims], axis=0)
    return own[:dims, :dims] / spacing, spacing, own[:dims, dims]


def _is_itk(image: Any) -> bool:
    return hasattr(image, "GetImageDimension")
