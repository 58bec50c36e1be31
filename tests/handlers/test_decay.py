# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from ignite.engine import Events

from common.handlers.decay import PolynomialDecay
from common.handlers.stages import Stages
from tests.handlers.stand_ins import stand_in


def decayed(power, epochs, first=0, stages=None, length=1):
    """Rates of each iteration as optimisers' steps see them, and those left at the end."""
    seen = []
    engine = stand_in(lambda e, batch: None, ("displacement", "score"), 0.1, torch.optim.SGD)
    engine.active = frozenset(["displacement"])

    def rates():
        return {name: optimizer.param_groups[0]["lr"] for name, optimizer in engine.optimizers.items()}

    if stages is not None:
        stages.attach(engine)
    PolynomialDecay(power).attach(engine)
    engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "epoch", first))
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append({n: rates()[n] for n in e.active}))
    engine.run(list(range(length)), max_epochs=epochs)
    return seen, rates()


def test_the_learning_rate_falls_as_the_polynomial_says():
    seen, left = decayed(0.9, 4)
    expected = [0.1, 0.1 * 0.75**0.9, 0.1 * 0.5**0.9, 0.1 * 0.25**0.9]
    assert [rates["displacement"] for rates in seen] == pytest.approx(expected)
    assert left == {"displacement": 0.1}


def test_a_resumed_run_has_the_rates_of_its_epochs():
    assert decayed(0.9, 4, first=2)[0] == decayed(0.9, 4)[0][2:]


def test_power_0_keeps_the_rate_and_a_negative_one_is_refused():
    assert [rates["displacement"] for rates in decayed(0, 3)[0]] == [0.1] * 3
    with pytest.raises(ValueError, match="learning_rate_decay: expected a power of at least 0, got -1"):
        PolynomialDecay(-1)


def test_a_table_lowers_the_rates_of_the_updates_that_it_names():
    stages = {"updates": ["displacement", "score"]}
    seen, left = decayed({"score": 1}, 4, stages=Stages([stages]))
    assert [rates["score"] for rates in seen] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert [rates["displacement"] for rates in seen] == [0.1] * 4
    assert left == {"displacement": 0.1, "score": 0.1}


def test_a_table_with_a_negative_power_or_an_unknown_update_is_refused():
    with pytest.raises(ValueError, match="learning_rate_decay: expected a power of at least 0, got -1"):
        PolynomialDecay({"score": -1})
    with pytest.raises(ValueError, match="learning_rate_decay: expected one of displacement, score, got 'scores'"):
        decayed({"scores": 0.9}, 1)


def test_an_update_that_begins_within_an_epoch_has_the_rate_of_the_epoch():
    stages = Stages([{"updates": ["displacement"], "iterations": 4}, {"updates": ["displacement", "score"]}])
    seen, left = decayed(1, 3, stages=stages, length=3)
    assert [rates["displacement"] for rates in seen] == pytest.approx([0.1] * 3 + [0.2 / 3] * 3 + [0.1 / 3] * 3)
    assert all("score" not in rates for rates in seen[:4])
    assert [rates["score"] for rates in seen[4:]] == pytest.approx([0.2 / 3] * 2 + [0.1 / 3] * 3)
    assert left == {"displacement": 0.1, "score": 0.1}
