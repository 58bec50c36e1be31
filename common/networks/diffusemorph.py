# SPDX-License-Identifier: Apache-2.0
"""DiffuseMorph: a diffusion network whose predicted noise tells a field network where to go."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn

from ..checks import known_name
from .contract import pair_image
from .convolution import weights_channels_last
from .diffusion_unet import DiffusionUNet
from .field_unet import FieldUNet
from .noise_schedule import NoiseSchedule

INTENSITY_RANGES = ("symmetric", "unit")


class Published(NamedTuple):
    """Constants of the released code that differ between 2D and 3D, see ``DiffuseMorph``."""

    channels: int
    groups: int
    field_encoder: tuple[int, ...]
    field_decoder: tuple[int, ...]
    noise_weight: float


PUBLISHED = {
    2: Published(64, 32, (64, 128, 256, 512, 1024), (1024, 512, 256, 128, 64), 1 / 2),
    3: Published(8, 4, (16, 32, 32, 32, 32), (32, 32, 32, 8, 8), 1 / 20),
}


class DiffusionEstimate(NamedTuple):
    """``contract.Estimate`` with the error of the predicted noise.

    Attributes:
        ddf: displacement in voxels of the fixed grid, (B, d, *S).
        velocity: the displacement, on which the smoothness acts.
        weight_volume: None.
        log_variance: None.
        coarser: None.
        mean: None.
        noise_error: (ε̂ − ε)² at every voxel, (B, 1, *S); None in eval mode, where nothing is diffused.
    """

    ddf: Tensor
    velocity: Tensor
    weight_volume: Optional[Tensor] = None
    log_variance: Optional[Tensor] = None
    coarser: Optional[list[Tensor]] = None
    mean: Optional[Tensor] = None
    noise_error: Optional[Tensor] = None


class DiffuseMorph(nn.Module):
    """Diffusion network (M, F, diffused F; t) -> noise ε̂, then field network (M, η ε̂) -> displacement.

    Registration runs the diffusion network once, on the fixed image itself at t = 0; η in [0, 1] scales that noise, for
    a part of the deformation. In training mode F is diffused to a random t, F_t = √ᾱ_t F + √(1 − ᾱ_t) ε, and the
    displacement follows from the noise that is predicted there: what terms and data weights see is warped by it. Draws
    come from torch's global generator. Scripted, the network registers in either mode.

    15,936,129 + 74,736,258 parameters in 2D, 715,665 + 361,299 in 3D, as published. With the published initial weights
    the displacement starts small, below a tenth of a voxel, but not at 0. Constants left None are those of
    ``PUBLISHED``. Any size is taken.

    Args:
        spatial_dims: 2 or 3.
        channels: of the diffusion network, 64 in 2D, 8 in 3D.
        multipliers: as ``DiffusionUNet``.
        groups: as ``DiffusionUNet``, 32 in 2D, 4 in 3D.
        field_encoder: as ``FieldUNet``, (64, 128, 256, 512, 1024) in 2D, (16, 32, 32, 32, 32) in 3D.
        field_decoder: as ``FieldUNet``, (1024, 512, 256, 128, 64) in 2D, (32, 32, 32, 8, 8) in 3D.
        diffusion_steps: T.
        beta_start: β of the first step; it grows linearly.
        beta_end: β of the last step.
        intensity_range: what both networks see of images in [0, 1]: "symmetric", 2 I − 1, as published, or "unit", the
            images themselves, as in the code of AdaCS.
        noise_weight: of the noise's error in training relative to the objective, see ``engines.adaptation``: the
            published 1/λ, 1/2 in 2D, 1/20 in 3D.

    Raises:
        ValueError: for widths that do not fit together, or an unknown range.

    Reference:
        Kim et al., DiffuseMorph, ECCV 2022; AdaCS's variant: Zhang et al., ECCV 2024.
    """

    default_condition: Tensor

    def __init__(
        self,
        spatial_dims: int,
        channels: Optional[int] = None,
        multipliers: tuple[int, ...] = (1, 2, 4, 4),
        groups: Optional[int] = None,
        field_encoder: Optional[tuple[int, ...]] = None,
        field_decoder: Optional[tuple[int, ...]] = None,
        diffusion_steps: int = 2000,
        beta_start: float = 1e-6,
        beta_end: float = 1e-2,
        intensity_range: str = "symmetric",
        noise_weight: Optional[float] = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in PUBLISHED:
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        published = PUBLISHED[spatial_dims]
        self.spatial_dims = spatial_dims
        self.symmetric = known_name("intensity_range", intensity_range, INTENSITY_RANGES) == "symmetric"
        self.noise_weight = published.noise_weight if noise_weight is None else float(noise_weight)
        self.schedule = NoiseSchedule(diffusion_steps, beta_start, beta_end)
        self.diffusion = DiffusionUNet(
            spatial_dims,
            published.channels if channels is None else channels,
            tuple(multipliers),
            published.groups if groups is None else groups,
        )
        self.field = FieldUNet(
            spatial_dims,
            published.field_encoder if field_encoder is None else tuple(field_encoder),
            published.field_decoder if field_decoder is None else tuple(field_decoder),
        )
        self.register_buffer("default_condition", torch.ones(1, 1))
        weights_channels_last(self)

    def forward(self, image: Tensor, fixed: Optional[Tensor] = None, condition: Optional[Tensor] = None) -> Tensor:
        """Displacement that pulls moving onto fixed.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1]; or moving alone, (B, 1, *S), when ``fixed`` is given.
            fixed: (B, 1, *S), optional.
            condition: η in [0, 1], (B, 1); None is 1, the whole way.

        Returns:
            ddf (B, d, *S) in voxels.

        Raises:
            ValueError: for another number of channels or axes, or another condition.
        """
        return self.estimate(pair_image(image, fixed), condition).ddf

    def estimate(self, image: Tensor, condition: Optional[Tensor] = None) -> DiffusionEstimate:
        """As ``forward``; in training mode from the noise predicted at a random step, with its error.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: as ``forward``.

        Returns:
            The displacement, and in training mode the error of the noise.
        """
        image = self._seen(image)
        eta = self._eta(condition, image)
        if not torch.jit.is_scripting() and self.training:
            return self._estimate_diffused(image, eta)
        ddf = self._displacement(image, eta * self._noise(image))
        return DiffusionEstimate(ddf, ddf)

    def trajectory(self, image: Tensor, steps: int = 7) -> Tensor:
        """The continuous registration from η = 0 to 1, of one run of the diffusion network.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            steps: number of equidistant η (published 7), at least 2.

        Returns:
            Displacements in voxels, (steps, B, d, *S): ``forward`` with each η as condition.

        Raises:
            ValueError: for less than two steps, or as ``forward``.
        """
        if steps < 2:
            raise ValueError(f"steps: expected at least 2, the two ends, got {steps}; 7 are published.")
        image = self._seen(image)
        noise = self._noise(image)
        return torch.stack([self._displacement(image, eta * noise) for eta in torch.linspace(0, 1, steps).tolist()])

    @torch.no_grad()
    def generate(self, image: Tensor, steps: int = 200) -> Tensor:
        """An image between moving and fixed: moving, diffused and then denoised towards fixed.

        The published code diffuses by one step more than it denoises. Draws come from torch's global generator.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            steps: of the diffusion, and of the way back (published 200).

        Returns:
            (B, 1, *S) in [0, 1].

        Raises:
            ValueError: for less than one step or more than the diffusion has, or as ``forward``.
        """
        if not 1 <= steps <= self.schedule.steps:
            raise ValueError(
                f"steps: expected 1 to {self.schedule.steps} (diffusion_steps), got {steps}; 200 are published."
            )
        image = self._seen(image)
        moving = image[:, :1].float()
        last = torch.full([len(image)], steps - 1, device=image.device)
        current = self.schedule.diffuse(moving, torch.randn_like(moving), last)
        for step in reversed(range(steps)):
            noise = self.diffusion(torch.cat([image, current.to(image.dtype)], dim=1), torch.full_like(last, step))
            current = self.schedule.denoise(current, noise, step, -1.0 if self.symmetric else 0.0, 1.0)
        return (current + 1) / 2 if self.symmetric else current

    def _estimate_diffused(self, image: Tensor, eta: Tensor) -> DiffusionEstimate:
        fixed = image[:, 1:].float()
        step = torch.randint(self.schedule.steps, [len(image)], device=image.device)
        noise = torch.randn_like(fixed)
        diffused = self.schedule.diffuse(fixed, noise, step)
        predicted = self.diffusion(torch.cat([image, diffused.to(image.dtype)], dim=1), step)
        ddf = self._displacement(image, eta * predicted)
        return DiffusionEstimate(ddf, ddf, noise_error=(predicted - noise).square())

    def _seen(self, image: Tensor) -> Tensor:
        """cat(moving, fixed) in the networks' range."""
        if image.shape[1] != 2 or image.dim() != self.spatial_dims + 2:
            raise ValueError(
                f"image: expected moving and fixed on the channel axis, (B, 2, *S) with {self.spatial_dims} spatial"
                f" axes, got {image.shape}."
            )
        return 2.0 * image - 1.0 if self.symmetric else image

    def _eta(self, condition: Optional[Tensor], image: Tensor) -> Tensor:
        """η, (B, 1, 1, ...)."""
        if condition is None:
            condition = self.default_condition.expand(image.shape[0], 1)
        elif condition.shape != (image.shape[0], 1) or bool((condition < 0).logical_or(condition > 1).any()):
            raise ValueError(
                f"condition: expected one η in [0, 1] for each of {image.shape[0]} pairs, (B, 1), got {condition}."
            )
        return condition.reshape([image.shape[0]] + [1] * (image.dim() - 1))

    def _noise(self, image: Tensor) -> Tensor:
        """ε̂ of the fixed image itself, at t = 0."""
        start = torch.zeros([image.shape[0]], device=image.device)
        return self.diffusion(torch.cat([image, image[:, 1:]], dim=1), start)

    def _displacement(self, image: Tensor, noise: Tensor) -> Tensor:
        return self.field(torch.cat([image[:, :1], noise.to(image.dtype)], dim=1))
