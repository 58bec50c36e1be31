# SPDX-License-Identifier: Apache-2.0
"""The mean residual that α of AdaCS may follow."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events

from ..engines.distributed import all_mean
from ..engines.trainer import RegistrationEvents
from ..losses.controls import masked_mean
from ..losses.score import ScoreAlpha


class ScoreScale:
    """Sets α = scale · μ where it is "auto", see ``losses.score.ScoreAlpha``.

    μ is the mean residual over the updates so far of an epoch in which the displacement is trained and the score is
    not, of all processes; what the last such epoch leaves stays. It is gathered anew in each epoch, so that a resumed
    training has the same α.

    Args:
        alpha: whose buffer to set; nothing is done where it holds a number.
        update: name of the score's update.
        displacement: name of the displacement's update.
    """

    def __init__(self, alpha: ScoreAlpha, update: str = "score", displacement: str = "displacement") -> None:
        self.alpha, self.update, self.displacement = alpha, update, displacement
        self._sum = torch.zeros(())
        self._count = 0

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationTrainer``, after ``Stages``.

        Args:
            engine: the trainer.

        Raises:
            ValueError: for "auto" where no stage trains the displacement before the score.
        """
        if not self.alpha.auto:
            return
        stages: Any = getattr(engine, "stages", None)
        first = engine.method.update_names if stages is None else stages.stages[0].updates
        if self.update in first or self.displacement not in first:
            raise ValueError(
                "score_alpha: 'auto' is measured while the displacement is trained and the score is not, and this "
                f"training begins with {' and '.join(sorted(first))}. Give warmup_epochs of at least 1, or a number."
            )
        engine.add_event_handler(Events.EPOCH_STARTED, self._new_epoch)
        engine.add_event_handler(RegistrationEvents.UPDATE_STARTED, self._measure)

    def _new_epoch(self, engine: Engine) -> None:
        self._sum, self._count = torch.zeros((), device=engine.state.device), 0

    @torch.no_grad()
    def _measure(self, engine: Engine) -> None:
        if engine.state.update != self.displacement or self.update in engine.active:
            return
        step, alpha = engine.state.step, self.alpha.value
        self._sum = self._sum + all_mean(masked_mean(step.residual.detach(), step.mask).mean())
        self._count += 1
        alpha.copy_(self.alpha.scale * self._sum / self._count)
