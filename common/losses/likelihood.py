# SPDX-License-Identifier: Apache-2.0
"""Likelihood of the fixed image under Gaussian noise whose variance a network estimates at every pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..checks import positive
from .objective import Step


class NegativeLogLikelihood(nn.Module):
    """mean_x[ ⌊σ^(2β)⌋ · ( r / σ² + log σ² ) ], with r the squared residual and ⌊·⌋ without gradient.

    The estimator's output s is log σ² before a floor, the least variance that is believed: σ² = exp(s) + floor. Without
    one, a pixel without residual would draw its σ² to 0, and the loss to minus infinity. The floor is smooth (a clamp
    would hold pixels below it for ever): at s far below log(floor) the loss is r / floor + log(floor), and finite
    wherever s and r are. Its default, 1e-6 of images in [0, 1], is about the noise of rounding to 8 bits,
    1 / (12 · 255²). At a fixed r above the floor the loss is least at σ² = r.

    The form is the paper's. Published code has half of both terms, which is another λ: λ here is twice λ there, for the
    same minimum. Where the step has a ``mask``, pixels outside it count 0, as a mean over all pixels (the published
    code multiplies log σ² with it, which comes to the same).

    Args:
        beta: 0 is the likelihood; 1 weighs every pixel's residual alike, as the squared error does.
        floor: least variance, in squared intensity.

    Raises:
        ValueError: for a β outside [0, 1], or a floor not above 0.

    Reference:
        Kendall and Gal, What Uncertainties Do We Need, NeurIPS 2017; Seitzer et al., On the Pitfalls of Heteroscedastic
        Uncertainty Estimation, ICLR 2022 (β); in registration Zhang et al., AdaCS, ECCV 2024, Sec. 5 (baselines).
    """

    def __init__(self, beta: float = 0.0, floor: float = 1e-6) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise ValueError(f"beta: expected a number from 0 to 1, got {beta!r}; 0.5 is usual.")
        self.beta, self.floor = float(beta), positive("floor", floor)

    def forward(self, step: Step) -> Tensor:
        estimated = step.estimated
        log_variance = torch.logaddexp(estimated, estimated.new_tensor(math.log(self.floor)))
        loss = step.residual * torch.exp(-log_variance) + log_variance
        if self.beta:
            loss = torch.exp(self.beta * log_variance.detach()) * loss
        return (loss if step.mask is None else loss * step.mask).mean()


class MeanLogVariance(nn.Module):
    """Mean of the estimator's log σ², for the log."""

    def forward(self, step: Step) -> Tensor:
        return step.estimated.detach().mean()
