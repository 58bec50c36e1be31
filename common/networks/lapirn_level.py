# SPDX-License-Identifier: Apache-2.0
"""The network of one level of LapIRN, and its residual blocks. No convolution has a bias."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditional_norm import ConditionalInstanceNorm, Mapping
from .convolution import convolution, convolve, cut


class Block(nn.Module):
    """x + conv(a(conv(a(x)))), a the LeakyReLU(0.2). Takes a code, and ignores it.

    Shape: (B, channels, *S), (B, 1) -> (B, channels, *S).

    Args:
        spatial_dims: 2 or 3.
        channels: in and out.
    """

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.first = convolution(spatial_dims, channels, channels, bias=False)
        self.second = convolution(spatial_dims, channels, channels, bias=False)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        y = convolve(F.leaky_relu(x, 0.2), self.first.weight)
        return x + convolve(F.leaky_relu(y, 0.2, inplace=True), self.second.weight)


class ConditionalBlock(nn.Module):
    """``Block`` with a conditional instance norm before each activation, and a mapping network of its own.

    Shape: (B, channels, *S), (B, 1) -> (B, channels, *S).

    Args:
        spatial_dims: 2 or 3.
        channels: in and out.
        latent: width of the mapping network.
    """

    def __init__(self, spatial_dims: int, channels: int, latent: int = 64) -> None:
        super().__init__()
        self.mapping = Mapping(width=latent)
        self.norm = nn.ModuleList(ConditionalInstanceNorm(channels, latent) for _ in range(2))
        self.first = convolution(spatial_dims, channels, channels, bias=False)
        self.second = convolution(spatial_dims, channels, channels, bias=False)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        latent = self.mapping(code)
        y = convolve(F.leaky_relu(self.norm[0](x, latent), 0.2, inplace=True), self.first.weight)
        y = convolve(F.leaky_relu(self.norm[1](y, latent), 0.2, inplace=True), self.second.weight)
        return x + y


class Level(nn.Module):
    """The network of one level. Odd sizes are rounded up on the way down, and cut on the way up.

    Shape: (B, in_channels, *S), (B, C, *ceil(S/2)) or None, (B, 1) -> (B, d, *S) and (B, C, *S), C the channels.

    Args:
        spatial_dims: d, 2 or 3.
        in_channels: of the input.
        channels: of all convolutions.
        blocks: number of residual blocks, on half of the grid.
        conditional: whether they take the code.
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: int, blocks: int, conditional: bool) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            convolution(spatial_dims, width, channels, bias=False) for width in (in_channels, channels)
        )
        self.down = convolution(spatial_dims, channels, channels, bias=False)
        block = ConditionalBlock if conditional else Block
        self.blocks = nn.ModuleList(block(spatial_dims, channels) for _ in range(blocks))
        transposed = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
        self.up = transposed(channels, channels, kernel_size=2, stride=2, bias=False)
        self.head = nn.ModuleList(
            [
                convolution(spatial_dims, 2 * channels, channels, bias=False),
                convolution(spatial_dims, channels, spatial_dims, bias=False),
            ]
        )

    def forward(self, x: Tensor, embedding: Optional[Tensor], code: Tensor) -> tuple[Tensor, Tensor]:
        """Flow of the level, before its range, and what the next level receives beside it.

        Args:
            x: (B, in_channels, *S).
            embedding: of the coarser level, (B, C, *ceil(S/2)); None at the coarsest.
            code: (B, 1).

        Returns:
            (B, d, *S) float32 in (-1, 1), and the embedding (B, C, *S).
        """
        skip = convolve(x, self.encoder[0].weight)
        skip = convolve(F.leaky_relu(skip, 0.2, inplace=True), self.encoder[1].weight)
        y = convolve(skip, self.down.weight, None, 2)
        if embedding is not None:
            y = y + embedding
        for block in self.blocks:
            y = F.leaky_relu(block(y, code), 0.2)
        y = cut(self.up(y), x.shape[2:])
        flow = convolve(torch.cat([y, skip], dim=1), self.head[0].weight)
        flow = convolve(F.leaky_relu(flow, 0.2, inplace=True), self.head[1].weight)
        return F.softsign(flow.float()), y
