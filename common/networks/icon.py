# SPDX-License-Identifier: Apache-2.0
"""ICON's U-Net, and the operators that compose displacement networks into a coarse-to-fine chain."""

import re
from collections.abc import Mapping
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..spatial.fields import compose
from ..spatial.integrate import resize_field
from ..spatial.units import unit_to_voxel
from ..spatial.warp import warp
from .contract import Estimate, pair_image, refuse_condition
from .unet import channels_last, convolution, convolve, convolve_up, may_overwrite, weights_channels_last

DOWN = (2, 16, 32, 64, 256, 512)
UP = (16, 32, 64, 128, 256)


def halve(image: Tensor) -> Tensor:
    """Average pool by 2, sizes rounded up; an axis of one voxel stays.

    Shape: (B, C, *S) -> (B, C, *ceil(S/2)).
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

    Shape: (B, in_channels, *S), (B, C, *T) with T <= 2S -> (B, out_channels + C, *T).
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        layer = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
        self.conv = layer(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(out_channels) if spatial_dims == 2 else nn.BatchNorm3d(out_channels)
        self.out_channels = out_channels
        self.mode = "bilinear" if spatial_dims == 2 else "trilinear"

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        beside = F.interpolate(x[:, : self.out_channels], scale_factor=2.0, mode=self.mode, align_corners=False)
        size = [2 * n for n in x.shape[2:]]
        x = F.leaky_relu(x, 0.01)
        x = self.norm(_add(convolve_up(x, self.conv.weight, self.conv.bias, size), beside))
        for axis in range(2, x.dim()):
            x = x.narrow(axis, 0, skip.shape[axis])
        return torch.cat([x, skip], dim=1)


class TallUNet2(nn.Module):
    """One step: a U-Net whose output, divided by 10, is a displacement in units of the image's extent.

    The last convolution starts at 0, so that an untrained step is the identity. Published widths: 4,756,902 parameters
    in 2D, 17,670,229 in 3D. Any size is taken: odd ones are rounded up on the way down and cut on the way up.

    Args:
        spatial_dims: 2 or 3.
        down: channels from the input (2 images) to the bottom.
        up: channels that each level adds on the way up, full resolution first; one fewer than ``down``.

    Shape: cat(moving, fixed), (B, 2, *S) -> displacement in voxels, (B, d, *S).

    Raises:
        ValueError: for widths that do not fit together, another number of channels or axes.

    Reference: Greer et al., ICON, ICCV 2021; Tian et al., GradICON, CVPR 2023, A.2.1 (tallUNet2 of the ICON code).
    """

    def __init__(self, spatial_dims: int, down: tuple[int, ...] = DOWN, up: tuple[int, ...] = UP) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        if len(down) != len(up) + 1 or len(up) < 1 or down[0] != 2:
            raise ValueError(
                f"down, up: expected 2 input channels and one more width down than up, got {tuple(down)} and"
                f" {tuple(up)}; the published ones are {DOWN} and {UP}."
            )
        self.spatial_dims = spatial_dims
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
        x = channels_last(image)
        skips: list[Tensor] = []
        for block in self.down:
            skips.append(x)
            x = block(x)
        for block in self.up:
            x = block(x, skips.pop())
        return unit_to_voxel(convolve(x, self.last.weight, self.last.bias).float() / 10.0)


class Downsample(nn.Module):
    """Runs a step on images of half the size and brings its displacement back.

    Images are average-pooled; displacements are resampled corner to corner, as all fields here are.

    Args:
        step: displacement network, cat(moving, fixed) -> ddf.

    Shape: (B, 2, *S) -> (B, d, *S) in voxels.

    Reference: Tian et al., GradICON, CVPR 2023, Sec. 5.1 (downsampling).
    """

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, image: Tensor) -> Tensor:
        return resize_field(self.step(halve(image)), image.shape[2:])


class TwoStep(nn.Module):
    """Composes two steps: the second one sees the moving image warped by the first.

    With u = first(moving, fixed) and v = second(moving ∘ (id + u), fixed) the map is (id + u) ∘ (id + v).

    Args:
        first, second: displacement networks, cat(moving, fixed) -> ddf.

    Shape: (B, 2, *S) -> (B, d, *S) in voxels.

    Reference: Tian et al., GradICON, CVPR 2023, Eq. 6.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, image: Tensor) -> Tensor:
        before = self.first(image)
        warped = warp(image[:, :1], before, padding="border")
        after = self.second(torch.cat([warped, image[:, 1:]], dim=1))
        return compose(before, after)


class Composition(nn.Module):
    """A chain of steps as a displacement network.

    Args:
        step: of one or more steps, cat(moving, fixed) -> ddf.
    """

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, image: Tensor, fixed: Optional[Tensor] = None, condition: Optional[Tensor] = None) -> Tensor:
        """Displacement that pulls moving onto fixed.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1]; or moving alone, (B, 1, *S), when ``fixed`` is given.
            fixed: (B, 1, *S), optional.
            condition: must be None: this network takes none.

        Returns:
            ddf (B, d, *S) in voxels.

        Raises:
            ValueError: for another number of channels or axes, or a condition.
        """
        return self.estimate(pair_image(image, fixed), condition).ddf

    def estimate(self, image: Tensor, condition: Optional[Tensor] = None) -> Estimate:
        """As ``forward``; nothing is integrated, so a smoothness would act on the displacement itself.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: must be None.
        """
        refuse_condition(condition, "a composition of steps")
        if image.shape[1] != 2:  # Said here: the first step to notice would name the size of its coarser image.
            raise ValueError(
                f"image: expected moving and fixed on the channel axis, (B, 2, *S), got {list(image.shape)}."
            )
        ddf = self.step(image)
        return Estimate(ddf, ddf)


def build_icon(
    spatial_dims: int,
    factors: tuple[int, ...] = (4, 2, 1, 1),
    down: tuple[int, ...] = DOWN,
    up: tuple[int, ...] = UP,
) -> Composition:
    """Compose one ``TallUNet2`` a factor, coarse to fine.

    Args:
        spatial_dims: 2 or 3.
        factors: by which each step's images are down-sampled, in order: powers of two that never grow. (4, 2, 1, 1) is
            GradICON's published lung and knee network, (8, 4, 2, 1) doubles the resolution at each of four steps
            (triangles), (1,) is a single step.
        down, up: widths of every step, see ``TallUNet2``.

    Raises:
        ValueError: for factors that are not as described.

    Reference: Tian et al., GradICON, CVPR 2023, Sec. 5.1, A.1.1, A.2.1.
    """
    if not factors or any(f < 1 or f & (f - 1) for f in factors) or list(factors) != sorted(factors, reverse=True):
        raise ValueError(
            f"factors: expected powers of two from coarse to fine such as [4, 2, 1, 1], got {list(factors)}."
        )
    network: nn.Module = TallUNet2(spatial_dims, tuple(down), tuple(up))
    for coarser, factor in zip(factors[:-1], factors[1:]):
        network = TwoStep(_downsampled(network, coarser // factor), TallUNet2(spatial_dims, tuple(down), tuple(up)))
    return Composition(_downsampled(network, factors[-1]))


def _downsampled(network: nn.Module, factor: int) -> nn.Module:
    while factor > 1:
        network, factor = Downsample(network), factor // 2
    return network


def lengthened(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights of a chain from those of a shorter one, for training in stages: its steps first, in their order.

    Steps beyond it start as copies of its last one. Departure: the paper's stages (knees) add steps that start as the
    identity.

    Args:
        weights: state dict of a chain of fewer steps, or as many, that ``build_icon`` or the operators here made.
        network: the chain that is to receive them; its factors may be others.

    Returns:
        A state dict; whether it fits, ``load_state_dict`` says.

    Reference: Tian et al., GradICON, CVPR 2023, A.2.1 (stages).
    """
    steps, own = _steps(weights), _steps(network.state_dict())
    if not 0 < len(steps) <= len(own):  # no chain, or a longer one: nothing to lengthen
        return dict(weights)
    given = dict(zip(own, steps + steps[-1:] * (len(own) - len(steps))))
    return {
        step + name.removeprefix(source): value
        for step, source in given.items()
        for name, value in weights.items()
        if name.startswith(source)
    }


def _steps(weights: Mapping[str, Tensor]) -> list[str]:
    """The prefixes of a chain's steps in a state dict, coarse to fine, in whatever order the file holds them."""
    found = [re.match(r"((step|first|second)\.)+", name) for name in weights]
    return sorted({match.group() for match in found if match}, key=lambda prefix: prefix.replace("step.", ""))
