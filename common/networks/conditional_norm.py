# SPDX-License-Identifier: Apache-2.0
"""Normalisation that depends on a condition: a mapping network, and instance norm that takes its style from it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mapping(nn.Module):
    """A condition as a latent vector: linear layers, LeakyReLU(0.2) after each.

    Shape: (B, conditions) -> (B, width).

    Args:
        conditions: numbers that a condition consists of.
        width: of every layer.
        layers: how many.

    Reference:
        Mok and Chung, Conditional LapIRN, MICCAI 2021 (its conditional module).
    """

    def __init__(self, conditions: int = 1, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        sizes = [conditions] + [width] * layers
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in sizes[:-1])

    def forward(self, condition: Tensor) -> Tensor:
        latent = condition
        for layer in self.layers:
            latent = F.leaky_relu(layer(latent), 0.2)
        return latent


class ConditionalInstanceNorm(nn.Module):
    """(1 + γ) · instance norm(x) + β, with γ and β a linear function of a latent vector.

    Where that vector is 0 this is the plain instance norm without weights (the linear function starts without bias).
    Statistics are computed in float32.

    Shape: (B, channels, *S), (B, latent) -> (B, channels, *S), of the type of the first.

    Args:
        channels: of the image.
        latent: width of the latent vector.
        eps: added to the variance.

    Reference:
        Mok and Chung, Conditional LapIRN, MICCAI 2021.
    """

    def __init__(self, channels: int, latent: int = 64, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.style = nn.Linear(latent, 2 * channels)
        nn.init.zeros_(self.style.bias)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        shape = [x.shape[0], x.shape[1]] + [1] * (x.dim() - 2)
        gamma, beta = self.style(latent).float().chunk(2, dim=1)
        axes = list(range(2, x.dim()))
        values = x.float()
        variance, mean = torch.var_mean(values, axes, correction=0, keepdim=True)
        scale = (1.0 + gamma.view(shape)) * torch.rsqrt(variance + self.eps)
        # In one pass over the image, of which the backward pass keeps nothing but the image itself.
        return torch.addcmul(beta.view(shape) - mean * scale, values, scale).to(x.dtype)
