# SPDX-License-Identifier: Apache-2.0
"""Training is, bit by bit, the plain loop of its method: the same operations in the same order."""

import copy
import math

import pytest
import torch
from ignite.engine import Events

from common.engines.trainer import RegistrationTrainer, draw_seed
from common.handlers.momentum import ScoreMomentum
from common.losses.inverse_consistency import InverseConsistencyPenalty
from common.losses.score import Momentum
from common.networks.composition import build_icon
from common.networks.convolution import channels_last
from common.spatial.warp import samples_inside, warp
from tests.engines.synthetic import (
    SIZES,
    adacs_method,
    adam,
    gradicon_objective,
    loader_of,
    method_of,
    moving_network,
    networks,
)

UPDATES = 4


def twin_of(network):
    twin = copy.deepcopy(network)
    for parameter in twin.parameters():
        parameter.data = channels_last(parameter.data)
    return twin.train()


def batches_of(size):
    loader = loader_of(size)
    return loader, [(b["moving_image"], b["fixed_image"]) for b in loader] * (UPDATES // len(loader))


def diffusion(field):
    return torch.stack([field.diff(dim=axis).square().mean() for axis in range(2, field.dim())]).mean()


def assert_equal(network, twin, start):
    for key, value in network.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key
    assert any(not torch.equal(start[key], value) for key, value in network.state_dict().items())


def start_of(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def stepped(optimizer, total):
    total.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("size", SIZES)
def test_joint_phase_of_adacs(size):
    network, score, momentum = moving_network(len(size), 0.1), networks(len(size))[1], Momentum()
    twins, starts = [twin_of(m) for m in (network, score)], [start_of(m) for m in (network, score)]
    loader, batches = batches_of(size)
    method = adacs_method(network, score, momentum)
    RegistrationTrainer("cpu", 2, loader, method, train_handlers=[ScoreMomentum(momentum)]).run()

    m, (displaces, scores) = torch.tensor(0.0), [torch.optim.Adam(twin.parameters(), lr=1e-3) for twin in twins]
    for moving, fixed in batches:
        weight = twins[1](channels_last(fixed))
        estimate = twins[0].estimate(channels_last(torch.cat([moving, fixed], dim=1)))
        residual = (warp(moving, estimate.ddf) - fixed).square()
        stepped(displaces, (weight.detach() * residual).mean() + 0.02 * diffusion(estimate.velocity))
        residual = residual.detach()
        m.mul_(0.99).add_((1 - 0.99) * torch.cos(math.pi / 2 * residual.mean()))
        ucs, reg = (weight * residual).mean(), (1.0 - weight).square().mean()
        stepped(scores, ucs + 0.02 * reg + 1.5 * (m * diffusion(weight)))
    assert float(m) > 0 and torch.equal(momentum.value, m)
    for module, twin, start in zip((network, score), twins, starts, strict=True):
        assert_equal(module, twin, start)


@pytest.mark.parametrize("size", SIZES)
def test_gradicon(size):
    torch.manual_seed(0)
    network = build_icon(len(size), (2, 1), (2, 4, 6), (4, 4))
    twin, start = twin_of(network), start_of(network)
    loader, batches = batches_of(size)
    form = {"bidirectional": True, "batched_directions": False, "padding": "border", "inside_only": True}
    seeds = []
    method = method_of(
        network, gradicon_objective(1.5, InverseConsistencyPenalty(preset="released")), adam(1e-3), **form
    )
    trainer = RegistrationTrainer("cpu", 2, loader, method)
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda e: seeds.append((e.state.epoch, e.state.iteration)))
    trainer.run()

    penalty, optimizer = InverseConsistencyPenalty(preset="released"), torch.optim.Adam(twin.parameters(), lr=1e-3)
    for (a, b), seed in zip(batches, seeds, strict=True):
        torch.manual_seed(draw_seed(0, *seed, 0))
        image = torch.cat([torch.cat([a, b]), torch.cat([b, a])], dim=1)
        ddf = torch.cat([twin.estimate(channels_last(half)).ddf for half in image.chunk(2)])
        both = ddf.chunk(2)
        residual = (warp(image[:, :1], ddf, padding="border") - image[:, 1:]).square()
        valid = samples_inside(ddf.detach())
        share = valid.mean(dim=tuple(range(1, valid.dim())), keepdim=True)
        similarity = 2 * (residual * (valid / share.clamp(min=1e-6))).mean()
        stepped(optimizer, similarity + 1.5 * penalty(*both))
    assert_equal(network, twin, start)
