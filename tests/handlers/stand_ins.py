# SPDX-License-Identifier: Apache-2.0
"""An engine that stands for ``RegistrationTrainer``, and the warm-ups of AdaCS."""

from functools import partial
from types import SimpleNamespace

import torch
from ignite.engine import Engine

from common.engines.method import Update
from common.handlers.stages import warm_up as stages_after


def update_of(name, lr=1e-3, optimizer=torch.optim.Adam):
    return Update(name, ["model"], lambda step: {}, partial(optimizer, lr=lr))


def stand_in(iteration, names, lr=1e-3, optimizer=torch.optim.Adam):
    """An engine with what handlers ask of a trainer: ``method.updates``, ``active``, ``optimizers``, ``optimizer``."""
    engine = Engine(iteration)
    engine.method = SimpleNamespace(updates=[update_of(name, lr, optimizer) for name in names], modules={})
    engine.active, engine.optimizers, engine.loaders = frozenset(names), {}, None
    engine.learning_rate = None
    engine.state.device = torch.device("cpu")

    def built(update):
        if update.name not in engine.optimizers:
            engine.optimizers[update.name] = update.optimizer([torch.nn.Parameter(torch.zeros(1))])
        return engine.optimizers[update.name]

    engine.optimizer = built
    return engine


def course_of(warm_up, names=("displacement", "score")):
    """Each update alone for some epochs, in order, then all of them: Algorithm 1 of AdaCS."""
    return stages_after(names, warm_up)
