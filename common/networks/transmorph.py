# SPDX-License-Identifier: Apache-2.0
"""TransMorph: a Swin transformer as encoder, a convolutional decoder, and a displacement at full resolution."""

from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import known_name, positive, switch
from ..spatial.integrate import integrate_svf
from .contract import Estimate, pair_image, refuse_condition
from .convolution import channels_last, convolution, convolve, weights_channels_last
from .swin import SwinTransformer
from .uncertainty import UNCERTAINTY_WEIGHT, isotropic_head, sampled

# Published sizes: channels, depths, heads.
SIZES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "tiny": (6, (2, 2, 4, 2), (2, 2, 4, 4)),
    "small": (48, (2, 2, 4, 2), (4, 4, 4, 4)),
    "base": (96, (2, 2, 4, 2), (4, 4, 8, 8)),
    "large": (128, (2, 2, 12, 2), (4, 4, 8, 16)),
}
WINDOWS = {2: (8, 8), 3: (5, 6, 7)}


class NormalisedConv(nn.Module):
    """A 3^d convolution without bias, instance normalisation and LeakyReLU(0.01).

    Shape: (B, in_channels, *S) -> (B, out_channels, *S).

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        out_channels: of the output.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        layer = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.conv = layer(in_channels, out_channels, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = convolve(x, self.conv.weight)
        # One voxel is its own mean, which torch refuses to normalise.
        x = F.instance_norm(x) if x[0, 0].numel() > 1 else x - x
        return F.leaky_relu(x, 0.01)


class DecoderBlock(nn.Module):
    """Two convolutions of cat(linearly up-sampled input, skip).

    Shape: (B, in_channels, *T), (B, skip_channels, *S) with S <= 2T -> (B, out_channels, *S).

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        skip_channels: of the skip.
        out_channels: of the output.
    """

    def __init__(self, spatial_dims: int, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.mode = "bilinear" if spatial_dims == 2 else "trilinear"
        self.first = NormalisedConv(spatial_dims, in_channels + skip_channels, out_channels)
        self.second = NormalisedConv(spatial_dims, out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode=self.mode, align_corners=False)
        for axis in range(2, x.dim()):
            x = x.narrow(axis, 0, skip.shape[axis])
        return self.second(self.first(torch.cat([x, skip], dim=1)))


class TransMorph(nn.Module):
    """Swin transformer -> decoder with skips -> displacement in voxels at full resolution.

    Parameters with the published constants: 31,013,570 in 2D; in 3D 46,771,251 (base), 11,757,195 (small), 244,527
    (tiny), 108,343,907 (large).

    Departures from the released code: an axis that is no multiple of the window is padded along that axis (the code
    hands the amounts to torch's pad in the wrong order) and, unless ``sees_padding``, no token sees the padding. Any
    size is taken: odd grids are padded with zeros on the way down and cut on the way up.

    Args:
        spatial_dims: 2 or 3.
        size: "base", "small", "tiny" or "large", which stands for ``channels``, ``depths`` and ``heads``.
        window: tokens of an attention window along each axis; a token is 4 voxels wide. It belongs to the weights.
            None takes the published one: (8, 8) for 128², (5, 6, 7) for 160 x 192 x 224. Any window works on any
            image, but best is one that cuts the first stage's grid, ceil(image size / 4), into whole windows of 4 to 8
            tokens: (5, 7, 5) for 40 x 56 x 40.
        channels: of the first stage, even; None takes those of ``size``.
        depths: blocks of each stage; None as ``channels``.
        heads: of each stage; None as ``channels``.
        mlp_ratio: width of the blocks' MLP (published 4).
        drop_path: share of samples that skip the last block in training, growing linearly from 0 at the first.
        head_channels: of the last level (published 16).
        integration_steps: squarings of the output as a velocity; 0 takes it as displacement (published).
        sees_padding: as ``WindowAttention``; True is the released code. At 128² with window 8 the two differ in the
            last stage, which has 4² tokens.
        displacement_uncertainty: one further layer estimates a σ_z that all axes share, in voxels. In training the
            output is drawn from N(μ_z, σ_z² I), before it is integrated; otherwise it is μ_z, the network without that
            layer.
        uncertainty_weight: α, of the prior on σ_z in training, see ``losses.displacement_uncertainty.DeviationPrior``.

    Raises:
        ValueError: for an unknown size, a window or numbers of another length, an odd number of channels, heads that
            do not divide the channels of their stage, an uncertainty's weight not above 0.

    Reference:
        Chen et al., TransMorph, Medical Image Analysis 82, 2022; 2D constants: Zhang et al., AdaCS, ECCV 2024;
        uncertainty: Zhang et al., MICCAI 2024, supplement.
    """

    def __init__(
        self,
        spatial_dims: int,
        size: str = "base",
        window: Optional[Sequence[int]] = None,
        channels: Optional[int] = None,
        depths: Optional[Sequence[int]] = None,
        heads: Optional[Sequence[int]] = None,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.3,
        head_channels: int = 16,
        integration_steps: int = 0,
        sees_padding: bool = False,
        displacement_uncertainty: bool = False,
        uncertainty_weight: float = UNCERTAINTY_WEIGHT,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        width, depths, heads = _stages(size, channels, depths, heads)
        window = WINDOWS[spatial_dims] if window is None else tuple(window)
        _check(spatial_dims, width, depths, heads, window)
        self.spatial_dims, self.integration_steps = spatial_dims, integration_steps
        self.encoder = SwinTransformer(
            spatial_dims, 2, width, depths, heads, window,
            mlp_ratio=mlp_ratio, drop_path=drop_path, sees_padding=sees_padding,
        )  # fmt: skip
        self.full_skip = NormalisedConv(spatial_dims, 2, head_channels)
        self.half_skip = NormalisedConv(spatial_dims, 2, width // 2)
        skips = [head_channels, width // 2, *(width * 2**stage for stage in range(len(depths)))]
        blocks = zip(skips[-2::-1], skips[:0:-1], strict=True)  # from the bottom up, as they run
        self.decoder = nn.ModuleList(DecoderBlock(spatial_dims, below, skip, skip) for skip, below in blocks)
        self.flow = convolution(spatial_dims, head_channels, spatial_dims)
        nn.init.normal_(self.flow.weight, std=1e-5)  # type: ignore[arg-type]
        nn.init.zeros_(self.flow.bias)  # type: ignore[arg-type]
        # Last, so that a seed gives the other layers the weights that they have without it.
        uncertain = switch(displacement_uncertainty, "displacement_uncertainty")
        self.deviation = isotropic_head(spatial_dims, head_channels) if uncertain else None
        self.uncertainty_weight = positive("uncertainty_weight", uncertainty_weight)
        weights_channels_last(self)

    def velocity(self, image: Tensor) -> Tensor:
        """The network's output, float32 whatever the precision of its layers; in training a draw.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].

        Returns:
            (B, d, *S) in voxels: the displacement where there is no integration.

        Raises:
            ValueError: for another number of channels or axes.
        """
        return self._predict(image)[0]

    def _predict(self, image: Tensor) -> tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
        """The output; log variance and mean where it is uncertain."""
        if image.shape[1] != 2 or image.dim() != self.spatial_dims + 2:
            raise ValueError(
                f"image: expected (B, 2, *S) with {self.spatial_dims} spatial axes, got {list(image.shape)}. A "
                "displacement network takes moving and fixed concatenated on the channel axis."
            )
        image = channels_last(image)
        skips = [self.full_skip(image), self.half_skip(_halve(image))] + self.encoder(image)
        x = skips.pop()
        for block in self.decoder:
            x = block(x, skips.pop())
        mean = convolve(x, self.flow.weight, self.flow.bias).float()
        if self.deviation is None:
            return mean, None, None
        log_variance = self.deviation(x)
        return sampled(mean, log_variance, self.training), log_variance, mean

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
        """As ``forward``, with the field that training regularises: the output at full resolution.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: must be None.

        Returns:
            Displacement, and the field before integration.
        """
        refuse_condition(condition, "TransMorph")
        velocity, log_variance, mean = self._predict(image)
        return Estimate(self._integrated(velocity), velocity, None, log_variance, None, mean)

    @torch.jit.ignore
    def estimate_and_inverse(self, image: Tensor, condition: Optional[Tensor] = None) -> Estimate:
        """``estimate`` of one forward with the way back behind it: ddf (2B, d, *S), velocity (B, d, *S).

        The way back is that of the negated output, without integration the negated displacement (the released code of
        Zhang et al., MICCAI 2024), which is the inverse to first order only.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: must be None.

        Returns:
            Displacements and the field before integration.

        Raises:
            ValueError: for a condition.
        """
        refuse_condition(condition, "TransMorph")
        velocity, log_variance, mean = self._predict(image)
        both = self._integrated(torch.cat([velocity, -velocity]))
        return Estimate(both, velocity, None, log_variance, None, mean)

    def _integrated(self, velocity: Tensor) -> Tensor:
        return integrate_svf(velocity, self.integration_steps) if self.integration_steps else velocity


def _stages(
    size: str, channels: Optional[int], depths: Optional[Sequence[int]], heads: Optional[Sequence[int]]
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Channels, depths and heads: those given, else those of the named size."""
    preset = SIZES[known_name("size", size, SIZES)]
    return preset[0] if channels is None else channels, tuple(depths or preset[1]), tuple(heads or preset[2])


def _check(
    spatial_dims: int, channels: int, depths: Sequence[int], heads: Sequence[int], window: Sequence[int]
) -> None:
    if len(window) != spatial_dims or min(window) < 1:
        raise ValueError(f"window: expected {spatial_dims} numbers from 1, one an axis, got {list(window)}.")
    if len(depths) != len(heads) or channels % 2:
        raise ValueError(
            "channels, depths, heads: expected an even number, and as many heads as depths, one a stage, got "
            f"{channels}, {tuple(depths)} and {tuple(heads)}."
        )


def _halve(image: Tensor) -> Tensor:
    """Average of 3^d voxels around every second one, with zeros beyond the border."""
    image = F.pad(image, [1] * (2 * (image.dim() - 2)))  # torch pads no axis shorter than the kernel
    return F.avg_pool2d(image, 3, stride=2) if image.dim() == 4 else F.avg_pool3d(image, 3, stride=2)
