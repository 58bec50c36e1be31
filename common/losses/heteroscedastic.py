# SPDX-License-Identifier: Apache-2.0
"""The data weight of heteroscedastic registration: how far the image stands out from its noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checks import known_name
from .controls import CONTROLS, controlled
from .objective import Step

FORMS = ("paper", "official")


def relative_snr_weight(fixed: Tensor, log_variance: Tensor, gamma: float = 0.5, form: str = "paper") -> Tensor:
    """sigmoid( (I_f / σ)^(2γ) ), in [½, 1] whatever σ; without gradient.

    γ = 0 gives sigmoid(1) everywhere, also where I_f = 0; with γ > 0 the weight is ½ there.

    Args:
        fixed: I_f, (B, 1, *S) in [0, 1]; what lies below 0 counts as 0.
        log_variance: log σ², (B, 1, *S).
        gamma: γ, the trust in σ, from 0.
        form: "paper", or "official", the published code: q = (I_f / σ²)^½ whatever γ, brought to [0, 1] by the least
            and the largest value of the batch, then the sigmoid: in [0.5, 0.731].

    Returns:
        (B, 1, *S).

    Raises:
        ValueError: for another form.

    Reference:
        Zhang et al., Heteroscedastic Uncertainty Estimation Framework, MICCAI 2024, Eq. 4.
    """
    # Beyond e^80 float32 overflows, and 0 · ∞ is NaN.
    signal, log_variance = fixed.detach().clamp(min=0), log_variance.detach().clamp(min=-80)
    if known_name("weight_form", form, FORMS) == "paper":
        return torch.sigmoid((signal * torch.exp(-0.5 * log_variance)).pow(2 * gamma))
    ratio = (signal * torch.exp(-log_variance)).sqrt()
    least, largest = ratio.aminmax()
    return torch.sigmoid((ratio - least) / (largest - least).clamp(min=1e-12))


class SnrWeight(nn.Module):
    """``relative_snr_weight`` of a step, once the variance is trained (1 in the displacement's warm-up).

    Where the step has a ``mask``, the weight is 0 outside.

    Args:
        gamma: γ.
        form: as ``relative_snr_weight``.
        control: what stands in the weight's place, see ``controls.controlled``.
        update: name of the update that trains the variance.

    Raises:
        ValueError: for a γ below 0, an unknown form or control; in a step, for the control "other" with one pair.

    Reference:
        Zhang et al., MICCAI 2024, Eq. 4.
    """

    def __init__(
        self, gamma: float = 0.5, form: str = "paper", control: str = "none", update: str = "variance"
    ) -> None:
        super().__init__()
        if isinstance(gamma, (str, bool)) or not gamma >= 0:
            raise ValueError(f"gamma: expected a number of at least 0, got {gamma!r}; the paper has 0.5.")
        self.gamma, self.form = float(gamma), known_name("weight_form", form, FORMS)
        self.control, self.update = known_name("weight_control", control, CONTROLS), update

    def weight_map(self, fixed: Tensor, estimated: Tensor) -> Tensor:
        """The weight without mask and control.

        Args:
            fixed: (B, 1, *S) in [0, 1].
            estimated: log σ², (B, 1, *S).

        Returns:
            (B, 1, *S).
        """
        return relative_snr_weight(fixed, estimated, self.gamma, self.form)

    def forward(self, step: Step) -> Tensor | None:
        if self.update not in step.active:
            return None
        return controlled(self.weight_map(step.fixed, step.estimated), step, self.control, "weight_control")


class MeanWeight(nn.Module):
    """Mean of a data weight, for the log; 1 where there is none.

    Args:
        weight: module step -> (B, 1, *S) or None.
    """

    def __init__(self, weight: nn.Module) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, step: Step) -> Tensor:
        weight = self.weight(step)
        return step.fixed.new_ones(()) if weight is None else weight.mean()
