# SPDX-License-Identifier: Apache-2.0
"""DiffuseMorph's diffusion network: a U-Net that predicts the noise of an image at a step of its diffusion."""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import channels_last, convolution, convolve


def _pointwise(spatial_dims: int, in_channels: int, out_channels: int, bias: bool = True) -> nn.Module:
    layer = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    return layer(in_channels, out_channels, kernel_size=1, bias=bias)


class TimeEmbedding(nn.Module):
    """Sines and cosines of the diffusion step, from period 2π to 2π · 10000, and two linear layers.

    Shape: (B,) -> (B, channels).

    Args:
        channels: even.
    """

    frequencies: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        exponents = torch.arange(0, channels, 2, dtype=torch.float32) / channels
        self.register_buffer("frequencies", torch.exp(-math.log(10000.0) * exponents), persistent=False)
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)

    def forward(self, step: Tensor) -> Tensor:
        angle = step.to(self.frequencies.dtype).unsqueeze(1) * self.frequencies
        return self.narrow(F.silu(self.widen(torch.cat([angle.sin(), angle.cos()], dim=1))))


class ResidualBlock(nn.Module):
    """Twice group norm, SiLU and a 3^d convolution, the step's embedding added between, beside the input.

    Shape: (B, in_channels, *S), (B, time_channels) -> (B, out_channels, *S).

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        out_channels: of the output.
        time_channels: of the embedding.
        groups: of the norms.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, time_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = convolution(spatial_dims, in_channels, out_channels)
        self.time = nn.Linear(time_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.conv2 = convolution(spatial_dims, out_channels, out_channels)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else _pointwise(spatial_dims, in_channels, out_channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = convolve(F.silu(self.norm1(x)), self.conv1.weight, self.conv1.bias)
        y = y + self.time(F.silu(time)).reshape(list(y.shape[:2]) + [1] * (y.dim() - 2))
        y = convolve(F.silu(self.norm2(y)), self.conv2.weight, self.conv2.bias)
        return y + self.shortcut(x)


class Attention(nn.Module):
    """Self-attention over all positions, beside the input.

    2D, as published: one head, softmax(qᵀk / √C). 3D: four heads of linear attention, (softmax(k) vᵀ)ᵀ q with the
    softmax over positions, whose memory grows with the number of voxels and not with its square.

    Shape: (B, channels, *S) -> (B, channels, *S).

    Args:
        spatial_dims: 2 or 3.
        channels: of the input; in 3D a multiple of four.
        groups: of the norm.
    """

    def __init__(self, spatial_dims: int, channels: int, groups: int) -> None:
        super().__init__()
        self.linear = spatial_dims == 3
        self.heads = 4 if self.linear else 1
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = _pointwise(spatial_dims, channels, 3 * channels, bias=False)
        self.out = _pointwise(spatial_dims, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        if self.linear:
            heads = [x.shape[0], self.heads, x.shape[1] // self.heads, -1]
            query, key, value = query.reshape(heads), key.reshape(heads).softmax(dim=-1), value.reshape(heads)
            attended = torch.matmul(torch.matmul(value, key.transpose(2, 3)), query)
        else:
            rows = [part.transpose(1, 2).unsqueeze(1) for part in (query, key, value)]
            attended = F.scaled_dot_product_attention(rows[0], rows[1], rows[2]).transpose(2, 3)
        return self.out(channels_last(attended.reshape(x.shape))) + x


class Down(nn.Module):
    """A 3^d convolution of stride 2, then a residual block; returns the outputs of both.

    Shape: (B, in_channels, *S) -> (B, in_channels, *ceil(S/2)), (B, out_channels, *ceil(S/2)).

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        out_channels: of the block.
        time_channels: as ``ResidualBlock``.
        groups: as ``ResidualBlock``.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, time_channels: int, groups: int) -> None:
        super().__init__()
        self.conv = convolution(spatial_dims, in_channels, in_channels)
        self.block = ResidualBlock(spatial_dims, in_channels, out_channels, time_channels, groups)

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        x = convolve(x, self.conv.weight, self.conv.bias, stride=2)
        return x, self.block(x, time)


class Merge(nn.Module):
    """Two residual blocks, each with a skip concatenated to its input.

    Shape: (B, in_channels, *S), (B, skip, *S) twice -> (B, out_channels, *S).

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        skips: channels of the two skips.
        out_channels: of the output.
        time_channels: as ``ResidualBlock``.
        groups: as ``ResidualBlock``.
        up: first double the size by the nearest voxel, cut to that of the skips, and convolve.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        skips: tuple[int, int],
        out_channels: int,
        time_channels: int,
        groups: int,
        up: bool = True,
    ) -> None:
        super().__init__()
        self.conv: Optional[nn.Module] = convolution(spatial_dims, in_channels, in_channels) if up else None
        self.block1 = ResidualBlock(spatial_dims, in_channels + skips[0], out_channels, time_channels, groups)
        self.block2 = ResidualBlock(spatial_dims, out_channels + skips[1], out_channels, time_channels, groups)

    def forward(self, x: Tensor, skip1: Tensor, skip2: Tensor, time: Tensor) -> Tensor:
        if self.conv is not None:
            x = F.interpolate(x, size=skip1.shape[2:], mode="nearest")
            x = convolve(x, self.conv.weight, self.conv.bias)
        x = self.block1(torch.cat([x, skip1], dim=1), time)
        return self.block2(torch.cat([x, skip2], dim=1), time)


class DiffusionUNet(nn.Module):
    """Predicts the noise in the last of three channels.

    One residual block a level on the way down and two on the way up; attention at the bottom alone (the published
    "attention at resolution 8" exists for images of 64² only). Weights start orthogonal, biases at 0, as published.
    Any size is taken: odd ones are rounded up on the way down and cut on the way up.

    Shape: cat(moving, fixed, diffused fixed), (B, 3, *S), and the diffusion steps, (B,) -> noise (B, 1, *S), float32.

    Args:
        spatial_dims: 2 or 3.
        channels: of the first level, and of the step's embedding.
        multipliers: channels of each level as multiples of that.
        groups: of the group norms.

    Raises:
        ValueError: for channels that groups, sines and heads do not divide, or no level.

    Reference:
        Kim et al., DiffuseMorph, ECCV 2022; layers of its released code.
    """

    def __init__(self, spatial_dims: int, channels: int, multipliers: tuple[int, ...], groups: int) -> None:
        super().__init__()
        if not multipliers or channels % 4 or channels % groups:
            raise ValueError(
                f"channels, multipliers, groups: expected channels that 4 and groups divide, and at least one level, "
                f"got channels {channels}, multipliers {list(multipliers)}, groups {groups}; published are 64 with 32 "
                "groups in 2D, 8 with 4 in 3D."
            )
        widths = [channels * multiplier for multiplier in multipliers]
        skips = list(zip(widths, [channels, *widths]))  # of each level's block, and of what entered the level
        shared = (channels, groups)
        self.time = TimeEmbedding(channels)
        self.stem = convolution(spatial_dims, 3, channels)
        self.first = ResidualBlock(spatial_dims, channels, widths[0], *shared)
        self.down = nn.ModuleList([Down(spatial_dims, i, o, *shared) for i, o in zip(widths[:-1], widths[1:])])
        self.middle1 = ResidualBlock(spatial_dims, widths[-1], widths[-1], *shared)
        self.attention = Attention(spatial_dims, widths[-1], groups)
        self.middle2 = ResidualBlock(spatial_dims, widths[-1], widths[-1], *shared)
        self.bottom = Merge(spatial_dims, widths[-1], skips[-1], widths[-1], *shared, up=False)
        levels = list(zip(widths[1:], skips[:-1], widths[:-1]))
        self.up = nn.ModuleList([Merge(spatial_dims, i, skip, o, *shared) for i, skip, o in levels[::-1]])
        self.norm = nn.GroupNorm(groups, widths[0])
        self.last = convolution(spatial_dims, widths[0], 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
                nn.init.orthogonal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        time = self.time(step)
        x = convolve(channels_last(x), self.stem.weight, self.stem.bias)
        skips = [x]
        x = self.first(x, time)
        skips.append(x)
        for level in self.down:
            entering, x = level(x, time)
            skips.append(entering)
            skips.append(x)
        x = self.middle2(self.attention(self.middle1(x, time)), time)
        x = self.bottom(x, skips.pop(), skips.pop(), time)
        for level in self.up:
            x = level(x, skips.pop(), skips.pop(), time)
        return convolve(F.silu(self.norm(x)), self.last.weight, self.last.bias).float()
