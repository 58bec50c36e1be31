# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch
from ignite.engine import Engine, Events

from common.engines.trainer import Update
from common.handlers.schedule import AlternatingSchedule, PolynomialDecay

BOTH = frozenset({"displacement", "score"})


def run(schedule, epochs):
    """Active updates of each epoch as an engine sees them."""
    seen = []
    engine = Engine(lambda e, batch: None)
    engine.active = BOTH
    schedule.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.active))
    engine.run([0], max_epochs=epochs)
    return seen


@pytest.mark.parametrize("warmup", [1, 3])
def test_displacement_then_score_then_both(warmup):
    expected = [{"displacement"}] * warmup + [{"score"}] * warmup + [BOTH] * 2
    assert run(AlternatingSchedule(warmup), 2 * warmup + 2) == expected


def test_published_warm_up_counts_epochs_from_zero():
    schedule = AlternatingSchedule(20)
    assert [epoch for epoch in range(340) if schedule.active(epoch) == {"displacement"}] == list(range(20))
    assert [epoch for epoch in range(340) if schedule.active(epoch) == {"score"}] == list(range(20, 40))
    assert [epoch for epoch in range(340) if schedule.active(epoch) == BOTH] == list(range(40, 340))


def test_without_warm_up_all_run_from_the_start():
    assert run(AlternatingSchedule(0), 2) == [BOTH, BOTH]


def test_order_and_names_of_the_updates_are_free():
    names = ("a", "b", "c")
    schedule = AlternatingSchedule(2, names)
    assert [schedule.active(epoch) for epoch in (0, 1, 2, 4, 6, 99)] == [{"a"}, {"a"}, {"b"}, {"c"}, {*names}, {*names}]


def test_resumed_run_continues_in_its_phase():
    seen = []
    engine = Engine(lambda e, batch: None)
    engine.active = BOTH
    AlternatingSchedule(2).attach(engine)

    def resume(e):
        e.state.epoch = 3

    engine.add_event_handler(Events.STARTED, resume)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen.append((e.state.epoch, e.active)))
    engine.run([0], max_epochs=5)
    assert seen == [(4, {"score"}), (5, BOTH)]


@pytest.mark.parametrize(("epochs", "warned"), [(3, True), (4, True), (5, False)])
def test_run_too_short_for_the_joint_phase_says_so_loudly(epochs, warned, caplog):
    with caplog.at_level(logging.WARNING):
        run(AlternatingSchedule(2), epochs)
    assert ("THE JOINT PHASE IS NEVER REACHED" in caplog.text) == warned
    assert ("--warmup_epochs" in caplog.text) == warned


def test_negative_warm_up_is_refused():
    with pytest.raises(ValueError, match="warmup_epochs must be at least 0, got -1"):
        AlternatingSchedule(-1)


def decayed(power, epochs, first=0):
    """Rates of each epoch as an optimiser's step sees them, and the one left at the end."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    update = Update("displacement", lambda step: {}, torch.optim.SGD([parameter], lr=0.1))
    seen = []
    engine = Engine(lambda e, batch: None)
    engine.updates = [update]
    PolynomialDecay(power).attach(engine)
    engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "epoch", first))
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(update.optimizer.param_groups[0]["lr"]))
    engine.run([0], max_epochs=epochs)
    return seen, update.optimizer.param_groups[0]["lr"]


def test_the_learning_rate_falls_as_the_polynomial_says():
    seen, left = decayed(0.9, 4)
    assert seen == pytest.approx([0.1, 0.1 * 0.75**0.9, 0.1 * 0.5**0.9, 0.1 * 0.25**0.9])
    assert left == 0.1


def test_a_resumed_run_has_the_rates_of_its_epochs():
    assert decayed(0.9, 4, first=2)[0] == decayed(0.9, 4)[0][2:]


def test_power_0_keeps_the_rate_and_a_negative_one_is_refused():
    assert decayed(0, 3)[0] == [0.1] * 3
    with pytest.raises(ValueError, match="learning_rate_decay: expected a power of at least 0, got -1"):
        PolynomialDecay(-1)
