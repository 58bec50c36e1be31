# SPDX-License-Identifier: Apache-2.0
import math
from types import SimpleNamespace

import pytest
import torch

from common.losses.likelihood import NOISES, MeanLogVariance, NegativeLogLikelihood
from common.losses.lncc import LNCC
from common.networks.unet import bounded_log_variance

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
    variance = estimated.exp()
    expected = (variance**beta * (residual / variance + variance.log())).mean()
    torch.testing.assert_close(NegativeLogLikelihood(beta)(step_of(residual, estimated)), expected)


@each_beta
@each_shape
def test_laplace_noise_has_the_density_of_its_variance(shape, beta):
    residual, estimated = drawn(shape)
    variance = estimated.exp()
    scale = (variance / 2).sqrt()  # b: the density is exp(-|x| / b) / 2b
    density = torch.distributions.Laplace(torch.zeros_like(scale), scale)
    expected = (variance**beta * -(density.log_prob(residual.sqrt()) + math.log(math.sqrt(2)))).mean()
    value = NegativeLogLikelihood(beta, noise="laplace")(step_of(residual, estimated))
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)


@each_beta
def test_gradients_are_those_of_the_formula_with_its_weight_held(beta):
    """d/dr = σ^(2β − 2); d/ds = σ^(2β) (1 − r / σ²)."""
    residual, estimated = drawn((5, 4))
    NegativeLogLikelihood(beta)(step_of(residual, estimated)).backward()
    variance, pixels = estimated.detach().exp(), residual.numel()
    torch.testing.assert_close(residual.grad, variance ** (beta - 1) / pixels)
    torch.testing.assert_close(estimated.grad, variance**beta * (1 - residual.detach() / variance) / pixels)


@pytest.mark.parametrize("noise", NOISES)
def test_detached_residuals_carry_no_gradient(noise):
    residual, estimated = drawn((5, 4))
    NegativeLogLikelihood(0.5, detached=True, noise=noise)(step_of(residual, estimated)).backward()
    assert residual.grad is None and estimated.grad.abs().min() > 0


def test_beta_1_pulls_on_the_displacement_as_the_squared_error_does():
    residual, estimated = drawn((5, 4))
    NegativeLogLikelihood(1.0)(step_of(residual, estimated)).backward()
    torch.testing.assert_close(residual.grad, torch.full_like(residual, 1 / residual.numel()))


@each_beta
def test_variance_of_the_residual_is_stationary(beta):
    residual = torch.rand(1, 1, 6, 5, dtype=torch.float64) + 0.01
    estimated = residual.log().requires_grad_()
    NegativeLogLikelihood(beta)(step_of(residual, estimated)).backward()
    assert estimated.grad.abs().max() < 1e-12


def test_variance_of_laplace_noise_is_twice_the_squared_residual_where_it_is_stationary():
    residual = torch.rand(1, 1, 6, 5, dtype=torch.float64) + 0.01
    estimated = (2 * residual).log().requires_grad_()
    NegativeLogLikelihood(noise="laplace")(step_of(residual, estimated)).backward()
    assert estimated.grad.abs().max() < 1e-10


@each_beta
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("value", [-1e4, -88.0, -14.0, 0.0, 60.0, 1e4])
@pytest.mark.parametrize("residual", [0.0, 1e-12, 1.0])
def test_loss_and_gradients_are_finite_whatever_the_network_says(beta, noise, value, residual):
    r, s = (torch.full((1, 1, 4, 4), number).requires_grad_() for number in (residual, value))
    loss = NegativeLogLikelihood(beta, noise=noise)(step_of(r, bounded_log_variance(s)))
    loss.backward()
    assert loss.isfinite() and r.grad.isfinite().all() and s.grad.isfinite().all()
    assert loss >= 1.001 * math.log(1e-6)


def test_a_variance_below_the_least_grows_where_a_residual_comes_up():
    """A clamp would hold it there: no gradient."""
    value = torch.full((1, 1, 2, 2), math.log(1e-8), requires_grad=True)
    NegativeLogLikelihood()(step_of(torch.full((1, 1, 2, 2), 0.1), bounded_log_variance(value))).backward()
    assert (value.grad < 0).all()


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
        ({"noise": "gauss"}, "noise: expected one of gaussian, laplace, got 'gauss'"),
        ({"similarity": LNCC()}, "similarity: expected mse, got LNCC"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NegativeLogLikelihood(**options)
