# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from scipy import ndimage

from common.losses.adaptive import AdaptiveMultiScaleNCC, MultiScaleNCC, scale_distances

SHAPES = [(36, 51), (33, 40, 34)]


def image_pair(shape, batch=2, channels=1, seed=0):
    """Two images whose coarse structure differs less than their detail, float64."""
    generator = np.random.default_rng(seed)
    noise = generator.random((3, batch, channels, *shape))
    smooth = ndimage.gaussian_filter(noise[0], [0, 0, *[5] * len(shape)])
    smooth *= 0.2 / smooth.std()
    return torch.from_numpy(smooth + noise[1]), torch.from_numpy(smooth + noise[2])


def blur(image, sigma):
    options = {"sigma": sigma, "truncate": 2.0, "mode": "constant"}
    return ndimage.gaussian_filter(image, **options) / ndimage.gaussian_filter(np.ones_like(image), **options)


def halve(image):
    """Averages of blocks of two voxels an axis; a last odd voxel is dropped."""
    for axis in range(image.ndim):
        count = image.shape[axis] // 2
        even, odd = (np.take(image, np.arange(count) * 2 + offset, axis) for offset in (0, 1))
        image = (even + odd) / 2
    return image


def distances_of_one(warped, fixed, sigma=2.0):
    """1 - NCC on five scales, finest first, of two arrays (*S)."""
    pyramids = []
    for image in (warped, fixed):
        levels = [image, blur(image, sigma)]
        levels.append(halve(levels[1]))
        levels.append(halve(blur(levels[2], sigma)))
        levels.append(halve(blur(levels[3], sigma)))
        pyramids.append(levels)
    moments = [np.cov(a.ravel(), b.ravel(), bias=True) for a, b in zip(*pyramids, strict=True)]
    return [1 - m[0, 1] / np.sqrt((m[0, 0] + 1e-8) * (m[1, 1] + 1e-8)) for m in moments]


def recursion(distances, thresholds):
    """Eqs. 7 and 8 as printed, and clamped."""
    value = distances[0]
    for i in range(1, len(distances)):
        gamma = min(max(distances[i] / thresholds[i], 0), 1)
        value = gamma * distances[i] + (1 - gamma) * value
    return value


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_agree_with_an_independent_pyramid(shape):
    warped, fixed = image_pair(shape)
    distances = scale_distances(warped, fixed)
    assert distances.shape == (5, 2)
    for pair in range(2):
        expected = distances_of_one(warped[pair, 0].numpy(), fixed[pair, 0].numpy())
        assert expected[0] > expected[4]
        np.testing.assert_allclose(distances[:, pair].numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("options", "thresholds"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"greedy": True}, [0.1 / 1.3 ** (4 - i) for i in range(5)]),
        ({"greedy": True, "preset": "official"}, [0.1 / 1.3 ** (5 - i) for i in range(5)]),
        ({"greedy": True, "alpha": 0.5, "beta": 2.0}, [0.5 / 2 ** (4 - i) for i in range(5)]),
    ],
)
def test_value_is_that_of_the_recursion(shape, options, thresholds):
    warped, fixed = image_pair(shape)
    value = AdaptiveMultiScaleNCC(**options)(warped, fixed)
    assert value.shape == (2, *[1] * (len(shape) + 1))
    for pair in range(2):
        distances = distances_of_one(warped[pair, 0].numpy(), fixed[pair, 0].numpy())
        assert value[pair].item() == pytest.approx(recursion(distances, thresholds), abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_multi_scale_is_the_average(shape):
    warped, fixed = image_pair(shape)
    value = MultiScaleNCC()(warped, fixed)
    assert value.shape == (2, *[1] * (len(shape) + 1))
    for pair in range(2):
        expected = np.mean(distances_of_one(warped[pair, 0].numpy(), fixed[pair, 0].numpy()))
        assert value[pair].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("greedy", [False, True])
def test_gradient_is_that_of_frozen_weights(greedy):
    warped, fixed = image_pair(SHAPES[0])
    similarity = AdaptiveMultiScaleNCC(greedy, alpha=0.5)
    warped.requires_grad_()
    distances = scale_distances(warped, fixed)
    weights = torch.tensor(similarity.weights(distances).tolist(), dtype=torch.float64)
    assert (weights > 1e-3).sum() >= 6
    (expected,) = torch.autograd.grad((weights * distances).sum(), warped)
    (gradient,) = torch.autograd.grad(similarity(warped, fixed).sum(), warped)
    torch.testing.assert_close(gradient, expected, atol=1e-14, rtol=1e-10)


def test_gradient_of_the_average():
    warped, fixed = image_pair((9, 8))
    assert torch.autograd.gradcheck(MultiScaleNCC(sigma=1.0), (warped.requires_grad_(), fixed.requires_grad_()))


@pytest.mark.parametrize("greedy", [False, True])
def test_weights_sum_to_one_and_pass_on_to_finer_scales_as_coarse_ones_agree(greedy):
    similarity = AdaptiveMultiScaleNCC(greedy)
    # Column by column, all scales but the finest come to agree.
    disagreement = torch.tensor([1.0, 0.3, 0.1, 0.03, 0.01, 0.0], dtype=torch.float64)
    distances = torch.cat([torch.ones(1, 6, dtype=torch.float64), disagreement.expand(4, 6)])
    weights = similarity.weights(distances)
    torch.testing.assert_close(weights.sum(0), torch.ones(6, dtype=torch.float64))
    assert (weights >= 0).all()
    assert (weights[0].diff() >= 0).all() and (weights[4].diff() <= 0).all()
    assert weights[:, 0].tolist() == [0, 0, 0, 0, 1]
    assert weights[:, -1].tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize(("preset", "offset"), [("paper", 4), ("official", 5)])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_greedy_takes_a_scale_in_full_from_its_threshold_on(scale, preset, offset):
    similarity = AdaptiveMultiScaleNCC(greedy=True, preset=preset)
    threshold = 0.1 / 1.3 ** (offset - scale)
    distances = torch.zeros(5, 4, dtype=torch.float64)
    distances[scale] = threshold * torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    weights = similarity.weights(distances)
    assert weights[scale].tolist() == pytest.approx([0, 0.5, 1, 1])
    assert weights[0].tolist() == pytest.approx([1, 0.5, 0, 0])


def test_anti_correlated_scales_give_no_negative_weight():
    weights = AdaptiveMultiScaleNCC().weights(torch.tensor([[0.2], [2.0], [1.5], [0.5], [0.25]]))
    assert weights.flatten().tolist() == pytest.approx([0, 0, 0.75 * 0.5, 0.75 * 0.5, 0.25])


@pytest.mark.parametrize("similarity", [AdaptiveMultiScaleNCC(), AdaptiveMultiScaleNCC(greedy=True), MultiScaleNCC()])
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_images_cost_nothing_up_to_a_positive_linear_change_of_intensity(shape, similarity):
    warped, fixed = image_pair(shape)
    assert similarity(fixed, fixed).abs().max() < 1e-6
    assert similarity(0.5 * fixed + 3, fixed).abs().max() < 1e-5
    assert similarity(warped, fixed).min() > 1e-3


@pytest.mark.parametrize("similarity", [AdaptiveMultiScaleNCC(), AdaptiveMultiScaleNCC(greedy=True), MultiScaleNCC()])
def test_pairs_of_a_batch_do_not_influence_each_other(similarity):
    warped, fixed = image_pair(SHAPES[0], batch=3)
    fixed[1] = warped[1] + 0.1 * fixed[1]
    alone = torch.cat([similarity(w[None], f[None]) for w, f in zip(warped, fixed, strict=True)])
    torch.testing.assert_close(similarity(warped, fixed), alone, atol=1e-12, rtol=0)
    assert alone.max() > 2 * alone.min()


@pytest.mark.parametrize(
    ("shape", "scales"), [((32, 40), 5), ((31, 40), 4), ((33, 15, 60), 3), ((7, 9), 2), ((3, 5), 2), ((40,), 5)]
)
def test_scales_too_small_to_correlate_are_left_out(shape, scales):
    warped, fixed = torch.rand(2, 1, 1, *shape, generator=torch.Generator().manual_seed(0))
    distances = scale_distances(warped, fixed)
    assert distances.shape == (scales, 1)
    # The thresholds count from the coarsest scale there is: it has alpha itself.
    weights = AdaptiveMultiScaleNCC(greedy=True).weights(torch.full_like(distances, 0.05))
    assert weights[-1].item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "published"}, "preset: expected one of paper, official, got 'published'"),
        ({"alpha": 0}, "alpha: expected a number above 0"),
        ({"beta": 1}, "beta: expected a number above 1"),
        ({"sigma": -2}, "sigma: expected a number above 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveMultiScaleNCC(**options)
