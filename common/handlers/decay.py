# SPDX-License-Identifier: Apache-2.0
"""Learning rates over the epochs."""

from __future__ import annotations

from ignite.engine import Engine, Events


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
        self._initial: list[tuple[dict, float]] = []

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationTrainer``.

        Args:
            engine: the trainer.
        """
        engine.add_event_handler(Events.ITERATION_STARTED, self._lower)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._raise)

    @staticmethod
    def _groups(engine: Engine) -> list[dict]:
        # Those of the active updates are built by now; a stage may begin in the midst of an epoch.
        running = [update for update in engine.method.updates if update.name in engine.active]
        return [group for update in running for group in engine.optimizer(update).param_groups]

    def _lower(self, engine: Engine) -> None:
        factor = (1 - (engine.state.epoch - 1) / engine.state.max_epochs) ** self.power
        for group in self._groups(engine):
            if not any(group is lowered for lowered, _ in self._initial):
                self._initial.append((group, group["lr"]))
                group["lr"] *= factor

    def _raise(self, engine: Engine) -> None:
        for group, rate in self._initial:
            group["lr"] = rate
        self._initial = []
