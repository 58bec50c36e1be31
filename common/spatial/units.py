# SPDX-License-Identifier: Apache-2.0
"""Conversions between voxels, the unit cube and millimetres: the only home of them."""

import numpy as np
import torch
from torch import Tensor


def _voxels_per_unit(name: str, field: Tensor) -> Tensor:
    shape = field.shape[2:]
    if len(shape) not in (2, 3) or field.shape[1] != len(shape):
        raise ValueError(
            f"{name}: field must have shape (B, d, *S) with d = 2 or 3 channels, one for each axis of S; got"
            f" {list(field.shape)}. Add the batch axis with field[None] if that is what is missing."
        )
    # An axis of one voxel has no extent: its only voxel is position 0 in both conventions.
    intervals = [float(max(size - 1, 1)) for size in shape]
    return torch.tensor(intervals, dtype=field.dtype, device=field.device).view([1, -1] + [1] * len(shape))


def unit_to_voxel(field_unit: Tensor) -> Tensor:
    """Map or displacement in the unit cube to voxels of the grid it lives on: x_voxel = (n − 1) · x_unit an axis.

    Positions and displacements scale alike because voxel 0 lies at 0 and voxel n − 1 at 1. Scriptable.

    Args:
        field_unit: (B, d, *S), channel i along array axis i, spacing 1 / (n_i − 1).

    Returns:
        (B, d, *S) in voxels.

    Raises:
        ValueError: if the channels do not match the axes.

    Reference:
        Greer et al., ICON, ICCV 2021 (maps [0, 1]^d → [0, 1]^d).
    """
    return field_unit * _voxels_per_unit("unit_to_voxel", field_unit)


def voxel_to_unit(field: Tensor) -> Tensor:
    """Map or displacement in voxels of its own grid to the unit cube: x_unit = x_voxel / (n − 1). Scriptable.

    Args:
        field: (B, d, *S) in voxels, channel i along array axis i.

    Returns:
        (B, d, *S) in units, spacing 1 / (n_i − 1).

    Raises:
        ValueError: if the channels do not match the axes.

    Reference:
        Greer et al., ICON, ICCV 2021.
    """
    return field / _voxels_per_unit("voxel_to_unit", field)


def plane_affine(affine: np.ndarray) -> np.ndarray:
    """The in-plane (3, 3) affine of a 2D image from its (4, 4) one: rows and columns x, y and translation.

    Args:
        affine: (4, 4) voxels to mm, RAS.

    Returns:
        (3, 3) float64, voxels to mm, RAS without the third axis.

    Raises:
        ValueError: if the image's plane is not z = constant, where x and y alone cannot say where a voxel lies.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f"plane_affine: affine must have shape (4, 4); got {matrix.shape}.")
    if np.abs(matrix[2, :2]).max() > 1e-4 * np.abs(matrix[:3, :2]).max():
        raise ValueError(
            "plane_affine: affine must describe a plane z = constant; got a tilted plane with third row"
            f" {matrix[2].tolist()}. Store the slice as a file of shape (X, Y, 1), which keeps the tilt."
        )
    return matrix[np.ix_([0, 1, 3], [0, 1, 3])]


def _directions(name: str, ddf: Tensor, affine: np.ndarray | Tensor) -> np.ndarray:
    matrix = affine.detach().cpu().numpy() if isinstance(affine, Tensor) else np.asarray(affine)
    dims = matrix.shape[0] - 1 if matrix.ndim == 2 else 0
    if dims not in (2, 3) or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"{name}: affine must have shape (3, 3) for 2D or (4, 4) for 3D fields; got {matrix.shape}."
            " Reduce the (4, 4) affine of a 2D image with plane_affine."
        )
    if ddf.dim() not in (dims + 1, dims + 2) or ddf.shape[ddf.dim() - dims - 1] != dims:
        raise ValueError(
            f"{name}: the field must have shape (B, {dims}, *S) or ({dims}, *S) with {dims} axes to go with an affine"
            f" of shape {matrix.shape}; got {tuple(ddf.shape)}."
        )
    linear = matrix[:dims, :dims].astype(np.float64)
    volume = np.linalg.norm(linear, axis=0).prod()  # of the voxel, were its edges orthogonal
    if not np.isfinite(linear).all() or abs(np.linalg.det(linear)) <= 1e-9 * volume:
        raise ValueError(f"{name}: affine must be finite and invertible; got {matrix.tolist()}. Repair the header.")
    return linear


def _apply(linear: np.ndarray, field: Tensor) -> Tensor:
    matrix = torch.as_tensor(linear, dtype=field.dtype, device=field.device)
    channel = field.dim() - linear.shape[0] - 1
    return torch.movedim(torch.movedim(field, channel, -1) @ matrix.T, -1, channel)


def voxel_to_physical(ddf: Tensor, affine: np.ndarray | Tensor) -> Tensor:
    """Displacement in voxels to displacement in mm, RAS: u_mm(x) = A u(x), A the linear part of the affine.

    A holds direction times spacing. The translation has no part in it: a displacement is a difference of positions.

    Args:
        ddf: (B, d, *S) or (d, *S) in voxels, channel i along array axis i; d is the affine's size less one.
        affine: (d + 1, d + 1), voxels to mm, RAS. See ``plane_affine`` for 2D images.

    Returns:
        As ``ddf``, in mm; channels point right, anterior and (3D) superior. Values stay at the voxels of the grid.

    Raises:
        ValueError: if the affine is not invertible or does not fit the field.
    """
    return _apply(_directions("voxel_to_physical", ddf, affine), ddf)


def physical_to_voxel(ddf_mm: Tensor, affine: np.ndarray | Tensor) -> Tensor:
    """Displacement in mm, RAS, to displacement in voxels: u(x) = A⁻¹ u_mm(x); inverse of ``voxel_to_physical``.

    Args:
        ddf_mm: (B, d, *S) or (d, *S) in mm, RAS, given at the voxels of the grid.
        affine: (d + 1, d + 1), voxels to mm, RAS.

    Returns:
        As ``ddf_mm``, in voxels, channel i along array axis i.

    Raises:
        ValueError: if the affine is not invertible or does not fit the field.
    """
    return _apply(np.linalg.inv(_directions("physical_to_voxel", ddf_mm, affine)), ddf_mm)


def flip_ras_lps(ddf_mm: Tensor, channel: int) -> Tensor:
    """RAS to LPS and back (its own inverse): the signs of the first two components change.

    Args:
        ddf_mm: displacement or positions in mm, with 2 or 3 components along axis ``channel``.
        channel: the axis of the components: 0 for (d, *S), 1 for (B, d, *S).

    Returns:
        As ``ddf_mm``, in the other convention.

    Raises:
        ValueError: if there are not 2 or 3 components.
    """
    components = ddf_mm.shape[channel]
    if components not in (2, 3):
        raise ValueError(
            f"flip_ras_lps: ddf_mm must have 2 or 3 components along axis {channel}; got shape {tuple(ddf_mm.shape)}."
            " Name the axis of the components."
        )
    signs = torch.tensor([-1.0, -1.0, 1.0][:components], dtype=ddf_mm.dtype, device=ddf_mm.device)
    return ddf_mm * signs.view([-1] + [1] * (ddf_mm.dim() - 1 - channel % ddf_mm.dim()))
