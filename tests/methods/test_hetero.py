# SPDX-License-Identifier: Apache-2.0
"""Heteroscedastic uncertainty: two networks by two objectives, and what flows between them."""

import copy

import pytest
import torch

from common.engines.step import RegistrationStep
from common.engines.trainer import RegistrationTrainer
from common.losses.heteroscedastic import SnrWeight
from common.losses.score import MeanResidual
from common.networks.registry import build_estimator
from common.spatial.warp import warp
from tests.engines.synthetic import displacement_objective, hetero_method, loader_of, moving_network

SIZES = [(12, 16), (8, 12, 6)]
each_size = pytest.mark.parametrize("size", SIZES)
VARIANCE = "model_variance"


def built(size, seed=3, **form):
    small = {"encoder": (4, 4), "decoder": (4, 4, 4)}
    variance = build_estimator(len(size), seed, in_channels=2, activation="log_variance", **small)
    return hetero_method(moving_network(len(size)), variance, **form)


def batch_of(size, count=2):
    generator = torch.Generator().manual_seed(1)
    return {key: torch.rand(count, 1, *size, generator=generator) for key in ("moving_image", "fixed_image")}


def step_of(method, batch, active=("displacement", "variance")):
    networks, names = (method.network.estimate, method.estimator_network), frozenset(("model", VARIANCE))
    return RegistrationStep(batch, None, method, *networks, active=frozenset(active), differentiable=names)


def gradients(method):
    found = {name: [p.grad for p in module.parameters()] for name, module in method.modules.items()}
    return {name: [g for g in values if g is not None and g.any()] for name, values in found.items()}


@each_size
@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0])
def test_losses_are_equations_4_and_5(size, gamma):
    method, batch = built(size, weight=SnrWeight(gamma)), batch_of(size)
    moving, fixed = batch["moving_image"], batch["fixed_image"]
    step = step_of(method, batch)
    displacement, variance = (update.objective(step) for update in method.updates)
    with torch.no_grad():
        estimate = method.network.estimate(torch.cat([moving, fixed], 1), None)
        warped = warp(moving, estimate.ddf)
        log_variance = method.estimator_network(torch.cat([fixed, warped], 1))
        squared, sigma = (fixed - warped).square(), log_variance.exp().sqrt()
        weight = torch.sigmoid((fixed / sigma) ** (2 * gamma))
        likelihood = sigma * (squared / sigma**2 + log_variance)  # sigma^(2 beta) at beta 0.5
    torch.testing.assert_close(displacement["similarity"].detach(), (weight * squared).mean())
    torch.testing.assert_close(variance["nll"].detach(), likelihood.mean())


@each_size
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_variances_loss_reaches_the_displacement_by_no_route(size, bidirectional):
    """Neither through the residual nor through the warped image that the variance network sees."""
    method = built(size, bidirectional=bidirectional)
    method.updates[1].objective(step_of(method, batch_of(size)))["total"].backward()
    found = gradients(method)
    assert found[VARIANCE] and not found["model"]


@each_size
def test_the_displacements_loss_does_not_reach_the_variance(size):
    method = built(size)
    method.updates[0].objective(step_of(method, batch_of(size)))["total"].backward()
    found = gradients(method)
    assert found["model"] and not found[VARIANCE]


@each_size
@pytest.mark.parametrize("route", ["residual", "input"])
def test_the_published_leak_has_both_routes(size, route):
    method = built(size, leak=True)
    if route == "input":  # without the residual's gradient, what is left comes through the variance network
        method.updates[1].objective.terms["nll"].detached = True
    else:
        method.through_estimator = False
    method.updates[1].objective(step_of(method, batch_of(size)))["total"].backward()
    assert gradients(method)["model"]


@each_size
def test_a_variance_update_leaves_the_displacement_network_as_it_is(size):
    method = built(size, lr=1e-2)
    method.updates = method.updates[1:]
    before = copy.deepcopy({name: module.state_dict() for name, module in method.modules.items()})
    RegistrationTrainer("cpu", 2, loader_of(size), method).run()
    states = {name: module.state_dict() for name, module in method.modules.items()}
    assert all(torch.equal(states["model"][key], value) for key, value in before["model"].items())
    assert any(not torch.equal(states[VARIANCE][key], value) for key, value in before[VARIANCE].items())


@each_size
def test_gamma_0_is_the_baselines_data_term_times_the_sigmoid_of_1(size):
    method, batch = built(size, weight=SnrWeight(0.0)), batch_of(size)
    batch["fixed_image"][..., :3] = 0.0
    step = step_of(method, batch)
    baseline = displacement_objective()(step)["similarity"]
    found = method.updates[0].objective(step)["similarity"]
    torch.testing.assert_close(found, torch.sigmoid(torch.tensor(1.0)) * baseline, rtol=1e-6, atol=0)
    torch.testing.assert_close(baseline, MeanResidual()(step))


def test_the_published_order_of_the_variances_input_is_warped_first():
    method, size = built((12, 16), estimator_input="warped_fixed"), (12, 16)
    seen = []
    method.estimator_network.register_forward_pre_hook(lambda _, images: seen.append(images[0].detach()))
    step = step_of(method, batch_of(size))
    _ = step.estimated
    torch.testing.assert_close(seen[0], torch.cat([step.warped, step.fixed], 1).detach())
    method.estimator_input = "fixed_warped"
    step = step_of(method, batch_of(size))
    _ = step.estimated
    torch.testing.assert_close(seen[1], torch.cat([step.fixed, step.warped], 1).detach())


@pytest.mark.parametrize("size", SIZES)
def test_variance_follows_a_noise_that_grows_across_the_image(size):
    """Images that differ by noise alone, 8 times as strong on one side: the estimate ranks its pixels."""
    torch.manual_seed(0)
    ramp = torch.linspace(0.02, 0.16, size[0]).view(-1, *[1] * (len(size) - 1)).expand(size)
    clean = torch.full((24, 1, *size), 0.5)
    images = [(clean + ramp * torch.randn_like(clean)).clamp(0, 1) for _ in range(2)]
    batch = dict(zip(("moving_image", "fixed_image"), images, strict=True))
    method = built(size, lr=5e-3)
    for update in method.updates[:1]:
        update.optimizer = lambda parameters: torch.optim.Adam(parameters, lr=0.0)
    RegistrationTrainer("cpu", 150, [batch], method).run()
    with torch.no_grad():
        sigma = (0.5 * method.estimator_network(torch.cat([images[1], images[0]], 1))).exp().mean(0)[0]
    rows = sigma.flatten(1).mean(1)
    assert rows[-1] > 3 * rows[0]
    assert torch.corrcoef(torch.stack([rows, torch.linspace(0.02, 0.16, size[0])]))[0, 1] > 0.9
