# SPDX-License-Identifier: Apache-2.0
"""Which updates run in which epoch."""

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
