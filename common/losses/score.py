# SPDX-License-Identifier: Apache-2.0
"""AdaCS's score: what it weighs, what it is trained by, and what these terms are scaled with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checks import known_name
from .controls import CONTROLS, controlled
from .objective import Step
from .smoothness import Diffusion

AUTO = "auto"


class ScoreWeight(nn.Module):
    """AdaCS: the detached score, once the score is trained (1 in the displacement's warm-up, Algorithm 1 line 14).

    Where the step has a ``mask``, the weight is 0 outside.

    Args:
        update: name of the update that trains the score.
        control: what stands in the score's place, see ``controls.controlled``; "mean" acts as a larger λ, λ / mean(S).

    Raises:
        ValueError: for an unknown control; in a step, for "other" with one pair.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, Eq. 2.
    """

    def __init__(self, update: str = "score", control: str = "none") -> None:
        super().__init__()
        self.update, self.control = update, known_name("score_control", control, CONTROLS)

    def forward(self, step: Step) -> Tensor | None:
        if self.update not in step.active:
            return None
        return controlled(step.estimated.detach(), step, self.control, "score_control")


class ScoredResidual(nn.Module):
    """mean_x[ S(x) · r(x) ], the residual detached: what lowers a score.

    Where the step has a ``mask``, the residual counts only there, as a mean over all pixels (the published code).

    Args:
        leak: keep the published code's gradient into the displacement network.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, Eq. 3.
    """

    def __init__(self, leak: bool = False) -> None:
        super().__init__()
        self.leak = bool(leak)

    def forward(self, step: Step) -> Tensor:
        residual = step.residual if self.leak else step.residual.detach()
        score = step.estimated
        if step.mask is not None:
            residual = residual * step.mask
        return (score * residual).mean()


class Distrust(nn.Module):
    """mean_x[ (1 − S(x))² ], which keeps a score from falling to 0; only where the step's ``mask`` is.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, Eq. 4.
    """

    def forward(self, step: Step) -> Tensor:
        distrust = 1.0 - step.estimated
        return (distrust if step.mask is None else distrust * step.mask).square().mean()


class Momentum(nn.Module):
    """The momentum m of the residuals, a buffer that ``handlers.momentum.ScoreMomentum`` advances; 1 without it.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, Eq. 7.
    """

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(1.0))

    def forward(self, step: Step) -> Tensor:
        return self.value.to(step.fixed.device, copy=True)  # a copy: the handler advances the buffer in place


class ScoreAlpha(nn.Module):
    """α, the weight of ``Distrust``: a number, or "auto", which ties it to the mean residual.

    A pixel of residual r would have the score 1 − r / (2α) if it were by itself (Eqs. 3 and 4). An α far above the
    residuals hence leaves nothing to weigh, S ≈ 1. "auto" is this project's: α = scale · μ, with μ the mean residual of
    the last epoch of the displacement's warm-up, inside the step's ``mask`` where there is one. The mean score is then
    about 1 − 1 / (2 · scale), 0.75 at the default 2, and pixels of more than 2 · scale mean residuals are not trusted
    at all. ``handlers.score.ScoreScale`` measures μ; α is a buffer, which the state of a training holds.

    Args:
        value: α above 0, or "auto".
        scale: α in mean residuals.

    Raises:
        ValueError: for another value, or a scale not above 0.5, where the mean score would be 0.
    """

    value: Tensor

    def __init__(self, value: float | str = 0.02, scale: float = 2.0) -> None:
        super().__init__()
        self.auto = value == AUTO
        if not self.auto and (isinstance(value, (str, bool)) or not value > 0):
            raise ValueError(f"score_alpha: expected a number above 0 or '{AUTO}', got {value!r}; the paper has 0.02.")
        if not scale > 0.5:
            raise ValueError(f"scale: expected a number above 0.5, got {scale!r}; 2 gives a mean score of 0.75.")
        self.scale = float(scale)
        self.register_buffer("value", torch.tensor(0.0 if self.auto else float(value)))

    def forward(self, step: Step) -> Tensor:
        return self.value.to(step.fixed.device, copy=True)  # a copy: the handler sets the buffer in place


class ScoreSmoothness(nn.Module):
    """m · ‖∇S‖².

    Args:
        momentum: m; None is 1.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, Eq. 8.
    """

    def __init__(self, momentum: Momentum | None = None) -> None:
        super().__init__()
        self.momentum = momentum
        self.diffusion = Diffusion()

    def forward(self, step: Step) -> Tensor:
        energy = self.diffusion(step.estimated)
        return energy if self.momentum is None else self.momentum(step) * energy


class MeanResidual(nn.Module):
    """μ, the mean of the residual map, for the log.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, Eq. 5.
    """

    def forward(self, step: Step) -> Tensor:
        residual = step.residual.detach()
        return (residual if step.mask is None else residual * step.mask).mean()
