# SPDX-License-Identifier: Apache-2.0
"""The weight by the relative signal-to-noise ratio: closed forms and bounds."""

import math
from types import SimpleNamespace

import pytest
import torch

from common.losses.controls import CONTROLS
from common.losses.heteroscedastic import MeanWeight, SnrWeight, relative_snr_weight
from common.losses.terms import Similarity

SHAPES = [(8, 12), (4, 7, 6)]
each_shape = pytest.mark.parametrize("shape", SHAPES)
SIGMOID_1 = 1 / (1 + math.exp(-1))


def step_of(shape, masked=False, active=("displacement", "variance"), pairs=2):
    generator = torch.Generator().manual_seed(0)
    size = (pairs, 1, *shape)
    fixed = torch.rand(size, generator=generator)
    fixed.flatten()[::5] = 0.0
    log_variance = (3 * torch.randn(size, generator=generator) - 4).requires_grad_()
    residual = torch.rand(size, generator=generator).requires_grad_()
    mask = (torch.rand(size, generator=generator) > 0.4).float() if masked else None
    if mask is not None:
        residual = residual * mask
    return SimpleNamespace(
        fixed=fixed, estimated=log_variance, residual=residual, mask=mask, active=frozenset(active), bidirectional=False
    )


@each_shape
@pytest.mark.parametrize("gamma", [0.25, 0.5, 0.75, 1.0])
def test_weight_is_the_sigmoid_of_the_ratio_to_the_power_of_two_gamma(shape, gamma):
    step = step_of(shape)
    sigma = step.estimated.detach().double().exp().sqrt()
    expected = 1 / (1 + torch.exp(-((step.fixed.double() / sigma) ** (2 * gamma))))
    torch.testing.assert_close(SnrWeight(gamma)(step).double(), expected, rtol=1e-5, atol=0)


@each_shape
def test_gamma_0_is_the_squared_error_times_the_sigmoid_of_1_also_where_the_image_is_0(shape):
    step = step_of(shape)
    weight = SnrWeight(0.0)(step)
    assert (step.fixed == 0).any()
    assert torch.equal(weight, torch.full_like(weight, SIGMOID_1))
    plain, weighted = Similarity()(step), Similarity(SnrWeight(0.0))(step)
    torch.testing.assert_close(weighted, SIGMOID_1 * plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("log_variance", [-1e4, -200.0, -13.8, 0.0, 2.3, 200.0, 1e4])
@pytest.mark.parametrize("fixed", [-0.2, 0.0, 1e-30, 0.5, 1.0])
def test_weight_lies_between_a_half_and_one_whatever_the_variance(gamma, log_variance, fixed):
    image, estimated = (torch.full((1, 1, 4, 4), value) for value in (fixed, log_variance))
    weight = relative_snr_weight(image, estimated, gamma)
    assert ((weight >= 0.5) & (weight <= 1)).all()
    if fixed <= 0:
        assert torch.equal(weight, torch.full_like(weight, SIGMOID_1 if gamma == 0 else 0.5))


@each_shape
def test_official_form_spans_a_half_to_the_sigmoid_of_1_over_the_batch_whatever_gamma(shape):
    step = step_of(shape)
    ratio = (step.fixed / step.estimated.detach().exp()).sqrt()
    expected = torch.sigmoid((ratio - ratio.min()) / (ratio.max() - ratio.min()))
    for gamma in (0.5, 1.0):
        weight = SnrWeight(gamma, form="official")(step)
        torch.testing.assert_close(weight, expected)
        assert float(weight.min()) == 0.5 and float(weight.max()) == pytest.approx(SIGMOID_1)


def test_official_form_of_a_flat_batch_is_a_half():
    flat = torch.zeros(2, 1, 4, 4)
    assert torch.equal(relative_snr_weight(flat, flat, form="official"), torch.full_like(flat, 0.5))


@each_shape
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("control", CONTROLS)
def test_weight_is_detached_waits_for_the_variance_and_is_0_outside_the_mask(shape, masked, control):
    step = step_of(shape, masked)
    weight = SnrWeight(control=control)(step)
    assert weight.shape == step.fixed.shape and not weight.requires_grad
    assert step.mask is None or not weight[step.mask == 0].any()
    warm_up = step_of(shape, masked, active=("displacement",))
    assert SnrWeight(control=control)(warm_up) is None
    assert float(MeanWeight(SnrWeight())(warm_up)) == 1.0
    torch.testing.assert_close(MeanWeight(SnrWeight())(step), SnrWeight()(step).mean())


@each_shape
def test_controls_keep_each_images_mean(shape):
    step, torch_seed = step_of(shape), torch.manual_seed(0)
    assert torch_seed
    means = [SnrWeight(control=name)(step).flatten(1).mean(1) for name in ("none", "mean", "shuffled")]
    torch.testing.assert_close(means[1], means[0])
    torch.testing.assert_close(means[2], means[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -0.5}, "gamma: expected a number of at least 0, got -0.5; the paper has 0.5"),
        ({"gamma": "0.5"}, "gamma: expected a number"),
        ({"gamma": float("nan")}, "gamma: expected a number"),
        ({"form": "offical"}, "weight_form: expected one of paper, official, got 'offical'"),
        ({"control": "man"}, "weight_control: expected one of none, mean"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SnrWeight(**options)


def test_other_needs_another_pair():
    with pytest.raises(ValueError, match="weight_control: 'other' .* Raise batch_size to 2"):
        SnrWeight(control="other")(step_of((8, 12), pairs=1))
