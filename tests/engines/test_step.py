# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from common.engines.step import EstimatorView, RegistrationStep, TrainingView
from common.losses.similarity import SquaredError
from common.networks.unet import PixelEstimator
from common.networks.voxelmorph import VoxelMorph
from common.spatial.warp import warp

SIZES = [(12, 16), (8, 12, 6)]
TINY = {"encoder": (4,), "decoder": (4, 4)}


class Counted:
    """Counts the calls of a function."""

    def __init__(self, function):
        self.function, self.seen = function, []

    def __call__(self, image):
        self.seen.append(image)
        return self.function(image)


def make(size, differentiable=("displacement", "estimator"), estimator_input="fixed", with_estimator=True):
    torch.manual_seed(0)
    network = VoxelMorph(len(size), **TINY)
    nn.init.normal_(network.flow.weight, std=0.3)
    estimator = PixelEstimator(len(size), 1 if estimator_input == "fixed" else 2, **TINY)
    moving, fixed = torch.rand(2, 1, *size), torch.rand(2, 1, *size)
    displacement, estimate = Counted(network.estimate), Counted(estimator)
    similarity = SquaredError()
    step = RegistrationStep(
        moving,
        fixed,
        displacement,
        similarity,
        estimate if with_estimator else None,
        estimator_input,
        frozenset({"displacement", "score"}),
        frozenset(differentiable),
    )
    return step, displacement, estimate


@pytest.mark.parametrize("size", SIZES)
def test_results_are_those_of_the_networks(size):
    step, displacement, estimate = make(size)
    ddf, velocity, *_ = displacement.function(torch.cat([step.moving, step.fixed], dim=1))
    torch.testing.assert_close(step.velocity, velocity)
    torch.testing.assert_close(step.warped, warp(step.moving, ddf))
    torch.testing.assert_close(step.residual, (warp(step.moving, ddf) - step.fixed).square())
    torch.testing.assert_close(step.estimated, estimate.function(step.fixed))


def test_nothing_is_computed_before_it_is_asked_for_and_nothing_twice():
    step, displacement, estimate = make((12, 16))
    assert not displacement.seen and not estimate.seen
    for _ in range(3):
        _ = step.velocity, step.warped, step.residual, step.estimated
    assert len(displacement.seen) == len(estimate.seen) == 1


@pytest.mark.parametrize("differentiable", [(), ("displacement",), ("estimator",), ("displacement", "estimator")])
@pytest.mark.parametrize("estimator_input", ["fixed", "fixed_warped"])
def test_gradients_are_kept_only_where_an_update_needs_them(differentiable, estimator_input):
    step, _, _ = make((12, 16), differentiable, estimator_input)
    assert step.residual.requires_grad == step.velocity.requires_grad == ("displacement" in differentiable)
    assert step.estimated.requires_grad == ("estimator" in differentiable)


def test_who_asks_first_does_not_decide_on_gradients():
    """Handlers look at results under no_grad before the objective does."""
    step, _, _ = make((12, 16))
    with torch.no_grad():
        _ = step.residual.mean(), step.estimated.mean()
    assert step.velocity.requires_grad and step.estimated.requires_grad
    assert step.warped.requires_grad and step.residual.requires_grad


def test_estimator_sees_fixed_and_detached_warped():
    step, _, estimate = make((12, 16), estimator_input="fixed_warped")
    step.estimated.sum().backward()
    torch.testing.assert_close(estimate.seen[0], torch.cat([step.fixed, step.warped], dim=1))
    assert not estimate.seen[0].requires_grad


def test_forgetting_the_displacement_computes_it_anew_but_keeps_the_score_of_the_fixed_image():
    step, displacement, estimate = make((12, 16))
    before, score = step.residual, step.estimated
    displacement.function = make((12, 16))[1].function
    step.forget_displacement()
    assert step.residual is not before and step.estimated is score
    assert len(displacement.seen) == 2 and len(estimate.seen) == 1


def test_forgetting_the_displacement_forgets_a_score_that_has_seen_it():
    step, _, estimate = make((12, 16), estimator_input="fixed_warped")
    _ = step.estimated
    step.forget_displacement()
    _ = step.estimated
    assert len(estimate.seen) == 2


def test_missing_estimator_is_said():
    step, _, _ = make((12, 16), with_estimator=False)
    with pytest.raises(ValueError, match="estimator: this objective needs a score or variance network"):
        _ = step.estimated


def both_directions(size, batched):
    """Two pairs, A and B, each one in both directions; no batch norm in the network."""
    torch.manual_seed(0)
    network = VoxelMorph(len(size), **TINY)
    nn.init.normal_(network.flow.weight, std=0.3)
    a, b = torch.rand(2, 1, *size), torch.rand(2, 1, *size)
    displacement, names = Counted(network.estimate), frozenset(["displacement"])
    step = RegistrationStep(
        torch.cat([a, b]), torch.cat([b, a]), displacement, SquaredError(), None, "fixed", names, names, True, batched
    )
    return step, displacement, network


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_both_ways_are_the_maps_of_the_pair_and_of_the_swapped_one(size, batched):
    step, displacement, network = both_directions(size, batched)
    forward, backward = step.both_ways
    a, b = step.moving.chunk(2)
    with torch.no_grad():
        torch.testing.assert_close(forward, network(a, b), atol=1e-6, rtol=0)
        torch.testing.assert_close(backward, network(b, a), atol=1e-6, rtol=0)
    assert (forward - backward).abs().max() > 0.05
    assert [len(image) for image in displacement.seen] == ([4] if batched else [2, 2])


@pytest.mark.parametrize("size", SIZES)
def test_directions_one_after_the_other_give_the_same_fields_and_gradients(size):
    results = []
    for batched in (True, False):
        step, _, network = both_directions(size, batched)
        (step.residual.mean() + step.velocity.square().mean()).backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        assert all(gradient.any() for gradient in gradients)
        results.append([step.estimate.ddf, step.velocity, step.warped, step.residual, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_batched_directions_decide_on_nothing_where_there_is_one():
    step, displacement, _ = make((12, 16))
    alone = RegistrationStep(
        step.moving, step.fixed, displacement, SquaredError(), None, "fixed", step.active, step.active,
        batched_directions=False,
    )  # fmt: skip
    torch.testing.assert_close(alone.residual, step.residual, atol=0, rtol=0)
    assert [len(image) for image in displacement.seen] == [2, 2]


def test_both_ways_of_one_direction_is_an_error():
    step, _, _ = make((12, 16))
    with pytest.raises(ValueError, match="bidirectional must be true: this objective compares the maps"):
        _ = step.both_ways


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_views_return_what_the_networks_return_in_float32(size, amp):
    torch.manual_seed(0)
    network, estimator = VoxelMorph(len(size), **TINY), PixelEstimator(len(size), 2, **TINY)
    nn.init.normal_(network.flow.weight, std=0.3)
    image = torch.rand(2, 2, *size)
    with torch.no_grad():
        estimate, score = TrainingView(network, amp)(image), EstimatorView(estimator, amp)(image)
        expected = network.estimate(image)
        assert estimate.ddf.dtype == estimate.velocity.dtype == score.dtype == torch.float32
        tolerance = 0.03 if amp else 1e-5
        torch.testing.assert_close(estimate.ddf, expected.ddf, atol=tolerance, rtol=0)
        torch.testing.assert_close(score, estimator(image), atol=tolerance, rtol=0)
