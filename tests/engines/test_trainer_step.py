# SPDX-License-Identifier: Apache-2.0
"""What training hands to a step: conditions, labels, and networks that handlers never run."""

import pytest
import torch
from ignite.engine import Events
from torch.utils.data import DataLoader

from common.engines.trainer import RegistrationEvents, RegistrationTrainer
from common.handlers.log import TrainingLog
from common.handlers.momentum import ScoreMomentum
from common.losses.objective import Objective
from common.losses.overlap import LabelOverlap
from common.losses.score import Momentum
from common.losses.terms import Similarity
from tests.engines.synthetic import (
    SIZES,
    Conditional,
    adacs,
    adam,
    baseline,
    blob,
    count_forwards,
    loader_of,
    method_of,
    moving_network,
    networks,
)


@pytest.mark.parametrize("handlers", [("paper",), ("official",), ("paper", "log"), ("none", "log")])
@pytest.mark.parametrize("second_forward", [False, True])
def test_handlers_run_no_network(handlers, second_forward, tmp_path, monkeypatch):
    monkeypatch.setattr("common.handlers.log.training_curves", lambda history, path: None)
    network, score = networks(2)
    momentum, seen = Momentum(), []
    attached = [ScoreMomentum(momentum, handlers[0])] + [TrainingLog(tmp_path, progress=False)] * (len(handlers) - 1)
    loader = loader_of((24, 32))
    trainer = adacs(network, score, loader, momentum=momentum, second_forward=second_forward, handlers=attached)
    calls = count_forwards(trainer)
    # After all other handlers of the event: nothing has run between this one and the first.
    trainer.add_event_handler(RegistrationEvents.UPDATE_STARTED, lambda e: seen.append(dict(calls)))
    trainer.run()
    assert calls == {"model": 4 if second_forward else 2, "model_score": 2}
    assert seen[0] == {"model": 1, "model_score": 1}


@pytest.mark.parametrize("active", [{"displacement"}, {"score"}])
def test_networks_have_run_when_an_update_is_announced(active):
    network, score = networks(2)
    trainer = adacs(network, score, loader_of((24, 32), batch_size=4))
    trainer.active = frozenset(active)
    calls, seen = count_forwards(trainer), []

    def read(engine):
        before = dict(calls)
        step = engine.state.step
        _ = step.residual, step.warped, step.estimate, step.estimated if "score" in active else None
        seen.append(before == calls)

    trainer.add_event_handler(RegistrationEvents.UPDATE_STARTED, read)
    trainer.run()
    assert seen == [True]


class Ramp:
    """Conditions 1, 2, … of the pairs of a batch; remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, batch_size, device):
        self.asked.append((batch_size, device))
        return torch.arange(1.0, batch_size + 1, device=device)[:, None]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({}, [[1, 2]]),
        ({"bidirectional": True}, [[1, 2, 1, 2]]),
        ({"bidirectional": True, "batched_directions": False}, [[1, 2], [1, 2]]),
    ],
)
def test_condition_reaches_every_forward_of_training(size, form, expected):
    network, condition, steps = Conditional(len(size)), Ramp(), []
    method = method_of(network, optimizer=adam(1e-3), condition=condition, **form)
    trainer = RegistrationTrainer("cpu", 1, loader_of(size), method)
    trainer.add_event_handler(RegistrationEvents.UPDATE_STARTED, lambda e: steps.append(e.state.step.condition))
    trainer.run()
    assert [seen.flatten().tolist() for seen in network.seen] == expected * 2
    assert condition.asked == [(2, torch.device("cpu"))] * 2
    assert [step.flatten().tolist() for step in steps] == [[code for codes in expected for code in codes]] * 2
    assert not torch.equal(network.scale.detach(), torch.ones(len(size)))


def test_random_conditions_are_a_function_of_seed_and_iteration():
    draws = []
    for _ in range(2):
        network = Conditional(2)
        method = method_of(network, condition=lambda batch_size, device: torch.rand(batch_size, 1, device=device))
        RegistrationTrainer("cpu", 2, loader_of((24, 32)), method, seed=3).run()
        draws.append(torch.cat(network.seen))
        torch.rand(7)
    assert torch.equal(*draws) and len(draws[0].unique()) == 8


@pytest.mark.parametrize("form", [{}, {"bidirectional": True}, {"bidirectional": True, "inverse_by_negation": True}])
def test_condition_for_a_network_that_takes_none_is_refused(form):
    with pytest.raises(ValueError, match="condition: VoxelMorph takes none, expected None; leave it out"):
        baseline(networks(2)[0], loader_of((24, 32)), condition=Ramp(), **form).run()


def labelled(size, keys=("moving_label", "fixed_label")):
    """Blobs, their cores labelled 1."""
    pairs = blob(size, 2.0, 4)
    for pair in pairs:
        for key in keys:
            pair[key] = (pair[key.replace("label", "image")] > 0.5).to(torch.uint8)
    return DataLoader(pairs, batch_size=4)


def supervised(network, loader, epochs=1, lr=1e-2, **form):
    objective = Objective({"overlap": (1.0, LabelOverlap([1])), "similarity": (0.0, Similarity())})
    return RegistrationTrainer("cpu", epochs, loader, method_of(network, objective, adam(lr), **form))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_labels_reach_the_step_and_are_swapped_with_the_images(bidirectional):
    size, seen = (24, 32), []
    loader = labelled(size)
    trainer = supervised(networks(2)[0], loader, bidirectional=bidirectional)

    def look(engine):
        step = engine.state.step
        seen.append((step.moving, step.fixed, step.moving_label, step.fixed_label))

    trainer.add_event_handler(RegistrationEvents.UPDATE_STARTED, look)
    trainer.run()
    ((moving, fixed, moving_label, fixed_label),) = seen
    assert len(moving_label) == len(moving) == (8 if bidirectional else 4)
    assert torch.equal(moving_label, (moving > 0.5).to(torch.uint8))
    assert torch.equal(fixed_label, (fixed > 0.5).to(torch.uint8))
    assert moving_label.any() and not torch.equal(moving_label, fixed_label)


@pytest.mark.parametrize("size", SIZES)
def test_labels_alone_teach_a_shift(size):
    network, overlaps = moving_network(len(size), 0.05), []
    trainer = supervised(network, labelled(size), 12)
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda e: overlaps.append(float(e.state.output["displacement"]["overlap"]))
    )
    trainer.run()
    assert overlaps[-1] < 0.8 * overlaps[0]


@pytest.mark.parametrize(("keys", "missing"), [((), "moving_label"), (("moving_label",), "fixed_label")])
def test_labels_that_the_data_lack_are_said(keys, missing):
    with pytest.raises(ValueError, match=f"{missing}: an objective compares labels, but the batch has none"):
        supervised(networks(2)[0], labelled((24, 32), keys)).run()


def test_other_entries_of_a_batch_go_nowhere():
    loader = DataLoader([pair | {"subject": "a", "centre": torch.zeros(2)} for pair in blob((24, 32), 2.0, 2)], 2)
    seen = []
    trainer = baseline(networks(2)[0], loader)
    trainer.add_event_handler(RegistrationEvents.UPDATE_STARTED, lambda e: seen.append(set(e.state.step.batch)))
    trainer.run()
    assert seen == [{"moving_image", "fixed_image"}]
