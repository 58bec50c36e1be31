# SPDX-License-Identifier: Apache-2.0
"""VoxelMorph, as both Yale papers use it: the classic torch network with a stationary velocity field."""

from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..checks import positive, switch
from ..spatial.fields import compose
from ..spatial.integrate import integrate_svf, resize_field
from ..spatial.warp import warp
from .conditional_norm import Styles
from .contract import DEFAULT_CODE, Estimate, condition_code, default_code, pair_image
from .convolution import convolve, flow_head, weights_channels_last
from .uncertainty import UNCERTAINTY_WEIGHT, LogVarianceHead, isotropic_head, resized_map, sampled
from .unet import DECODER, ENCODER, UNet
from .weight_head import WeightHead

# VoxelMorph-1 and -2 in the comparisons of TransMorph and TM-SPR (IXI): one displacement at full resolution.
COMPARED: dict[str, dict[str, Any]] = {
    "voxelmorph_1": {
        "integration_steps": 0, "velocity_downsample": 1,
        "encoder": (8, 32, 32, 32), "decoder": (32, 32, 32, 32, 32, 8, 8),
    },
    "voxelmorph_2": {"integration_steps": 0, "velocity_downsample": 1, "encoder": ENCODER, "decoder": DECODER},
}  # fmt: skip


class VoxelMorph(nn.Module):
    """U-Net -> velocity -> scaling and squaring at reduced resolution -> displacement.

    Departures from the released code: fields are rescaled by (n_new - 1)/(n_old - 1), exact with align_corners=True,
    and any size is taken. 109,170 parameters in 2D, 327,331 in 3D, as published.

    Args:
        spatial_dims: 2 or 3.
        integration_steps: squarings; 0 takes the velocity as displacement (the first VoxelMorph).
        velocity_downsample: factor between the image's and the velocity's grid (published 2).
        encoder: as ``UNet``.
        decoder: as ``UNet``.
        half_resolution: as ``UNet`` (313,507 parameters in 3D); an option of the released code, as a velocity on half
            the grid needs no finer one.
        passes: how often the network is applied (published 1). Each pass sees the moving image warped so far; the maps
            are composed, the first one outermost. All passes share the weights, and gradients flow through all.
        displacement_uncertainty: one further layer estimates a σ_z that all axes share. In training the velocity is
            drawn from N(μ_z, σ_z² I); otherwise it is μ_z, the network without that layer. σ_z is in voxels of the
            velocity's grid: drawn on the image's, every second voxel of an odd axis would leave the velocity as it is,
            and nothing would tell its σ_z.
        uncertainty_weight: α, of the prior on σ_z in training, see ``losses.displacement_uncertainty.DeviationPrior``.
        conditional: the network takes a code in [0, 1], as TM-SPR's: each block's output x becomes (1 + γ) x + β, with
            γ and β that a mapping network and a linear layer make of the code. There is no instance norm in this
            network, and none is added: with γ = β = 0, where training starts, it is the plain VoxelMorph.
        default_condition: code where none is given.
        weight_volume: a head estimates TM-SPR's ω from the decoder's features at a quarter of the resolution, see
            ``weight_head.WeightHead``; it is brought to the velocity's grid.

    Attributes:
        default_condition: code where none is given, (1, 1), stored with the weights; None without ``conditional``.

    Raises:
        ValueError: for less than one pass, an uncertainty or an ω of several, a weight not above 0, a code out of
            range.

    Reference:
        Dalca et al., MICCAI 2018; Balakrishnan et al., IEEE TMI 38(8), 2019; passes: Zhao et al., Recursive
        Cascaded Networks, ICCV 2019 (there with shared weights at test time, in training with weights of their own);
        uncertainty: Zhang et al., MICCAI 2024, supplement; condition and ω: Chen et al., Spatially-varying
        Regularization with Conditional Transformer, 2023.
    """

    default_condition: Optional[Tensor]

    def __init__(
        self,
        spatial_dims: int,
        integration_steps: int = 7,
        velocity_downsample: int = 2,
        encoder: tuple[int, ...] = ENCODER,
        decoder: tuple[int, ...] = DECODER,
        half_resolution: bool = False,
        passes: int = 1,
        displacement_uncertainty: bool = False,
        uncertainty_weight: float = UNCERTAINTY_WEIGHT,
        conditional: bool = False,
        default_condition: float = DEFAULT_CODE,
        weight_volume: bool = False,
    ) -> None:
        super().__init__()
        uncertain = switch(displacement_uncertainty, "displacement_uncertainty")
        weighted = switch(weight_volume, "weight_volume")
        _check_passes(passes, displacement_uncertainty=uncertain, weight_volume=weighted)
        self.uncertainty_weight = positive("uncertainty_weight", uncertainty_weight)
        self.passes = passes
        self.integration_steps = integration_steps
        self.velocity_downsample = velocity_downsample
        self.unet = UNet(spatial_dims, 2, tuple(encoder), tuple(decoder), half_resolution)
        self.flow = flow_head(spatial_dims, self.unet.out_channels)
        # Last, so that a seed gives the other layers the weights that they have without it.
        self.deviation = isotropic_head(spatial_dims, self.unet.out_channels) if uncertain else None
        self.draws_before_resampling = False
        conditioned = switch(conditional, "conditional")
        self.styles = Styles([*encoder, *decoder]) if conditioned else None
        self.register_buffer("default_condition", default_code(default_condition, conditioned))
        width, factor = self.unet.quarter_channels, self.unet.quarter_factor
        form = "paper" if conditioned else None
        self.weight_head = WeightHead(spatial_dims, width, width, factor, form) if weighted else None
        weights_channels_last(self)

    def velocity(self, image: Tensor, condition: Optional[Tensor] = None) -> Tensor:
        """Velocity on its reduced grid, float32 whatever the precision of the convolutions; in training a draw.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: as ``forward``.

        Returns:
            (B, d, *S') in voxels of that grid.
        """
        return self._predict(image, condition).velocity

    def _predict(self, image: Tensor, condition: Optional[Tensor]) -> Estimate:
        """Everything but the displacement, in whose place the velocity stands."""
        code = condition_code(condition, self.default_condition, image, self.training, "VoxelMorph")
        styles: list[Tensor] = []
        if self.styles is not None:
            styles = self.styles(code)
        features, quarter = self.unet.branches(image, styles)
        mean = convolve(features, self.flow.weight, self.flow.bias).float()
        size = [(n + self.velocity_downsample - 1) // self.velocity_downsample for n in image.shape[2:]]
        weight: Optional[Tensor] = None
        if self.weight_head is not None:
            weight = resized_map(self.weight_head(quarter, code, image.shape[2:]), size)
        if self.deviation is None:
            velocity = resize_field(mean, size)
            return Estimate(velocity, velocity, weight)
        log_variance = self.deviation(features)
        if not self.draws_before_resampling:
            mean, log_variance = resize_field(mean, size), resized_map(log_variance, size)
        velocity = resize_field(sampled(mean, log_variance, self.training), size)
        return Estimate(velocity, velocity, weight, log_variance, None, mean)

    def displacement(self, velocity: Tensor, size: list[int]) -> Tensor:
        """Integrate a velocity and bring it to the image's grid.

        Args:
            velocity: (B, d, *S') in voxels of its grid.
            size: of the image.

        Returns:
            ddf, (B, d, *size) in voxels.
        """
        return resize_field(integrate_svf(velocity, self.integration_steps), size)

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
        """As ``forward``, with the velocity that training regularises.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: as ``forward``.

        Returns:
            Displacement, velocity, and ω where there is one.
        """
        found = self._predict(image, condition)
        ddf = self.displacement(found.velocity, image.shape[2:])
        velocities = [found.velocity]
        for _ in range(self.passes - 1):
            warped = warp(image[:, :1], ddf, padding="border")
            velocity = self.velocity(torch.cat([warped, image[:, 1:]], dim=1), condition)
            ddf = compose(ddf, self.displacement(velocity, image.shape[2:]))
            velocities.append(velocity)
        velocity = torch.cat(velocities, dim=1)
        return Estimate(ddf, velocity, found.weight_volume, found.log_variance, None, found.mean)

    @torch.jit.ignore
    def estimate_and_inverse(self, image: Tensor, condition: Optional[Tensor] = None) -> Estimate:
        """``estimate`` of one forward with the way back, exp(-v), behind it: ddf (2B, d, *S), velocity (B, d, *S').

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: as ``forward``.

        Returns:
            Displacement and velocity.

        Raises:
            ValueError: with several passes, whose map has no one velocity, or as ``forward``.
        """
        if self.passes > 1:
            raise ValueError(f"inverse_by_negation: expected a network of one pass, got passes {self.passes}.")
        found = self._predict(image, condition)
        both = self.displacement(torch.cat([found.velocity, -found.velocity]), image.shape[2:])
        return found._replace(ddf=both)


def _check_passes(passes: int, **once: bool) -> None:
    """Refuse several passes of a network that estimates, by the name of the argument, what a chain has not."""
    if passes < 1:
        raise ValueError(f"passes: expected at least 1, got {passes}.")
    for argument, wanted in once.items():
        if wanted and passes > 1:
            raise ValueError(
                f"{argument}: expected a network of one pass, got passes {passes}: a chain of maps has no one "
                "variance or weight volume. Leave passes 1."
            )


class VoxelMorphDiff(VoxelMorph):
    """VoxelMorph-diff: the U-Net's output has a Gaussian posterior, with a variance for every axis of its own.

    In training that output is drawn, before it is resampled and integrated, otherwise it is the mean. Log variances
    start at −10, as published, and are bounded as in ``LogVarianceHead``. 109,460 parameters in 2D, 328,630 in 3D.

    It is trained by an objective of its own, after the evidence lower bound with image noise of one variance: the
    squared error times 1/σ_I², and a divergence in the place of the smoothness, see ``engines.adaptation`` and
    ``losses.displacement_uncertainty.PosteriorDivergence``.

    Args:
        spatial_dims: 2 or 3.
        integration_steps: as ``VoxelMorph``.
        velocity_downsample: as ``VoxelMorph``.
        encoder: as ``UNet``.
        decoder: as ``UNet``.
        image_sigma: σ_I, of the noise in images in [0, 1] (recommended by the released code: 0.02).
        prior_weight: λ_p, precision of the prior (published 10).
        divergence_weight: of the divergence in training (released scripts: 0.01; the bound itself has 2).

    Raises:
        ValueError: for a value not above 0.

    Reference:
        Dalca et al., Unsupervised Learning of Probabilistic Diffeomorphic Registration for Images and Surfaces,
        Medical Image Analysis 57, 2019; MICCAI 2018; released TensorFlow code.
    """

    def __init__(
        self,
        spatial_dims: int,
        integration_steps: int = 7,
        velocity_downsample: int = 2,
        encoder: tuple[int, ...] = ENCODER,
        decoder: tuple[int, ...] = DECODER,
        image_sigma: float = 0.02,
        prior_weight: float = 10.0,
        divergence_weight: float = 0.01,
    ) -> None:
        super().__init__(spatial_dims, integration_steps, velocity_downsample, encoder, decoder)
        self.image_sigma = positive("image_sigma", image_sigma)
        self.prior_weight = positive("prior_weight", prior_weight)
        self.divergence_weight = positive("divergence_weight", divergence_weight)
        self.deviation = LogVarianceHead(spatial_dims, self.unet.out_channels, spatial_dims, -10.0)
        self.draws_before_resampling = True
        weights_channels_last(self)
