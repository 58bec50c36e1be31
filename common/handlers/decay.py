# SPDX-License-Identifier: Apache-2.0
"""Learning rates over the epochs."""

from __future__ import annotations

from collections.abc import Mapping

from ignite.engine import Engine, Events

from ..checks import known_name


class PolynomialDecay:
    """Learning rates that fall towards 0: lr_0 · (1 − (e − 1) / E)^power in epoch e of E.

    A function of the epoch alone, so that a resumed run continues exactly. Between epochs the optimisers hold lr_0,
    which is what ``TrainingState`` compares with the configuration: register before it and after ``TrainingLog``.

    Args:
        power: 0.9 is usual; 0 keeps the rate. A table gives it by update, {"displacement": 0.9}, and the rates of
            updates that it does not name stay.

    Raises:
        ValueError: for a negative power, or (when attached) an update that the method does not have.
    """

    def __init__(self, power: float | Mapping[str, float] = 0.9) -> None:
        self.powers = dict(power) if isinstance(power, Mapping) else {}
        self.power = 0.0 if isinstance(power, Mapping) else float(power)
        for value in (self.power, *self.powers.values()):
            if not value >= 0:
                raise ValueError(
                    f"learning_rate_decay: expected a power of at least 0, got {value!r}; 0 keeps the rate."
                )
        self._initial: list[tuple[dict, float]] = []

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationTrainer``.

        Args:
            engine: the trainer.
        """
        for name in self.powers:
            known_name("learning_rate_decay", name, [update.name for update in engine.method.updates])
        engine.add_event_handler(Events.ITERATION_STARTED, self._lower)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._raise)

    def _lower(self, engine: Engine) -> None:
        share = 1 - (engine.state.epoch - 1) / engine.state.max_epochs
        # Optimisers of the active updates are built by now; a stage may begin in the midst of an epoch.
        for update in engine.method.updates:
            groups = engine.optimizer(update).param_groups if update.name in engine.active else []
            for group in groups:
                if not any(group is lowered for lowered, _ in self._initial):
                    self._initial.append((group, group["lr"]))
                    group["lr"] *= share ** self.powers.get(update.name, self.power)

    def _raise(self, engine: Engine) -> None:
        for group, rate in self._initial:
            group["lr"] = rate
        self._initial = []
