# SPDX-License-Identifier: Apache-2.0
"""A Gaussian in the displacement's place: a head for its variance, draws of it, and a map of its deviation."""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..spatial.integrate import resize_field
from .convolution import convolution, convolve
from .unet import bounded_log_variance

INITIAL_DEVIATION = 0.1  # in voxels of its grid, of an isotropic σ_z
UNCERTAINTY_WEIGHT = 1e-3  # α, see ``losses.displacement_uncertainty.DeviationPrior``
LOG_VARIANCE_RANGE = (-20.0, 10.0)


class LogVarianceHead(nn.Module):
    """log σ² of a Gaussian, from the features that its mean is predicted from: one 3^d convolution.

    Values go smoothly over into the bounds of ``LOG_VARIANCE_RANGE``, −20 and 10 (σ from 5e-5 to 148 voxels): between
    −15 and 5 they change by less than 0.01. Weights start from N(0, (1e-10)²), so that σ is the same everywhere at
    first. In eval mode nothing is drawn, and the log variance carries no gradient: without a draw to compare, a fit to
    one pair would only drag the shared features to the prior.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the features.
        out_channels: 1 for a σ that all axes share, d for one an axis.
        initial: log σ² before training.

    Reference:
        Dalca et al., MICCAI 2018 (initial weights); the bounds are ours.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, initial: float) -> None:
        super().__init__()
        self.least, self.largest = (math.exp(end) for end in LOG_VARIANCE_RANGE)
        self.conv = convolution(spatial_dims, in_channels, out_channels)
        nn.init.normal_(self.conv.weight, std=1e-10)  # type: ignore[arg-type]
        nn.init.constant_(self.conv.bias, initial)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Estimate the log variance.

        Args:
            features: (B, in_channels, *S).

        Returns:
            (B, out_channels, *S), float32; exp of it in squared voxels of that grid.
        """
        value = convolve(features, self.conv.weight, self.conv.bias).float()
        value = bounded_log_variance(value, self.least, self.largest)
        return value if self.training else value.detach()


def isotropic_head(spatial_dims: int, in_channels: int) -> LogVarianceHead:
    """The head of one σ_z that all axes share.

    It starts at ``INITIAL_DEVIATION``, a tenth of a voxel: noise that warps images visibly less than what is there to
    be learnt, while the prior's own optimum, 1 voxel, would drown the first gradients of the mean.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the features that the mean is predicted from.

    Returns:
        The head, of one channel.
    """
    return LogVarianceHead(spatial_dims, in_channels, 1, 2 * math.log(INITIAL_DEVIATION))


def resized_map(log_variance: Tensor, size: list[int]) -> Tensor:
    """Linear resampling over the same extent; values stay as they are.

    Args:
        log_variance: (B, C, *S).
        size: the new grid size, one entry an axis.

    Returns:
        (B, C, *size).
    """
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(log_variance, size=size, mode=mode, align_corners=True)


def sampled(mean: Tensor, log_variance: Optional[Tensor], training: bool) -> Tensor:
    """z = μ + σ ε with ε ~ N(0, I) in training; otherwise, without a variance and in scripted networks the mean.

    ε comes from torch's global generator, one value a voxel and axis.

    Args:
        mean: μ, (B, d, *S).
        log_variance: log σ², (B, 1, *S) or (B, d, *S); None draws nothing.
        training: whether the network is in training mode.

    Returns:
        (B, d, *S).
    """
    if log_variance is None or not training or torch.jit.is_scripting():
        return mean
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


@torch.no_grad()
def displacement_deviation(network: nn.Module, image: Tensor, condition: Optional[Tensor] = None) -> Optional[Tensor]:
    """Standard deviation σ of a network's displacement, in voxels of the image, one value a voxel.

    σ² is the mean over the axes, each axis in voxels of the image: σ_z itself where axes share one. The uncertainty
    that is published of VoxelMorph-diff, log Σ_axes σ², is 2 log σ + log d, which ranks voxels alike. It belongs to
    what the network predicts, as published, and is not carried through down-sampling and integration. From a coarser
    grid σ is resampled linearly.

    Args:
        network: any; it runs in the mode that it is in.
        image: cat(moving, fixed), (B, 2, *S) in [0, 1].
        condition: as the network's ``forward``.

    Returns:
        (B, 1, *S) without gradient; None for a network that estimates no variance.
    """
    estimate = getattr(network, "estimate", None)
    log_variance = None if estimate is None else getattr(estimate(image, condition), "log_variance", None)
    if log_variance is None:
        return None
    deviation = torch.exp(0.5 * log_variance).expand(-1, image.dim() - 2, *log_variance.shape[2:])
    return resize_field(deviation.contiguous(), list(image.shape[2:])).square().mean(dim=1, keepdim=True).sqrt()
