# SPDX-License-Identifier: Apache-2.0
"""A smoothness weight ω(x) that the displacement network predicts, and the log loss that keeps it from falling to 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..checks import known_name
from .objective import Step
from .smoothness import Bending, Diffusion

EPSILON = 1e-4
ENERGIES = ("diffusion", "bending")
FORMS = {"paper": "start", "official": "end"}  # whose voxel's ω multiplies a difference


class WeightedSmoothness(nn.Module):
    """mean_x[ ω̂(x) · ‖∇u(x)‖² ], ω̂ = ω clamped to [ε, 1], u the field that smoothness acts on.

    The mean is over voxels, axes and components, as in ``smoothness.Diffusion`` and in the published code (printed: the
    sum over voxels), so that λ does not depend on the size of the image. Printed without the clamp, which the published
    code applies in both terms. A weight below ε has no gradient.

    Args:
        energy: "diffusion", or "bending": the squared second differences in the place of ‖∇u‖².
        epsilon: ε.
        form: "paper": ω(x) multiplies the forward difference that starts at x. "official" (published code): the one
            that ends there; of the diffusion energy alone.

    Raises:
        ValueError: for an unknown energy or form, ε outside of (0, 1), or a bending energy of the official form.

    Reference:
        Chen et al., Spatially-varying regularization with conditional transformer, arXiv 2023, Eq. 3.
    """

    def __init__(self, energy: str = "diffusion", epsilon: float = EPSILON, form: str = "paper") -> None:
        super().__init__()
        known_name("energy", energy, ENERGIES)
        place = FORMS[known_name("weight_form", form, FORMS)]
        if energy == "bending" and form != "paper":
            raise ValueError(
                "weight_form: expected 'paper' with energy 'bending', got 'official': the published code has the "
                "diffusion energy alone. Choose one of the two."
            )
        self.epsilon = checked_epsilon(epsilon)
        self.energy = Bending() if energy == "bending" else Diffusion(weight_at=place)

    def forward(self, step: Step) -> Tensor:
        return self.energy(step.estimate.velocity, clamped(weight_volume(step), self.epsilon))


class LogLoss(nn.Module):
    """mean_x[ log ω̂(x) ] / log ε: 0 where ω = 1 everywhere, 1 where it is ε or less.

    Printed is −Σ log ω̂ / log ε, which is at most 0 (both logarithms are negative) and would reward small weights; meant
    is division by the largest value, |log ε| a voxel.

    Its weight is η = η_max · condition. Where the pairs of a batch have conditions c_b of their own, this is the mean
    Σ c_b L_b / Σ c_b, so that the product with the mean η is mean_b[ η_b L_b ].

    Args:
        epsilon: ε.

    Raises:
        ValueError: for ε outside of (0, 1).

    Reference:
        Chen et al., Spatially-varying regularization with conditional transformer, arXiv 2023, Eqs. 4 and 5.
    """

    def __init__(self, epsilon: float = EPSILON) -> None:
        super().__init__()
        self.epsilon = checked_epsilon(epsilon)

    def forward(self, step: Step) -> Tensor:
        weight = clamped(weight_volume(step), self.epsilon)
        losses = weight.log().flatten(1).mean(1) / math.log(self.epsilon)
        if step.condition is None:
            return losses.mean()
        shares = step.condition[:, 0].to(losses)
        return (shares * losses).sum() / shares.sum().clamp(min=torch.finfo(losses.dtype).tiny)


def weight_volume(step: Step) -> Tensor:
    """ω of a step, in float32 at least.

    Args:
        step: of the iteration.

    Returns:
        (B, 1, *S').

    Raises:
        ValueError: where the network predicts none.
    """
    weight = step.estimate.weight_volume
    if weight is None:
        raise ValueError(
            "architecture: this objective needs a network that predicts the weight volume of the smoothness, which the "
            "chosen one does not. Take tmspr, or give voxelmorph or transmorph weight_volume true; without one, train "
            "a baseline_* bundle."
        )
    return weight if weight.dtype == torch.float64 else weight.float()


def clamped(weight: Tensor, epsilon: float) -> Tensor:
    """ω̂, ω clamped to [ε, 1].

    Args:
        weight: (B, 1, *S').
        epsilon: ε.

    Returns:
        The same shape.
    """
    return weight.clamp(epsilon, 1.0)


def checked_epsilon(epsilon: float) -> float:
    """ε, where it is one.

    Args:
        epsilon: the smallest weight.

    Returns:
        The number.

    Raises:
        ValueError: outside of (0, 1).
    """
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 < epsilon < 1:
        raise ValueError(
            f"epsilon: expected a number between 0 and 1, the smallest weight of the smoothness, got {epsilon!r}; "
            "1e-4 is the paper's, 1e-6 the published code's."
        )
    return float(epsilon)
