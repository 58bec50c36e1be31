# SPDX-License-Identifier: Apache-2.0
"""Likelihood of the fixed image under noise whose variance a network estimates at every pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checks import known_name
from .objective import Step
from .similarity import SquaredError

NOISES = ("gaussian", "laplace")


class NegativeLogLikelihood(nn.Module):
    """mean_x[ ⌊σ^(2β)⌋ · ( r / σ² + log σ² ) ], with r the squared residual and ⌊·⌋ without gradient.

    The estimator's output is log σ², bounded (``networks.unet.bounded_log_variance``), so that the loss is finite
    wherever r is. At a fixed r within the bounds it is least at σ² = r. Of Laplace noise of variance σ² the bracket is
    √2 · √r / σ + ½ log σ², least at σ² = 2 r.

    The form is the papers'. Published code has half of both terms, which is another λ where one loss trains both
    networks: λ here is twice λ there, for the same minimum. Where the step has a ``mask``, pixels outside it count 0,
    as a mean over all pixels (the published code multiplies log σ² with it, which comes to the same).

    Args:
        beta: 0 is the likelihood; 1 weighs every pixel's residual alike, as the squared error does.
        detached: no gradient flows through the residual, for a network of variances that is trained by itself.
        noise: "gaussian" or "laplace".
        similarity: of the method whose residual is read, to be checked.

    Raises:
        ValueError: for a β outside [0, 1], another noise, or a similarity that is not the squared error.

    Reference:
        Kendall and Gal, What Uncertainties Do We Need, NeurIPS 2017; Seitzer et al., On the Pitfalls of Heteroscedastic
        Uncertainty Estimation, ICLR 2022 (β); in registration Zhang et al., AdaCS, ECCV 2024, Sec. 5 (baselines), and
        Zhang et al., Heteroscedastic Uncertainty Estimation Framework, MICCAI 2024, Eq. 5 (detached; Laplace noise is
        an option of its code).
    """

    def __init__(
        self,
        beta: float = 0.0,
        detached: bool = False,
        noise: str = "gaussian",
        similarity: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if similarity is not None and not isinstance(similarity, SquaredError):
            raise ValueError(
                f"similarity: expected mse, got {type(similarity).__name__}: the likelihood is that of noise, and its "
                "variance that of the images' difference, which only mse squares. Choose mse, or another objective."
            )
        if not 0 <= beta <= 1:
            raise ValueError(f"beta: expected a number from 0 to 1, got {beta!r}; 0.5 is usual.")
        self.beta, self.detached, self.noise = float(beta), bool(detached), known_name("noise", noise, NOISES)

    def forward(self, step: Step) -> Tensor:
        log_variance, residual = step.estimated, step.residual.detach() if self.detached else step.residual
        if self.noise == "laplace":  # the square root's slope is finite at 0
            loss = (2 * residual + 1e-12).sqrt() * torch.exp(-0.5 * log_variance) + 0.5 * log_variance
        else:
            loss = residual * torch.exp(-log_variance) + log_variance
        if self.beta:
            loss = torch.exp(self.beta * log_variance.detach()) * loss
        return (loss if step.mask is None else loss * step.mask).mean()


class MeanLogVariance(nn.Module):
    """Mean of the estimator's log σ², for the log."""

    def forward(self, step: Step) -> Tensor:
        return step.estimated.detach().mean()
