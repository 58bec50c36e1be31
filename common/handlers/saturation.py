# SPDX-License-Identifier: Apache-2.0
"""What a map that a network predicts is like in the course of a training, and a warning where it has become useless."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from ..checks import known_name
from ..engines.distributed import all_least, all_mean
from ..engines.trainer import RegistrationEvents
from ..losses.spatially_varying import weight_volume

logger = logging.getLogger(__name__)
SATURATED, VANISHED = 0.99, 0.01


class Watched(NamedTuple):
    """A map in [0, 1].

    Attributes:
        read: the map of a step, (B, 1, *S).
        update: whose networks it is trained with.
        least_active: updates of an epoch from which on a saturated map is warned of.
        warning: of a map near 1, with places for the threshold and the epoch.
        vanished: of a map near 0, likewise.
    """

    read: Callable[[Any], Tensor]
    update: str
    least_active: int
    warning: str
    vanished: str


MAPS = {
    "score": Watched(
        lambda step: step.estimated, "score", 2,
        "THE SCORE IS SATURATED: above %g at every pixel of epoch %d, so that the displacement is trained as without a "
        "score. The residuals are far below score_alpha, or the score ran into the flat end of the sigmoid, from where "
        "it does not come back. Start anew with a smaller --score_alpha, with --score_alpha auto, or with "
        "--score_momentum official.",
        "THE SCORE HAS VANISHED: below %g on average in epoch %d, so that nothing but the smoothness trains the "
        "displacement. The residuals are far above score_alpha: the displacement has been trained too little, or for "
        "images of another range. Start anew with a larger --score_alpha, with --score_alpha auto, or with more "
        "--warmup_epochs.",
    ),
    "weight_volume": Watched(
        weight_volume, "displacement", 1,
        "THE WEIGHT OF THE SMOOTHNESS IS SATURATED: above %g at every voxel of epoch %d, so that the smoothness is the "
        "same everywhere and eta changes nothing. The log loss outweighs the smoothness, whose balance is at "
        "eta = lambda |grad u|^2 |log epsilon|, and a weight at the flat end of the sigmoid hardly comes back. Start "
        "anew with a smaller --eta_max or a larger --smoothness_weight.",
        "THE WEIGHT OF THE SMOOTHNESS HAS VANISHED: below %g on average in epoch %d, so that nothing keeps the "
        "displacement smooth. Start anew with a larger --eta_max or a smaller --smoothness_weight.",
    ),
}  # fmt: skip


class MapStatistics:
    """Logs mean, standard deviation, minimum and maximum of a map over all pixels of an epoch.

    They go to ``state.metrics`` as ``score/mean``, ``score/deviation``, ``score/min`` and ``score/max``, from where
    ``TrainingLog`` takes them; for it to find them, this handler comes first. All is summed on its device and costs a
    few passes over the map; every batch counts alike. Where the map is above 0.99 at every pixel of a whole epoch, or
    below 0.01 on average, a warning says once what that means: of the score only while displacement and score are both
    trained.

    Args:
        map: "score" (AdaCS), or "weight_volume" (TM-SPR's ω), which are also the columns' prefixes.

    Raises:
        ValueError: for an unknown map.
    """

    def __init__(self, map: str = "score") -> None:
        self.map = known_name("map", map, MAPS)
        self.watched = MAPS[map]
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
            engine.state.metrics.pop(f"{self.map}/{name}", None)

    @torch.no_grad()
    def _add(self, engine: Engine) -> None:
        if engine.state.update != self.watched.update:
            return
        below = 1 - self.watched.read(engine.state.step).detach()  # its square keeps its digits where the map is near 1
        wide = torch.float32 if below.device.type == "mps" else torch.float64
        sums = torch.stack([below.mean(dtype=wide), below.square().mean(dtype=wide)])
        least, largest = below.aminmax()
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
        engine.state.metrics.update({f"{self.map}/{name}": value for name, value in values.items()})
        enough = len(engine.active) >= self.watched.least_active
        high, low = values["min"] > SATURATED, values["mean"] < VANISHED
        if (high or low) and enough and not self._warned:
            self._warned = True
            text, end = (self.watched.warning, SATURATED) if high else (self.watched.vanished, VANISHED)
            logger.warning(text, end, engine.state.epoch)
