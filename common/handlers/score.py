# SPDX-License-Identifier: Apache-2.0
"""What AdaCS's score is like in the course of a training, and the mean residual that α may follow."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..engines.distributed import all_least, all_mean
from ..engines.trainer import RegistrationEvents
from ..losses.controls import masked_mean
from ..losses.score import ScoreAlpha

logger = logging.getLogger(__name__)
SATURATED = 0.99


class ScoreStatistics:
    """Logs mean, standard deviation, minimum and maximum of the score over all pixels of an epoch.

    They go to ``state.metrics`` as ``score/mean``, ``score/deviation``, ``score/min`` and ``score/max``, from where
    ``TrainingLog`` takes them; for it to find them, this handler comes first. All is summed on its device and costs a
    few passes over the score; every batch counts alike. Where the score is above 0.99 at every pixel of a whole epoch
    while displacement and score are both trained, a warning says once what that means.

    Args:
        update: name of the score's update.
    """

    def __init__(self, update: str = "score") -> None:
        self.update = update
        self._warned = False
        self._sums = self._extremes = torch.zeros(2)
        self._count = 0

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationTrainer``, before ``TrainingLog``.

        Args:
            engine: the trainer.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self._new_epoch)
        engine.add_event_handler(RegistrationEvents.UPDATE_STARTED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def _new_epoch(self, engine: Engine) -> None:
        self._count = 0
        for name in ("mean", "deviation", "min", "max"):
            engine.state.metrics.pop(f"{self.update}/{name}", None)

    @torch.no_grad()
    def _add(self, engine: Engine) -> None:
        if engine.state.update != self.update:
            return
        distrust = 1 - engine.state.step.estimated.detach()  # its square keeps its digits where S is close to 1
        wide = torch.float32 if distrust.device.type == "mps" else torch.float64
        sums = torch.stack([distrust.mean(dtype=wide), distrust.square().mean(dtype=wide)])
        least, largest = distrust.aminmax()
        extremes = torch.stack([least, -largest])
        self._sums = self._sums + sums if self._count else sums
        self._extremes = self._extremes.minimum(extremes) if self._count else extremes
        self._count += 1

    def _report(self, engine: Engine) -> None:
        if not self._count:
            return
        mean, square = all_mean(self._sums / self._count).tolist()
        least, negative = all_least(self._extremes).tolist()
        values = {
            "mean": 1 - mean,
            "deviation": max(square - mean**2, 0.0) ** 0.5,
            "min": 1 + negative,
            "max": 1 - least,
        }
        engine.state.metrics.update({f"{self.update}/{name}": value for name, value in values.items()})
        if values["min"] > SATURATED and len(engine.active) > 1 and not self._warned:
            self._warned = True
            logger.warning(
                "THE SCORE IS SATURATED: above %g at every pixel of epoch %d, so that the displacement is trained as "
                "without a score. The residuals are far below score_alpha, or the score ran into the flat end of the "
                "sigmoid, from where it does not come back. Start anew with a smaller --score_alpha, with "
                "--score_alpha auto, or with --score_momentum official.",
                SATURATED, engine.state.epoch,
            )  # fmt: skip


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
