# SPDX-License-Identifier: Apache-2.0
"""The noise of a diffusion from step to step."""

import torch
from torch import Tensor, nn


class NoiseSchedule(nn.Module):
    """x_t = √ᾱ_t x + √(1 − ᾱ_t) ε with ᾱ_t = Π (1 − β_s), β growing linearly.

    MONAI's ``DDPMScheduler`` keeps ᾱ in float32, where 1 − ᾱ of the first step, 1e-6 here, is off by 1.3 %: its last
    step back would darken the image by as much. Here all is computed in float64 and 1 − ᾱ stored by itself.

    Args:
        steps: T.
        beta_start: β of the first step, in (0, 1).
        beta_end: β of the last step, in [beta_start, 1).

    Raises:
        ValueError: for less than one step, or β that are not as described.

    Reference:
        Ho et al., Denoising Diffusion Probabilistic Models, NeurIPS 2020, Eqs. 4, 6, 7, 15.
    """

    betas: Tensor
    signal: Tensor
    noise: Tensor

    def __init__(self, steps: int, beta_start: float, beta_end: float) -> None:
        super().__init__()
        if steps < 1 or not 0 < beta_start <= beta_end < 1:
            raise ValueError(
                "diffusion_steps, beta_start, beta_end: expected at least one step and 0 < beta_start <= beta_end < 1, "
                f"got {steps}, {beta_start}, {beta_end}; published are 2000, 1e-6, 1e-2."
            )
        self.steps = steps
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        logarithm = torch.log1p(-betas).cumsum(0)
        tables = {"betas": betas, "signal": torch.exp(logarithm / 2), "noise": torch.sqrt(-torch.expm1(logarithm))}
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    def diffuse(self, image: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """√ᾱ_t x + √(1 − ᾱ_t) ε.

        Args:
            image: x, (B, C, *S).
            noise: ε, (B, C, *S).
            step: t from 0, (B,) of an integer type.

        Returns:
            x_t, (B, C, *S).
        """
        shape = [-1] + [1] * (image.dim() - 1)
        return self.signal[step].reshape(shape) * image + self.noise[step].reshape(shape) * noise

    def denoise(self, current: Tensor, noise: Tensor, step: int, lowest: float, highest: float) -> Tensor:
        """A draw of x_{t-1}, given x_t and the noise in it; of the first step its mean, the image.

        Args:
            current: x_t, (B, C, *S).
            noise: the ε predicted in it, (B, C, *S).
            step: t from 0.
            lowest: the image that the noise leads to is clamped to [lowest, highest].
            highest: as ``lowest``.

        Returns:
            (B, C, *S).
        """
        image = ((current - self.noise[step] * noise) / self.signal[step]).clamp(lowest, highest)
        if step == 0:
            return image
        beta, variance, before = self.betas[step], self.noise[step].square(), self.noise[step - 1].square()
        mean = self.signal[step - 1] * beta / variance * image + (1 - beta).sqrt() * before / variance * current
        return mean + (beta * before / variance).sqrt() * torch.randn_like(current)
