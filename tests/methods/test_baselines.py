# SPDX-License-Identifier: Apache-2.0
from functools import partial

import pytest
import torch

from common.engines.step import RegistrationStep
from common.engines.trainer import RegistrationTrainer
from common.losses.similarity import build_similarity
from common.losses.terms import AdaFrameWeight, AdaptiveSmoothness
from common.methods.baselines import BUILDERS, build
from tests.engines.synthetic import adam, loader_of, moving_network

OBJECTIVES = {
    "mse": {"similarity": "mse", "smoothness_weight": 0.05, "field_weight": 0.025},
    "mae": {"similarity": "mae", "smoothness_weight": 0.1},
    "adaframe": {"similarity": "mse", "smoothness_weight": 0.02},
    "adareg": {"similarity": "mse", "smoothness_weight": 0.03},
}
SIZES = [(12, 16), (8, 12, 6)]


def built(objective, size=(12, 16), **form):
    entry = OBJECTIVES[objective]
    similarity = build_similarity(entry["similarity"])
    return build(objective, entry, moving_network(len(size)), similarity, adam(1e-3), len(size), seed=0, **form)


def step_of(method, size):
    batch = {"moving_image": torch.rand(2, 1, *size), "fixed_image": torch.rand(2, 1, *size)}
    return RegistrationStep(batch, None, method, method.network.estimate)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_objective_is_the_similarity_and_twice_lambda_the_smoothness(objective, size):
    method = built(objective, size)
    step = step_of(method, size)
    terms = method.updates[0].objective(step)
    assert set(terms) == {"total", "similarity", "smoothness"}
    weight = 2 * OBJECTIVES[objective]["smoothness_weight"]
    torch.testing.assert_close(terms["total"], terms["similarity"] + weight * terms["smoothness"])
    difference = step.warped - step.fixed
    residual = difference.abs() if objective == "mae" else difference.square()
    data_weight = AdaFrameWeight()(step) if objective == "adaframe" else 1.0
    torch.testing.assert_close(terms["similarity"], (data_weight * residual).mean())
    if objective == "adareg":
        torch.testing.assert_close(terms["smoothness"], AdaptiveSmoothness()(step))


def test_method_has_the_network_its_one_update_and_the_form_that_was_asked_for():
    method = built("mse", bidirectional=True, padding="border")
    assert list(method.modules) == ["model"] and method.estimator is None
    assert [(update.name, list(update.trains)) for update in method.updates] == [("displacement", ["model"])]
    assert method.bidirectional and method.padding == "border"
    assert method.field_weight == 0.025 and built("mae").field_weight is None


def test_optimiser_is_the_factorys_and_weight_0_leaves_the_similarity():
    network = moving_network(2)
    entry, factory = {"similarity": "mse", "smoothness_weight": 0}, partial(torch.optim.SGD, lr=7)
    method = build("mse", entry, network, build_similarity("mse"), factory, spatial_dims=2)
    trainer = RegistrationTrainer("cpu", 1, loader_of((12, 16)), method)
    optimizer = trainer.optimizer(method.updates[0])
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.param_groups[0]["lr"] == 7
    terms = method.updates[0].objective(step_of(method, (12, 16)))
    assert torch.equal(terms["total"], terms["similarity"])


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_baseline_trains(objective):
    method = built(objective)
    before = method.network.flow.weight.detach().clone()
    trainer = RegistrationTrainer("cpu", 1, loader_of((12, 16)), method)
    trainer.run()
    assert not torch.equal(method.network.flow.weight, before)
    assert all(value.isfinite() for value in trainer.state.output["displacement"].values())


@pytest.mark.parametrize(
    ("objective", "entry", "message"),
    [
        ("x", {"similarity": "mse"}, "objectives#x: .*smoothness_weight"),
        ("adareg", {"similarity": "mse"}, "objectives#adareg: .*smoothness_weight"),
        ("x", {"smoothness_weight": 1.0, "smoothnes": 2}, "objectives#x: .*'smoothnes'. Did you mean 'smoothness'"),
        ("x", {"smoothness_weight": -0.01}, "smoothness_weight: expected at least 0, got -0.01"),
        ("nll", {"smoothness_weight": -0.01}, "smoothness_weight: expected at least 0, got -0.01"),
        ("nll", {"smoothness_weight": 1.0, "seed": 1}, "objectives#nll: expected one of .*got 'seed'"),
        ("beta_nll", {"smoothness_weight": 1.0, "beta": 2.0}, "beta: expected a number from 0 to 1, got 2.0"),
        ("x", {"smoothness_weight": float("nan")}, "smoothness_weight: expected at least 0, got"),
    ],
)
def test_what_does_not_fit_is_refused(objective, entry, message):
    with pytest.raises(ValueError, match=message):
        build(objective, entry, moving_network(2), build_similarity("mse"), adam(1e-3), spatial_dims=2)


def test_builders_are_those_with_more_than_a_similarity():
    assert set(BUILDERS) == {"adaframe", "adareg", "nll", "beta_nll"}
