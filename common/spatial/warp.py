# SPDX-License-Identifier: Apache-2.0
"""Pull an image through a displacement field. Functions here are TorchScript-compatible."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
        channels.append(base[axis] + ddf[:, axis] * (2.0 / float(max(shape[axis] - 1, 1))))
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
