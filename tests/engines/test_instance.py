# SPDX-License-Identifier: Apache-2.0
import copy
import dataclasses

import pytest
import torch
from torch import nn

from common.engines.evaluator import RegistrationEvaluator
from common.engines.instance import InstanceOptimisation
from common.engines.method import Method, Update
from common.engines.pairwise import PairwiseRegistration
from common.losses.inverse_consistency import InverseConsistencyPenalty
from common.losses.overlap import LabelOverlap
from common.losses.score import Momentum, ScoreWeight
from common.losses.similarity import LNCC, SquaredError
from common.networks.composition import build_icon
from common.networks.unet import PixelEstimator
from common.networks.voxelmorph import VoxelMorph
from common.spatial.fields import compose
from common.spatial.jacobian import jacobian_determinant
from common.spatial.warp import identity_grid, warp
from tests.engines.synthetic import adam, displacement_objective, gradicon_objective, method_of

SIZES = [(24, 20), (12, 14, 10)]
TARGETS = ["weights", "field"]
each_target = pytest.mark.parametrize("target", TARGETS)
each_size = pytest.mark.parametrize("size", SIZES)


def pairs_of(size, count=3):
    """Gaussian blobs; the fixed ones lie somewhere else."""
    grid = identity_grid(list(size), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    shape = [-1] + [1] * len(size)

    def blob():
        centre = torch.tensor(size) / 2 + 3 * (torch.rand(len(size), generator=generator) - 0.5)
        return torch.exp(-(grid - centre.view(shape)).square().sum(0) / (2 * (min(size) / 6) ** 2))

    return torch.stack([torch.stack([blob(), blob()]) for _ in range(count)])


def icon_of(size, strength=0.02):
    """A chain with batch norm, as after a little training."""
    torch.manual_seed(0)
    network = build_icon(len(size), (2, 1), (2, 4, 6), (4, 4))
    for step in (network.step.first.step, network.step.second):
        nn.init.normal_(step.last.weight, std=strength)
    with torch.no_grad():
        network.train()(torch.rand(2, 2, *size))  # batch statistics other than those of the start
    return network.eval()


def method(network, objective=None, similarity=None, score=None, update="score", **form):
    """GradICON's method, unless something else is asked for."""
    made = method_of(
        network, objective or gradicon_objective(), **({"bidirectional": True, "field_weight": 0.025} | form)
    )
    if score is None:
        return dataclasses.replace(made, similarity=similarity or SquaredError())
    updates = [*made.updates, Update(update, ["model_score"], FailsAt(1, "raise"), adam(1e-3))]
    return dataclasses.replace(
        made, modules=made.modules | {"model_score": score}, updates=updates, estimator="model_score"
    )


def optimised(network, target="weights", iterations=3, learning_rate=1e-3, **options):
    return InstanceOptimisation(method(network, **options), iterations, target, learning_rate)


def similarity_of(image, ddf):
    return (warp(image[:, :1], ddf) - image[:, 1:]).square().flatten(1).mean(1)


def state_of(network):
    return (
        {key: value.clone() for key, value in network.state_dict().items()},
        [module.training for module in network.modules()],
        [parameter.requires_grad for parameter in network.parameters()],
        [None if parameter.grad is None else parameter.grad.clone() for parameter in network.parameters()],
    )


def assert_same_state(one, other):
    for a, b in zip(one[0].values(), other[0].values(), strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()
    assert one[1:3] == other[1:3]
    for a, b in zip(one[3], other[3], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


class FailsAt(nn.Module):
    """An objective that raises, or becomes NaN, in this call."""

    def __init__(self, call, how):
        super().__init__()
        self.left, self.how = call, how

    def forward(self, step):
        self.left -= 1
        total = step.residual.mean()
        if self.left:
            return {"total": total}
        if self.how == "raise":
            raise KeyError("out of luck")
        return {"total": total * float("nan")}


def unusual(size):
    """A network of mixed modes, with a frozen weight and a gradient that somebody left."""
    network = icon_of(size).train()
    network.step.second.up.eval()
    network.step.second.last.bias.requires_grad_(False)
    network.step.second.last.weight.grad = torch.full_like(network.step.second.last.weight, 7.0)
    return network


@each_size
@each_target
def test_network_is_itself_afterwards(size, target):
    network = unusual(size)
    before = state_of(network)
    image = pairs_of(size, 2)
    with torch.no_grad():
        ddf = optimised(network, target)(image)
        assert not torch.equal(ddf, copy.deepcopy(network).eval()(image))
    assert_same_state(state_of(network), before)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("raise", KeyError, "out of luck"),
        ("nan", FloatingPointError, "the loss became nan in iteration 1; lower instance_learning_rate"),
    ],
)
def test_network_is_itself_after_a_failure(how, error, message):
    network = unusual(SIZES[0])
    before = state_of(network)
    with pytest.raises(error, match=message):
        optimised(network, objective=FailsAt(2, how))(pairs_of(SIZES[0]))
    assert_same_state(state_of(network), before)


def test_displacement_broken_by_the_last_step_is_an_error():
    class Root(nn.Module):
        """0 with a gradient of 0 / 0."""

        def forward(self, step):
            return {"total": (0 * step.residual.mean()).sqrt()}

    network = icon_of(SIZES[0])
    before = state_of(network)
    with pytest.raises(FloatingPointError, match="displacement is not finite after 1 iterations"):
        optimised(network, objective=Root(), iterations=1)(pairs_of(SIZES[0], 1))
    assert_same_state(state_of(network), before)


def test_gradients_that_somebody_left_do_not_count():
    image = pairs_of(SIZES[0], 1)
    clean, network = icon_of(SIZES[0]), icon_of(SIZES[0])
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 5.0)
    assert torch.equal(optimised(network)(image), optimised(clean)(image))


@each_size
def test_result_of_a_pair_depends_neither_on_the_others_nor_on_their_order(size):
    network, images = icon_of(size), pairs_of(size)
    fit = optimised(network)
    together = fit(images)
    assert torch.equal(torch.cat([fit(image[None]) for image in images]), together)
    assert torch.equal(fit(images.flip(0)).flip(0), together)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_field_of_a_pair_does_not_depend_on_the_others():
    images = pairs_of(SIZES[0])
    fit = optimised(icon_of(SIZES[0]), "field", iterations=5)
    together = fit(images)
    torch.testing.assert_close(torch.cat([fit(image[None]) for image in images]), together, atol=1e-5, rtol=0)
    torch.testing.assert_close(fit(images.flip(0)).flip(0), together, atol=1e-5, rtol=0)


@each_size
def test_weights_are_adams_steps_on_the_objective(size):
    """Restated with the network itself: both directions in a batch, batch statistics of training."""
    network, image = icon_of(size), pairs_of(size, 1)
    twin = copy.deepcopy(network)
    adam = torch.optim.Adam(twin.parameters(), lr=1e-3)
    both = torch.cat([image, image.flip(1)])
    for _ in range(3):
        adam.zero_grad()
        ddf = twin(both)
        penalty = InverseConsistencyPenalty()(*ddf.chunk(2))
        (similarity_of(both, ddf).sum() + 0.2 * penalty).backward()
        adam.step()
    with torch.no_grad():
        expected = twin(image)
        assert (expected - network(image)).abs().max() > 1e-2
    torch.testing.assert_close(optimised(network)(image), expected, atol=1e-4, rtol=0)


class Recorded(nn.Module):
    def __init__(self, objective):
        super().__init__()
        self.objective, self.totals = objective, []

    def forward(self, step):
        terms = self.objective(step)
        self.totals.append(float(terms["total"].detach()))
        return terms


@pytest.mark.parametrize("bidirectional", [True, False])
@each_size
def test_weights_lower_the_loss_and_the_dissimilarity_without_folding(size, bidirectional):
    objective = Recorded(gradicon_objective() if bidirectional else displacement_objective(0.01))
    network, image = icon_of(size), pairs_of(size, 1)
    fit = optimised(network, objective=objective, iterations=25, learning_rate=1e-2, bidirectional=bidirectional)
    ddf = fit(image)
    assert len(objective.totals) == 25 and objective.totals[-1] < 0.7 * objective.totals[0]
    with torch.no_grad():
        assert similarity_of(image, ddf) < 0.7 * similarity_of(image, network(image))
    assert (jacobian_determinant(ddf) <= 0).float().mean() < 0.01


@each_size
def test_field_lowers_the_dissimilarity_without_folding(size):
    network, images = icon_of(size), pairs_of(size, 2)
    ddf = optimised(network, "field", iterations=25)(images)
    with torch.no_grad():
        assert (similarity_of(images, ddf) < 0.5 * similarity_of(images, network(images))).all()
    assert (jacobian_determinant(ddf) <= 0).float().mean() < 0.01


@each_size
def test_field_is_composed_with_the_networks(size):
    """(id + u) ∘ exp(v): u is kept where v stays 0, and exp(v) registers the warped pair."""
    network, images = icon_of(size, strength=0.2), pairs_of(size, 2)
    fit = optimised(network, "field")
    fit.field = PairwiseRegistration(SquaredError(), levels=(1,), steps=(0,))
    with torch.no_grad():
        ddf = network(images)
        assert ddf.abs().max() > 0.1
        torch.testing.assert_close(fit(images), ddf, atol=1e-5, rtol=0)
    fit.field = register = PairwiseRegistration(SquaredError(), levels=(2, 1), steps=(4, 4))
    warped = torch.cat([warp(images[:, :1], ddf), images[:, 1:]], dim=1)
    torch.testing.assert_close(fit(images), compose(ddf, register(warped)), atol=2e-4, rtol=0)


@each_target
def test_no_iterations_are_the_network(target):
    network, images = icon_of(SIZES[0]), pairs_of(SIZES[0])
    with torch.no_grad():
        assert torch.equal(optimised(network, target, iterations=0)(images), network(images))


@each_target
def test_neither_no_grad_nor_autocast_changes_the_result(target):
    network, images = icon_of(SIZES[0]), pairs_of(SIZES[0], 2)
    fit = optimised(network, target)
    plain = fit(images)
    assert not plain.requires_grad and plain.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fit(images), plain)
        assert torch.equal(fit(images.bfloat16()), fit(images.bfloat16().float()))


@each_target
def test_runs_in_the_evaluator_both_ways(target):
    network, images = icon_of(SIZES[0]), pairs_of(SIZES[0], 2)
    fit = optimised(network, target)
    before = state_of(network)
    batch = {"moving_image": images[:, :1], "fixed_image": images[:, 1:]}
    evaluator = RegistrationEvaluator("cpu", [batch], fit, amp=True, both_ways=True)
    evaluator.run()
    assert torch.equal(evaluator.state.output["ddf"], fit(images))
    # One fit of the weights gives both directions: rounded otherwise than a fit of the swapped pair.
    reverse = fit.both_ways(images)[1] if target == "weights" else fit(images.flip(1))
    assert torch.equal(evaluator.state.output["reverse_ddf"], reverse)
    torch.testing.assert_close(reverse, fit(images.flip(1)), atol=1e-4, rtol=0)
    assert_same_state(state_of(network), before)


@pytest.mark.parametrize("bidirectional", [True, False])
@each_size
def test_both_ways_take_one_fit_where_it_has_both_directions(size, bidirectional):
    objective = Recorded(gradicon_objective() if bidirectional else displacement_objective(0.01))
    images = pairs_of(size, 2)
    fit = optimised(icon_of(size), objective=objective, bidirectional=bidirectional)
    ddf, reverse = fit.both_ways(images)
    assert len(objective.totals) == (1 if bidirectional else 2) * 2 * fit.iterations
    torch.testing.assert_close(ddf, fit(images), atol=1e-4, rtol=0)
    torch.testing.assert_close(reverse, fit(images.flip(1)), atol=1e-4, rtol=0)
    assert (ddf - reverse).abs().max() > 0.1


@pytest.mark.parametrize("estimator_input", ["fixed", "fixed_warped"])
def test_score_weighs_the_objective_and_stays_as_it_is(estimator_input):
    size = SIZES[0]
    torch.manual_seed(0)
    network = VoxelMorph(2, encoder=(4,), decoder=(4, 4))
    nn.init.normal_(network.flow.weight, std=0.05)
    score = PixelEstimator(2, 1 if estimator_input == "fixed" else 2, encoder=(4,), decoder=(4, 4))
    images = pairs_of(size, 2)
    objective = Recorded(displacement_objective(0.0, ScoreWeight()))
    options = {"bidirectional": False, "objective": objective}
    nn.init.normal_(score.head.weight, std=2.0)  # scores that differ between pixels
    before = state_of(score)
    fit = optimised(network, score=score, estimator_input=estimator_input, **options)
    weighted = fit(images)
    assert_same_state(state_of(score), before)
    with torch.no_grad():
        ddf = network(images[:1])
        warped = warp(images[:1, :1], ddf)
        seen = images[:1, 1:] if estimator_input == "fixed" else torch.cat([images[:1, 1:], warped], dim=1)
        expected = (score(seen) * (warped - images[:1, 1:]).square()).mean()
    plain = displacement_objective(0.0)
    assert objective.totals[0] == pytest.approx(float(expected), rel=1e-5)
    assert (weighted - optimised(network, bidirectional=False, objective=plain)(images)).abs().max() > 1e-5


def test_objective_of_two_directions_needs_them():
    with pytest.raises(ValueError, match="bidirectional must be true"):
        optimised(icon_of(SIZES[0]), bidirectional=False)(pairs_of(SIZES[0], 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "weight"}, "instance_target: expected one of .*got 'weight'"),
        ({"iterations": -1}, "instance_iterations: expected a whole number from 0, got -1"),
        ({"iterations": 2.5}, "instance_iterations: expected a whole number from 0, got 2.5"),
        ({"learning_rate": 0.0}, "instance_learning_rate: expected a number above 0, got 0.0"),
        ({"learning_rate": float("nan")}, "instance_learning_rate: expected a number above 0, got nan"),
        ({"target": "field", "field_weight": None}, "field_weight: expected a number where instance_target is 'field'"),
        ({"padding": "none"}, "padding: expected one of zeros, border, reflection, got 'none'"),
        ({"estimator_input": "warped"}, "estimator_input: expected one of .*got 'warped'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        optimised(icon_of(SIZES[0]), **options)


@pytest.mark.parametrize("updates", [False, True])
def test_network_without_weights_to_fit_is_refused_unless_its_field_is(updates):
    solver = nn.Identity()
    made = Method({"model": solver}, SquaredError(), method(solver).updates if updates else [], field_weight=0.1)
    with pytest.raises(ValueError, match="instance_iterations: Identity has no weights to fit"):
        InstanceOptimisation(made)
    assert InstanceOptimisation(made, target="field").target == "field"
    assert InstanceOptimisation(made, 0).iterations == 0


def test_all_modules_that_a_fit_uses_move_with_it():
    """Similarities and objectives may hold buffers."""
    similarity, momentum = LNCC(), Momentum()
    objective = gradicon_objective(penalty=InverseConsistencyPenalty())
    objective.terms["momentum"] = momentum
    fit = optimised(icon_of(SIZES[0]), similarity=similarity, objective=objective)
    assert {similarity, momentum, fit.method.network} <= set(fit.modules())


def test_objective_that_compares_labels_has_none_in_a_fit():
    objective = displacement_objective()
    objective.terms["similarity"] = LabelOverlap([1])
    with pytest.raises(ValueError, match="moving_label: an objective compares labels, but the batch has none"):
        optimised(icon_of(SIZES[0]), objective=objective)(pairs_of(SIZES[0], 1))
