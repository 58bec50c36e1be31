# SPDX-License-Identifier: Apache-2.0
"""Layers that depend on a condition: a mapping network, and norms that take their style from it."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FORMS = ("paper", "official")  # of TM-SPR's conditioning, see ``start_style``
LATENT = 64


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


class InstanceNorm(nn.Module):
    """Instance norm without weights. Takes a latent vector, and ignores it.

    Shape: (B, channels, *S), any -> (B, channels, *S).
    """

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        # One voxel is its own mean, which torch refuses to normalise.
        return F.instance_norm(x) if x[0, 0].numel() > 1 else x - x


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis. Takes a latent vector, and ignores it.

    Shape: (B, *S, channels), any -> (B, *S, channels).
    """

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:  # type: ignore[override]
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class ConditionalLayerNorm(nn.LayerNorm):
    """(1 + γ) · layer norm(x) + β, with γ and β a linear function of a latent vector.

    The layer norm keeps its own weights (the paper's Eq. 6 has none beside γ and β, the released code has), so that a
    conditional network holds those of the plain one.

    Shape: (B, *S, channels), (B, latent) -> (B, *S, channels), of the type of the first.

    Args:
        channels: of the tokens.
        latent: width of the latent vector.

    Reference:
        Chen et al., Spatially-varying Regularization with Conditional Transformer, 2023, Eq. 6.
    """

    def __init__(self, channels: int, latent: int = LATENT) -> None:
        super().__init__(channels)
        self.style = nn.Linear(latent, 2 * channels)
        nn.init.zeros_(self.style.bias)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:  # type: ignore[override]
        normed = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return styled(normed.movedim(-1, 1), self.style(latent)).movedim(1, -1).to(x.dtype)


def styled(x: Tensor, style: Tensor) -> Tensor:
    """(1 + γ) x + β, channel by channel.

    Args:
        x: (B, C, *S).
        style: γ and β one behind the other, (B, 2 C).

    Returns:
        (B, C, *S), of the type of ``x``.
    """
    gamma, beta = style.float().view([x.shape[0], 2 * x.shape[1]] + [1] * (x.dim() - 2)).chunk(2, dim=1)
    return torch.addcmul(beta, 1.0 + gamma, x.float()).to(x.dtype)


def start_style(style: nn.Linear, form: str) -> None:
    """Set the linear function that gives γ and β to where training starts.

    Args:
        style: latent vector -> γ and β.
        form: "paper": γ = β = 0 whatever the condition, so that layers start as the plain ones. "official", the
            released code: γ starts around 1, which makes the scale 2, and weights as torch draws them.
    """
    nn.init.zeros_(style.bias)
    if form == "paper":
        nn.init.zeros_(style.weight)
    else:
        style.bias.data[: style.out_features // 2].fill_(1.0)


def mapping(form: Optional[str], channels: int) -> nn.Module:
    """The mapping network of one block.

    Args:
        form: of ``FORMS``; None for a block that takes no condition.
        channels: of what the block normalises: the latent width in the released code; the paper's is 64.

    Returns:
        A module (B, 1) -> (B, latent); without a form, one that returns its input.
    """
    return nn.Identity() if form is None else Mapping(width=LATENT if form == "paper" else channels)


def layer_norm(form: Optional[str], channels: int) -> nn.Module:
    """A layer norm, conditional or not.

    Args:
        form: of ``FORMS``; None for the plain one.
        channels: of the tokens.

    Returns:
        A module (x, latent) -> x.
    """
    if form is None:
        return LayerNorm(channels)
    norm = ConditionalLayerNorm(channels, LATENT if form == "paper" else channels)
    start_style(norm.style, form)
    return norm


def instance_norm(form: Optional[str], channels: int) -> nn.Module:
    """An instance norm without weights, conditional or not.

    Args:
        form: of ``FORMS``; None for the plain one.
        channels: of the image.

    Returns:
        A module (x, latent) -> x.
    """
    if form is None:
        return InstanceNorm()
    norm = ConditionalInstanceNorm(channels, LATENT if form == "paper" else channels)
    start_style(norm.style, form)
    return norm


class Styles(nn.Module):
    """γ and β for each block of a network without norms, from one mapping network that all blocks share.

    They start at 0: the network is the plain one, whatever the condition.

    Shape: (B, 1) -> list of (B, 2 C), one for each entry C of ``channels``; see ``styled``.

    Args:
        channels: of each block's output.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.mapping = Mapping(width=LATENT)
        self.layers = nn.ModuleList(nn.Linear(LATENT, 2 * width) for width in channels)
        for layer in self.layers:
            start_style(layer, "paper")

    def forward(self, condition: Tensor) -> list[Tensor]:
        latent = self.mapping(condition)
        styles: list[Tensor] = []
        for layer in self.layers:
            styles.append(layer(latent))
        return styles
