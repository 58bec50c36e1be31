# SPDX-License-Identifier: Apache-2.0
"""Networks that draw their displacement, in training and fits of their weights."""

import pytest
import torch
from ignite.engine import Events

from common.engines.adaptation import adapt
from common.engines.instance import InstanceOptimisation
from common.engines.step import RegistrationStep
from common.engines.trainer import RegistrationTrainer
from common.handlers.state import TrainingState
from common.losses.similarity import build_similarity
from common.methods import baselines
from common.networks.registry import build, build_estimator
from tests.engines.synthetic import TINY, adacs_method, adam, gradicon_objective, loader_of, method_of

SIZES = [(19, 14), (12, 9, 10)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


def uncertain(dims, **options):
    return build("voxelmorph", dims, seed=0, **TINY, displacement_uncertainty=True, **options)


def diff(dims, **options):
    return build("voxelmorph_diff", dims, seed=0, **TINY, **options)


def plain(network, dims, lr=1e-3, objective="mse", similarity="mse", **form):
    entry = {"smoothness_weight": 0.05, "field_weight": 0.025}
    return baselines.build(objective, entry, network, build_similarity(similarity), adam(lr), dims, **form)


def trained(method, size, epochs=1, **options):
    """Terms of each iteration."""
    outputs = []
    trainer = RegistrationTrainer("cpu", epochs, loader_of(size), adapt(method).method, **options)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output["displacement"])
    )
    trainer.run()
    return outputs


@each_size
def test_objective_of_a_drawn_displacement_is_the_methods_and_the_weighted_prior(size):
    for options, weight in (({}, 1e-3), ({"uncertainty_weight": 0.2}, 0.2)):
        for terms in trained(plain(uncertain(len(size), **options), len(size)), size):
            assert list(terms) == ["total", "similarity", "smoothness", "deviation_prior", "deviation"]
            expected = terms["similarity"] + 0.1 * terms["smoothness"] + weight * terms["deviation_prior"]
            torch.testing.assert_close(terms["total"], expected)
            assert terms["deviation"] == pytest.approx(0.1, rel=0.05)


@each_size
def test_objective_of_voxelmorph_diff_is_the_scaled_error_and_the_divergence(size):
    for options, weights in (
        ({}, (1 / 0.02**2, 0.01)),
        ({"image_sigma": 0.1, "divergence_weight": 2.0}, (1 / 0.1**2, 2.0)),
    ):
        for terms in trained(plain(diff(len(size), **options), len(size)), size):
            assert list(terms) == ["total", "similarity", "divergence", "deviation"]
            torch.testing.assert_close(
                terms["total"], weights[0] * terms["similarity"] + weights[1] * terms["divergence"]
            )


def test_precision_of_the_prior_reaches_the_divergence():
    method = adapt(plain(diff(2, prior_weight=3.0), 2)).method
    assert method.updates[0].objective.terms["divergence"].prior_weight == 3.0


def test_a_network_without_deviation_brings_nothing():
    method = plain(build("voxelmorph", 2, **TINY), 2)
    assert adapt(method).method is method


@each_size
@pytest.mark.parametrize(("smoothness", "expected"), [(0.0, 1.0), (0.075, 0.5)])
def test_where_images_are_flat_training_finds_the_optimum_of_the_prior_and_the_smoothness(size, smoothness, expected):
    """The smoothness costs 4 λ σ_z² on average: σ_z² = α / (α + 4 λ), 1 without it. The head alone is trained."""
    image = torch.zeros(2, 1, *size)
    network = uncertain(len(size), uncertainty_weight=0.1)
    method = baselines.plain(network, build_similarity("mse"), adam(0.05), smoothness)
    batches = [{"moving_image": image, "fixed_image": image}] * 150
    trainer = RegistrationTrainer("cpu", 1, batches, adapt(method).method)
    trainer.freeze(["model.unet", "model.flow"])
    trainer.run()
    assert float(trainer.state.output["displacement"]["deviation"]) == pytest.approx(expected, rel=0.1)


@each_size
@pytest.mark.parametrize("network", [uncertain, diff])
def test_training_repeats_itself_draws_anew_and_lowers_the_similarity(size, network):
    runs = [trained(plain(network(len(size)), len(size), lr=1e-2), size, epochs=10) for _ in range(2)]
    values = [[float(terms["similarity"]) for terms in run] for run in runs]
    assert values[0] == values[1]
    assert sum(values[0][-4:]) < 0.8 * sum(values[0][:4])
    torch.manual_seed(0)
    view = network(len(size)).train()
    image = torch.rand(1, 2, *size)
    assert not torch.equal(view(image), view(image))


@pytest.mark.parametrize("network", [uncertain, diff])
def test_a_resumed_training_draws_as_an_uninterrupted_one(network, tmp_path):
    size = SIZES[0]
    states = []
    for folder, lengths in (("once", (4,)), ("resumed", (2, 4))):
        for part, epochs in enumerate(lengths):
            torch.manual_seed(part)  # what happened before must not count
            state = TrainingState(tmp_path / folder, resume=part > 0)
            method = adapt(plain(network(len(size)), len(size))).method
            RegistrationTrainer("cpu", epochs, loader_of(size), method, train_handlers=[state]).run()
        states.append(method.network.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@each_size
def test_adacs_and_both_directions_take_the_prior_beside_their_terms(size):
    dims = len(size)
    score = build_estimator(dims, seed=0, **TINY)
    for method, names in (
        (adacs_method(uncertain(dims), score), {"similarity", "smoothness"}),
        (method_of(uncertain(dims), gradicon_objective(), bidirectional=True), {"similarity", "inverse_consistency"}),
        (plain(uncertain(dims), dims, bidirectional=True, inverse_by_negation=True), {"similarity", "smoothness"}),
    ):
        terms = trained(method, size)[-1]
        assert set(terms) == names | {"total", "deviation_prior", "deviation"}
        assert all(value.isfinite() for value in terms.values())


@pytest.mark.parametrize("network", [uncertain, diff])
def test_a_fit_to_a_pair_registers_by_the_mean_and_leaves_the_variance(network):
    method = adapt(plain(network(2).eval(), 2)).method
    image = next(iter(loader_of((18, 16), pairs=2)))
    step = RegistrationStep(image, None, method, method.network.estimate)
    method.updates[0].objective(step)["total"].backward()
    assert method.network.deviation.conv.bias.grad is None and method.network.flow.weight.grad.any()
    pair = torch.cat([image["moving_image"], image["fixed_image"]], dim=1)
    with torch.no_grad():
        before = method.network(pair)
        after = InstanceOptimisation(method, 10, "weights", 1e-2)(pair)
        again = InstanceOptimisation(method, 10, "weights", 1e-2)(pair)

    def error(ddf):
        with torch.no_grad():
            fitted = RegistrationStep(image, None, method, lambda *_: method.network.estimate(pair)._replace(ddf=ddf))
            return float(fitted.residual.mean())

    assert torch.equal(after, again) and error(after) < 0.9 * error(before)
    assert torch.equal(method.network(pair), before)


@pytest.mark.parametrize(
    ("form", "got"),
    [
        ({"similarity": "lncc"}, "got the similarity LNCC"),
        ({"objective": "adaframe"}, "got the weight AdaFrameWeight"),
        ({"objective": "adareg"}, "got smoothness .AdaptiveSmoothness"),
        ({"objective": "nll"}, "got nll .NegativeLogLikelihood"),
    ],
)
def test_voxelmorph_diff_refuses_other_objectives_with_the_reason(form, got):
    with pytest.raises(ValueError, match=f"voxelmorph_diff minimises the squared error .*{got}.*Choose .*mse"):
        adapt(plain(diff(2), 2, **form))
