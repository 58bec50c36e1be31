# SPDX-License-Identifier: Apache-2.0
"""TransMorph-TVF: a time-varying flow, one decoder head a time step; with a condition and a weight volume TM-SPR."""

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..checks import known_name, switch
from ..spatial.integrate import integrate_svf
from ..spatial.warp import warp
from .checkpointing import checkpointed
from .conditional_norm import FORMS
from .contract import DEFAULT_CODE, Estimate, check_pair, condition_code, default_code, pair_image
from .convolution import channels_last, convolve, flow_head, weights_channels_last
from .decoder import DecoderBlock, NormalisedConv, decoder_blocks, enlarged, halved_feature
from .icon import halve
from .swin import SwinTransformer
from .transmorph import published_window
from .weight_head import WeightHead

# Published sizes: of TM-SPR and its TM-TVF, and of the TVF-Large of OASIS.
SIZES: dict[str, dict[str, Any]] = {
    "base": {
        "channels": 96, "depths": (4, 4, 5), "heads": (8, 8, 8),
        "encoder_downsample": 2, "field_downsample": 2, "time_steps": 7,
    },
    "large": {
        "channels": 128, "depths": (2, 2, 12, 2), "heads": (4, 4, 8, 16),
        "encoder_downsample": 1, "field_downsample": 2, "time_steps": 12,
    },
}  # fmt: skip
# What makes TM-SPR of TransMorph-TVF.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"conditional": "paper", "weight_volume": "paper"},
    "official": {"conditional": "official", "weight_volume": "official", "self_warped": True},
}
GRIDS = ((2, 2), (1, 2), (1, 1))  # encoder_downsample, field_downsample


class TimeStep(nn.Module):
    """The flow of one time step, from the pair warped so far and the features that all steps share.

    Shape: (B, shared, *S), (B, 1, *S), (B, 1, *S), (B, 1) -> (B, d, *S) float32 and (B, out, *S).

    Args:
        spatial_dims: d, 2 or 3.
        shared: channels of the shared features.
        pair: channels of the convolution of the pair.
        out: channels that the flow is predicted from.
        conditional: form of the norm behind the convolution of the pair, see ``NormalisedConv``.
        decoder: form of the norms of the decoder block.
    """

    def __init__(
        self, spatial_dims: int, shared: int, pair: int, out: int, conditional: Optional[str], decoder: Optional[str]
    ) -> None:
        super().__init__()
        self.pair = NormalisedConv(spatial_dims, 2, pair, conditional)
        self.block = DecoderBlock(spatial_dims, shared, pair, out, decoder)
        self.flow = flow_head(spatial_dims, out)

    def forward(self, shared: Tensor, warped: Tensor, fixed: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        pair = self.pair(channels_last(torch.cat([warped, fixed], dim=1)), code)
        features = self.block.joined(shared, pair, code)
        return convolve(features, self.flow.weight, self.flow.bias).float(), features


class TransMorphTVF(nn.Module):
    """Swin transformer -> decoder -> flows of several time steps -> displacement by Euler integration.

    u_0 = 0, u_t(x) = u_{t-1}(x) + f_t(x + u_{t-1}(x)): a step sees the moving image warped by the field so far, and
    the result is the composition of all steps, the first outermost. TM-SPR is this network with ``conditional`` and
    ``weight_volume``, see ``PRESETS``.

    Published, the network runs on half of the image's grid; that is the default. The field is up-sampled linearly and
    multiplied by 2, its voxels covering 2^d of the image's.

    Parameters in 3D: 17,573,565 as TM-TVF, 39,016,942 as published TM-SPR (the released module has 1,299 more, of a
    layer it never calls), 108,989,780 of size "large".

    Departures from the released code: fields go on beyond the border, where it samples zeros (``self_warped`` keeps
    that); images and fields are sampled with align_corners=True throughout, so that a displacement of 0 changes nothing
    (released: coordinates for that, sampled without); half images are means of 2^d voxels (so TM-SPR; TVF-Large: 3^d);
    fields of TVF-Large are doubled too (released: not); no clamp at 100 voxels. As ``TransMorph``, windows are padded
    along their own axis, masked, and any size is taken.

    Args:
        spatial_dims: 2 or 3.
        size: "base" or "large", which stands for the arguments that are None.
        window: as ``TransMorph``; for the encoder's grid, a quarter of the (half) image.
        channels: of the first stage, even.
        depths: blocks of each stage.
        heads: of each stage.
        time_steps: of the integration.
        encoder_downsample: factor between the grids of the image and of the encoder's input, 1 or 2.
        field_downsample: factor between the grids of the image and of the field, 1 or 2, at least that of the encoder.
        drop_path: as ``TransMorph``.
        head_channels: that each flow is predicted from.
        sees_padding: as ``WindowAttention``.
        self_warped: the released line, u_t = u_{t-1} + f_t(x + f_t(x)), which its author has confirmed to be an error.
        diffeomorphic: the sum of the steps is taken as a velocity and integrated on its grid by 7 squarings (SPR-diff).
        conditional: None; "paper": every layer norm of Swin blocks and patch mergings, and every instance norm of the
            decoder take a code from a mapping network of width 64 for each block, and start as the plain norms;
            "official", the released code: latent width of the block's channels, scales that start at 2, plain norms in
            the decoder's blocks.
        default_condition: code in [0, 1] where none is given, η as a share of its range; 0.55 is the paper's best of
            IXI (η 2.2 of 4).
        weight_volume: None; "paper": ω from the decoder's features at a quarter of the image's size; "official": from
            the sum over the steps of what the flows are predicted from. See ``weight_head.WeightHead``.
        checkpointing: in training, compute what lies within blocks and time steps anew for the backward pass: TM-SPR of
            160 x 192 x 224 then takes 3.8 GiB, not 8.7, on the CPU.

    Attributes:
        default_condition: (1, 1), stored with the weights; None without ``conditional``.

    Raises:
        ValueError: for an unknown size or form, less than one step, other factors, numbers that do not fit together.

    Reference:
        Chen et al., Unsupervised Learning of Diffeomorphic Image Registration via TransMorph, WBIR 2022; Chen et al.,
        Spatially-varying Regularization with Conditional Transformer, 2023, Sec. 3; their released code.
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
        time_steps: Optional[int] = None,
        encoder_downsample: Optional[int] = None,
        field_downsample: Optional[int] = None,
        drop_path: float = 0.3,
        head_channels: int = 16,
        sees_padding: bool = False,
        self_warped: bool = False,
        diffeomorphic: bool = False,
        conditional: Optional[str] = None,
        default_condition: float = DEFAULT_CODE,
        weight_volume: Optional[str] = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        window = published_window(spatial_dims) if window is None else tuple(window)
        given = {
            "channels": channels, "depths": depths, "heads": heads, "time_steps": time_steps,
            "encoder_downsample": encoder_downsample, "field_downsample": field_downsample,
        }  # fmt: skip
        own = _numbers(size, given)
        _check_forms(conditional=conditional, weight_volume=weight_volume)
        self.spatial_dims, self.checkpointing = spatial_dims, switch(checkpointing, "checkpointing")
        self.encoder_downsample, self.field_downsample = own["encoder_downsample"], own["field_downsample"]
        self.self_warped = switch(self_warped, "self_warped")
        self.diffeomorphic = switch(diffeomorphic, "diffeomorphic")
        self.register_buffer("default_condition", default_code(default_condition, conditional is not None))
        self.encoder = SwinTransformer(
            spatial_dims, 2, own["channels"], own["depths"], own["heads"], window, drop_path=drop_path,
            sees_padding=sees_padding, conditional=conditional, checkpointing=self.checkpointing,
        )  # fmt: skip
        self._build_decoder(own, head_channels, conditional, weight_volume)
        weights_channels_last(self)

    def _build_decoder(
        self, own: dict[str, Any], head_channels: int, conditional: Optional[str], weight_volume: Optional[str]
    ) -> None:
        dims, width = self.spatial_dims, own["channels"]
        decoder = None if conditional == "official" else conditional
        # Features on half of the encoder's grid, where the field has the whole of it.
        finer = self.field_downsample == self.encoder_downsample
        self.half_skip = NormalisedConv(dims, 2, width // 2, conditional) if finer else None
        skips = [width // 2] * finer + [width * 2**stage for stage in range(len(own["depths"]))]
        self.decoder = decoder_blocks(dims, skips, decoder)
        self.steps = nn.ModuleList(
            TimeStep(dims, skips[0], width // 2, head_channels, conditional, decoder) for _ in range(own["time_steps"])
        )
        self.sums_features = weight_volume == "official"
        # Where the field is on the image's own grid, the decoder's last features but one are at a quarter of it.
        quarter = skips[1] if self.field_downsample == 1 else skips[0]
        inputs, factor = (head_channels, self.field_downsample) if self.sums_features else (quarter, 4)
        self.weight_head = None
        if weight_volume is not None:
            self.weight_head = WeightHead(dims, inputs, width // 2, factor, conditional, self.sums_features)

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
        """As ``forward``, with ω.

        Smoothness acts on the displacement u at the image's resolution, in the diffeomorphic form too: Eq. 3 is of u,
        and ω is up-sampled "to match the resolution of the deformation field" (the released code does so as well).

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: as ``forward``.

        Returns:
            ``ddf`` and, the same, ``velocity``; ``weight_volume`` ω in (0, 1), (B, 1, *S), where there is one. It is
            not clamped: the terms that use it take it from [ε, 1].
        """
        check_pair(image, self.spatial_dims)
        code = condition_code(condition, self.default_condition, image, self.training, "TransMorph-TVF")
        inputs = channels_last(image if self.encoder_downsample == 1 else halve(image))
        quarter, shared = self._decoded(inputs, code)
        if self.field_downsample > self.encoder_downsample:
            inputs = halve(image)
        field, summed = self._summed_over_time(enlarged(shared, 2, inputs.shape[2:]), inputs, code)
        if self.diffeomorphic:
            field = integrate_svf(field)  # 7 squarings
        ddf = enlarged(field, self.field_downsample, image.shape[2:]) * float(self.field_downsample)
        weight: Optional[Tensor] = None
        if self.weight_head is not None:
            weight = self.weight_head(summed if self.sums_features else quarter, code, image.shape[2:])
        return Estimate(ddf, ddf, weight)

    def _decoded(self, inputs: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's features at a quarter of the image's size, and its last, on half of the field's grid."""
        skips = self.encoder(inputs, code)
        if self.half_skip is not None:
            skips = [self.half_skip(halved_feature(inputs), code)] + skips
        x = skips.pop()
        before = x
        for block in self.decoder:
            before = x
            x = block(x, skips.pop(), code)
        return (before if self.field_downsample == 1 else x), x

    def _summed_over_time(self, shared: Tensor, pair: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """The field after all steps, and the sum of their features where it is needed."""
        moving, fixed = pair[:, :1], pair[:, 1:]
        warped, field, summed = moving, moving, moving
        for number, step in enumerate(self.steps):
            if number > 0:
                warped = warp(moving, field)
            if torch.jit.is_scripting():
                flow, features = step(shared, warped, fixed, code)
            else:
                flow, features = checkpointed(self.checkpointing, step, shared, warped, fixed, code)
            if self.self_warped:
                flow = warp(flow, flow)
            elif number > 0:
                flow = warp(flow, field, padding="border")
            field = flow if number == 0 else field + flow
            if self.sums_features:
                summed = features if number == 0 else summed + features
        return field, summed


def _numbers(size: str, given: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a network: those given, else those of the named size."""
    own = SIZES[known_name("size", size, SIZES)] | {name: value for name, value in given.items() if value is not None}
    if own["time_steps"] < 1:
        raise ValueError(f"time_steps: expected at least 1, got {own['time_steps']}; 7 and 12 are published.")
    grids = own["encoder_downsample"], own["field_downsample"]
    if grids not in GRIDS:
        raise ValueError(
            "encoder_downsample, field_downsample: expected 2 and 2 (TM-SPR), 1 and 2 (TVF-Large), or 1 and 1 (full "
            f"resolution), got {grids[0]} and {grids[1]}."
        )
    return own


def _check_forms(**forms: Optional[str]) -> None:
    for argument, form in forms.items():
        if form is not None:
            known_name(argument, form, FORMS)
