# SPDX-License-Identifier: Apache-2.0
import math
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events

from common.engines.distributed import all_mean
from common.engines.trainer import RegistrationEvents
from common.handlers.momentum import ScoreMomentum, momentum_activation
from common.losses.score import Momentum
from tests.handlers.stand_ins import course_of, stand_in

BOTH = frozenset({"displacement", "score"})


def run(momentum, form="paper", residuals=((0.0,),), score=1.0, warm_up=None, both=True, **options):
    """Run an engine whose iterations have these mean residuals, epoch by epoch; return m after each iteration."""
    history = []

    def iteration(engine, batch):
        residual = torch.tensor([0.5, 1.5]).view(2, 1, 1, 1) * residuals[engine.state.epoch - 1][batch]
        engine.state.step = SimpleNamespace(
            residual=residual, estimated=torch.full_like(residual, score), bidirectional=both
        )
        for update in ("displacement", "score"):
            if update in engine.active:
                engine.state.update = update
                engine.fire_event(RegistrationEvents.UPDATE_STARTED)
        history.append(float(momentum.value))

    engine = stand_in(iteration, ("displacement", "score"))
    engine.register_events(*RegistrationEvents)
    stages = None if warm_up is None else course_of(warm_up)
    for handler in filter(None, [stages, ScoreMomentum(momentum, form, **options)]):
        handler.attach(engine)
    if residuals:
        engine.run(list(range(len(residuals[0]))), max_epochs=len(residuals))
    return history


def test_without_residual_the_momentum_is_the_ramp_of_its_decay():
    history = run(Momentum(), residuals=((0.0,) * 50,) * 4)
    expected = [1 - 0.99**t for t in range(1, 201)]
    assert history == pytest.approx(expected, abs=1e-5)


def test_paper_form_is_the_moving_mean_of_the_cosine_of_each_iteration():
    residuals = ((0.1, 0.6, 0.3), (0.9, 0.0, 0.5))
    expected, m = [], 0.0
    for mu in (value for epoch in residuals for value in epoch):
        m = 0.9 * m + 0.1 * math.cos(math.pi / 2 * mu)
        expected.append(m)
    assert run(Momentum(), residuals=residuals, decay=0.9) == pytest.approx(expected, abs=1e-6)


def test_paper_form_advances_only_where_the_score_is_trained():
    m = Momentum()
    history = run(m, residuals=((0.0,) * 5,) * 6, warm_up=2)
    # two epochs of the displacement alone leave it at 0
    assert history == pytest.approx([0.0] * 10 + [1 - 0.99**t for t in range(1, 21)], abs=1e-6)


@pytest.mark.parametrize("both", [True, False])
def test_official_form_is_that_of_the_published_code(both):
    """Warm-up of the displacement, of the score, joint phase; the published epochs count from 0."""
    residuals, score = ((0.004, 0.01), (0.02, 0.006), (0.02, 0.006), (0.001, 0.003)), 0.7
    expected, m = [], 0.0
    for epoch, values in enumerate(residuals):
        decay, weight = min(1 - 1 / (epoch + 1), 0.99), score if epoch >= 2 else 1.0
        for count in range(1, len(values) + 1):
            mu = sum((0.5 if both else 1.0) * weight * value for value in values[:count]) / count
            if epoch != 1:
                m = decay * m + (1 - decay) * math.cos(3.14 * 50 * mu)
            expected.append(m)
    history = run(Momentum(), "official", residuals, score, 1, both)
    assert history == pytest.approx(expected, abs=1e-5)


def test_official_form_has_nearly_full_smoothness_after_the_first_epoch():
    """At the mean residual of the shipped baseline on ACDC; the paper's form is still at 0."""
    residuals = ((0.0035,) * 5,) * 2
    history = run(Momentum(), "official", residuals, warm_up=1)
    assert history[4] == pytest.approx(0.9625, abs=1e-4) and history[5:] == history[4:5] * 5
    assert run(Momentum(), residuals=residuals, warm_up=1)[4] == 0.0


def test_none_leaves_the_momentum_at_one():
    m = Momentum()
    assert run(m, "none", ((0.3,) * 4,)) == [1.0] * 4


@pytest.mark.parametrize(("form", "start"), [("paper", 0.0), ("official", 0.0), ("none", 1.0)])
def test_new_run_starts_at_zero_or_stays_one(form, start):
    m = Momentum()
    ScoreMomentum(m, form)
    assert float(m.value) == start


def test_resumed_run_continues_from_the_restored_momentum():
    m = Momentum()
    momentum = ScoreMomentum(m)
    m.load_state_dict({"value": torch.tensor(0.5)})
    engine = Engine(lambda e, b: e.fire_event(RegistrationEvents.UPDATE_STARTED))
    engine.register_events(*RegistrationEvents)
    engine.state.device, engine.state.update, engine.active = torch.device("cpu"), "score", BOTH
    engine.state.step = SimpleNamespace(residual=torch.zeros(1, 1, 2, 2))
    momentum.attach(engine)
    engine.run([0], max_epochs=1)
    assert float(m.value) == pytest.approx(0.5 * 0.99 + 0.01, abs=1e-6)
    assert engine.has_event_handler(momentum._new_epoch, Events.EPOCH_STARTED)


def test_mean_over_one_process_is_the_value():
    value = torch.tensor(0.25)
    assert all_mean(value) is value


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form must be 'paper', 'official' or 'none', got 'papre'"):
        ScoreMomentum(Momentum(), "papre")


@pytest.mark.parametrize("mu", [0.0, 0.01, 0.3])
def test_momentum_activation_is_the_cosine_of_each_form(mu):
    value = torch.tensor(mu, dtype=torch.float64)
    assert float(momentum_activation(value)) == pytest.approx(math.cos(math.pi / 2 * mu), abs=1e-12)
    assert float(momentum_activation(value, "official")) == pytest.approx(math.cos(3.14 * 50 * mu), abs=1e-12)
