# SPDX-License-Identifier: Apache-2.0
"""Pull an image through a displacement field. Functions here are TorchScript-compatible."""

import torch
import torch.nn.functional as F
from torch import Tensor

PADDINGS = ("zeros", "border", "reflection")


def identity_grid(shape: list[int], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Voxel coordinates of a grid.

    Args:
        shape: grid size (*S), one entry an axis.
        device: where to put it.
        dtype: floating type of the coordinates.

    Returns:
        (d, *S): channel i holds the index along array axis i.
    """
    axes = [torch.arange(size, device=device, dtype=dtype) for size in shape]
    return torch.stack(torch.meshgrid(axes, indexing="ij"))


def sampling_grid(ddf: Tensor) -> Tensor:
    """The grid that ``torch.nn.functional.grid_sample`` (align_corners=True) wants for x + ddf(x).

    Args:
        ddf: displacement in voxels, (B, d, *S).

    Returns:
        (B, *S, d) coordinates in [-1, 1], last axis first, as grid_sample orders them.
    """
    shape = list(ddf.shape[2:])
    axes = [torch.linspace(-1.0, 1.0, size, device=ddf.device, dtype=ddf.dtype) for size in shape]
    base = torch.meshgrid(axes, indexing="ij")
    channels: list[Tensor] = []
    for axis in range(len(shape)):
        channels.append((ddf[:, axis] * (2.0 / float(max(shape[axis] - 1, 1)))).add_(base[axis]))
    channels.reverse()
    return torch.stack(channels, dim=-1)


def warp(image: Tensor, ddf: Tensor, mode: str = "bilinear", padding: str = "zeros") -> Tensor:
    """warped(x) = image(x + ddf(x)), in 2D and 3D.

    Args:
        image: (B, C, *S).
        ddf: displacement in voxels, (B, d, *S), channel i along array axis i.
        mode: "bilinear" (trilinear in 3D) or "nearest" (labels; keeps an integer ``image`` integer).
        padding: what lies outside: "zeros" (published VoxelMorph; the default), "border" or "reflection".

    Returns:
        (B, C, *S), of the type of ``image``.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    if ddf.dim() != image.dim() or ddf.shape[1] != image.dim() - 2 or ddf.shape[2:] != image.shape[2:]:
        raise ValueError(
            f"warp: ddf must have shape (B, d, *S) over the image's grid; got image {image.shape} and ddf {ddf.shape}."
            " Resample the field with common.spatial.integrate.resize_field, or the image, first."
        )
    floating = image if image.is_floating_point() else image.to(ddf.dtype)
    warped = F.grid_sample(
        floating.to(ddf.dtype), sampling_grid(ddf), mode=mode, padding_mode=padding, align_corners=True
    )
    return warped.to(image.dtype)


def samples_inside(ddf: Tensor) -> Tensor:
    """1 where x + ddf(x) lies on the grid, 0 elsewhere.

    Departure: the ICON code warps ones with a border of zeros, which also takes off what lies within a voxel of the
    border, in part.

    Args:
        ddf: displacement in voxels, (B, d, *S).

    Returns:
        (B, 1, *S), of the type of ``ddf``.
    """
    return (sampling_grid(ddf).abs() <= 1.0 + 1e-6).all(dim=-1).unsqueeze(1).to(ddf.dtype)


def sample(field: Tensor, points: Tensor, padding: str = "border") -> Tensor:
    """Values of a field at any points, (bi/tri)linear between the voxels (align_corners=True).

    Args:
        field: (B, C, *S), two or three axes.
        points: where to read it, in voxels of its grid, (B, d, *P) of floating type, channel i along array axis i.
        padding: what lies outside: "border" (the border's value; the default), "zeros" or "reflection".

    Returns:
        (B, C, *P), of the type of ``points``.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    dims = field.dim() - 2
    if dims < 2 or dims > 3 or points.dim() < 3 or points.shape[0] != field.shape[0] or points.shape[1] != dims:
        raise ValueError(
            f"sample: points must have shape (B, d, *P) for a field (B, C, *S) of d = 2 or 3 axes; got field"
            f" {field.shape} and points {points.shape}. Put the coordinates on axis 1 and expand both to one batch."
        )
    coordinates: list[Tensor] = []
    for axis in range(dims):
        coordinates.append(points[:, axis].flatten(1) * (2.0 / float(max(field.shape[axis + 2] - 1, 1))) - 1.0)
    coordinates.reverse()
    # grid_sample wants as many axes of points as the field has: all of them lie along the last one.
    grid = torch.stack(coordinates, dim=-1).unsqueeze(1)
    if dims == 3:
        grid = grid.unsqueeze(1)
    values = F.grid_sample(field.to(points.dtype), grid, mode="bilinear", padding_mode=padding, align_corners=True)
    return values.reshape(list(field.shape[:2]) + list(points.shape[2:]))
