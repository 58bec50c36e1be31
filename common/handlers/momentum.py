# SPDX-License-Identifier: Apache-2.0
"""AdaCS's momentum of the residuals, which scales the score's smoothness."""

from __future__ import annotations

import math

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from ..engines.distributed import all_mean
from ..engines.trainer import RegistrationEvents
from ..losses.score import Momentum


def momentum_activation(mu: Tensor, form: str = "paper") -> Tensor:
    """b(μ): cos(π/2·μ) in the paper (Eq. 6), cos(3.14·50·μ) in the published code.

    Args:
        mu: mean residual, any shape.
        form: "paper" or "official".

    Returns:
        b(μ), of the same shape.
    """
    return torch.cos((math.pi / 2 if form == "paper" else 3.14 * 50) * mu)


class ScoreMomentum:
    """Advances m in the course of training: m <- γ·m + (1 - γ)·b(μ), m_0 = 0.

    "paper": m advances just before each update of the score (its warm-up and the joint phase), with μ the mean residual
    of that very iteration over all processes (Eqs. 5-7). On real data μ is a few hundredths at most, hence b ≥ 0.999
    and m is a ramp 1 - γ^T that saturates after some 460 updates.

    "official": the published code. m advances in each update of the displacement, its warm-up included, so that it
    stands still in the score's own warm-up; b = cos(3.14·50·μ), μ the running mean within the epoch of the similarity
    that the displacement minimises (weighted by the score in the joint phase), halved where training is bidirectional;
    γ = min(1 - 1/(e + 1), 0.99) in epoch e, counted from 0: m = b throughout the first one.
    Departure: the published loop accumulates the gradients of two half batches and advances m after each of them; here
    a batch is one advance.

    Args:
        momentum: whose buffer to advance; it is set to 0 at the start of a new run.
        form: "paper", "official" or "none" (m = 1 throughout, the ablation without m_T).
        decay: γ of the paper's form.
        update: name of the score's update.
        displacement: name of the displacement's update.

    Raises:
        ValueError: for another form.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, Eqs. 5-8.
    """

    def __init__(
        self,
        momentum: Momentum,
        form: str = "paper",
        decay: float = 0.99,
        update: str = "score",
        displacement: str = "displacement",
    ) -> None:
        if form not in ("paper", "official", "none"):
            raise ValueError(f"form must be 'paper', 'official' or 'none', got '{form}'.")
        self.momentum, self.form, self.decay = momentum, form, float(decay)
        self.update, self.advances_with = update, displacement if form == "official" else update
        if form != "none":
            momentum.value.zero_()
        self._sum = torch.zeros(())
        self._count = 0

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationTrainer``.

        Args:
            engine: the trainer.
        """
        if self.form == "none":
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._new_epoch)
        engine.add_event_handler(RegistrationEvents.UPDATE_STARTED, self._advance)

    def _new_epoch(self, engine: Engine) -> None:
        self._sum = torch.zeros((), device=engine.state.device)
        self._count = 0

    @torch.no_grad()
    def _advance(self, engine: Engine) -> None:
        if engine.state.update != self.advances_with:
            return
        step, momentum = engine.state.step, self.momentum.value
        residual = step.residual.detach()
        if self.form == "paper":
            decay, mu = self.decay, all_mean(residual.mean())
        else:
            if self.update in engine.active:
                residual = residual * step.estimated.detach()
            self._sum = self._sum + all_mean((0.5 if step.bidirectional else 1.0) * residual.mean())
            self._count += 1
            decay, mu = min(1.0 - 1.0 / engine.state.epoch, 0.99), self._sum / self._count
        activation = momentum_activation(mu, self.form).to(momentum.device)
        momentum.mul_(decay).add_((1.0 - decay) * activation)
