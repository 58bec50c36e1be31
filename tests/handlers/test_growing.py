# SPDX-License-Identifier: Apache-2.0
import logging
from functools import partial

import pytest
import torch
from ignite.engine import Events

from common.data.pairs import PairDataset
from common.engines.trainer import RegistrationEvents
from common.handlers.growing import course, growing_chain
from common.networks.composition import build_icon
from common.networks.voxelmorph import VoxelMorph
from common.workflow import Options, trainer
from tests.engines.synthetic import blob, gradicon_objective, method_of

FLAT = {"down": (2, 4, 6), "up": (4, 4)}
SIZES = [(24, 32), (16, 12, 20)]
each_size = pytest.mark.parametrize("size", SIZES)
OAI = {"levels": [2, 3, 4], "image_scale": [0.25, 0.5, 1], "batch_size": [4, 2, 1], "share": [0.5, 0.25, 0.25]}


def training(folder, size, frozen=False, epochs=4, resume=False):
    """Two iterations an epoch."""
    torch.manual_seed(0)
    network = build_icon(len(size), "oai", **FLAT)
    pairs = [pair | {"centre": torch.tensor([(n - 1) / 2 for n in size])} for pair in blob(size, 1.5, 4)]
    handlers = [course(OAI | {"frozen": frozen}, network, epochs)]
    options = Options(folder, batch_size=2, resume=resume)
    method = method_of(network, gradicon_objective(), bidirectional=True, padding="border")
    return trainer(method, PairDataset(pairs, size), epochs, options, train_handlers=handlers)


class Watch:
    """Images of every iteration, and the steps of the chain before and after."""

    def __init__(self, engine):
        self.shapes, self.states = [], [self.state(engine)]
        engine.add_event_handler(RegistrationEvents.UPDATE_STARTED, self.note)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self.states.append(self.state(e)))

    def note(self, engine):
        moving = engine.state.step.moving
        self.shapes.append((len(moving) // 2, tuple(moving.shape[2:])))

    @staticmethod
    def state(engine):
        return [[p.detach().clone() for p in step.parameters()] for step in engine.method.network.levels]

    def moved(self, start, stop):
        pairs = zip(self.states[start], self.states[stop], strict=True)
        return [any(not torch.equal(a, b) for a, b in zip(*steps, strict=True)) for steps in pairs]


@each_size
@pytest.mark.parametrize("frozen", [False, True])
def test_stages_grow_as_published(tmp_path, size, frozen):
    """Steps, resolution and batch; what was trained before goes on in GradICON and is frozen in ICON."""
    engine = training(tmp_path, size, frozen)
    watch = Watch(engine)
    engine.run()
    sizes = [tuple(-(-n // factor) for n in size) for factor in (4, 2, 1)]
    assert watch.shapes == [(4, sizes[0])] * 4 + [(2, sizes[1])] * 2 + [(1, sizes[2])] * 2
    spans = [watch.moved(*span) for span in ((0, 4), (4, 6), (6, 8))]
    earlier = not frozen
    assert spans == [[True, True, False, False], [earlier] * 2 + [True, False], [earlier] * 3 + [True]]
    assert all(parameter.requires_grad for parameter in engine.method.network.levels[3].parameters())


@pytest.mark.parametrize(("frozen", "epochs"), [(False, 1), (True, 3)])
def test_training_killed_in_any_stage_ends_with_the_numbers_of_an_uninterrupted_one(tmp_path, frozen, epochs):
    whole = training(tmp_path / "whole", SIZES[0], frozen)
    whole.run()
    first = training(tmp_path / "killed", SIZES[0], frozen)

    def kill(engine):
        if engine.state.iteration == 2 * epochs + 1:
            raise KeyboardInterrupt

    first.add_event_handler(Events.ITERATION_COMPLETED, kill)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = training(tmp_path / "killed", SIZES[0], frozen, resume=True)
    second.run()
    found = second.method.network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in whole.method.network.state_dict().items())


@pytest.mark.parametrize(("epochs", "lengths"), [(4, [2, 1, None]), (100, [50, 25, None]), (3, [2, None]), (1, [None])])
def test_shares_are_rounded_to_whole_epochs(epochs, lengths, caplog):
    with caplog.at_level(logging.WARNING):
        stages = growing_chain(build_icon(2, "oai", **FLAT), epochs, **OAI).stages
    assert [stage.epochs for stage in stages] == lengths and stages[-1].levels == 4
    assert ("A STAGE IS LEFT OUT" in caplog.text) == (len(lengths) < 3)


def test_unknown_arguments_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="stages: expected one of levels, .*got 'level'. Did you mean 'levels'"):
        course({"level": [1]}, build_icon(2, "oai", **FLAT), 3)


@pytest.mark.parametrize("stages", [{}, OAI | {"share": 1}, {key: OAI[key] for key in OAI if key != "share"}])
def test_lists_that_are_missing_are_named(stages):
    with pytest.raises(ValueError, match=r"stages: expected the lists levels, .*as (levels|share); e\.g\. --stages"):
        course(stages, build_icon(2, "oai", **FLAT), 3)


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="stages: expected a chain .*got VoxelMorph; pass --stages null"):
        course(OAI, VoxelMorph(2, encoder=(4,), decoder=(4, 4)), 3)


@pytest.mark.parametrize("change", [{"levels": [2, 3]}, {"share": [0.5, 0.5, 0.5]}, {"batch_size": []}])
def test_lists_that_do_not_fit_together_are_refused(change):
    made = partial(growing_chain, build_icon(2, "oai", **FLAT), 4)
    with pytest.raises(ValueError, match="stages: expected levels, image_scale, batch_size and share of one length"):
        made(**(OAI | change))
