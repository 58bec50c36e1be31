# SPDX-License-Identifier: Apache-2.0
"""Terms of networks whose displacement is drawn from a Gaussian with a variance that they estimate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checks import positive
from .objective import Step
from .smoothness import Diffusion


class DeviationPrior(nn.Module):
    """mean_x[ σ_z² − log σ_z² ], which keeps the estimated variance of a displacement from vanishing.

    σ_z² is in squared voxels of the grid that the network draws on: of the velocity for ``voxelmorph`` (half the
    image's), of the image for ``transmorph``. The term is least, 1, at σ_z = 1 voxel. Pixels outside a ``mask`` count
    as all others, as in the smoothness.

    Its weight α is not published. Noise costs the other terms about c(x) σ_z², and the sum is least at
    σ_z² = α / (α + c), where that cost is below α, whatever c: α bounds what drawing the displacement costs. Our
    default is 1e-3, below the mean squared error that remains between registered images in [0, 1], some thousandths.
    The smoothness alone makes c = 4 λ, with ``methods.baselines`` and λ = 0.01 thus σ_z = 0.16 voxel where images are
    flat; the squared error adds about the squared gradient of the image a voxel of that grid, some hundredths at edges,
    where σ_z is less. For a similarity of another scale it grows with λ.

    Reference:
        Zhang et al., Heteroscedastic Uncertainty Estimation Framework for Unsupervised Registration, MICCAI 2024,
        supplement.
    """

    def forward(self, step: Step) -> Tensor:
        log_variance = _entry(step, "log_variance")
        return (log_variance.exp() - log_variance).mean()


class MeanDeviation(nn.Module):
    """Mean of σ_z in voxels, for the log."""

    def forward(self, step: Step) -> Tensor:
        return _entry(step, "log_variance").detach().mul(0.5).exp().mean()


class PosteriorDivergence(nn.Module):
    """Divergence of a velocity's posterior N(μ, σ²) from a prior with λ_p times the grid's Laplacian as precision.

    d/2 · ( mean_x,c[ λ_p D(x) σ_c² − log σ_c² ] + λ_p/2 · energy(μ) ), with D(x) the number of neighbours of x within
    the grid (2d inside, fewer at the border), and the energy of ``smoothness.Diffusion``. The form is that of the
    released code. It is the Kullback-Leibler divergence over the number of voxels, up to a constant, but for the
    energy, which there counts 2d times as much.

    Args:
        prior_weight: λ_p (published 10).

    Raises:
        ValueError: for a λ_p not above 0.

    Reference:
        Dalca et al., Medical Image Analysis 57, 2019, Eq. 8; its released code.
    """

    def __init__(self, prior_weight: float = 10.0) -> None:
        super().__init__()
        self.prior_weight = positive("prior_weight", prior_weight)
        self.diffusion = Diffusion()

    def forward(self, step: Step) -> Tensor:
        log_variance, mean = _entry(step, "log_variance"), _entry(step, "mean")
        dims = mean.dim() - 2
        precision = self.prior_weight * _neighbours(mean)
        spread = (precision * log_variance.exp() - log_variance).mean()
        return 0.5 * dims * (spread + 0.5 * self.prior_weight * self.diffusion(mean))


def _neighbours(field: Tensor) -> Tensor:
    """Number of neighbours of each voxel within the grid, (*S)."""
    count = torch.full(field.shape[2:], 2.0 * (field.dim() - 2), dtype=field.dtype, device=field.device)
    for axis in range(count.dim()):
        count.select(axis, 0).sub_(1)
        count.select(axis, -1).sub_(1)
    return count


def _entry(step: Step, name: str) -> Tensor:
    entry = getattr(step.estimate, name, None)
    if entry is None:
        raise ValueError(
            f"{name}: expected a network that estimates the variance of its displacement, got none in its estimate; "
            'give the architecture "displacement_uncertainty": true, or choose voxelmorph_diff.'
        )
    return entry
