# SPDX-License-Identifier: Apache-2.0
"""The terms of objectives: modules that take the step of an iteration and return a scalar, and data weights."""

from __future__ import annotations

from torch import Tensor, nn

from .objective import Step
from .score import ScoreWeight
from .smoothness import Diffusion
from .weighting import AdaRegSmoothness, adaframe_weight


class AdaFrameWeight(nn.Module):
    """AdaFrame: a decreasing sigmoid of the normalised residual (see ``weighting.adaframe_weight``)."""

    def forward(self, step: Step) -> Tensor | None:
        return adaframe_weight((step.warped - step.fixed).abs())


class Similarity(nn.Module):
    """mean_x[ w(x) · ρ(I_f, I_m ∘ (id + u)) ].

    Args:
        weight: module step -> detached data weight w, (B, 1, *S), or None for 1; None is 1 throughout.
        both_ways: the sum of the two directions' means, not their mean; for steps that are bidirectional.

    Reference:
        AdaCS, Eq. 2; Tian et al., GradICON, CVPR 2023, Sec. 5.1 (both ways).
    """

    def __init__(self, weight: nn.Module | None = None, both_ways: bool = False) -> None:
        super().__init__()
        self.weight, self.both_ways = weight, bool(both_ways)

    def forward(self, step: Step) -> Tensor:
        weight = None if self.weight is None else self.weight(step)
        residual = step.residual if weight is None else weight * step.residual
        return 2 * residual.mean() if self.both_ways else residual.mean()


class Smoothness(nn.Module):
    """Diffusion energy of the velocity, the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.diffusion = Diffusion()

    def forward(self, step: Step) -> Tensor:
        return self.diffusion(step.estimate.velocity)


class AdaptiveSmoothness(nn.Module):
    """AdaReg: less smoothness where the residual is high (see ``weighting.AdaRegSmoothness``).

    Args:
        preset: "paper" or "official", as there.
    """

    def __init__(self, preset: str = "paper") -> None:
        super().__init__()
        self.energy = AdaRegSmoothness(preset=preset)

    def forward(self, step: Step) -> Tensor:
        return self.energy(step.estimate.velocity, (step.warped - step.fixed).abs())


class InverseConsistency(nn.Module):
    """How far the maps A -> B and B -> A of a pair are from each other's inverse.

    Args:
        penalty: (ddf_ab, ddf_ba) -> scalar, see ``inverse_consistency``.

    Reference:
        Tian et al., GradICON, CVPR 2023, Eq. 2.
    """

    def __init__(self, penalty: nn.Module) -> None:
        super().__init__()
        self.penalty = penalty

    def forward(self, step: Step) -> Tensor:
        return self.penalty(*step.both_ways)


class NoiseError(nn.Module):
    """mean_x[ (ε̂ − ε)² ] of a network that predicts the noise of a diffused image; only where the step's ``mask`` is.

    0 in eval mode, where nothing is diffused (fits of a network to one pair leave it out), and of other networks.

    Reference:
        Kim et al., DiffuseMorph, ECCV 2022; the mask as in the code of AdaCS.
    """

    def forward(self, step: Step) -> Tensor:
        error = getattr(step.estimate, "noise_error", None)
        if error is None:
            return step.fixed.new_zeros(())
        return (error if step.mask is None else error * step.mask).mean()


DATA_WEIGHTS: dict[str, type[nn.Module]] = {"adaframe": AdaFrameWeight, "score": ScoreWeight}
SMOOTHNESS: dict[str, type[nn.Module]] = {"diffusion": Smoothness, "adareg": AdaptiveSmoothness}
