# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from common.engines.step import EstimatorView, RegistrationStep, TrainingView
from common.networks.contract import Estimate
from common.networks.unet import PixelEstimator
from common.networks.voxelmorph import VoxelMorph
from common.spatial.warp import warp
from tests.engines.synthetic import Conditional, adacs_method, method_of, moving_network

SIZES = [(12, 16), (8, 12, 6)]
TINY = {"encoder": (4,), "decoder": (4, 4)}


class Counted:
    """Counts the calls of a function."""

    def __init__(self, function):
        self.function, self.seen = function, []

    def __call__(self, image, *condition):
        self.seen.append(image)
        return self.function(image, *condition)


def pair(size, batch=2, **more):
    return {"moving_image": torch.rand(batch, 1, *size), "fixed_image": torch.rand(batch, 1, *size), **more}


def make(size, differentiable=("model", "model_score"), estimator_input="fixed", with_estimator=True, active=None):
    network = moving_network(len(size))
    estimator = PixelEstimator(len(size), 1 if estimator_input == "fixed" else 2, **TINY)
    method = adacs_method(network, estimator, estimator_input=estimator_input)
    displacement, estimate = Counted(network.estimate), Counted(estimator)
    step = RegistrationStep(
        pair(size), None, method, displacement, estimate if with_estimator else None, active, frozenset(differentiable)
    )
    return step, displacement, estimate


@pytest.mark.parametrize("size", SIZES)
def test_results_are_those_of_the_networks(size):
    step, displacement, estimate = make(size)
    ddf, velocity, *_ = displacement.function(torch.cat([step.moving, step.fixed], dim=1))
    torch.testing.assert_close(step.estimate.velocity, velocity)
    torch.testing.assert_close(step.warped, warp(step.moving, ddf))
    torch.testing.assert_close(step.residual, (warp(step.moving, ddf) - step.fixed).square())
    torch.testing.assert_close(step.estimated, estimate.function(step.fixed))


def test_nothing_is_computed_before_it_is_asked_for_and_nothing_twice():
    step, displacement, estimate = make((12, 16))
    assert not displacement.seen and not estimate.seen
    for _ in range(3):
        _ = step.estimate, step.warped, step.residual, step.estimated
    assert len(displacement.seen) == len(estimate.seen) == 1


@pytest.mark.parametrize(("active", "calls"), [(None, 1), (frozenset(["score"]), 1), (frozenset(["displacement"]), 0)])
def test_networks_run_at_once_and_the_estimator_where_its_update_is_active(active, calls):
    step, displacement, estimate = make((12, 16), active=active)
    for _ in range(2):
        step.run_networks()
    assert (len(displacement.seen), len(estimate.seen)) == (1, calls)
    _ = step.residual, step.warped
    assert len(displacement.seen) == 1


def test_method_without_an_estimator_runs_none():
    network = moving_network(2)
    RegistrationStep(pair((12, 16)), None, method_of(network), network.estimate).run_networks()


@pytest.mark.parametrize("differentiable", [(), ("model",), ("model_score",), ("model", "model_score")])
@pytest.mark.parametrize("estimator_input", ["fixed", "fixed_warped"])
def test_gradients_are_kept_only_where_an_update_needs_them(differentiable, estimator_input):
    step, _, _ = make((12, 16), differentiable, estimator_input)
    assert step.residual.requires_grad == step.estimate.velocity.requires_grad == ("model" in differentiable)
    assert step.estimated.requires_grad == ("model_score" in differentiable)


def test_who_asks_first_does_not_decide_on_gradients():
    """Handlers look at results under no_grad before the objective does."""
    step, _, _ = make((12, 16))
    with torch.no_grad():
        _ = step.residual.mean(), step.estimated.mean()
    assert step.estimate.velocity.requires_grad and step.estimated.requires_grad
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
    network = moving_network(len(size))
    displacement = Counted(network.estimate)
    method = method_of(network, bidirectional=True, batched_directions=batched)
    return RegistrationStep(pair(size), None, method, displacement), displacement, network


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
        (step.residual.mean() + step.estimate.velocity.square().mean()).backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        assert all(gradient.any() for gradient in gradients)
        results.append([step.estimate.ddf, step.estimate.velocity, step.warped, step.residual, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_batched_directions_decide_on_nothing_where_there_is_one():
    network, batch = moving_network(2), pair((12, 16))
    displacement = Counted(network.estimate)
    alone, step = (
        RegistrationStep(batch, None, method_of(network, batched_directions=batched), displacement)
        for batched in (False, True)
    )
    torch.testing.assert_close(alone.residual, step.residual, atol=0, rtol=0)
    assert [len(image) for image in displacement.seen] == [2, 2]


def test_both_ways_of_one_direction_is_an_error():
    step, _, _ = make((12, 16))
    with pytest.raises(ValueError, match="bidirectional must be true: this objective compares the maps"):
        _ = step.both_ways


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_entries_that_a_network_has_beside_the_fields_are_of_both_directions(size, batched):
    """None stays None, a list of levels is joined level by level."""

    def displacement(image, condition):
        ddf = image[:, :1].expand(-1, len(size), *[-1] * len(size))
        return Estimate(ddf, ddf, log_variance=image[:, 1:], coarser=[ddf[:, :, ::4], ddf[:, :, ::2]])

    method = method_of(nn.Identity(), bidirectional=True, batched_directions=batched)
    step = RegistrationStep(pair(size), None, method, displacement)
    assert step.estimate.weight_volume is None
    assert torch.equal(step.estimate.log_variance, step.fixed)
    assert torch.equal(step.estimate.ddf[:, :1], step.moving)
    assert [len(level) for level in step.estimate.coarser] == [4, 4]
    assert torch.equal(step.estimate.coarser[1], step.estimate.ddf[:, :, ::2])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_labels_and_masks_go_with_their_images(size, bidirectional):
    batch = pair(size, **{f"{side}_{what}": torch.rand(2, 1, *size) for side in ("moving", "fixed") for what in
                          ("label", "mask")})  # fmt: skip
    network = moving_network(len(size))
    step = RegistrationStep(batch, None, method_of(network, bidirectional=bidirectional), network.estimate)
    for side, other in (("moving", "fixed"), ("fixed", "moving")):
        for what in ("label", "mask"):
            expected = [batch[f"{side}_{what}"], batch[f"{other}_{what}"]][: 1 + bidirectional]
            assert torch.equal(step.batch[f"{side}_{what}"], torch.cat(expected))
    assert torch.equal(step.moving_label, step.batch["moving_label"])
    assert torch.equal(step.fixed_label, step.batch["fixed_label"])
    assert torch.equal(batch["moving_image"], step.moving[:2])  # the loader's batch is left alone


@pytest.mark.parametrize("name", ["moving_label", "fixed_label"])
def test_labels_that_the_batch_lacks_are_said(name):
    step, _, _ = make((12, 16))
    with pytest.raises(ValueError, match=rf"{name}: .* the batch has none, only \['fixed_image', 'moving_image'\]"):
        getattr(step, name)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_each_direction_of_a_pair_gets_the_condition_of_the_pair(size, batched):
    network, condition = Conditional(len(size)), torch.tensor([[1.0], [2.0]])
    method = method_of(network, bidirectional=True, batched_directions=batched)
    step = RegistrationStep(pair(size), condition, method, TrainingView(network))
    assert step.estimate.ddf.flatten(1).amax(1).tolist() == [1, 2, 1, 2]
    assert step.condition[:, 0].tolist() == [1, 2, 1, 2]
    each = torch.tensor([[1.0], [2.0], [3.0], [4.0]])  # of moving onto fixed, then of fixed onto moving
    both = RegistrationStep(pair(size), each, method, TrainingView(network))
    assert both.estimate.ddf.flatten(1).amax(1).tolist() == [1, 2, 3, 4]
    one_way = RegistrationStep(pair(size), condition, method_of(network), TrainingView(network))
    assert one_way.estimate.ddf.flatten(1).amax(1).tolist() == [1, 2]


@pytest.mark.parametrize("negation", [True, False])
def test_condition_that_a_network_does_not_take_is_refused(negation):
    network = VoxelMorph(2, **TINY)
    method = method_of(network, bidirectional=True, inverse_by_negation=negation)
    view = TrainingView(network, inverse_by_negation=negation)
    step = RegistrationStep(pair((12, 16)), torch.ones(2, 1), method, view)
    with pytest.raises(ValueError, match="condition: VoxelMorph takes none"):
        _ = step.estimate


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_views_return_what_the_networks_return_in_float32(size, amp):
    network, estimator = moving_network(len(size)), PixelEstimator(len(size), 2, **TINY)
    image = torch.rand(2, 2, *size)
    with torch.no_grad():
        estimate, score = TrainingView(network, amp)(image), EstimatorView(estimator, amp)(image)
        expected = network.estimate(image)
        assert estimate.ddf.dtype == estimate.velocity.dtype == score.dtype == torch.float32
        tolerance = 0.03 if amp else 1e-5
        torch.testing.assert_close(estimate.ddf, expected.ddf, atol=tolerance, rtol=0)
        torch.testing.assert_close(score, estimator(image), atol=tolerance, rtol=0)
