# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from common.losses.smoothness import Diffusion
from common.losses.weighting import AdaRegSmoothness, adaframe_weight, adareg_weight, resample_weight

SHAPES = [(9, 14), (5, 8, 11)]
WEIGHTS = [adareg_weight, adaframe_weight]


def random_residual(shape, batch=2, dtype=torch.float32):
    return torch.rand(batch, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weigh", WEIGHTS)
def test_weight_falls_as_the_residual_rises(weigh, shape):
    residual = 0.05 * random_residual(shape, dtype=torch.float64)
    weight = weigh(residual)
    assert weight.shape == residual.shape
    assert weight.min() >= 0 and weight.max() <= 1
    for values, weights in zip(residual.flatten(1), weight.flatten(1), strict=True):
        ordered = weights[values.argsort()]
        assert (ordered.diff() <= 0).all()
        assert ordered[0] > ordered[-1]


@pytest.mark.parametrize("weigh", WEIGHTS)
def test_every_image_is_weighted_by_itself(weigh):
    residual = random_residual((9, 14)) * torch.tensor([0.02, 0.3]).view(2, 1, 1, 1)
    torch.testing.assert_close(weigh(residual), torch.cat([weigh(residual[:1]), weigh(residual[1:])]))


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.2, 1.0])
@pytest.mark.parametrize("weigh", WEIGHTS)
def test_constant_residual_gives_a_finite_constant_weight(weigh, value):
    weight = weigh(torch.full((1, 1, 6, 7, 8), value))
    assert weight.isfinite().all()
    torch.testing.assert_close(weight, weight.mean().expand_as(weight), atol=1e-4, rtol=0)


@pytest.mark.parametrize("weigh", WEIGHTS)
def test_weights_are_detached(weigh):
    residual = random_residual((6, 7)).requires_grad_()
    assert not weigh(residual).requires_grad


def test_adareg_closed_form():
    residual = torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.float64).view(1, 1, 2, 2)  # mean 0.15
    alpha = torch.tensor([math.exp(-1.5 * rho / 0.15) for rho in (0.0, 0.1, 0.2, 0.3)]).double().view(1, 1, 2, 2)
    torch.testing.assert_close(adareg_weight(residual, c=1.5, form="official"), alpha, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(adareg_weight(residual, c=1.5), alpha**2, atol=1e-7, rtol=1e-6)


def test_adareg_ignores_the_unit_of_the_residual():
    residual = random_residual((9, 14))
    torch.testing.assert_close(adareg_weight(255 * residual), adareg_weight(residual), atol=1e-6, rtol=1e-4)


def test_adareg_without_residual_is_the_plain_smoothness():
    field = random_residual((6, 7)).expand(2, 2, 6, 7)
    for preset in ("paper", "official"):
        energy = AdaRegSmoothness(preset=preset)(field, torch.zeros(2, 1, 6, 7))
        torch.testing.assert_close(energy, Diffusion()(field))


def test_adaframe_closed_form():
    residual = torch.tensor([0.0, 0.2], dtype=torch.float64).view(1, 1, 1, 2)  # mean 0.1, deviation 0.1
    offset, slope = 10 * (1 - math.cos(0.1 * math.pi)), 0.1 / 0.1
    expected = [1 / (1 + math.exp(slope * rho - offset)) for rho in (-1.0, 1.0)]
    assert adaframe_weight(residual).flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_adaframe_starts_uniform_and_sharpens_as_the_images_come_to_agree():
    residual = random_residual((20, 30), batch=1)
    early, late = adaframe_weight(residual), adaframe_weight(0.02 * residual)
    assert early.min() > 0.99
    assert late.max() > 0.9 and late.min() < 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_presets_weight_the_gradient_or_the_field(shape):
    residual = random_residual(shape)
    alpha = adareg_weight(residual, c=0.5, form="official")
    field = torch.randn(2, len(shape), *shape, generator=torch.Generator().manual_seed(1))
    paper, official = (AdaRegSmoothness(c=0.5, preset=name)(field, residual) for name in ("paper", "official"))
    torch.testing.assert_close(paper, Diffusion()(field, alpha**2))
    torch.testing.assert_close(official, Diffusion()(alpha * field))
    # A constant field is smooth, yet multiplying it by alpha makes it costly: how the two presets differ.
    constant = torch.ones_like(field)
    assert AdaRegSmoothness(c=0.5)(constant, residual).item() == 0
    assert AdaRegSmoothness(c=0.5, preset="official")(constant, residual).item() > 1e-3


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_gradient_of_adareg_smoothness_on_a_half_resolution_field(preset):
    residual = random_residual((6, 8, 10), batch=1, dtype=torch.float64)
    field = torch.rand(1, 3, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    smoothness = AdaRegSmoothness(c=0.5, preset=preset)
    assert torch.autograd.gradcheck(lambda u: smoothness(u, residual), (field.requires_grad_(),))


def test_resampling_to_half_the_grid_averages_the_cells():
    weight = random_residual((6, 8, 10))
    expected = weight.view(2, 1, 3, 2, 4, 2, 5, 2).mean(dim=(3, 5, 7))
    torch.testing.assert_close(resample_weight(weight, (3, 4, 5)), expected)


def test_resampling_to_a_finer_grid_is_linear():
    ramp = torch.linspace(0, 1, 5).view(1, 1, 5, 1).expand(1, 1, 5, 3)
    expected = torch.linspace(0, 1, 9).view(1, 1, 9, 1).expand(1, 1, 9, 6)
    torch.testing.assert_close(resample_weight(ramp, (9, 6)), expected, atol=1e-6, rtol=0)


def test_resampling_to_the_same_grid_returns_the_weight_itself():
    weight = random_residual((6, 8))
    assert resample_weight(weight, torch.Size([6, 8])) is weight


def test_resampling_keeps_the_gradient_of_a_learnt_weight():
    weight = random_residual((4, 6), batch=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: resample_weight(w, (2, 3)), (weight,))
    assert torch.autograd.gradcheck(lambda w: resample_weight(w, (7, 5)), (weight,))


def test_resampling_to_another_number_of_axes_is_refused():
    with pytest.raises(ValueError, match="size: expected 2 axes"):
        resample_weight(torch.ones(1, 1, 4, 6), (4, 6, 8))


@pytest.mark.parametrize("weigh", WEIGHTS)
def test_residual_of_several_channels_is_refused(weigh):
    with pytest.raises(ValueError, match=r"residual_abs: expected \(B, 1, \*S\), got \(1, 3, 6, 7\)"):
        weigh(torch.rand(1, 3, 6, 7))


def test_unknown_forms_are_refused():
    with pytest.raises(ValueError, match="form: expected one of paper, official, got 'code'"):
        adareg_weight(torch.rand(1, 1, 6, 7), form="code")
    with pytest.raises(ValueError, match="preset: expected one of paper, official, got 'code'"):
        AdaRegSmoothness(preset="code")
