# SPDX-License-Identifier: Apache-2.0
"""What a method may choose of a step: what lies outside, which samples count, how the way back is found."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from common.engines.step import RegistrationStep, TrainingView
from common.engines.trainer import RegistrationTrainer
from common.networks.composition import build_icon
from common.networks.contract import Estimate
from common.spatial.fields import compose
from common.spatial.integrate import integrate_svf, resize_field
from common.spatial.warp import warp
from tests.engines.synthetic import (
    SIZES,
    baseline,
    displacement_objective,
    loader_of,
    method_of,
    moving_network,
    networks,
)


def step_of(moving, fixed, ddf, **form):
    method = method_of(nn.Identity(), **form)
    batch = {"moving_image": moving, "fixed_image": fixed}
    return RegistrationStep(batch, None, method, lambda image, condition: Estimate(ddf, ddf))


def shifted_step(shape, shift, **options):
    """A step whose displacement is one constant along the first axis for each pair, (B,) voxels."""
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (torch.rand(len(shift), 1, *shape, generator=generator) + 0.5 for _ in range(2))
    ddf = torch.zeros(len(shift), len(shape), *shape)
    ddf[:, 0] = torch.tensor(shift).view(-1, *[1] * len(shape))
    return step_of(moving, fixed, ddf, **options)


@pytest.mark.parametrize("shape", [(10, 12), (8, 6, 7)])
def test_padding_says_what_lies_outside_the_moving_image(shape):
    """Two voxels further than the image: zeros, or its last row."""
    zeros, border = (shifted_step(shape, [2.0], padding=padding).warped for padding in ("zeros", "border"))
    moving = shifted_step(shape, [2.0]).moving
    torch.testing.assert_close(zeros[:, :, :-2], moving[:, :, 2:])
    torch.testing.assert_close(border[:, :, :-2], moving[:, :, 2:])
    assert (zeros[:, :, -2:] == 0).all()
    torch.testing.assert_close(border[:, :, -2:], moving[:, :, -1:].expand_as(border[:, :, -2:]))


@pytest.mark.parametrize("shape", [(10, 12), (8, 6, 7)])
def test_inside_only_is_the_mean_over_the_samples_inside_for_each_pair(shape):
    step = shifted_step(shape, [2.0, -3.0], padding="border", inside_only=True)
    first = (step.moving[0, :, 2:] - step.fixed[0, :, :-2]).square().mean()
    second = (step.moving[1, :, :-3] - step.fixed[1, :, 3:]).square().mean()
    torch.testing.assert_close(step.residual.flatten(1).mean(1), torch.stack([first, second]))
    assert (step.residual[0, :, -2:] == 0).all() and (step.residual[1, :, :3] == 0).all()


def test_pair_that_leaves_the_image_altogether_costs_nothing_and_stays_finite():
    residual = shifted_step((10, 12), [50.0], inside_only=True).residual
    assert residual.isfinite().all() and not residual.any()


def test_foreground_is_where_one_of_the_two_images_is_not_zero():
    moving, fixed = torch.ones(1, 1, 4, 5), 3 * torch.ones(1, 1, 4, 5)
    moving[..., :3], fixed[..., :2] = 0, 0
    step = step_of(moving, fixed, torch.zeros(1, 2, 4, 5), foreground=True)
    assert step.mask[0, 0, 0].tolist() == [0, 0, 1, 1, 1]
    assert step.residual[0, 0, 0].tolist() == [0, 0, 9, 4, 4]
    assert shifted_step((10, 12), [2.0]).mask is None


@pytest.mark.parametrize("size", SIZES)
def test_foreground_masks_the_warped_image_too(size):
    """What is warped into the background of both images is not compared."""
    moving, fixed = torch.zeros(1, 1, *size), torch.zeros(1, 1, *size)
    moving[:, :, 6:8], fixed[:, :, 6:8] = 1.0, 1.0
    ddf = torch.zeros(1, len(size), *size)
    ddf[:, 0] = 4.0
    step = step_of(moving, fixed, ddf, foreground=True)
    assert step.warped[:, :, 2:4].sum() > 0 and not step.residual[:, :, 2:4].any()
    assert (step.residual[:, :, 6:8] == 1).all()


@pytest.mark.parametrize("size", SIZES)
def test_way_back_is_the_exponential_of_the_negated_velocity_of_one_forward(size):
    network, seen = moving_network(len(size)), []
    a, b = torch.rand(2, 2, 1, *size)
    view = TrainingView(network, inverse_by_negation=True)
    view.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    method = method_of(network, bidirectional=True, inverse_by_negation=True)
    step = RegistrationStep({"moving_image": a, "fixed_image": b}, None, method, view)
    forth, back = step.both_ways
    velocity = network.velocity(torch.cat([a, b], dim=1))
    assert len(seen) == 1 and torch.equal(seen[0], torch.cat([a, b], dim=1))
    torch.testing.assert_close(step.estimate.velocity, velocity)  # smoothness acts once, on +v
    torch.testing.assert_close(forth, network(a, b))
    torch.testing.assert_close(back, resize_field(integrate_svf(-velocity), list(size)))
    assert forth.abs().max() > 0.1 and compose(forth, back).abs().mean() < 0.1 * forth.abs().mean()
    torch.testing.assert_close(step.residual[:2], (warp(a, forth) - b).square())
    torch.testing.assert_close(step.residual[2:], (warp(b, back) - a).square())


def test_training_by_negation_is_half_of_each_direction_and_one_smoothness():
    size = (24, 32)
    network, loader = moving_network(2), loader_of(size, batch_size=4)
    twin = copy.deepcopy(network)
    form = {"bidirectional": True, "inverse_by_negation": True}
    method = method_of(network, displacement_objective(0.05), partial(torch.optim.SGD, lr=0.1), **form)
    RegistrationTrainer("cpu", 1, loader, method).run()
    batch = next(iter(loader))
    a, b = batch["moving_image"], batch["fixed_image"]
    velocity = twin.velocity(torch.cat([a, b], dim=1))
    forth, back = (resize_field(integrate_svf(v), list(size)) for v in (velocity, -velocity))
    data = 0.5 * (warp(a, forth) - b).square().mean() + 0.5 * (warp(b, back) - a).square().mean()
    smooth = sum(velocity.diff(dim=axis).square().mean() for axis in (2, 3)) / 2
    (data + 2 * 0.05 * smooth).backward()
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.1 * theirs.grad, atol=1e-6, rtol=1e-4)


def test_choices_that_do_not_fit_are_refused():
    network, loader = networks(2)[0], loader_of((24, 32))
    with pytest.raises(ValueError, match="inverse_by_negation: bidirectional must be true"):
        baseline(network, loader, inverse_by_negation=True)
    both = {"bidirectional": True, "inverse_by_negation": True}
    with pytest.raises(ValueError, match="inverse_by_negation: expected a network that integrates a velocity"):
        baseline(build_icon(2, (1,), (2, 4, 6), (4, 4)), loader, **both)
    with pytest.raises(ValueError, match="inverse_by_negation: expected a network of one pass, got passes 2"):
        baseline(moving_network(2, passes=2), loader, **both).run()
    with pytest.raises(ValueError, match="padding: expected one of zeros, border, reflection, got 'zero'"):
        baseline(network, loader, padding="zero")
