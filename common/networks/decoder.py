# SPDX-License-Identifier: Apache-2.0
"""Blocks of TransMorph's convolutional decoder; they take a condition where told to. TorchScript-compatible."""

from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditional_norm import instance_norm, mapping
from .convolution import convolve, cut


class NormalisedConv(nn.Module):
    """A 3^d convolution without bias, instance normalisation and LeakyReLU(0.01).

    Shape: (B, in_channels, *S), (B, 1) -> (B, out_channels, *S).

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        out_channels: of the output.
        conditional: form of the conditional norm, of ``conditional_norm.FORMS``, with a mapping network of its own;
            None ignores the condition.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, conditional: Optional[str] = None
    ) -> None:
        super().__init__()
        layer = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.conv = layer(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.mapping, self.norm = mapping(conditional, out_channels), instance_norm(conditional, out_channels)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        x = self.norm(convolve(x, self.conv.weight), self.mapping(code))
        return F.leaky_relu(x, 0.01, inplace=True)


class DecoderBlock(nn.Module):
    """Two convolutions of cat(linearly up-sampled input, skip).

    Shape: (B, in_channels, *T), (B, skip_channels, *S) with S <= 2T, (B, 1) -> (B, out_channels, *S).

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        skip_channels: of the skip.
        out_channels: of the output.
        conditional: as ``NormalisedConv``.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        conditional: Optional[str] = None,
    ) -> None:
        super().__init__()
        self.first = NormalisedConv(spatial_dims, in_channels + skip_channels, out_channels, conditional)
        self.second = NormalisedConv(spatial_dims, out_channels, out_channels, conditional)

    def forward(self, x: Tensor, skip: Tensor, code: Tensor) -> Tensor:
        return self.joined(enlarged(x, 2, skip.shape[2:]), skip, code)

    def joined(self, x: Tensor, skip: Tensor, code: Tensor) -> Tensor:
        """The block behind its up-sampling.

        Args:
            x: (B, in_channels, *S).
            skip: (B, skip_channels, *S).
            code: (B, 1).

        Returns:
            (B, out_channels, *S).
        """
        return self.second(self.first(torch.cat([x, skip], dim=1), code), code)


def decoder_blocks(spatial_dims: int, skips: Sequence[int], conditional: Optional[str] = None) -> nn.ModuleList:
    """The blocks from the bottom up, as they run.

    Args:
        spatial_dims: 2 or 3.
        skips: channels of the skips, from the finest grid down; the last are those of the bottom.
        conditional: as ``NormalisedConv``.

    Returns:
        One block fewer than ``skips`` has entries.
    """
    pairs = zip(skips[-2::-1], skips[:0:-1], strict=True)
    return nn.ModuleList(DecoderBlock(spatial_dims, below, skip, skip, conditional) for skip, below in pairs)


def enlarged(x: Tensor, factor: int, size: list[int]) -> Tensor:
    """Linear up-sampling by a whole factor, cut at the end; a voxel covers ``factor`` new ones (align_corners=False).

    Args:
        x: (B, C, *S).
        factor: along every axis.
        size: of the result, at most ``factor`` S.

    Returns:
        (B, C, *size); values stay, those of a displacement in voxels too.
    """
    if factor > 1:
        mode = "bilinear" if x.dim() == 4 else "trilinear"
        x = F.interpolate(x, scale_factor=float(factor), mode=mode, align_corners=False)
    return cut(x, size)


def halved_feature(image: Tensor) -> Tensor:
    """Average of 3^d voxels around every second one, with zeros beyond the border.

    Args:
        image: (B, C, *S).

    Returns:
        (B, C, *ceil(S/2)).
    """
    image = F.pad(image, [1] * (2 * (image.dim() - 2)))  # torch pads no axis shorter than the kernel
    return F.avg_pool2d(image, 3, stride=2) if image.dim() == 4 else F.avg_pool3d(image, 3, stride=2)
