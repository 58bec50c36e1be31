# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from scipy import ndimage

from common.losses.gaussian import GaussianLNCC, gaussian_filter

SHAPES = [(31, 44), (17, 24, 20)]


def image_pair(shape, batch=2, channels=1, dtype=torch.float64, seed=0):
    """Two correlated random images in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.rand(batch, channels, *shape, generator=generator, dtype=torch.float64)
    other = torch.rand(batch, channels, *shape, generator=generator, dtype=torch.float64)
    return (0.6 * fixed + 0.4 * other).to(dtype), fixed.to(dtype)


def scipy_average(image, sigma):
    """The window's average over the voxels that exist, by convolution with zeros outside."""
    options = {"sigma": sigma, "truncate": 2.0, "mode": "constant"}
    return ndimage.gaussian_filter(image, **options) / ndimage.gaussian_filter(np.ones_like(image), **options)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("shape", [(23,), *SHAPES])
def test_filter_agrees_with_scipy(shape, sigma):
    image = image_pair(shape, channels=2)[0]
    filtered = gaussian_filter(image, sigma)
    for batch in range(2):
        for channel in range(2):
            expected = scipy_average(image[batch, channel].numpy(), sigma)
            np.testing.assert_allclose(filtered[batch, channel].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_filter_keeps_a_constant_up_to_the_border(shape):
    image = torch.full((1, 2, *shape), 0.7)
    torch.testing.assert_close(gaussian_filter(image, 3.0), image, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [1.5, 5.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_scipy(shape, sigma):
    warped, fixed = image_pair(shape, batch=1)
    w, f = warped[0, 0].numpy(), fixed[0, 0].numpy()
    mean_w, mean_f = scipy_average(w, sigma), scipy_average(f, sigma)
    covariance = scipy_average(w * f, sigma) - mean_w * mean_f
    var_w = scipy_average(w * w, sigma) - mean_w**2
    var_f = scipy_average(f * f, sigma) - mean_f**2
    expected = 1 - covariance / (np.sqrt(var_w + 1e-5) * np.sqrt(var_f + 1e-5))
    np.testing.assert_allclose(GaussianLNCC(sigma)(warped, fixed)[0, 0].numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_images_cost_nothing_and_inverted_ones_two(shape):
    fixed = image_pair(shape, dtype=torch.float32)[1]
    # The floor's share: 1e-5 beside a variance of 1 / 12.
    torch.testing.assert_close(GaussianLNCC()(fixed, fixed), torch.zeros_like(fixed), atol=3e-4, rtol=0)
    torch.testing.assert_close(GaussianLNCC()(1 - fixed, fixed), torch.full_like(fixed, 2), atol=3e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_ignores_a_linear_change_of_intensity(shape):
    warped, fixed = image_pair(shape)
    similarity = GaussianLNCC(variance_floor=1e-12)
    residual = similarity(warped, fixed)
    torch.testing.assert_close(similarity(0.4 * warped + 3, 2 * fixed - 7), residual, atol=1e-6, rtol=0)
    torch.testing.assert_close(similarity(-0.4 * warped + 3, fixed), 2 - residual, atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [0.7, 1000.0])
def test_flat_regions_cost_one_in_float32(value):
    # In float32, E[x^2] - E[x]^2 leaves noise of 1e-7 of x^2 here, which at 1000 is far above the variance floor.
    warped, fixed = image_pair((40, 15, 18), batch=1, dtype=torch.float32)
    warped[:, :, 10:], fixed[:, :, 10:] = value, value / 3
    warped.requires_grad_()
    residual = GaussianLNCC(sigma=2.0)(warped, fixed)
    (gradient,) = torch.autograd.grad(residual.sum(), warped)
    torch.testing.assert_close(residual[:, :, 14:], torch.ones(1, 1, 26, 15, 18), atol=1e-4, rtol=0)
    assert residual.isfinite().all() and gradient.isfinite().all()
    assert gradient[:, :, 20:].abs().max() < 1e-3
    assert gradient[:, :, :10].abs().max() > 1e-3


@pytest.mark.parametrize("constant", ["warped", "fixed", "both"])
def test_constant_images_give_one_and_a_finite_gradient(constant):
    warped, fixed = image_pair((9, 12, 11), dtype=torch.float32)
    warped = torch.full_like(warped, 0.3) if constant != "fixed" else warped
    fixed = torch.full_like(fixed, 0.7) if constant != "warped" else fixed
    warped.requires_grad_()
    residual = GaussianLNCC()(warped, fixed)
    (gradient,) = torch.autograd.grad(residual.mean(), warped)
    torch.testing.assert_close(residual, torch.ones_like(residual), atol=1e-5, rtol=0)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("shape", [(7, 6), (4, 3, 5)])
def test_gradient(shape):
    warped, fixed = image_pair(shape)
    inputs = (warped.requires_grad_(), fixed.requires_grad_())
    assert torch.autograd.gradcheck(GaussianLNCC(sigma=1.0), inputs)


def test_options_that_are_not_positive_are_refused():
    with pytest.raises(ValueError, match="sigma: expected a number above 0, got 0"):
        GaussianLNCC(sigma=0)
    with pytest.raises(ValueError, match="variance_floor: expected a number above 0, got -1"):
        GaussianLNCC(variance_floor=-1)
