# SPDX-License-Identifier: Apache-2.0
"""What a method chose for its training, instance optimisation follows: names, random points, padding, the way back."""

import pytest
import torch
from torch import nn

from common.engines.evaluator import RegistrationEvaluator
from common.losses.inverse_consistency import InverseConsistencyPenalty
from common.losses.score import ScoreWeight
from common.losses.similarity import SquaredError
from common.networks.contract import Estimate
from common.networks.unet import PixelEstimator
from common.networks.voxelmorph import VoxelMorph
from common.spatial.fields import compose
from common.spatial.warp import warp
from tests.engines.synthetic import Conditional, displacement_objective, gradicon_objective
from tests.engines.test_instance import (
    SIZES,
    Recorded,
    each_size,
    each_target,
    icon_of,
    optimised,
    pairs_of,
    similarity_of,
)


def test_weight_waits_for_the_update_of_its_estimator_whatever_that_is_called():
    """A method with a variance network names its own update; without the name its weight would be dropped."""
    size = SIZES[0]
    torch.manual_seed(0)
    network, variance = VoxelMorph(2, encoder=(4,), decoder=(4, 4)), PixelEstimator(2, 1, encoder=(4,), decoder=(4, 4))
    images, totals = pairs_of(size, 1), {}
    for update in ("variance", "other"):
        objective = Recorded(displacement_objective(0.0, ScoreWeight(update="variance")))
        optimised(network, score=variance, update=update, bidirectional=False, objective=objective)(images)
        totals[update] = objective.totals[0]
    plain = float(similarity_of(images, network(images).detach()))
    assert totals["other"] == pytest.approx(plain, rel=1e-5)
    with torch.no_grad():
        weighted = (variance(images[:, 1:]) * (warp(images[:, :1], network(images)) - images[:, 1:]).square()).mean()
    assert totals["variance"] == pytest.approx(float(weighted), rel=1e-5)
    assert abs(plain - float(weighted)) > 0.05 * plain


def test_random_points_of_a_pair_do_not_depend_on_what_was_drawn_before():
    network, images = icon_of(SIZES[0]), pairs_of(SIZES[0])
    objective = gradicon_objective(1.5, InverseConsistencyPenalty(preset="released"))
    fit, state = optimised(network, objective=objective), torch.get_rng_state()
    together = fit(images)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(fit(images.flip(0)).flip(0), together)


@pytest.mark.parametrize("padding", ["zeros", "border"])
@each_target
def test_padding_is_that_of_the_training(target, padding):
    """A network that moves by 4 voxels samples beyond the image; what it finds there enters the fit."""

    class Moves(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor([4.0, 0.0]))

        def forward(self, image, fixed=None, condition=None):
            return self.shift.view(1, 2, 1, 1).expand(len(image), 2, *image.shape[2:])

        def estimate(self, image, condition=None):
            return Estimate(self(image), self(image))

    image, seen = torch.ones(1, 2, *SIZES[0]), []

    class Seen(SquaredError):
        def forward(self, warped, fixed):
            seen.append(warped.detach())
            return super().forward(warped, fixed)

    fit = optimised(
        Moves(), target, objective=displacement_objective(0.01), similarity=Seen(), iterations=1, bidirectional=False,
        padding=padding,
    )  # fmt: skip
    fit.field.smoothing = 0.0
    fit(image)
    assert float(seen[0][..., -2:, :].mean()) == pytest.approx(0.0 if padding == "zeros" else 1.0, abs=1e-4)


def test_way_back_by_negation_and_the_foreground_are_those_of_the_training():
    torch.manual_seed(0)
    network = VoxelMorph(2, encoder=(4,), decoder=(4, 4))
    nn.init.normal_(network.flow.weight, std=0.3)
    image = pairs_of(SIZES[0], 1)
    image[image < 0.1] = 0
    fit = optimised(
        network, objective=displacement_objective(0.01), inverse_by_negation=True, foreground=True, iterations=2
    )
    forth, back = fit.both_ways(image)
    assert torch.equal(fit(image), forth)
    assert compose(forth, back).abs().mean() < 0.1 * forth.abs().mean()
    assert not torch.equal(optimised(network, objective=displacement_objective(0.01), iterations=2)(image), forth)


@each_size
@each_target
def test_condition_reaches_every_forward_of_both_directions(size, target):
    network, images = Conditional(len(size)), pairs_of(size, 2)
    condition = torch.tensor([[0.5, 1.5], [0.0, 0.0]])
    for bidirectional in (True, False):
        objective = gradicon_objective() if bidirectional else displacement_objective()
        fit = optimised(network, target, objective=objective, bidirectional=bidirectional, learning_rate=1e-2)
        network.seen.clear()
        ddf = fit(images, None, condition)
        assert network.seen and all(seen is not None for seen in network.seen)
        assert ddf[0].abs().max() > 0.5
        if target == "weights":
            assert not ddf[1].any()  # each pair has its own
            assert {len(seen) for seen in network.seen} == {2 if bidirectional else 1}
        forth, back = fit.both_ways(images, condition)
        torch.testing.assert_close(forth, ddf, atol=1e-5, rtol=0)
        torch.testing.assert_close(back, fit(images.flip(1), None, condition), atol=1e-4, rtol=0)
        assert torch.equal(fit(images[:, :1], images[:, 1:], condition), ddf)
        fit.iterations = 0
        assert torch.equal(fit(images, None, condition), network(images, None, condition))


@each_target
def test_condition_for_a_network_that_takes_none_is_refused(target):
    fit = optimised(VoxelMorph(2, encoder=(4,), decoder=(4, 4)), target)
    with pytest.raises(ValueError, match="condition: VoxelMorph takes none"):
        fit(pairs_of(SIZES[0], 1), None, torch.ones(1, 1))


@each_target
def test_condition_of_the_evaluator_reaches_the_fit(target):
    network, images = Conditional(2), pairs_of(SIZES[0], 2)
    fit = optimised(network, target)
    batch = {"moving_image": images[:, :1], "fixed_image": images[:, 1:]}
    evaluator = RegistrationEvaluator("cpu", [batch], fit, both_ways=True, condition=0.5)
    evaluator.run()
    assert all(torch.equal(seen, torch.full_like(seen, 0.5)) for seen in network.seen)
    assert torch.equal(evaluator.state.output["ddf"], fit(images, None, torch.full((2, 1), 0.5)))
