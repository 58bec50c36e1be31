# SPDX-License-Identifier: Apache-2.0
"""ICON's U-Net."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import switch
from ..spatial.units import unit_to_voxel
from .checkpointing import checkpointed_steps
from .convolution import (
    channels_last,
    convolution,
    convolve,
    convolve_up,
    cut,
    may_overwrite,
    weights_channels_last,
)

DOWN = (2, 16, 32, 64, 256, 512)
UP = (16, 32, 64, 128, 256)


def halve(image: Tensor) -> Tensor:
    """Average pool by 2, sizes rounded up; an axis of one voxel stays.

    Args:
        image: (B, C, *S).

    Returns:
        (B, C, *ceil(S/2)).
    """
    kernel = [min(2, size) for size in image.shape[2:]]
    if image.dim() == 4:
        return F.avg_pool2d(image, kernel, [2, 2], ceil_mode=True)
    return F.avg_pool3d(image, kernel, [2, 2, 2], ceil_mode=True)


def _add(y: Tensor, x: Tensor) -> Tensor:
    """y + x of as many channels: the first ones of x, or, of too few, onto the last ones of y. May overwrite y."""
    missing = y.shape[1] - x.shape[1]
    if missing < 0:
        x = x[:, : y.shape[1]]
    if may_overwrite():
        y[:, max(missing, 0) :].add_(x)
        return y
    if missing > 0:
        x = torch.cat([x.new_zeros([x.shape[0], missing] + list(x.shape[2:])), x], dim=1)
    return y + x


class DownBlock(nn.Module):
    """Leaky ReLU and a 3^d convolution of stride 2, beside the average pool of the input.

    Shape: (B, in_channels, *S) -> (B, out_channels, *ceil(S/2)).

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        out_channels: of the output.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        layer = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.conv = layer(in_channels, out_channels, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(F.leaky_relu(x, 0.01), self.conv.weight, self.conv.bias, stride=2)
        return _add(y, halve(x))


class UpBlock(nn.Module):
    """Leaky ReLU and a 4^d transposed convolution of stride 2, beside the interpolated input; batch norm; the skip.

    Shape: (B, in_channels, *S), overwritten, and (B, C, *T) with T <= 2S -> (B, out_channels + C, *T).

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        out_channels: of the convolution.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        layer = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
        self.conv = layer(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(out_channels) if spatial_dims == 2 else nn.BatchNorm3d(out_channels)
        self.out_channels = out_channels
        self.mode = "bilinear" if spatial_dims == 2 else "trilinear"

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([cut(self.norm(self.added(x)), skip.shape[2:]), skip], dim=1)

    def added(self, x: Tensor) -> Tensor:
        """What the norm sees.

        Args:
            x: (B, in_channels, *S), overwritten.

        Returns:
            (B, out_channels, *2S).
        """
        beside = F.interpolate(x[:, : self.out_channels], scale_factor=2.0, mode=self.mode, align_corners=False)
        x = F.leaky_relu(x, 0.01, inplace=True)
        return _add(convolve_up(x, self.conv.weight, self.conv.bias, [2 * n for n in x.shape[2:]]), beside)


class TallUNet2(nn.Module):
    """One step: a U-Net whose output, divided by 10, is a displacement in units of the image's extent.

    The last convolution starts at 0, so that an untrained step is the identity. Published widths: 4,756,902 parameters
    in 2D, 17,670,229 in 3D. Any size is taken: odd ones are rounded up on the way down and cut on the way up.

    Shape: cat(moving, fixed), (B, 2, *S) -> displacement in voxels, (B, d, *S).

    Args:
        spatial_dims: 2 or 3.
        down: channels from the input (2 images) to the bottom.
        up: channels that each level adds on the way up, full resolution first; one fewer than ``down``.
        checkpointing: in training, compute the step anew for the backward pass, instead of keeping what lies within.

    Raises:
        ValueError: for widths that do not fit together, another number of channels or axes.

    Reference:
        Greer et al., ICON, ICCV 2021; Tian et al., GradICON, CVPR 2023, A.2.1 (tallUNet2 of the ICON code).
    """

    def __init__(
        self,
        spatial_dims: int,
        down: tuple[int, ...] = DOWN,
        up: tuple[int, ...] = UP,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        if len(down) != len(up) + 1 or len(up) < 1 or down[0] != 2:
            raise ValueError(
                f"down, up: expected 2 input channels and one more width down than up, got {tuple(down)} and"
                f" {tuple(up)}; the published ones are {DOWN} and {UP}."
            )
        self.spatial_dims, self.checkpointing = spatial_dims, switch(checkpointing, "checkpointing")
        self.down = nn.ModuleList([DownBlock(spatial_dims, i, o) for i, o in zip(down[:-1], down[1:])])
        inputs = [skip + below for skip, below in zip(down[1:], [*up[1:], 0])]
        # Listed from the bottom up, as they run.
        self.up = nn.ModuleList([UpBlock(spatial_dims, i, o) for i, o in zip(inputs[::-1], up[::-1])])
        self.last = convolution(spatial_dims, down[0] + up[0], spatial_dims)
        nn.init.zeros_(self.last.weight)
        if self.last.bias is not None:
            nn.init.zeros_(self.last.bias)
        weights_channels_last(self)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[1] != 2 or image.dim() != self.spatial_dims + 2:
            raise ValueError(
                f"image: expected cat(moving, fixed), (B, 2, *S) with {self.spatial_dims} spatial axes, got"
                f" {list(image.shape)}."
            )
        if torch.jit.is_scripting() or not self.checkpointing:
            return self._displacement(image)
        return checkpointed_steps(self, self._displacement, image)

    def _displacement(self, image: Tensor) -> Tensor:
        x = channels_last(image)
        skips: list[Tensor] = []
        for block in self.down:
            skips.append(x)
            x = block(x)
        last = len(self.up) - 1
        for number, block in enumerate(self.up):
            x = block.added(x) if number == last else block(x, skips.pop())
        if torch.jit.is_scripting() or self.checkpointing:
            return self._head(x, skips[0])
        return checkpointed_steps(self.up[-1], self._head, x, skips[0])

    def _head(self, x: Tensor, image: Tensor) -> Tensor:
        """The last block's norm and the last convolution; x is what ``UpBlock.added`` returns.

        Training computes the norm anew for the backward pass: at full size that would be half of what a step keeps.
        """
        x = torch.cat([cut(self.up[-1].norm(x), image.shape[2:]), image], dim=1)
        return unit_to_voxel(convolve(x, self.last.weight, self.last.bias).float() / 10.0)
