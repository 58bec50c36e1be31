# SPDX-License-Identifier: Apache-2.0
import math
from types import SimpleNamespace

import pytest
import torch

from common.losses.likelihood import MeanLogVariance, NegativeLogLikelihood

SHAPES = [(8, 12), (4, 8, 6)]
each_shape = pytest.mark.parametrize("shape", SHAPES)
each_beta = pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])


def step_of(residual, estimated, mask=None):
    return SimpleNamespace(residual=residual, estimated=estimated, mask=mask)


def drawn(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    residual = torch.rand(2, 1, *shape, generator=generator, dtype=torch.float64)
    estimated = torch.randn(2, 1, *shape, generator=generator, dtype=torch.float64)
    return residual.requires_grad_(), estimated.requires_grad_()


@each_beta
@each_shape
def test_value_is_the_papers_formula_without_halves(shape, beta):
    residual, estimated = drawn(shape)
    variance = estimated.exp() + 1e-6
    expected = (variance**beta * (residual / variance + variance.log())).mean()
    torch.testing.assert_close(NegativeLogLikelihood(beta)(step_of(residual, estimated)), expected)


@each_beta
def test_gradients_are_those_of_the_formula_with_its_weight_held(beta):
    """d/dr = σ^(2β − 2); d/ds = σ^(2β) (1 − r / σ²) at a floor that is far below."""
    residual, estimated = drawn((5, 4))
    NegativeLogLikelihood(beta, floor=1e-12)(step_of(residual, estimated)).backward()
    variance, pixels = estimated.detach().exp(), residual.numel()
    torch.testing.assert_close(residual.grad, variance ** (beta - 1) / pixels)
    torch.testing.assert_close(estimated.grad, variance**beta * (1 - residual.detach() / variance) / pixels)


def test_beta_1_pulls_on_the_displacement_as_the_squared_error_does():
    residual, estimated = drawn((5, 4))
    NegativeLogLikelihood(1.0)(step_of(residual, estimated)).backward()
    torch.testing.assert_close(residual.grad, torch.full_like(residual, 1 / residual.numel()))


@each_beta
def test_variance_of_the_residual_is_stationary(beta):
    residual = torch.rand(1, 1, 6, 5, dtype=torch.float64) + 0.01
    estimated = (residual - 1e-6).log().requires_grad_()
    NegativeLogLikelihood(beta)(step_of(residual, estimated)).backward()
    assert estimated.grad.abs().max() < 1e-12


@each_beta
@pytest.mark.parametrize("estimated", [-1e4, -88.0, -14.0, 0.0, 60.0])
@pytest.mark.parametrize("residual", [0.0, 1e-12, 1.0])
def test_loss_and_gradients_are_finite_in_float32_and_bounded_below(beta, estimated, residual):
    r, s = (torch.full((1, 1, 4, 4), value).requires_grad_() for value in (residual, estimated))
    loss = NegativeLogLikelihood(beta)(step_of(r, s))
    loss.backward()
    assert loss.isfinite() and r.grad.isfinite().all() and s.grad.isfinite().all()
    assert loss >= 1.001 * math.log(1e-6)
    assert r.grad.max() * 16 <= 1.001e6


def test_a_pixel_far_below_the_floor_costs_its_residual_in_floors():
    loss = NegativeLogLikelihood(floor=1e-4)(step_of(torch.full((1, 1, 2, 2), 0.02), torch.full((1, 1, 2, 2), -90.0)))
    assert float(loss) == pytest.approx(200 + math.log(1e-4), rel=1e-5)


def test_a_variance_below_the_floor_grows_where_a_residual_comes_up():
    """A clamp would hold it there: no gradient."""
    estimated = torch.full((1, 1, 2, 2), math.log(1e-8), requires_grad=True)
    NegativeLogLikelihood()(step_of(torch.full((1, 1, 2, 2), 0.1), estimated)).backward()
    assert (estimated.grad < 0).all()


@each_shape
def test_mask_counts_0_outside_and_keeps_the_mean_over_all_pixels(shape):
    """The published code multiplies residual and log σ² by it: 0 / 1 + log 1 outside."""
    residual, estimated = drawn(shape)
    mask = (torch.rand_like(residual) > 0.4).double()
    value = NegativeLogLikelihood(0.5)(step_of(residual * mask, estimated, mask))
    published = estimated * mask
    expected = (published.exp() ** 0.5 * (residual * mask * (-published).exp() + published)).mean()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    value.backward()
    assert not estimated.grad[mask == 0].any()


def test_logged_mean_is_that_of_the_estimate():
    _, estimated = drawn((5, 4))
    torch.testing.assert_close(MeanLogVariance()(step_of(None, estimated)), estimated.detach().mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.1}, "beta: expected a number from 0 to 1, got -0.1"),
        ({"beta": 1.5}, "beta: expected"),
        ({"beta": float("nan")}, "beta: expected"),
        ({"floor": 0.0}, "floor: expected a number above 0, got 0.0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NegativeLogLikelihood(**options)
