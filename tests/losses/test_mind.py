# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import numpy as np
import pytest
import torch

from common.losses.mind import MIND, patch_distances

SHAPES = [(13, 18), (11, 9, 14)]
PLAIN_SHAPES = [(7, 5), (1, 4), (5, 3, 4), (2, 6, 1)]


def image_pair(shape, batch=2, channels=1, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, batch, channels, *shape, generator=generator, dtype=torch.float64)
    return images[0].to(dtype), images[1].to(dtype)


def neighbours(dims, dilation):
    """Offsets to the neighbours of a voxel, every pair of them that is not opposite."""
    steps = [sign * dilation * np.eye(dims, dtype=int)[axis] for axis in range(dims) for sign in (1, -1)]
    pairs = list(itertools.combinations(steps, 2))
    return [(a, b) for a, b in pairs if np.isclose(np.linalg.norm(a - b), math.sqrt(2) * dilation)]


def plain_descriptor(image, radius, dilation):
    """Voxel by voxel, patch by patch, of one array; (*S, K)."""

    def at(place):
        return image[tuple(np.clip(place, 0, np.array(image.shape) - 1))]

    patch = [np.array(offset) for offset in itertools.product(range(-radius, radius + 1), repeat=image.ndim)]
    pairs = neighbours(image.ndim, dilation)
    distances = np.zeros((*image.shape, len(pairs)))
    for place in np.ndindex(*image.shape):
        for index, (a, b) in enumerate(pairs):
            squares = [(at(place + a + offset) - at(place + b + offset)) ** 2 for offset in patch]
            distances[(*place, index)] = np.mean(squares)
    distances -= distances.min(axis=-1, keepdims=True)
    variance = distances.mean(axis=-1, keepdims=True)
    variance = np.clip(variance, 0.001 * variance.mean(), 1000 * variance.mean())
    return np.exp(-distances / np.maximum(variance, 1e-8))


@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (0, 1), (2, 1), (1, 3)])
@pytest.mark.parametrize("shape", PLAIN_SHAPES)
def test_agrees_with_plain_loops_over_voxels_pairs_and_patches(shape, radius, dilation):
    warped, fixed = image_pair(shape, batch=1, dtype=torch.float64)
    similarity = MIND(radius, dilation)
    plain = [plain_descriptor(image[0, 0].numpy(), radius, dilation) for image in (warped, fixed)]
    ours = similarity.descriptor(warped)[0, 0].movedim(0, -1).numpy()
    assert ours.shape == plain[0].shape == (*shape, 4 if len(shape) == 2 else 12)
    # The order of the pairs is not part of the definition.
    np.testing.assert_allclose(np.sort(ours, axis=-1), np.sort(plain[0], axis=-1), atol=1e-12)
    expected = np.mean((plain[0] - plain[1]) ** 2, axis=-1)
    np.testing.assert_allclose(similarity(warped, fixed)[0, 0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_ignores_a_linear_change_of_intensity_of_either_sign(shape):
    warped, fixed = image_pair(shape, dtype=torch.float64)
    expected = MIND()(warped, fixed)
    for slope, offset in ((0.3, 0.5), (-0.7, 0.9), (20.0, -4.0)):
        torch.testing.assert_close(MIND()(slope * warped + offset, fixed), expected, atol=1e-9, rtol=0)
        torch.testing.assert_close(MIND()(warped, slope * fixed + offset), expected, atol=1e-9, rtol=0)
    assert MIND()(fixed, 1 - fixed).abs().max() < 1e-12
    assert expected.mean() > 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_turning_both_images_turns_the_map(shape):
    warped, fixed = image_pair(shape, dtype=torch.float64)
    residual = MIND()(warped, fixed)
    for axis in range(2, 2 + len(shape)):
        torch.testing.assert_close(MIND()(warped.flip(axis), fixed.flip(axis)), residual.flip(axis))
    torch.testing.assert_close(MIND()(warped.transpose(2, 3), fixed.transpose(2, 3)), residual.transpose(2, 3))


def test_distances_of_a_ramp_are_those_of_its_slopes():
    ramp = torch.arange(12.0, dtype=torch.float64)[:, None] * 0.5 + torch.arange(10.0, dtype=torch.float64) * 0.2
    inner = patch_distances(ramp[None, None], radius=1, dilation=2)[0, 0, :, 4:-4, 4:-4]
    expected = sorted([(2 * (0.5 - 0.2)) ** 2] * 2 + [(2 * (0.5 + 0.2)) ** 2] * 2)
    for place in np.ndindex(*inner.shape[1:]):
        assert sorted(inner[(slice(None), *place)].tolist()) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 17), (3, 1, 2), (1, 1, 1), (5, 31, 4), (64, 3)])
def test_any_size_is_taken(shape):
    warped, fixed = image_pair(shape)
    warped.requires_grad_()
    residual = MIND()(warped, fixed)
    assert residual.shape == (2, 1, *shape)
    assert ((residual >= 0) & (residual <= 1)).all()
    (gradient,) = torch.autograd.grad(residual.mean(), warped)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("shape", "channels"), [((5, 4), 2), ((3, 2, 4), 1)])
@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (0, 1)])
def test_gradient_of_every_voxel_of_the_map(shape, channels, radius, dilation):
    pair = image_pair(shape, batch=1, channels=channels, dtype=torch.float64, seed=3)
    assert torch.autograd.gradcheck(MIND(radius, dilation), [image.requires_grad_() for image in pair])


def test_gradient_where_the_bounds_of_the_variance_hold():
    """Half of the image has next to no contrast."""
    pair = image_pair((9, 8), batch=1, dtype=torch.float64)
    for image in pair:
        image[..., 4:] = 0.5 + 1e-3 * image[..., 4:]
    distances = patch_distances(pair[0])
    variance = (distances - distances.amin(2, keepdim=True)).mean(2)
    assert (variance < 0.001 * variance.mean()).any()
    assert torch.autograd.gradcheck(MIND(), [image.requires_grad_() for image in pair], eps=1e-8, atol=1e-4)


def test_pairs_of_a_batch_do_not_influence_each_other():
    warped, fixed = image_pair(SHAPES[0], batch=3, dtype=torch.float64)
    warped[1] *= 0.01
    alone = torch.cat([MIND()(w[None], f[None]) for w, f in zip(warped, fixed, strict=True)])
    torch.testing.assert_close(MIND()(warped, fixed), alone, atol=1e-12, rtol=0)


def test_rounding_of_a_flat_image_is_no_texture():
    flat = torch.full((1, 1, 16, 15), 0.7) + 1e-7 * torch.rand(1, 1, 16, 15, generator=torch.Generator().manual_seed(0))
    assert (1 - MIND().descriptor(flat)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -1}, "radius: expected a whole number of voxels from 0, got -1"),
        ({"radius": 0.5}, "radius: expected a whole number"),
        ({"dilation": 0}, "dilation: expected a whole number of voxels from 1, got 0"),
        ({"variance_floor": 0.0}, "variance_floor: expected a number above 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MIND(**options)


def test_images_of_one_axis_are_refused():
    with pytest.raises(ValueError, match=r"mind expects \(B, C, H, W\).*got \(1, 1, 9\)"):
        MIND()(torch.rand(1, 1, 9), torch.rand(1, 1, 9))
