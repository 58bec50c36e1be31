# SPDX-License-Identifier: Apache-2.0
"""Convolutions as all networks here run them: channels last, whatever the size of the image."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolution(spatial_dims: int, in_channels: int, out_channels: int, bias: bool = True) -> nn.Module:
    """A 3^d convolution that keeps the size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        out_channels: of the output.
        bias: whether it has one.

    Returns:
        The module.
    """
    conv = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    return conv(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)


def flow_head(spatial_dims: int, in_channels: int) -> nn.Module:
    """The convolution that predicts a displacement or a velocity: it starts near 0.

    Args:
        spatial_dims: d, 2 or 3.
        in_channels: of the features.

    Returns:
        A 3^d convolution to d channels, weights from N(0, (1e-5)²), biases 0.
    """
    head = convolution(spatial_dims, in_channels, spatial_dims)
    nn.init.normal_(head.weight, std=1e-5)  # type: ignore[arg-type]
    nn.init.zeros_(head.bias)  # type: ignore[arg-type]
    return head


def channels_last(x: Tensor) -> Tensor:
    """Bring a tensor to the layout in which convolutions are fastest; no copy where it has it already.

    Args:
        x: (B, C, *S) with two or three axes S; any other tensor stays as it is.

    Returns:
        The same values.
    """
    if x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last_3d) if x.dim() == 5 else x


def weights_channels_last(module: nn.Module) -> None:
    """Lay out the weights of all convolutions channels last, so that no forward has to; values stay.

    Args:
        module: whose parameters are laid out.
    """
    for parameter in module.parameters():
        parameter.data = channels_last(parameter.data)


def may_overwrite() -> bool:
    """Whether intermediate results may be changed in place: no backward pass needs them, no export records them.

    Returns:
        True or False.
    """
    return not (torch.is_grad_enabled() or torch.jit.is_tracing())


def cut(x: Tensor, size: list[int], first: int = 0) -> Tensor:
    """The part of an image that starts at ``first`` along every axis.

    Args:
        x: (B, C, *S).
        size: of the part.
        first: its first voxel.

    Returns:
        (B, C, *size), a view.
    """
    for axis in range(len(size)):
        # Of nothing cut off the backward pass would still make a copy; an export records the cut for other sizes.
        if not torch.is_grad_enabled() or torch.jit.is_tracing() or x.shape[2 + axis] != size[axis]:
            x = x.narrow(2 + axis, first, size[axis])
    return x


# Where an axis has one or two voxels, the functions below append the zeros of the padding as data: of kernel taps that
# see little else, oneDNN leaves the bfloat16 gradient unset.


def convolve(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, stride: int = 1) -> Tensor:
    """Convolve with a 3^d kernel and padding 1.

    Args:
        x: (B, I, *S).
        weight: (O, I, 3, …).
        bias: (O,).
        stride: along every axis.

    Returns:
        (B, O, *ceil(S/stride)).
    """
    padding = 1
    if min(x.shape[2:]) < 3:
        x = F.pad(x, [1] * (2 * (x.dim() - 2)))
        padding = 0
    if x.dim() == 4:
        return F.conv2d(x, weight, bias, stride=stride, padding=padding)
    return F.conv3d(x, weight, bias, stride=stride, padding=padding)


def convolve_up(x: Tensor, weight: Tensor, bias: Optional[Tensor], size: list[int]) -> Tensor:
    """Convolve with a transposed 3^d or 4^d kernel, stride 2, padding 1, and cut at the end.

    Args:
        x: (B, I, *S).
        weight: (I, O, 3, …) or (I, O, 4, …).
        bias: (O,).
        size: of the output, at most 2S.

    Returns:
        (B, O, *size).
    """
    first = 0
    if min(x.shape[2:]) < 3:
        x = F.pad(x, [1] * (2 * (x.dim() - 2)))
        first = 2
    beyond = 4 - weight.shape[2]  # a kernel of three taps leaves the last voxel out
    if x.dim() == 4:
        x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=beyond)
    else:
        x = F.conv_transpose3d(x, weight, bias, stride=2, padding=1, output_padding=beyond)
    return cut(x, size, first)
