# SPDX-License-Identifier: Apache-2.0
import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from common.losses.displacement_uncertainty import DeviationPrior, MeanDeviation, PosteriorDivergence
from common.networks.contract import Estimate

SHAPES = [(8, 11), (4, 7, 5)]
each_shape = pytest.mark.parametrize("shape", SHAPES)


def step_of(log_variance, mean=None):
    return SimpleNamespace(estimate=Estimate(mean, mean, log_variance=log_variance, mean=mean))


def drawn(shape, channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, *shape, generator=generator, dtype=torch.float64).requires_grad_()


@each_shape
def test_prior_is_the_mean_of_the_variance_less_its_logarithm(shape):
    log_variance = drawn(shape, 1)
    variance = log_variance.detach().exp()
    value = DeviationPrior()(step_of(log_variance))
    torch.testing.assert_close(value.detach(), (variance - variance.log()).mean())
    value.backward()
    torch.testing.assert_close(log_variance.grad, (variance - 1) / variance.numel())


@each_shape
def test_prior_is_least_at_one_voxel_and_then_one(shape):
    log_variance = torch.zeros(1, 1, *shape, dtype=torch.float64, requires_grad=True)
    least = DeviationPrior()(step_of(log_variance))
    least.backward()
    assert float(least.detach()) == 1 and not log_variance.grad.any()
    assert all(DeviationPrior()(step_of(torch.full((1, 1, *shape), value))) > 1 for value in (-0.1, 0.1))


@pytest.mark.parametrize("cost", [0.0, 0.004, 0.06])
def test_weighted_prior_and_a_quadratic_cost_meet_where_the_docstring_says(cost):
    """c σ² + α (σ² − log σ²) is least at σ² = α / (α + c), where c σ² < α."""
    alpha = 1e-3
    variance = alpha / (alpha + cost)
    log_variance = torch.tensor([[[math.log(variance)]]], dtype=torch.float64, requires_grad=True)
    (cost * log_variance.exp().sum() + alpha * DeviationPrior()(step_of(log_variance))).backward()
    assert abs(float(log_variance.grad)) < 1e-15 and cost * variance < alpha


def test_deviation_is_logged_in_voxels_without_gradient():
    log_variance = torch.tensor([0.5, 2.0]).square().log().view(1, 1, 2, 1).requires_grad_()
    value = MeanDeviation()(step_of(log_variance))
    assert float(value) == pytest.approx(1.25) and not value.requires_grad


def plain_divergence(log_variance, mean, prior_weight):
    """Voxel by voxel, from the formula of the released code."""
    batch, dims, *shape = mean.shape
    spread = 0.0
    for voxel in itertools.product(*map(range, shape)):
        moves = [(axis, side) for axis in range(dims) for side in (-1, 1)]
        neighbours = sum(0 <= voxel[axis] + side < shape[axis] for axis, side in moves)
        for b, c in itertools.product(range(batch), range(dims)):
            s = float(log_variance[(b, c, *voxel)])
            spread += (prior_weight * neighbours * math.exp(s) - s) / (batch * dims * math.prod(shape))
    energy = 0.0
    for axis in range(dims):
        n = shape[axis]
        difference = mean.narrow(axis + 2, 1, n - 1) - mean.narrow(axis + 2, 0, n - 1)
        energy += float(difference.square().mean()) / dims
    return 0.5 * dims * (spread + prior_weight * 0.5 * energy)


@each_shape
@pytest.mark.parametrize("prior_weight", [10.0, 0.3])
def test_divergence_is_that_of_a_plain_restatement(shape, prior_weight):
    log_variance, mean = (drawn(shape, len(shape), seed) for seed in (0, 1))
    value = PosteriorDivergence(prior_weight)(step_of(log_variance, mean))
    expected = plain_divergence(log_variance.detach(), mean.detach(), prior_weight)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-10)
    one, other = log_variance[:1, :, :3, :3], mean[:1, :, :3, :3]
    assert torch.autograd.gradcheck(lambda s, m: PosteriorDivergence()(step_of(s, m)), (one, other))


@each_shape
def test_divergence_is_least_for_a_flat_mean_and_the_variance_of_the_priors_precision(shape):
    """σ² = 1 / (λ_p D): inside a grid D = 2d, at a corner d."""
    dims = len(shape)
    log_variance = torch.zeros(1, dims, *shape, dtype=torch.float64, requires_grad=True)
    mean = torch.full_like(log_variance, 3.0).detach().requires_grad_()
    inside, corner = (slice(None), slice(None), *[1] * dims), (slice(None), slice(None), *[0] * dims)
    values = torch.zeros_like(log_variance).detach()
    for where, neighbours in ((inside, 2 * dims), (corner, dims)):
        values[where] = -math.log(10 * neighbours)
    log_variance.data.copy_(values)
    PosteriorDivergence()(step_of(log_variance, mean)).backward()
    assert log_variance.grad[inside].abs().max() < 1e-15 and log_variance.grad[corner].abs().max() < 1e-15
    assert not mean.grad.any()


@pytest.mark.parametrize("term", [DeviationPrior(), MeanDeviation(), PosteriorDivergence()], ids=lambda t: str(type(t)))
def test_networks_without_a_variance_are_refused_with_the_remedy(term):
    field = torch.zeros(1, 2, 4, 4)
    step = SimpleNamespace(estimate=Estimate(field, field))
    with pytest.raises(ValueError, match="log_variance: expected a network that estimates.*displacement_uncertainty"):
        term(step)


def test_a_prior_without_precision_is_refused():
    with pytest.raises(ValueError, match="prior_weight: expected a number above 0, got 0"):
        PosteriorDivergence(0.0)
