# SPDX-License-Identifier: Apache-2.0
"""Which updates run in which epoch, and how the learning rate falls."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ignite.engine import Engine, Events

logger = logging.getLogger(__name__)


class AlternatingSchedule:
    """Warm-up: each update alone for some epochs, in order; afterwards all of them in every iteration.

    AdaCS: epochs [0, N_w) train the displacement, [N_w, 2·N_w) the score, then both.

    Args:
        warmup_epochs: N_w, epochs that each update runs alone; 0 starts with all.
        updates: names in the order of their warm-up.

    Raises:
        ValueError: for a negative number of epochs.

    Reference: Zhang et al., AdaCS, ECCV 2024, Algorithm 1.
    """

    def __init__(self, warmup_epochs: int, updates: Sequence[str] = ("displacement", "score")) -> None:
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must be at least 0, got {warmup_epochs}.")
        self.warmup_epochs = int(warmup_epochs)
        self.updates = tuple(updates)

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationTrainer``."""
        engine.add_event_handler(Events.STARTED, self._announce)
        engine.add_event_handler(Events.EPOCH_STARTED, self._select)

    def active(self, epoch: int) -> frozenset[str]:
        """Names of the updates that run in an epoch, counted from 0."""
        phase = epoch // self.warmup_epochs if self.warmup_epochs else len(self.updates)
        return frozenset(self.updates if phase >= len(self.updates) else self.updates[phase : phase + 1])

    def _announce(self, engine: Engine) -> None:
        alone = self.warmup_epochs * len(self.updates)
        if engine.state.max_epochs is not None and engine.state.max_epochs <= alone:
            logger.warning(
                "THE JOINT PHASE IS NEVER REACHED: %d epochs in all, of which warm-up takes %d (%d for each of %s). "
                "Raise --epochs or lower --warmup_epochs.",
                engine.state.max_epochs, alone, self.warmup_epochs, ", ".join(self.updates),
            )  # fmt: skip

    def _select(self, engine: Engine) -> None:
        chosen = self.active(engine.state.epoch - 1)
        if chosen != engine.active:
            logger.info("Epoch %d: training %s.", engine.state.epoch, " and ".join(sorted(chosen)))
        engine.active = chosen


class PolynomialDecay:
    """Learning rates that fall towards 0: lr_0 · (1 − (e − 1) / E)^power in epoch e of E.

    A function of the epoch alone, so that a resumed run continues exactly. Between epochs the optimisers hold lr_0,
    which is what ``TrainingState`` compares with the configuration: register before it and after ``TrainingLog``.

    Args:
        power: 0.9 is usual; 0 keeps the rate.

    Raises:
        ValueError: for a negative power.
    """

    def __init__(self, power: float = 0.9) -> None:
        if not power >= 0:
            raise ValueError(f"learning_rate_decay: expected a power of at least 0, got {power!r}; 0 keeps the rate.")
        self.power = float(power)
        self._initial: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationTrainer``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._lower)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._raise)

    @staticmethod
    def _groups(engine: Engine) -> list[dict]:
        return [group for update in engine.updates for group in update.optimizer.param_groups]

    def _lower(self, engine: Engine) -> None:
        factor = (1 - (engine.state.epoch - 1) / engine.state.max_epochs) ** self.power
        self._initial = [group["lr"] for group in self._groups(engine)]
        for group in self._groups(engine):
            group["lr"] *= factor

    def _raise(self, engine: Engine) -> None:
        for group, rate in zip(self._groups(engine), self._initial, strict=True):
            group["lr"] = rate
