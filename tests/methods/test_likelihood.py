# SPDX-License-Identifier: Apache-2.0
"""NLL and β-NLL: two networks and one loss."""

import copy

import pytest
import torch

from common.engines.instance import InstanceOptimisation
from common.engines.step import RegistrationStep
from common.engines.trainer import RegistrationTrainer
from common.handlers.state import TrainingState, load_weights
from common.losses.similarity import build_similarity
from common.methods.baselines import VARIANCE, beta_nll, nll
from common.networks.registry import build_estimator
from common.spatial.warp import warp
from tests.engines.synthetic import adam, loader_of, moving_network

SIZES = [(12, 16), (8, 12, 6)]
BETAS = {"nll": (nll, 0.0), "beta_nll": (beta_nll, 0.5)}
each_size = pytest.mark.parametrize("size", SIZES)
each_form = pytest.mark.parametrize("name", BETAS)


def built(name, size, weight=0.5, lr=1e-3, **form):
    builder = BETAS[name][0]
    return builder(moving_network(len(size)), build_similarity("mse"), adam(lr), weight, len(size), seed=3, **form)


def batch_of(size, count=2):
    generator = torch.Generator().manual_seed(1)
    return {key: torch.rand(count, 1, *size, generator=generator) for key in ("moving_image", "fixed_image")}


def step_of(method, batch, differentiable=("model", VARIANCE)):
    network, variance = method.network.estimate, method.estimator_network
    return RegistrationStep(batch, None, method, network, variance, differentiable=frozenset(differentiable))


def restated(method, batch, beta, weight):
    """The papers' formula, networks and all, with plain autograd."""
    moving, fixed = batch["moving_image"], batch["fixed_image"]
    estimate = method.network.estimate(torch.cat([moving, fixed], 1), None)
    warped = warp(moving, estimate.ddf)
    variance = method.estimator_network(torch.cat([fixed, warped], 1)).exp()
    loss = (variance**beta).detach() * ((fixed - warped).square() / variance + variance.log())
    v = estimate.velocity
    smoothness = torch.stack([v.diff(dim=axis).square().mean() for axis in range(2, v.dim())]).mean()
    return loss.mean() + 2 * weight * smoothness


def gradients(method):
    return {
        f"{name}.{key}": parameter.grad.clone()
        for name, module in method.modules.items()
        for key, parameter in module.named_parameters()
    }


@each_form
@each_size
def test_loss_and_gradients_are_those_of_the_formula_through_both_networks(name, size):
    method, batch = built(name, size), batch_of(size)
    terms = method.updates[0].objective(step_of(method, batch))
    terms["total"].backward()
    found = gradients(method)
    for module in method.modules.values():
        module.zero_grad()
    expected = restated(method, batch, BETAS[name][1], 0.5)
    expected.backward()
    torch.testing.assert_close(terms["total"], expected)
    for key, gradient in gradients(method).items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-7)
    assert set(terms) == {"total", "nll", "smoothness", "similarity", "log_variance"}
    assert not terms["similarity"].requires_grad and not terms["log_variance"].requires_grad


@pytest.mark.parametrize("differentiable", [("model",), (VARIANCE,), ("model", VARIANCE)], ids=str)
def test_the_displacement_moves_by_what_the_variance_network_sees(differentiable):
    method = built("nll", (12, 16))
    step_of(method, batch_of((12, 16)), differentiable).estimated.mean().backward()
    moved = any(p.grad is not None and p.grad.any() for p in method.network.parameters())
    assert moved == ("model" in differentiable)


@pytest.mark.parametrize(("dims", "parameters"), [(2, 109_025), (3, 326_465)])
def test_variance_network_is_that_of_the_papers_and_drawn_from_the_seed(dims, parameters):
    size = SIZES[dims - 2]
    method, other = built("nll", size), built("beta_nll", size)
    variance = method.estimator_network
    assert sum(p.numel() for p in variance.parameters()) == parameters
    assert not variance.sigmoid and variance.unet.in_channels == 2
    drawn = build_estimator(dims, 3, in_channels=2, activation="log_variance").state_dict()
    for state in (variance.state_dict(), other.estimator_network.state_dict()):
        assert all(torch.equal(state[key], drawn[key]) for key in drawn)
    assert list(method.modules) == ["model", VARIANCE] and method.through_estimator
    assert [list(update.trains) for update in method.updates] == [["model", VARIANCE]]


@each_form
@pytest.mark.parametrize("form", [{}, {"bidirectional": True}, {"foreground": True}], ids=str)
def test_both_networks_train_by_one_optimiser_and_are_saved(name, form, tmp_path):
    method = built(name, (12, 16), **form)
    before = copy.deepcopy({key: module.state_dict() for key, module in method.modules.items()})
    trainer = RegistrationTrainer("cpu", 20, loader_of((12, 16)), method, train_handlers=[TrainingState(tmp_path)])
    first = method.updates[0].objective(step_of(method, next(iter(loader_of((12, 16))))))
    trainer.run()
    assert list(trainer.optimizers) == ["displacement"]
    for key, module in method.modules.items():
        state = module.state_dict()
        assert any(not torch.equal(state[part], before[key][part]) for part in state)
        fresh = built(name, (12, 16)).modules[key]
        load_weights(fresh, tmp_path / f"{key}.pt")
        assert all(torch.equal(state[part], value) for part, value in fresh.state_dict().items())
    last = trainer.state.output["displacement"]
    assert all(value.isfinite() for value in last.values())
    assert last["nll"] < first["nll"] - 0.3 and last["log_variance"] < first["log_variance"] - 1
    assert last["similarity"] < first["similarity"]


def test_images_without_any_residual_train_without_a_nan():
    pairs = [{"moving_image": torch.zeros(1, 12, 16), "fixed_image": torch.zeros(1, 12, 16)}] * 2
    method = built("nll", (12, 16), lr=0.1)
    RegistrationTrainer("cpu", 40, torch.utils.data.DataLoader(pairs, batch_size=2), method).run()
    assert all(p.isfinite().all() for module in method.modules.values() for p in module.parameters())


@each_form
def test_a_fit_of_the_weights_lowers_the_loss_and_leaves_the_variance_network_alone(name):
    method, batch = built(name, (12, 16)), batch_of((12, 16), 1)
    states = copy.deepcopy({key: module.state_dict() for key, module in method.modules.items()})
    image = torch.cat([batch["moving_image"], batch["fixed_image"]], 1)
    fitted = InstanceOptimisation(method, 20, "weights", 1e-2)(image)
    for key, module in method.modules.items():
        assert all(torch.equal(value, states[key][part]) for part, value in module.state_dict().items())
        assert all(parameter.grad is None for parameter in module.parameters())

    def loss(ddf):
        warped = warp(batch["moving_image"], ddf)
        log_variance = method.estimator_network(torch.cat([batch["fixed_image"], warped], 1))
        step = step_of(method, batch)
        step._residual, step._estimated = (warped - batch["fixed_image"]).square(), log_variance
        return float(method.updates[0].objective.terms["nll"](step).detach())

    with torch.no_grad():
        assert loss(fitted) < loss(method.network(image)) - 1e-4


@each_form
@pytest.mark.parametrize(
    "similarity", ["lncc", "mae", "tukey", "mind", {"mse": 2.0}, {"mse": 1.0, "lncc": 0.1}], ids=str
)
def test_other_similarities_have_no_variance(name, similarity):
    with pytest.raises(ValueError, match="similarity: expected mse, got .* likelihood is that of noise"):
        BETAS[name][0](moving_network(2), build_similarity(similarity), adam(1e-3), 1.0, 2)
