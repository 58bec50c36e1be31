# SPDX-License-Identifier: Apache-2.0
"""A chain that grows: its first steps alone in training, all of them in evaluation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.engines.cost import allocated_peak
from common.networks.composition import CHAINS, build_icon
from common.networks.icon import TallUNet2, halve
from common.spatial.fields import compose
from common.spatial.integrate import resize_field
from common.spatial.warp import warp

FLAT = {"down": (2, 4, 6), "up": (4, 4)}
SIZES = [(32, 48), (20, 12, 16)]
each_size = pytest.mark.parametrize("size", SIZES)


def pair(size, batch=2):
    return torch.rand(batch, 2, *size, generator=torch.Generator().manual_seed(0))


def chain(size, factors, awake=True):
    torch.manual_seed(0)
    network = build_icon(len(size), factors, **FLAT)
    for module in network.modules() if awake else ():
        if isinstance(module, TallUNet2):
            nn.init.normal_(module.last.weight, std=0.3)
    return network


@each_size
def test_first_steps_are_composed_on_images_of_the_last_ones_size(size):
    """Against the paper's operators written out."""
    network, image = chain(size, "oai").train(), halve(pair(size))
    network.run_levels(3)
    first, second, third, _ = network.levels
    small, moving, fixed = halve(image), halve(image)[:, :1], halve(image)[:, 1:]
    before = first(small)
    both = compose(before, second(torch.cat([warp(moving, before, padding="border"), fixed], dim=1)))
    up = resize_field(both, image.shape[2:])
    warped = warp(image[:, :1], up, padding="border")
    expected = compose(up, third(torch.cat([warped, image[:, 1:]], dim=1)))
    torch.testing.assert_close(network(image), expected, atol=1e-5, rtol=1e-5)


@each_size
def test_a_chain_of_which_a_part_is_trained_is_that_part_in_evaluation(size):
    """The steps that no stage has reached are the identity."""
    network = chain(size, "oai", awake=False)
    nn.init.normal_(network.levels[0].last.weight, std=0.3)
    nn.init.normal_(network.levels[1].last.weight, std=0.3)
    image = pair(size)
    with torch.no_grad():
        network.eval().run_levels(2)
        part = network.first_steps(2).eval()(halve(halve(image)))
        steps = resize_field(resize_field(part, [-(-n // 2) for n in size]), size)
        torch.testing.assert_close(network(image), steps, atol=1e-5, rtol=1e-5)


@each_size
def test_all_steps_run_in_training_unless_fewer_are_asked_for(size):
    network, image = chain(size, (4, 2)).train(), pair(size)
    assert len(network.levels) == network.running == 2
    torch.testing.assert_close(network(image), network.step(image), atol=0, rtol=0)
    network.run_levels(1)
    assert network(image).shape == (2, len(size), *size)
    assert not network.levels[1].last.weight.grad and network.first_steps(1) is network.levels[0]


def test_steps_that_do_not_run_are_not_trained():
    network = chain((16, 16), "lung").train()
    network.run_levels(2)
    F.mse_loss(network(pair((16, 16))), torch.ones(2, 2, 16, 16)).backward()
    trained = [step.last.weight.grad is not None for step in network.levels]
    assert trained == [True, True, False]


def test_number_of_running_steps_is_not_among_the_weights():
    network = chain((16, 16), "oai")
    keys = set(network.state_dict())
    network.run_levels(1)
    assert set(network.state_dict()) == keys and torch.jit.script(network.eval())(pair((16, 16))).isfinite().all()


@pytest.mark.parametrize(("name", "steps"), [(name, len(factors)) for name, factors in CHAINS.items()])
def test_published_chains_have_their_steps(name, steps):
    with torch.device("meta"):
        network = build_icon(3, name)
    assert len(network.levels) == steps
    assert sum(parameter.numel() for parameter in network.parameters()) == steps * 17_670_229


def test_the_two_chains_for_knees_see_what_is_published():
    """Paper: two at a quarter, one at a half, one at full resolution. Code: a quarter, a half, and twice the whole."""
    for name, factors in (("oai", [4, 4, 2, 1]), ("oai_code", [4, 2, 1, 1])):
        network, seen = chain((32, 32), name), []
        for step in network.levels:
            step.register_forward_hook(lambda m, inputs, out, seen=seen: seen.append(32 // inputs[0].shape[-1]))
        network(pair((32, 32)))
        assert seen == factors


@each_size
def test_checkpointing_changes_neither_values_nor_gradients_nor_batch_statistics(size):
    plain, saving = chain(size, "lung").train(), chain(size, "lung").train()
    for step in saving.levels:
        step.checkpointing = True
    found = []
    for network in (plain, saving):
        loss = network(pair(size)).square().mean()
        loss.backward()
        found.append(
            {"loss": loss} | {key: p.grad for key, p in network.named_parameters()} | dict(network.named_buffers())
        )
    assert found[0].keys() == found[1].keys() and len([key for key in found[0] if "running" in key]) == 12
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, atol=1e-6, rtol=1e-5)


def test_compiled_trains_as_plain_with_checkpointing_or_without():
    found = []
    for checkpointing in (None, False, True):
        network = chain((32, 48), "lung").train()
        for step in network.levels:
            step.checkpointing = bool(checkpointing)
        run = network if checkpointing is None else torch.compile(network, backend="aot_eager")
        loss = run(pair((32, 48))).square().mean()
        loss.backward()
        gradients = [step.last.weight.grad for step in network.levels]
        found.append([loss.detach(), *network.buffers(), *gradients])
    for others in found[1:]:
        for value, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(other, value, atol=1e-3, rtol=1e-2)


def kept(network, shape):
    """Channels of full size, of one image, that a forward in training leaves for the backward pass."""
    image, found = pair(shape), []
    for number in (2, 3):
        forwards = range(number)
        found.append(allocated_peak(lambda n=forwards: [network(image).sum() for _ in n], torch.device("cpu")))
    return (found[1] - found[0]) / (4 * image[:, :1].numel())


def test_checkpointing_keeps_less_and_reaches_every_step():
    networks = [build_icon(2, "lung", **FLAT, checkpointing=wanted).train() for wanted in (False, True)]
    assert [[step.checkpointing for step in network.levels] for network in networks] == [[False] * 3, [True] * 3]
    plain, saving = (kept(network, (64, 64)) for network in networks)
    assert saving < 0.45 * plain
    torch.jit.script(networks[1].eval())


@pytest.mark.parametrize("shape", [(32, 48), (16, 16, 24)])
def test_a_step_keeps_one_image_of_the_last_blocks_width(shape):
    """What the norm sees; neither what it returns nor cat(norm, images), 38 further channels here."""
    assert 36 <= kept(TallUNet2(len(shape), (2, 4, 6), (36, 4)).train(), shape) < 36 + 16


@pytest.mark.parametrize("number", [0, 5, 1.5])
def test_other_numbers_of_steps_are_refused(number):
    with pytest.raises(ValueError, match="levels: expected 1 to 4, the steps of this chain, got"):
        chain((16, 16), "oai").run_levels(number)


def test_unknown_chain_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="factors: expected one of .*oai_code.*got 'oai_cod'. Did you mean 'oai_code'"):
        build_icon(2, "oai_cod")
