# SPDX-License-Identifier: Apache-2.0
"""ICON's schedule: the weight of the inverse consistency grows while the maps fold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events

from ..checks import known_name
from ..engines.distributed import all_mean
from ..engines.trainer import RegistrationEvents
from ..losses.objective import BufferedWeight, Objective
from ..metrics.folding import fold_count

QUARTER = 40 * 96 * 96  # voxels of the published scripts' quarter resolution, which their numbers are of


class FoldingSchedule:
    """λ <- λ + increment · v after each iteration whose maps have more than threshold · v foldings a pair on average.

    v is the number of voxels over that of 40 × 96 × 96: the published scripts for half resolution multiply both numbers
    by 8. They start at 70 for a quarter, 1,600 for a half and 3,600 for a fourth network; the paper speaks of 64 to
    6,800. It is logged as ``<term>/weight``. Foldings are those of ``metrics.folding.fold_count`` in the first
    direction, as there.

    Args:
        increment: of the weight (published 0.1).
        threshold: foldings a pair (published 25).
        term: whose weight grows, of the first update; its number is where it starts.

    Raises:
        ValueError: for an increment or a threshold below 0, or (on attaching) an objective without such a term.

    Reference:
        Greer et al., ICON, ICCV 2021 (its code for knees); Tian et al., GradICON, CVPR 2023, A.2.2.
    """

    def __init__(self, increment: float = 0.1, threshold: float = 25.0, term: str = "inverse_consistency") -> None:
        for name, value in (("increment", increment), ("threshold", threshold)):
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"schedule: expected an {name} of at least 0, got {value!r}; 0.1 and 25 are published."
                )
        self.increment, self.threshold, self.term = float(increment), float(threshold), term
        self.weight: BufferedWeight | None = None
        self._rise = 0.0

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationTrainer``.

        Args:
            engine: the trainer.
        """
        objective = engine.method.updates[0].objective
        if not isinstance(objective, Objective):
            raise ValueError(f"schedule: expected an Objective of terms, got {type(objective).__name__}.")
        self.weight = objective.buffered(self.term)
        engine.add_event_handler(RegistrationEvents.UPDATE_STARTED, self._count)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._grow)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def _count(self, engine: Engine) -> None:
        if engine.state.update != engine.method.updates[0].name:
            return
        ddf = engine.state.step.both_ways[0].detach()
        share = ddf[0, 0].numel() / QUARTER
        foldings = float(all_mean(fold_count(ddf).float().mean()))
        self._rise = self.increment * share if foldings > self.threshold * share else 0.0

    def _grow(self, engine: Engine) -> None:
        assert self.weight is not None  # attach has set it
        self.weight.value += self._rise
        self._rise = 0.0

    def _report(self, engine: Engine) -> None:
        assert self.weight is not None
        engine.state.metrics[f"{self.term}/weight"] = float(self.weight.value)


def schedule(chosen: Mapping[str, Any]) -> FoldingSchedule:
    """The handler of a bundle's objective that has an entry ``schedule``.

    Args:
        chosen: the objective's entry of train.json; ``schedule`` holds the arguments of ``FoldingSchedule``.

    Returns:
        The handler.

    Raises:
        ValueError: as ``FoldingSchedule``, for an unknown argument, with the nearest, or for no arguments by name.
    """
    if not isinstance(chosen["schedule"], Mapping):
        raise ValueError(
            f"schedule: expected its arguments, got {chosen['schedule']!r}; e.g. --objectives#icon#schedule "
            "\"{'increment': 0.1, 'threshold': 25}\"."
        )
    for key in chosen["schedule"]:
        known_name("schedule", key, ["increment", "threshold", "term"])
    return FoldingSchedule(**chosen["schedule"])
