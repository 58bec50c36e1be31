# SPDX-License-Identifier: Apache-2.0
"""TransMorph: a Swin transformer as encoder, a convolutional decoder, and a displacement at full resolution."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn

from ..checks import known_name, positive, switch
from ..spatial.integrate import integrate_svf
from .contract import DEFAULT_CODE, Estimate, condition_code, default_code, pair_image
from .convolution import channels_last, convolve, flow_head, weights_channels_last
from .decoder import NormalisedConv, decoder_blocks, halved_feature
from .swin import SwinTransformer
from .uncertainty import UNCERTAINTY_WEIGHT, isotropic_head, sampled
from .weight_head import WeightHead

# Published sizes: channels, depths, heads.
SIZES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "tiny": (6, (2, 2, 4, 2), (2, 2, 4, 4)),
    "small": (48, (2, 2, 4, 2), (4, 4, 4, 4)),
    "base": (96, (2, 2, 4, 2), (4, 4, 8, 8)),
    "large": (128, (2, 2, 12, 2), (4, 4, 8, 16)),
}
WINDOWS = {2: (8, 8), 3: (5, 6, 7)}


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
        conditional: norms take a code in [0, 1], as in the paper's TM-SPR, see ``conditional_norm``: they start as the
            plain ones.
        default_condition: code where none is given.
        weight_volume: a head estimates TM-SPR's ω from the decoder's features at a quarter of the resolution, see
            ``weight_head.WeightHead``; it is on the image's grid, as the field that the smoothness acts on.

    Attributes:
        default_condition: code where none is given, (1, 1), stored with the weights; None without ``conditional``.

    Raises:
        ValueError: for an unknown size, a window or numbers of another length, an odd number of channels, heads that
            do not divide the channels of their stage, an uncertainty's weight not above 0, a code out of range.

    Reference:
        Chen et al., TransMorph, Medical Image Analysis 82, 2022; 2D constants: Zhang et al., AdaCS, ECCV 2024;
        uncertainty: Zhang et al., MICCAI 2024, supplement; condition and ω: Chen et al., Spatially-varying
        Regularization with Conditional Transformer, 2023.
    """

    default_condition: Optional[Tensor]

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
        conditional: bool = False,
        default_condition: float = DEFAULT_CODE,
        weight_volume: bool = False,
    ) -> None:
        super().__init__()
        width, depths, heads = _stages(size, channels, depths, heads)
        window = published_window(spatial_dims) if window is None else tuple(window)
        self.spatial_dims, self.integration_steps = spatial_dims, integration_steps
        form = "paper" if switch(conditional, "conditional") else None
        self.register_buffer("default_condition", default_code(default_condition, form is not None))
        self.encoder = SwinTransformer(
            spatial_dims, 2, width, depths, heads, window, conditional=form,
            mlp_ratio=mlp_ratio, drop_path=drop_path, sees_padding=sees_padding,
        )  # fmt: skip
        skips = [head_channels, width // 2, *(width * 2**stage for stage in range(len(depths)))]
        self.full_skip, self.half_skip = (NormalisedConv(spatial_dims, 2, skip, form) for skip in skips[:2])
        self.decoder = decoder_blocks(spatial_dims, skips, form)
        self.flow = flow_head(spatial_dims, head_channels)
        # Last, so that a seed gives the other layers the weights that they have without it.
        uncertain = switch(displacement_uncertainty, "displacement_uncertainty")
        self.deviation = isotropic_head(spatial_dims, head_channels) if uncertain else None
        self.uncertainty_weight = positive("uncertainty_weight", uncertainty_weight)
        weighted = switch(weight_volume, "weight_volume")
        self.weight_head = WeightHead(spatial_dims, width, width // 2, 4, form) if weighted else None
        weights_channels_last(self)

    def velocity(self, image: Tensor, condition: Optional[Tensor] = None) -> Tensor:
        """The network's output, float32 whatever the precision of its layers; in training a draw.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: as ``forward``.

        Returns:
            (B, d, *S) in voxels: the displacement where there is no integration.

        Raises:
            ValueError: for another number of channels or axes, or another condition.
        """
        return self._predict(image, condition).velocity

    def _predict(self, image: Tensor, condition: Optional[Tensor]) -> Estimate:
        """Everything but the displacement, in whose place the output stands."""
        if image.shape[1] != 2 or image.dim() != self.spatial_dims + 2:
            raise ValueError(
                f"image: expected (B, 2, *S) with {self.spatial_dims} spatial axes, got {list(image.shape)}. A "
                "displacement network takes moving and fixed concatenated on the channel axis."
            )
        code = condition_code(condition, self.default_condition, image, self.training, "TransMorph")
        image = channels_last(image)
        skips = [self.full_skip(image, code), self.half_skip(halved_feature(image), code)] + self.encoder(image, code)
        x = skips.pop()
        quarter = x
        for block in self.decoder:
            if len(skips) == 2:
                quarter = x
            x = block(x, skips.pop(), code)
        mean = convolve(x, self.flow.weight, self.flow.bias).float()
        weight: Optional[Tensor] = None
        if self.weight_head is not None:
            weight = self.weight_head(quarter, code, image.shape[2:])
        if self.deviation is None:
            return Estimate(mean, mean, weight)
        log_variance = self.deviation(x)
        velocity = sampled(mean, log_variance, self.training)
        return Estimate(velocity, velocity, weight, log_variance, None, mean)

    def forward(self, image: Tensor, fixed: Optional[Tensor] = None, condition: Optional[Tensor] = None) -> Tensor:
        """Displacement that pulls moving onto fixed.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1]; or moving alone, (B, 1, *S), when ``fixed`` is given.
            fixed: (B, 1, *S), optional.
            condition: code in [0, 1], (B, 1); None is ``default_condition``. Without ``conditional`` it must be None.

        Returns:
            ddf (B, d, *S) in voxels.

        Raises:
            ValueError: for another number of channels or axes, or another condition.
        """
        return self.estimate(pair_image(image, fixed), condition).ddf

    def estimate(self, image: Tensor, condition: Optional[Tensor] = None) -> Estimate:
        """As ``forward``, with the field that training regularises: the output at full resolution.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: as ``forward``.

        Returns:
            Displacement, the field before integration, and ω where there is one.
        """
        found = self._predict(image, condition)
        ddf = self._integrated(found.velocity)
        return Estimate(ddf, found.velocity, found.weight_volume, found.log_variance, None, found.mean)

    @torch.jit.ignore
    def estimate_and_inverse(self, image: Tensor, condition: Optional[Tensor] = None) -> Estimate:
        """``estimate`` of one forward with the way back behind it: ddf (2B, d, *S), velocity (B, d, *S).

        The way back is that of the negated output, without integration the negated displacement (the released code of
        Zhang et al., MICCAI 2024), which is the inverse to first order only.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: as ``forward``.

        Returns:
            Displacements and the field before integration.

        Raises:
            ValueError: as ``forward``.
        """
        found = self._predict(image, condition)
        return found._replace(ddf=self._integrated(torch.cat([found.velocity, -found.velocity])))

    def _integrated(self, velocity: Tensor) -> Tensor:
        return integrate_svf(velocity, self.integration_steps) if self.integration_steps else velocity


def published_window(spatial_dims: int) -> tuple[int, ...]:
    """Tokens of an attention window along each axis.

    Args:
        spatial_dims: 2 or 3.

    Returns:
        Those for 128² or 160 x 192 x 224.

    Raises:
        ValueError: for another number of dimensions.
    """
    if spatial_dims not in WINDOWS:
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
    return WINDOWS[spatial_dims]


def _stages(
    size: str, channels: Optional[int], depths: Optional[Sequence[int]], heads: Optional[Sequence[int]]
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Channels, depths and heads: those given, else those of the named size."""
    preset = SIZES[known_name("size", size, SIZES)]
    return preset[0] if channels is None else channels, tuple(depths or preset[1]), tuple(heads or preset[2])
