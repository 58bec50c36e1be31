# SPDX-License-Identifier: Apache-2.0
"""What an update minimises: named terms composed from similarity, weights and smoothness.

An objective is called with the step (what one iteration computed, see ``common.engines.step``) and returns a
dictionary: every term by name, and "total", the scalar to minimise.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from .smoothness import Diffusion
from .weighting import AdaRegSmoothness, adaframe_weight


class Step(Protocol):
    """What objectives read of an iteration: images (B, 1, *S) and fields, each computed once."""

    fixed: Tensor
    active: frozenset[str]
    mask: Tensor | None  # (B, 1, *S), 0 where nothing is compared; None is 1 everywhere

    @property
    def warped(self) -> Tensor:
        """Moving image on the fixed one, (B, 1, *S)."""

    @property
    def velocity(self) -> Tensor:
        """The field that smoothness acts on, (B, d, *S')."""

    @property
    def residual(self) -> Tensor:
        """Similarity's residual map, (B, 1, *S)."""

    @property
    def both_ways(self) -> tuple[Tensor, Tensor]:
        """Displacements A -> B and B -> A of every pair, (B, d, *S) each."""

    @property
    def estimated(self) -> Tensor:
        """Output of the pixel-wise estimator (score or log variance), (B, 1, *S)."""


class UnitWeight(nn.Module):
    """Every pixel counts the same."""

    def forward(self, step: Step) -> Tensor | None:
        return None


class ScoreWeight(nn.Module):
    """AdaCS: the detached score, once the score is trained (1 in the displacement's warm-up, Algorithm 1 line 14).

    Args:
        update: name of the update that trains the score.

    Reference: Zhang et al., AdaCS, ECCV 2024, Eq. 2.
    """

    def __init__(self, update: str = "score") -> None:
        super().__init__()
        self.update = update

    def forward(self, step: Step) -> Tensor | None:
        if self.update not in step.active:
            return None
        score = step.estimated.detach()
        return score if step.mask is None else score * step.mask


class AdaFrameWeight(nn.Module):
    """AdaFrame: a decreasing sigmoid of the normalised residual (see ``weighting.adaframe_weight``)."""

    def forward(self, step: Step) -> Tensor | None:
        return adaframe_weight((step.warped - step.fixed).abs())


class AdaptiveSmoothness(nn.Module):
    """AdaReg: less smoothness where the residual is high (see ``smoothness`` and ``weighting.AdaRegSmoothness``).

    Args:
        preset: "paper" or "official", as there.
    """

    def __init__(self, preset: str = "paper") -> None:
        super().__init__()
        self.energy = AdaRegSmoothness(preset=preset)

    def forward(self, step: Step) -> Tensor:
        return self.energy(step.velocity, (step.warped - step.fixed).abs())


class PlainSmoothness(nn.Module):
    """Diffusion energy of the velocity, the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.diffusion = Diffusion()

    def forward(self, step: Step) -> Tensor:
        return self.diffusion(step.velocity)


class DisplacementObjective(nn.Module):
    """mean_x[ w(x) · ρ(I_f, I_m ∘ (id + u)) ] + λ · mean_x[ a(x) · ‖∇v(x)‖² ].

    Args:
        smoothness_weight: λ.
        multiplier: factor on λ; VoxelMorph's code multiplies by the velocity's down-sampling, 2.
        weight: module giving the detached data weight of a step, (B, 1, *S), or None for 1.
        smoothness: module giving the smoothness of a step, a scalar.

    Returns (when called): "total", "similarity" (weighted, what is minimised), "smoothness" (before λ).

    Reference: AdaCS, Eqs. 1-2.
    """

    def __init__(
        self,
        smoothness_weight: float = 0.01,
        multiplier: float = 2.0,
        weight: nn.Module | None = None,
        smoothness: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not smoothness_weight >= 0:
            raise ValueError(f"smoothness_weight must be at least 0, got {smoothness_weight}.")
        self.scale = float(smoothness_weight) * float(multiplier)
        self.weight = weight if weight is not None else UnitWeight()
        self.smoothness = smoothness if smoothness is not None else PlainSmoothness()

    def forward(self, step: Step) -> dict[str, Tensor]:
        weight = self.weight(step)
        residual = step.residual if weight is None else weight * step.residual
        similarity = residual.mean()
        smoothness = self.smoothness(step)
        return {"total": similarity + self.scale * smoothness, "similarity": similarity, "smoothness": smoothness}


class InverseConsistencyObjective(nn.Module):
    """ρ(I_A ∘ Φ_AB, I_B) + ρ(I_B ∘ Φ_BA, I_A) + λ · penalty(Φ_AB, Φ_BA): what ICON and GradICON minimise.

    Args:
        weight: λ.
        penalty: (ddf_ab, ddf_ba) -> scalar, see ``inverse_consistency``.

    Returns (when called): "total", "similarity" (sum of both directions' means), "inverse_consistency" (before λ).

    Reference: Tian et al., GradICON, CVPR 2023, Sec. 5.1 (loss after Eq. 6).
    """

    def __init__(self, weight: float, penalty: nn.Module) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"weight must be at least 0, got {weight}.")
        self.weight = float(weight)
        self.penalty = penalty

    def forward(self, step: Step) -> dict[str, Tensor]:
        forward, backward = step.both_ways
        similarity = 2 * step.residual.mean()  # the batch holds both directions
        penalty = self.penalty(forward, backward)
        return {
            "total": similarity + self.weight * penalty,
            "similarity": similarity,
            "inverse_consistency": penalty,
        }


class ScoreObjective(nn.Module):
    """L_se = L_ucs + α·L_reg + β·m·‖∇S‖²: what AdaCS's scoring network minimises.

    The residual is detached (Eq. 3). ``leak=True`` keeps the published code's gradient into the displacement network.
    Where the step has a ``mask``, L_ucs and L_reg count only there, as means over all pixels, and the smoothness of S
    everywhere (the published code).
    ``momentum`` is a buffer that ``common.handlers.momentum.ScoreMomentum`` advances; without that handler it stays 1.

    Args:
        alpha: weight of L_reg (0.02 on ACDC, 0.04 on CAMUS).
        beta: weight of L_smooth; 0 is the ablation without it.
        leak: let the score's loss differentiate the residual as well.

    Returns (when called): "total", "ucs" (Eq. 3), "reg" (Eq. 4), "smooth" (Eq. 8, with m, before β),
    "mu" (Eq. 5) and "momentum" (m).

    Reference: Zhang et al., AdaCS, ECCV 2024, Eqs. 3-9.
    """

    momentum: Tensor

    def __init__(self, alpha: float = 0.02, beta: float = 1.5, leak: bool = False) -> None:
        super().__init__()
        if not (alpha > 0 and beta >= 0):
            raise ValueError(
                f"alpha must be above 0 (else the score collapses to 0) and beta at least 0: {alpha}, {beta}."
            )
        self.alpha, self.beta, self.leak = float(alpha), float(beta), bool(leak)
        self.diffusion = Diffusion()
        self.register_buffer("momentum", torch.tensor(1.0))

    def forward(self, step: Step) -> dict[str, Tensor]:
        residual = step.residual if self.leak else step.residual.detach()
        score = step.estimated
        distrust = 1.0 - score
        if step.mask is not None:
            residual, distrust = residual * step.mask, distrust * step.mask
        ucs = (score * residual).mean()
        reg = distrust.square().mean()
        # A copy: the handler advances the buffer in place.
        momentum = self.momentum.to(score.device, copy=True)
        smooth = momentum * self.diffusion(score)
        return {
            "total": ucs + self.alpha * reg + self.beta * smooth,
            "ucs": ucs,
            "reg": reg,
            "smooth": smooth,
            "mu": residual.detach().mean(),
            "momentum": momentum,
        }


def momentum_activation(mu: Tensor, form: str = "paper") -> Tensor:
    """b(μ): cos(π/2·μ) in the paper (Eq. 6), cos(3.14·50·μ) in the published code."""
    return torch.cos((math.pi / 2 if form == "paper" else 3.14 * 50) * mu)


WEIGHTS: dict[str, type[nn.Module]] = {"none": UnitWeight, "adaframe": AdaFrameWeight, "score": ScoreWeight}
SMOOTHNESS: dict[str, type[nn.Module]] = {"diffusion": PlainSmoothness, "adareg": AdaptiveSmoothness}
