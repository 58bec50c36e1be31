# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch
from ignite.engine import Events
from torch import nn

from common.data.pairs import PairDataset, training_loader
from common.engines.trainer import RegistrationEvents, RegistrationTrainer
from common.handlers.stages import Stages, copy_weights
from common.networks.voxelmorph import VoxelMorph
from tests.engines.synthetic import adacs_method, moving_network, networks
from tests.handlers.stand_ins import course_of, stand_in

BOTH = {"displacement", "score"}
ALONE, REST = {"updates": ["displacement"]}, {"updates": ["displacement", "score"]}


def run(stages, epochs, length=1, names=("displacement", "score"), first=None):
    """Updates that are active in each iteration, a list an epoch."""
    seen = []
    engine = stand_in(lambda e, batch: seen[-1].append(set(e.active)), names)
    stages.attach(engine)
    engine.add_event_handler(Events.EPOCH_STARTED, lambda e: seen.append([]))
    if first is not None:
        engine.add_event_handler(Events.STARTED, first)
    engine.run(list(range(length)), max_epochs=epochs)
    return seen


@pytest.mark.parametrize("warmup", [1, 3])
def test_displacement_then_score_then_both(warmup):
    expected = [[{"displacement"}]] * warmup + [[{"score"}]] * warmup + [[BOTH]] * 2
    assert run(course_of(warmup), 2 * warmup + 2) == expected


def test_published_warm_up_counts_epochs_from_zero():
    seen = run(course_of(20), 340)
    assert seen == [[{"displacement"}]] * 20 + [[{"score"}]] * 20 + [[BOTH]] * 300


def test_without_warm_up_all_run_from_the_start():
    assert run(course_of(0), 2) == [[BOTH], [BOTH]]


def test_order_and_names_of_the_updates_are_free():
    names = ("b", "a", "c")
    expected = [{"b"}, {"b"}, {"a"}, {"a"}, {"c"}, {"c"}, {*names}]
    assert run(course_of(2, names), 7, names=names) == [[active] for active in expected]


def test_stages_by_iterations_change_within_an_epoch():
    a, b = {"updates": ["displacement"], "iterations": 2}, {"updates": ["score"], "iterations": 3}
    expected = [[{"displacement"}] * 2 + [{"score"}], [{"score"}] * 2 + [BOTH], [BOTH] * 3]
    assert run(Stages([a, b, REST]), 3, length=3) == expected


def test_stages_shorter_than_an_epoch_follow_each_other():
    stages = [{"updates": [name], "iterations": 1} for name in ("displacement", "score", "displacement")]
    assert run(Stages([*stages, REST]), 1, length=4) == [[{"displacement"}, {"score"}, {"displacement"}, BOTH]]


def test_stage_by_epochs_that_begins_within_one_counts_it():
    stages = Stages([{"updates": ["displacement"], "iterations": 2}, {"updates": ["score"], "epochs": 2}, REST])
    expected = [[{"displacement"}] * 2 + [{"score"}], [{"score"}] * 3, [BOTH] * 3]
    assert run(stages, 3, length=3) == expected


def test_last_stage_goes_on_where_it_has_a_length():
    stages = Stages([{"updates": ["displacement"], "epochs": 1}, {"updates": ["score"], "epochs": 1}])
    assert run(stages, 4) == [[{"displacement"}], *[[{"score"}]] * 3]


@pytest.mark.parametrize(("epochs", "warned"), [(3, True), (4, True), (5, False)])
def test_run_too_short_for_the_last_stage_says_so_loudly(epochs, warned, caplog):
    with caplog.at_level(logging.WARNING):
        run(course_of(2), epochs)
    assert ("THE LAST STAGE IS NEVER REACHED, which trains displacement and score" in caplog.text) == warned
    assert ("displacement 2 epochs, score 2 epochs" in caplog.text) == warned


@pytest.mark.parametrize(("length", "warned"), [(3, True), (4, False)])
def test_run_too_short_in_iterations_says_so_too(length, warned, caplog):
    with caplog.at_level(logging.WARNING):
        run(Stages([{"updates": ["displacement"], "iterations": 6}, REST]), 2, length=length)
    assert ("THE LAST STAGE IS NEVER REACHED" in caplog.text) == warned


@pytest.mark.parametrize(("epochs", "lengths"), [(8, (8, 3, 5)), (2, (2, 1, 1)), (3, (3, 1, 2))])
def test_shares_are_of_all_iterations_and_their_rounding_does_not_add_up(epochs, lengths):
    """Two iterations an epoch."""
    a, b, c = {"updates": ["displacement"], "share": 0.5}, {"updates": ["score"], "share": 0.1875}, REST
    seen = [active for epoch in run(Stages([a, b, c]), epochs, length=2) for active in epoch]
    assert seen == [{"displacement"}] * lengths[0] + [{"score"}] * lengths[1] + [BOTH] * lengths[2]


@pytest.mark.parametrize(("share", "warned"), [(0.1, True), (0.3, False)])
def test_run_too_short_for_a_share_says_so_loudly(share, warned, caplog):
    stages = [{**ALONE, "share": 0.5}, {"updates": ["score"], "share": share}, REST]
    with caplog.at_level(logging.WARNING):
        run(Stages(stages), 2, length=2)
    assert ("A STAGE IS LEFT OUT" in caplog.text) == warned
    assert ("2 epochs of 2 iterations in all (displacement 2 iterations, score 0 iterations)" in caplog.text) == warned


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "stages: expected at least one"),
        ([{**ALONE, "epochs": 0}], "stages: expected at least one"),
        ([ALONE, REST], "a length of all but the last"),
        ([{"epochs": 1}, REST], r"stages: expected the names of updates in every stage, got \{'epochs': 1\}"),
        ([{"updates": [], "epochs": 1}, REST], "stages: expected the names of updates"),
        ([{**ALONE, "epoch": 1}, REST], "stages: expected one of .*got 'epoch'. Did you mean 'epochs'"),
        ([{**ALONE, "epochs": 1, "iterations": 1}, REST], "stages: expected a length in epochs, in iterat"),
        ([{**ALONE, "epochs": 1, "share": 0.5}, REST], "stages: expected a length in epochs, in iterations or as a sh"),
        ([{**ALONE, "share": 1.0}, REST], "stages: expected a share from 0, below 1, got 1.0"),
        ([{**ALONE, "share": 0.6}, {**ALONE, "share": 0.6}, REST], "stages: expected shares that add up to 1 at most"),
        ([{**ALONE, "epochs": -1}, REST], "stages: expected a whole number of epochs from 0, got -1"),
        ([{**ALONE, "iterations": 1.5}, REST], "stages: expected a whole number of iterations from 0, got 1.5"),
        ([{**REST, "batch_size": 0}], "stages: expected a batch_size from 1, got 0"),
        ([{**REST, "image_scale": 0}], "stages: expected an image_scale above 0, at most 1, got 0"),
        ([{**REST, "image_scale": 2}], "stages: expected an image_scale above 0, at most 1, got 2"),
        ([{**REST, "learning_rate": 0.0}], "stages: expected a learning_rate above 0, got 0.0"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        Stages(stages)


SIZE = (16, 24)


def trainer(stages, epochs, handlers=(), size=SIZE, with_loaders=True):
    """AdaCS in batches of 2 of 8 pairs, hence 4 iterations an epoch."""
    torch.manual_seed(0)
    network, score = moving_network(len(size), 0.1), networks(len(size))[1]
    data = [
        {
            "moving_image": torch.rand(1, *size),
            "fixed_image": torch.rand(1, *size),
            "centre": torch.tensor([n / 2 for n in size]),
        }
        for _ in range(8)
    ]

    def loaders(batch_size):
        return training_loader(PairDataset(data, size), batch_size, seed=3, updates_per_epoch=4)

    loader = training_loader(PairDataset(data, size), 2, seed=3)
    return RegistrationTrainer(
        "cpu",
        epochs,
        loader,
        adacs_method(network, score, lr=1e-2),
        loaders=loaders if with_loaders else None,
        train_handlers=[Stages(stages), *handlers],
    )


class Watch:
    """Images, parameters and optimisers of every iteration."""

    def __init__(self):
        self.images, self.states, self.optimizers, self.active = [], [], [], []

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_STARTED, lambda e: self.states.append(state_of(e.method)))
        engine.add_event_handler(RegistrationEvents.UPDATE_STARTED, lambda e: self.images.append(e.state.step.moving))
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self.optimizers.append(dict(e.optimizers)))
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self.active.append(list(e.state.output)))
        engine.add_event_handler(Events.COMPLETED, lambda e: self.states.append(state_of(e.method)))


def state_of(method):
    return {
        f"{name}.{key}": value.detach().clone()
        for name, module in method.modules.items()
        for key, value in module.state_dict().items()
    }


def moved(watch, start, stop):
    """Parts that change between two iterations: "model.unet", "model.flow", "model_score.unet", …"""
    before, after = watch.states[start], watch.states[stop]
    return {".".join(key.split(".")[:2]) for key in before if not torch.equal(before[key], after[key])}


def test_only_the_updates_of_a_stage_run_and_change_what_they_train():
    watch = Watch()
    stages = [{**ALONE, "iterations": 2}, {"updates": ["score"], "iterations": 2}, REST]
    trainer(stages, 2, [watch]).run()
    assert watch.active == [["displacement"]] * 2 + [["score"]] * 2 + [["displacement", "score"]] * 4
    changes = [{part.split(".")[0] for part in moved(watch, *span)} for span in ((0, 2), (2, 4), (4, 8))]
    assert changes == [{"model"}, {"model_score"}, {"model", "model_score"}]
    assert [set(built) for built in watch.optimizers[:4]] == [{"displacement"}] * 2 + [BOTH] * 2
    assert watch.optimizers[0]["displacement"] is watch.optimizers[-1]["displacement"]


def test_stage_has_its_own_batch_size_and_an_epoch_keeps_its_iterations():
    watch, drawn = Watch(), []
    stages = [
        {**ALONE, "epochs": 1}, {**ALONE, "epochs": 2, "batch_size": 3}, {**ALONE, "epochs": 1, "batch_size": 1}, ALONE,
    ]  # fmt: skip
    engine = trainer(stages, 5, [watch])
    engine.add_event_handler(Events.EPOCH_STARTED, lambda e: drawn.append(e.state.dataloader.sampler.epoch))
    engine.run()
    assert [len(image) for image in watch.images] == [2] * 4 + [3] * 8 + [1] * 4 + [2] * 4
    assert engine.state.iteration == 20 and drawn == [1, 2, 3, 4, 5]
    second, third = torch.cat(watch.images[4:8]), torch.cat(watch.images[8:12])
    assert not torch.equal(second, third)  # drawn anew in every epoch


def test_loader_of_a_batch_size_is_built_once():
    built, engine = [], trainer([{**ALONE, "batch_size": 3}], 3)
    loaders = engine.loaders
    engine.loaders = lambda batch_size: built.append(batch_size) or loaders(batch_size)
    engine.run()
    assert built == [3]


def test_batch_size_of_a_stage_that_begins_within_an_epoch_waits_for_the_next():
    watch = Watch()
    trainer([{**ALONE, "iterations": 2}, {**ALONE, "batch_size": 3}], 2, [watch]).run()
    assert [len(image) for image in watch.images] == [2] * 4 + [3] * 4


def test_batch_size_needs_loaders():
    with pytest.raises(ValueError, match="stages: a batch_size of its own needs a trainer that was given `loaders`"):
        trainer([{**ALONE, "batch_size": 3}], 1, with_loaders=False).run()


@pytest.mark.parametrize("size", [(16, 24), (8, 12, 10)])
def test_stage_scales_images_by_means_over_blocks(size):
    watch = Watch()
    engine = trainer([{**ALONE, "iterations": 1, "image_scale": 0.5}, ALONE], 1, [watch], size)
    batches = []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda e: batches.append(e.state.batch))
    engine.run()
    small, full = watch.images[:2]
    assert small.shape[2:] == tuple(n // 2 for n in size) and full.shape[2:] == size
    blocks = batches[0]["moving_image"]
    for axis in range(2, blocks.dim()):
        blocks = blocks.unfold(axis, 2, 2).mean(-1)
    torch.testing.assert_close(small, blocks)
    torch.testing.assert_close(full, batches[1]["moving_image"], atol=0, rtol=0)


@pytest.mark.parametrize("size", [(16, 24), (9, 12, 10)])
def test_labels_are_scaled_with_their_images_and_stay_labels(size):
    engine = trainer([ALONE], 1, size=size)
    engine.image_scale = 0.5
    label = torch.randint(0, 5, (2, 1, *size), dtype=torch.uint8)
    batch = {"moving_image": torch.rand(2, 1, *size), "fixed_image": torch.rand(2, 1, *size), "subject": ["a", "b"]}
    scaled = engine._on_device(batch | {"moving_label": label, "fixed_mask": (label > 0).float()})
    assert set(scaled) == {"moving_image", "fixed_image", "moving_label", "fixed_mask"}
    assert all(value.shape[2:] == tuple((n + 1) // 2 for n in size) for value in scaled.values())
    assert scaled["moving_label"].dtype == torch.uint8 and set(scaled["moving_label"].unique().tolist()) <= set(
        range(5)
    )
    assert torch.equal(scaled["fixed_mask"], (scaled["moving_label"] > 0).float())


@pytest.mark.parametrize(
    ("freeze", "moves"),
    [
        (["model.unet"], {"model.flow", "model_score.unet"}),
        (["model_score"], {"model.unet", "model.flow"}),
        (["model.flow", "model_score.unet.down"], {"model.unet", "model_score.unet"}),
    ],
)
def test_frozen_parts_stay_and_their_optimisers_are_built_anew(freeze, moves):
    watch = Watch()
    updates = ["displacement"] if "model_score" in freeze else ["displacement", "score"]
    stages = [{**REST, "epochs": 1}, {"updates": updates, "epochs": 1, "freeze": freeze}, REST]
    engine = trainer(stages, 3, [watch])
    engine.run()
    everything = moved(watch, 0, 4)
    assert moves <= moved(watch, 4, 8) <= everything and moved(watch, 8, 12) == everything
    for key, value in watch.states[4].items():
        frozen = any(key.startswith(f"{path}.") for path in freeze)
        assert torch.equal(value, watch.states[8][key]) == frozen, key
    first, second, third = (watch.optimizers[number]["displacement"] for number in (3, 7, 11))
    assert first is not second and second is not third
    held = {id(p) for group in second.param_groups for p in group["params"]}
    left = {
        id(p)
        for key, p in engine.method.network.named_parameters()
        if not any(f"model.{key}".startswith(f"{path}.") for path in freeze)
    }
    assert held == left
    assert all(p.requires_grad for module in engine.method.modules.values() for p in module.parameters())


def test_stage_begins_from_the_weights_of_another_part():
    """Once, when it begins; both parts train on by themselves, with optimisers built anew."""
    watch, part = Watch(), "unet.bottom.conv.weight"
    copies = {"model_score.unet.bottom": "model.unet.bottom"}
    trainer([{**REST, "epochs": 1}, {**REST, "initial_from": copies}], 3, [watch]).run()
    same = [torch.equal(state[f"model.{part}"], state[f"model_score.{part}"]) for state in watch.states]
    assert same == [number == 4 for number in range(13)]
    assert watch.optimizers[3]["score"] is not watch.optimizers[4]["score"] is watch.optimizers[11]["score"]


def test_weights_of_a_part_are_copied_not_shared():
    modules = {"model": nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 2))}
    copy_weights(modules, "model.0", "model.1")
    assert torch.equal(modules["model"][0].weight, modules["model"][1].weight)
    modules["model"][0].weight.data.add_(1.0)
    assert not torch.equal(modules["model"][0].weight, modules["model"][1].weight)
    other = {
        "model": VoxelMorph(2, encoder=(4,), decoder=(4, 4)),
        "model_x": VoxelMorph(2, encoder=(4,), decoder=(4, 4)),
    }
    copy_weights(other, "model", "model_x")
    assert torch.equal(other["model"].flow.weight, other["model_x"].flow.weight)
    with pytest.raises(ValueError, match="initial_from: 'model.2' cannot take the weights of 'model.0'"):
        copy_weights(modules, "model.0", "model.2")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"updates": ["scoer"]}, "stages: expected one of displacement, score, got 'scoer'. Did you mean 'score'"),
        (
            {**REST, "freeze": ["model.unnet"]},
            r"freeze: expected a part of .*\['model', 'model_score'\], got 'model.unn",
        ),
        ({**REST, "freeze": ["model.flow.weight"]}, "freeze: expected a part of the modules"),
        ({**REST, "levels": 2}, "stages: expected no levels, or .*, got 2 for VoxelMorph with 0"),
        ({**REST, "freeze": ["score"]}, "freeze: expected a part of the modules"),
        ({**REST, "initial_from": {"model.a": "model.flow"}}, "initial_from: expected a part of .* got 'model.a'"),
        ({**REST, "initial_from": {"model.flow": "model.a"}}, "initial_from: expected a part of .* got 'model.a'"),
    ],
)
def test_names_of_nothing_are_refused_before_the_training_begins(stage, message):
    with pytest.raises(ValueError, match=message):
        trainer([{**REST, "epochs": 1}, stage], 2)


def test_estimator_may_be_trained_with_the_displacement_frozen_as_a_whole():
    watch = Watch()
    trainer([{"updates": ["score"], "freeze": ["model"]}], 1, [watch]).run()
    assert {part.split(".")[0] for part in moved(watch, 0, 4)} == {"model_score"}


def test_a_stage_has_its_own_learning_rate_and_the_next_one_the_trainings_again():
    watch, rates = Watch(), []
    stages = [{**ALONE, "epochs": 1}, {**ALONE, "epochs": 1, "learning_rate": 5e-4}, ALONE]
    engine = trainer(stages, 3, [watch])
    engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda e: rates.append(e.optimizers["displacement"].param_groups[0]["lr"])
    )
    engine.run()
    assert rates == [1e-2, 5e-4, 1e-2]
    first, second, third = (watch.optimizers[number]["displacement"] for number in (3, 7, 11))
    assert first is not second and second is not third
