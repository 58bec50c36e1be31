# SPDX-License-Identifier: Apache-2.0
"""An engine that stands for ``RegistrationTrainer``, and the warm-ups of AdaCS."""

from functools import partial
from types import SimpleNamespace

import torch
from ignite.engine import Engine

from common.engines.method import Update
from common.engines.trainer import RegistrationEvents
from common.handlers.stages import warm_up as stages_after

NAMES = ("displacement", "score")


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


def run_scored(handlers, residuals=((0.0,),), scores=None, warm=1, mask=None, start=0):
    """Run an engine whose iterations have these mean residuals and scores, epoch by epoch."""
    scores = [[torch.full((2, 1, 2, 2), 0.5)] * len(epoch) for epoch in residuals] if scores is None else scores

    def iteration(engine, batch):
        epoch = engine.state.epoch - 1
        residual = torch.tensor([0.5, 1.5]).view(2, 1, 1, 1).expand(2, 1, 2, 2) * residuals[epoch][batch]
        engine.state.step = SimpleNamespace(residual=residual, estimated=scores[epoch][batch], mask=mask)
        for update in NAMES:
            if update in engine.active:
                engine.state.update = update
                engine.fire_event(RegistrationEvents.UPDATE_STARTED)
        engine.state.output = {}
        return {}

    engine = stand_in(iteration, NAMES)
    engine.method.update_names = frozenset(NAMES)
    engine.register_events(*RegistrationEvents)
    for handler in (stages_after(NAMES, warm), *handlers):
        handler.attach(engine)
    engine.run(list(range(len(residuals[0]))), max_epochs=len(residuals))
    return engine
