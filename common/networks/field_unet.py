# SPDX-License-Identifier: Apache-2.0
"""DiffuseMorph's field network: a U-Net from the moving image and a predicted noise to a displacement."""

import torch
from torch import Tensor, nn

from .convolution import channels_last, convolution, convolve, convolve_up
from .unet import ConvBlock


class FieldUp(nn.Module):
    """A transposed 3^d convolution of stride 2, cut to the skip's size; behind the skip, through a stage.

    Shape: (B, in_channels, *ceil(S/2)), (B, skip_channels, *S) -> (B, out_channels, *S).

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        skip_channels: of the skip.
        out_channels: of the output.
    """

    def __init__(self, spatial_dims: int, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        layer = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
        self.conv = layer(in_channels, in_channels, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.stage = _stage(spatial_dims, skip_channels + in_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = convolve_up(x, self.conv.weight, self.conv.bias, skip.shape[2:])
        return self.stage(channels_last(torch.cat([skip, x], dim=1)))


def _stage(spatial_dims: int, in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    """Two convolutions in 2D and one in 3D, as published."""
    first = ConvBlock(spatial_dims, in_channels, out_channels, stride)
    return nn.Sequential(first, *[ConvBlock(spatial_dims, out_channels, out_channels) for _ in range(3 - spatial_dims)])


class FieldUNet(nn.Module):
    """From cat(moving, noise) to a displacement in voxels. Any size is taken, as by ``DiffusionUNet``.

    A stage is two convolutions with LeakyReLU(0.2) in 2D and one in 3D. Weights start from N(0, 0.02²), biases at 0.

    Shape: (B, 2, *S) -> (B, d, *S), float32.

    Args:
        spatial_dims: 2 or 3.
        encoder: channels of each level, from full resolution down.
        decoder: channels on the way up: one a level but the last, one that keeps the size, one at full resolution.

    Raises:
        ValueError: for less than two levels, or a decoder of another length.

    Reference:
        Kim et al., DiffuseMorph, ECCV 2022; layers of its released code.
    """

    def __init__(self, spatial_dims: int, encoder: tuple[int, ...], decoder: tuple[int, ...]) -> None:
        super().__init__()
        if len(encoder) < 2 or len(decoder) != len(encoder):
            raise ValueError(
                f"field_encoder, field_decoder: expected as many widths in both, at least two, got {list(encoder)} and "
                f"{list(decoder)}, e.g. [16, 32, 32, 32, 32] and [32, 32, 32, 8, 8]."
            )
        widths = [2, *encoder]
        strides = [1] + [2] * (len(encoder) - 1)
        stages = [_stage(spatial_dims, i, o, s) for i, o, s in zip(widths[:-1], encoder, strides)]
        self.down = nn.ModuleList(stages)
        inputs, skips = [encoder[-1], *decoder[:-3]], encoder[1:-1][::-1]
        ups = [FieldUp(spatial_dims, i, skip, o) for i, skip, o in zip(inputs, skips, decoder[:-2])]
        self.up = nn.ModuleList(ups)
        self.keep = _stage(spatial_dims, decoder[-3] if ups else encoder[-1], decoder[-2])
        self.full = FieldUp(spatial_dims, decoder[-2], encoder[0], decoder[-1])
        self.last = convolution(spatial_dims, decoder[-1], spatial_dims)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(x)
        skips: list[Tensor] = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            x = block(x, skips.pop())
        x = self.full(self.keep(x), skips.pop())
        return convolve(x, self.last.weight, self.last.bias).float()
