# SPDX-License-Identifier: Apache-2.0
"""The U-Net of the classic torch VoxelMorph, and the pixel-wise estimators built on it."""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditional_norm import styled
from .convolution import channels_last, convolution, convolve, convolve_up, may_overwrite, weights_channels_last

ENCODER = (16, 32, 32, 32)
DECODER = (32, 32, 32, 32, 32, 16, 16)


class ConvBlock(nn.Module):
    """3^d convolution and LeakyReLU(0.2).

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        out_channels: of the output.
        stride: along every axis; sizes are rounded up.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv = convolution(spatial_dims, in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        missing = 4 - x.shape[1]
        if x.dim() == 5 and missing > 0 and may_overwrite():
            # Zeros for channels change nothing, but oneDNN takes four times as long for two channels as for four.
            padding = [0] * 6 + [0, missing]
            x, weight = channels_last(F.pad(x, padding)), F.pad(weight, padding)
        return F.leaky_relu(convolve(x, weight, self.conv.bias, self.stride), 0.2, inplace=True)


class UpConvBlock(nn.Module):
    """ConvBlock(cat(up(x), skip)) with nearest up-sampling, without forming either.

    A 3^d convolution of a nearest-up-sampled image is a transposed convolution of the small image with a 4^d kernel
    (each 3-tap filter convolved with the two ones of the up-sampling): 4^d/2^d = 2^d taps an output voxel, not 3^d,
    and no large intermediate. The parameters are those of the plain block.

    Shape: (B, low_channels, *ceil(S/2)), (B, skip_channels, *S) -> (B, out_channels, *S).

    Args:
        spatial_dims: 2 or 3.
        low_channels: of the small image.
        skip_channels: of the skip.
        out_channels: of the output.
    """

    def __init__(self, spatial_dims: int, low_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.low_channels = low_channels
        self.conv = convolution(spatial_dims, low_channels + skip_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        kernel = self.conv.weight[:, : self.low_channels]
        axes = [2 + axis for axis in range(kernel.dim() - 2)]
        kernel = torch.flip(kernel, axes).transpose(0, 1)
        for axis in range(len(axes)):
            before, after = [0] * (2 * len(axes)), [0] * (2 * len(axes))
            before[2 * axis], after[2 * axis + 1] = 1, 1
            kernel = F.pad(kernel, before) + F.pad(kernel, after)
        if x.dim() == 5:
            # Flip and padding leave the kernel in a layout that makes a step of the whole network a quarter slower.
            kernel = kernel.contiguous(memory_format=torch.channels_last_3d)
        low = convolve_up(x, kernel, self.conv.bias, skip.shape[2:])
        weight = self.conv.weight[:, self.low_channels :]
        if may_overwrite():
            return _activated_sum(low, skip, weight)
        return F.leaky_relu(low + convolve(skip, weight), 0.2, inplace=True)


def _activated_sum(total: Tensor, x: Tensor, weight: Tensor, elements: int = 2**25) -> Tensor:
    """LeakyReLU(total + convolve(x, weight)) in the place of ``total``, slab by slab, which needs little beside.

    A slab has about ``elements`` entries: oneDNN leaves images of few planes to a slow convolution.
    """
    size = total.shape[2]
    slabs = min(size, (total.numel() + elements - 1) // elements)
    for slab in range(slabs):
        start, stop = size * slab // slabs, size * (slab + 1) // slabs
        first, last = max(start - 1, 0), min(stop + 1, size)  # what the kernel reaches
        part = convolve(x.narrow(2, first, last - first), weight).narrow(2, start - first, stop - start)
        F.leaky_relu(total.narrow(2, start, stop - start).add_(part), 0.2, inplace=True)
    return total


class UNet(nn.Module):
    """Encoder-decoder with skips: one convolution a level, max-pool 2, nearest up-sampling, no normalisation.

    Odd sizes are rounded up on the way down, the last block then being half a one, and cut on the way up.

    Shape: (B, in_channels, *S) -> (B, decoder[-1], *S), or (B, decoder[-1], *ceil(S/2)) with ``half_resolution``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        encoder: channels of each level, from full resolution down.
        decoder: channels on the way up, one a level, then those at full resolution.
        half_resolution: leave the last up-sampling and its skip out; what the decoder holds beyond runs on half the
            size.

    Raises:
        ValueError: for another number of dimensions, or a decoder shorter than the encoder.

    Reference:
        Balakrishnan et al., IEEE TMI 38(8), 2019; layer widths of its released torch code.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        encoder: tuple[int, ...] = ENCODER,
        decoder: tuple[int, ...] = DECODER,
        half_resolution: bool = False,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        if len(decoder) <= len(encoder):
            raise ValueError(f"decoder needs more entries than encoder ({len(encoder)}), got {len(decoder)}.")
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.out_channels = decoder[-1]
        widths = [in_channels, *encoder]
        self.down = nn.ModuleList([ConvBlock(spatial_dims, i, o) for i, o in zip(widths[:-1], widths[1:])])
        self.bottom = ConvBlock(spatial_dims, encoder[-1], decoder[0])
        steps = len(encoder) - int(half_resolution)
        self.up = nn.ModuleList(
            [
                UpConvBlock(spatial_dims, low, skip, out)
                for low, skip, out in zip(decoder[:steps], encoder[::-1], decoder[1 : steps + 1])
            ]
        )
        widths = list(decoder[steps:])
        self.full = nn.ModuleList([ConvBlock(spatial_dims, i, o) for i, o in zip(widths[:-1], widths[1:])])
        self.ups_to_quarter = max(len(encoder) - 2, 0)
        self.quarter_channels, self.quarter_factor = decoder[self.ups_to_quarter], 2 ** min(len(encoder), 2)
        weights_channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        styles: list[Tensor] = []
        return self.branches(x, styles)[0]

    def branches(self, x: Tensor, styles: list[Tensor]) -> tuple[Tensor, Tensor]:
        """As ``forward``, with the decoder's features at a quarter of the size beside it.

        Args:
            x: (B, in_channels, *S).
            styles: γ and β behind each block's activation, see ``conditional_norm.Styles``; none leaves them out.

        Returns:
            (B, decoder[-1], *S) as ``forward``, and (B, ``quarter_channels``, *S/4), rounded up; of an encoder of a
            single level its bottom, at half of the size.
        """
        if x.shape[1] != self.in_channels or x.dim() != self.spatial_dims + 2:
            raise ValueError(
                f"image: expected (B, {self.in_channels}, *S) with {self.spatial_dims} spatial axes, got {x.shape}."
                " A displacement network takes moving and fixed concatenated on the channel axis."
            )
        x = channels_last(x)
        skips: list[Tensor] = []
        for number, block in enumerate(self.down):
            x = _with_style(block(x), styles, number)
            skips.append(x)
            x = F.max_pool2d(x, 2, ceil_mode=True) if x.dim() == 4 else F.max_pool3d(x, 2, ceil_mode=True)
        first = len(self.down)
        x = _with_style(self.bottom(x), styles, first)
        quarter = x
        for number, block in enumerate(self.up):
            x = _with_style(block(x, skips.pop()), styles, first + 1 + number)
            if number + 1 == self.ups_to_quarter:
                quarter = x
        for number, block in enumerate(self.full):
            x = _with_style(block(x), styles, first + 1 + len(self.up) + number)
        return x, quarter


def _with_style(x: Tensor, styles: list[Tensor], number: int) -> Tensor:
    return styled(x, styles[number]) if len(styles) > 0 else x


def bounded_log_variance(value: Tensor, least: float = 1e-6, largest: float = 10.0) -> Tensor:
    """log σ², with 1/σ² = 1/(exp(value) + least) + 1/largest: smooth, and ``value`` itself far from the ends.

    Without a least variance a pixel without residual draws its σ² to 0, and the likelihood to minus infinity; without a
    largest one σ² may overflow. A clamp would hold pixels beyond it for ever. The least, of images in [0, 1], is about
    the noise of rounding to 8 bits, 1 / (12 · 255²); the largest is ten times the largest squared residual.

    Args:
        value: (B, C, *S), unbounded.
        least: lower end of σ², in squared units of what varies.
        largest: upper end.

    Returns:
        log σ², (B, C, *S), float32 or float64.
    """
    low, high = math.log(least), math.log(largest)
    raised = low + F.softplus(value - low)
    return high - F.softplus(high - raised)


class PixelEstimator(nn.Module):
    """One value a pixel from a U-Net: AdaCS's score (sigmoid) or a log variance (bounded).

    Shape: (B, in_channels, *S) -> (B, 1, *S).

    A log variance lies between log 1e-6 and log 10, see ``bounded_log_variance``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: 1 where it sees the fixed image, 2 where fixed and warped.
        activation: "sigmoid" (values in (0, 1)) or "log_variance" (of images in [0, 1]).
        initial: the value at every pixel before training, in (0, 1) for a sigmoid; None leaves PyTorch's random
            initialisation, which the papers do not mention and which starts a score near 0.5, a variance near 1. From
            there Adam has been seen to overshoot AdaCS's optimum (close to 1) into the sigmoid's flat end, where the
            score stays 1.
        encoder: as ``UNet``.
        decoder: as ``UNet``.

    Raises:
        ValueError: for another activation, or an initial value that it cannot take.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, Sec. 4.1 (score); Zhang et al., MICCAI 2024 (variance).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        activation: str = "sigmoid",
        initial: Optional[float] = None,
        encoder: tuple[int, ...] = ENCODER,
        decoder: tuple[int, ...] = DECODER,
    ) -> None:
        super().__init__()
        if activation not in ("sigmoid", "log_variance"):
            raise ValueError(f"activation must be 'sigmoid' or 'log_variance', got '{activation}'.")
        self.unet = UNet(spatial_dims, in_channels, tuple(encoder), tuple(decoder))
        self.head = convolution(spatial_dims, self.unet.out_channels, 1)
        self.sigmoid = activation == "sigmoid"
        if initial is not None:
            if self.sigmoid and not 0 < initial < 1:
                raise ValueError(f"initial must lie between 0 and 1 for a sigmoid, got {initial}.")
            nn.init.zeros_(self.head.weight)
            nn.init.constant_(self.head.bias, math.log(initial / (1 - initial)) if self.sigmoid else initial)

    def forward(self, image: Tensor) -> Tensor:
        value = convolve(self.unet(image), self.head.weight, self.head.bias).float()
        return torch.sigmoid(value) if self.sigmoid else bounded_log_variance(value)
