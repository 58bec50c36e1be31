# SPDX-License-Identifier: Apache-2.0
"""DiffuseMorph in training, fits of its weights and evaluation: its noise term beside every objective."""

import pytest
import torch
from ignite.engine import Events
from torch import nn

from common.engines.adaptation import adapt
from common.engines.evaluator import RegistrationEvaluator
from common.engines.instance import InstanceOptimisation
from common.engines.step import RegistrationStep
from common.engines.trainer import RegistrationTrainer
from common.losses.similarity import build_similarity
from common.losses.terms import NoiseError
from common.methods import baselines
from common.networks.diffusemorph import DiffuseMorph
from common.networks.unet import PixelEstimator
from tests.engines.synthetic import TINY, adacs_method, adam, gradicon_objective, loader_of, method_of

TWO_LEVELS = {"channels": 4, "groups": 2, "multipliers": (1, 2), "field_encoder": (4, 8), "field_decoder": (8, 4)}
SIZES = [(16, 12), (8, 12, 6)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


def network_of(dims, **options):
    torch.manual_seed(0)
    return DiffuseMorph(dims, **TWO_LEVELS, **options)


def plain(objective="mse", dims=2, lr=1e-3, network=None, **form):
    entry = {"smoothness_weight": 0.05, "field_weight": 0.025}
    network = network_of(dims) if network is None else network
    return baselines.build(objective, entry, network, build_similarity("mse"), adam(lr), dims, **form)


def both_ways(dims):
    return method_of(network_of(dims), gradicon_objective(), bidirectional=True, batched_directions=False)


def adacs(dims, **form):
    torch.manual_seed(1)
    return adacs_method(network_of(dims), PixelEstimator(dims, 1, **TINY), **form)


METHODS = {
    "mse": lambda dims: plain(dims=dims),
    "mse_both_ways": lambda dims: plain(dims=dims, bidirectional=True),
    "adaframe": lambda dims: plain("adaframe", dims),
    "adareg": lambda dims: plain("adareg", dims),
    "adacs": adacs,
    "adacs_published": lambda dims: adacs(dims, foreground=True, bidirectional=True, leak=True),
    "gradicon": both_ways,
}


def trained(method, size, epochs=1, **options):
    """Output of each iteration."""
    outputs = []
    trainer = RegistrationTrainer("cpu", epochs, loader_of(size), adapt(method).method, **options)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    trainer.run()
    return outputs


@pytest.mark.parametrize(("dims", "weight"), [(2, 0.5), (3, 0.05)])
def test_the_objective_is_the_methods_and_the_weighted_noise(dims, weight):
    size = SIZES[dims - 2]
    for method in (plain(dims=dims), plain(network=network_of(dims, noise_weight=weight))):
        for values in trained(method, size):
            terms = values["displacement"]
            assert list(terms) == ["total", "similarity", "smoothness", "noise"]
            expected = terms["similarity"] + 0.1 * terms["smoothness"] + weight * terms["noise"]
            torch.testing.assert_close(terms["total"], expected)


@each_size
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_objective_trains_both_networks_with_the_noise_beside_it(name, size):
    method = METHODS[name](len(size))
    network, plain_terms = method.network, set(method.updates[0].objective.terms)
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    terms = trained(method, size)[-1]["displacement"]
    assert set(terms) == plain_terms | {"total", "noise"}
    assert all(value.isfinite() for value in terms.values())
    assert 0.5 < terms["noise"] < 4  # of noise of variance 1, little of it predicted yet
    for part in ("diffusion.last.weight", "field.last.weight", "field.down.0.0.conv.weight"):
        assert not torch.equal(dict(network.named_parameters())[part], before[part])


def test_training_repeats_itself_and_draws_anew_in_every_iteration():
    first, second = (trained(plain(), SIZES[0], epochs=2) for _ in range(2))
    noise = [[float(output["displacement"]["noise"]) for output in run] for run in (first, second)]
    assert noise[0] == noise[1] and len(set(noise[0])) == len(noise[0])


@each_size
def test_training_lowers_the_noise_and_the_similarity(size):
    method = plain(dims=len(size), lr=1e-2)
    outputs = [output["displacement"] for output in trained(method, size, epochs=15)]
    for term, share in (("noise", 0.8), ("similarity", 0.8)):
        first, last = (sum(float(output[term]) for output in part) for part in (outputs[:10], outputs[-10:]))
        assert last < share * first, term


@each_size
def test_the_noise_counts_only_within_the_mask(size):
    """Images that are 0 in one half: with ``foreground`` that half's errors do not count, in a mean over all."""
    image = torch.rand(2, 1, *size) + 0.1
    image[:, :, : size[0] // 2] = 0
    batch, terms = {"moving_image": image, "fixed_image": image}, []
    for foreground in (True, False):
        method = plain(dims=len(size), foreground=foreground)
        torch.manual_seed(3)
        step = RegistrationStep(batch, None, method, method.network.estimate)
        error = step.estimate.noise_error
        assert error is not None and error[:, :, : size[0] // 2].any()
        expected = error[:, :, size[0] // 2 :].sum() / error.numel() if foreground else error.mean()
        terms.append(NoiseError()(step))
        torch.testing.assert_close(terms[-1], expected)
    assert terms[0] < terms[1]


@each_size
def test_a_fit_to_a_pair_leaves_the_noise_out(size):
    method = adapt(plain(dims=len(size), network=network_of(len(size)).eval())).method
    image = torch.rand(1, 2, *size)
    step = RegistrationStep(
        {"moving_image": image[:, :1], "fixed_image": image[:, 1:]}, None, method, method.network.estimate
    )
    terms = method.updates[0].objective(step)
    assert terms["noise"] == 0
    torch.testing.assert_close(terms["total"], terms["similarity"] + 0.1 * terms["smoothness"])


@each_size
@pytest.mark.parametrize("target", ["weights", "field"])
def test_fits_lower_the_objective_and_leave_the_network_as_it_was(size, target):
    network = network_of(len(size)).eval()
    nn.init.normal_(network.field.last.weight, std=0.02)
    method = adapt(plain(dims=len(size), network=network)).method
    batch = next(iter(loader_of(size)))
    image = torch.cat([batch["moving_image"], batch["fixed_image"]], dim=1)
    before = {key: value.clone() for key, value in network.state_dict().items()}

    def similarity(ddf):
        with torch.no_grad():
            step = RegistrationStep(batch, None, method, lambda *_: network.estimate(image)._replace(ddf=ddf))
            return float(step.residual.mean())

    with torch.no_grad():
        start = similarity(network(image))
        fitted = InstanceOptimisation(method, 10, target, 1e-2)(image)
    assert similarity(fitted) < 0.9 * start
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@each_size
@pytest.mark.parametrize("eta", [0.0, 0.4, None])
def test_the_condition_reaches_evaluation(size, eta):
    network = network_of(len(size)).eval()
    evaluator = RegistrationEvaluator("cpu", loader_of(size), network, condition=eta)
    evaluator.run()
    batch, ddf = evaluator.state.batch, evaluator.state.output["ddf"]
    image = torch.cat([batch["moving_image"], batch["fixed_image"]], dim=1)
    with torch.no_grad():
        trajectory = network.trajectory(image, steps=6)
    torch.testing.assert_close(ddf, trajectory[-1 if eta is None else round(eta * 5)], atol=1e-7, rtol=1e-4)


def test_negative_weights_of_the_noise_are_refused():
    with pytest.raises(ValueError, match="weight of 'noise', got -1"):
        adapt(plain(network=network_of(2, noise_weight=-1)))
