# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from monai.networks.blocks import Warp
from scipy.ndimage import map_coordinates

from common.spatial.warp import identity_grid, sample, samples_inside, sampling_grid, warp

SHAPES = [(9, 14), (7, 10, 12)]
PADDINGS = ["zeros", "border", "reflection"]


def random_pair(shape, batch=2, channels=3, scale=2.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, channels, *shape, generator=generator, dtype=dtype)
    ddf = scale * torch.randn(batch, len(shape), *shape, generator=generator, dtype=dtype)
    return image, ddf


def constant(shape, shift, batch=1):
    return torch.tensor(shift, dtype=torch.float32).view([1, -1] + [1] * len(shape)).expand(batch, -1, *shape).clone()


def test_identity_grid_holds_the_index_along_each_axis():
    grid = identity_grid([2, 3, 4], torch.device("cpu"), torch.float64)
    assert grid.dtype == torch.float64 and grid.shape == (3, 2, 3, 4)
    np.testing.assert_array_equal(grid.numpy(), np.indices((2, 3, 4)))


@pytest.mark.parametrize("shape", SHAPES)
def test_sampling_grid_of_no_displacement_is_the_affine_grid_of_torch(shape):
    theta = torch.eye(len(shape), len(shape) + 1)[None]
    expected = torch.nn.functional.affine_grid(theta, [1, 1, *shape], align_corners=True)
    torch.testing.assert_close(sampling_grid(torch.zeros(1, len(shape), *shape)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_displacement_changes_nothing(shape, padding):
    image, _ = random_pair(shape)
    ddf = torch.zeros(2, len(shape), *shape)
    torch.testing.assert_close(warp(image, ddf, padding=padding), image, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("padding", "scipy_mode"), [("zeros", "constant"), ("border", "nearest")])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_scipy(shape, padding, scipy_mode):
    # "grid-constant" blends with the zeros outside as grid_sample does; "constant" cuts off.
    scipy_mode = "grid-constant" if scipy_mode == "constant" else scipy_mode
    image, ddf = random_pair(shape, dtype=torch.float64)
    warped = warp(image, ddf, padding=padding)
    for batch in range(2):
        where = np.indices(shape) + ddf[batch].numpy()
        for channel in range(3):
            expected = map_coordinates(image[batch, channel].numpy(), where, order=1, mode=scipy_mode)
            np.testing.assert_allclose(warped[batch, channel].numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_monai(shape, padding):
    image, ddf = random_pair(shape)
    torch.testing.assert_close(
        warp(image, ddf, padding=padding), Warp(padding_mode=padding)(image, ddf), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(("shape", "shift"), [((9, 14), (2, -3)), ((7, 10, 12), (-1, 4, 2))])
def test_whole_voxel_translation_is_exact_and_zero_outside(shape, shift, mode):
    image, _ = random_pair(shape, batch=1, channels=1)
    expected = torch.zeros_like(image)
    # warped(x) = image(x + shift)
    source = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(shift, shape, strict=True))
    target = tuple(slice(max(-s, 0), n + min(-s, 0)) for s, n in zip(shift, shape, strict=True))
    expected[(0, 0, *target)] = image[(0, 0, *source)]
    torch.testing.assert_close(warp(image, constant(shape, shift), mode=mode), expected, atol=1e-5, rtol=0)


def test_beyond_the_grid_each_padding_continues_in_its_way():
    image = torch.arange(1.0, 6.0).view(1, 1, 1, 5).expand(1, 1, 4, 5).contiguous()
    ddf = constant((4, 5), (0.0, 2.0))
    row = {padding: warp(image, ddf, padding=padding)[0, 0, 1] for padding in PADDINGS}
    torch.testing.assert_close(row["zeros"], torch.tensor([3.0, 4.0, 5.0, 0.0, 0.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(row["border"], torch.tensor([3.0, 4.0, 5.0, 5.0, 5.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(row["reflection"], torch.tensor([3.0, 4.0, 5.0, 4.0, 3.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("shape", SHAPES)
def test_labels_stay_integers_under_nearest(shape, dtype):
    label = torch.randint(0, 5, (2, 1, *shape), generator=torch.Generator().manual_seed(1)).to(dtype)
    _, ddf = random_pair(shape)
    warped = warp(label, ddf, mode="nearest", padding="border")
    assert warped.dtype == dtype
    for batch in range(2):
        where = [
            np.clip(np.rint(i + u), 0, n - 1).astype(int)
            for i, u, n in zip(np.indices(shape), ddf[batch].numpy(), shape, strict=True)
        ]
        np.testing.assert_array_equal(warped[batch, 0].numpy(), label[batch, 0].numpy()[tuple(where)])


def test_gradient_reaches_image_and_displacement():
    image, ddf = random_pair((5, 6), batch=1, channels=1, scale=0.3, dtype=torch.float64)
    # Away from whole voxels, where linear interpolation has a kink.
    ddf = ddf.clamp(-0.4, 0.4) + 0.5
    inputs = (image.requires_grad_(), ddf.requires_grad_())
    assert torch.autograd.gradcheck(lambda i, u: warp(i, u, padding="border"), inputs, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_scripted_equals_eager(shape):
    image, ddf = random_pair(shape)
    assert torch.equal(torch.jit.script(warp)(image, ddf), warp(image, ddf))


@pytest.mark.parametrize(
    ("image", "ddf"),
    [
        ((1, 1, 8, 9), (1, 3, 8, 9)),
        ((1, 1, 8, 9), (1, 2, 4, 5)),
        ((1, 1, 8, 9, 7), (1, 2, 8, 9)),
        ((1, 1, 8, 9), (2, 8, 9)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(image, ddf):
    with pytest.raises(ValueError, match="warp: ddf must have shape.*resize_field"):
        warp(torch.zeros(image), torch.zeros(ddf))


@pytest.mark.parametrize(("shape", "shift"), [((9, 14), (2, -3)), ((7, 10, 12), (-1, 4, 2))])
def test_samples_inside_are_those_of_a_translation_that_stay_on_the_grid(shape, shift):
    expected = torch.zeros(1, 1, *shape)
    expected[(0, 0, *(slice(max(-s, 0), n + min(-s, 0)) for s, n in zip(shift, shape, strict=True)))] = 1
    inside = samples_inside(constant(shape, shift))
    assert torch.equal(inside, expected) and inside.dtype == torch.float32
    # Half a voxel beyond the border is outside, half a voxel before it inside.
    half = samples_inside(constant(shape, [s + 0.5 for s in shift]))
    assert half.sum() == math.prod(n - math.ceil(abs(s + 0.5)) for s, n in zip(shift, shape, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_sample_of_the_identity_is_inside(shape):
    assert samples_inside(torch.zeros(2, len(shape), *shape)).all()
    assert torch.jit.script(samples_inside)(torch.zeros(2, len(shape), *shape)).all()


def random_points(shape, layout, batch=2, seed=3):
    """Points inside the grid and up to three voxels beyond it, (B, d, *layout)."""
    unit = torch.rand(batch, len(shape), *layout, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = torch.tensor(shape, dtype=torch.float64).view(1, -1, *[1] * len(layout))
    return unit * (size + 5) - 3


@pytest.mark.parametrize(("padding", "scipy_mode"), [("border", "nearest"), ("zeros", "grid-constant")])
@pytest.mark.parametrize("layout", [(40,), (5, 7), (3, 4, 2), (2, 3, 2, 4)])
@pytest.mark.parametrize("shape", SHAPES)
def test_sample_agrees_with_scipy_at_any_points(shape, layout, padding, scipy_mode):
    field, _ = random_pair(shape, dtype=torch.float64)
    points = random_points(shape, layout)
    values = sample(field, points, padding)
    assert values.shape == (2, 3, *layout)
    for batch in range(2):
        for channel in range(3):
            expected = map_coordinates(field[batch, channel].numpy(), points[batch].numpy(), order=1, mode=scipy_mode)
            np.testing.assert_allclose(values[batch, channel].numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sample_at_displaced_voxels_is_the_warp(shape, padding):
    image, ddf = random_pair(shape)
    points = identity_grid(list(shape), torch.device("cpu")) + ddf
    torch.testing.assert_close(sample(image, points, padding), warp(image, ddf, padding=padding), atol=2e-5, rtol=0)


def test_sample_computes_in_the_type_of_the_points():
    field, _ = random_pair((6, 7))
    points = random_points((6, 7), (9,))
    values = sample(field.bfloat16(), points.float())
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, sample(field.bfloat16().float(), points.float()), atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(5, 6), (4, 3, 5)])
def test_sample_has_the_gradient_of_field_and_points(shape):
    field, _ = random_pair(shape, dtype=torch.float64)
    inputs = (field.requires_grad_(), random_points(shape, (3, 4)).requires_grad_())
    assert torch.autograd.gradcheck(sample, inputs, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_sample_scripted_equals_eager(shape):
    field, _ = random_pair(shape)
    points = random_points(shape, (3, 5)).float()
    assert torch.equal(torch.jit.script(sample)(field, points), sample(field, points))


@pytest.mark.parametrize(
    ("field", "points"),
    [((1, 1, 8, 9), (1, 3, 4)), ((1, 1, 8, 9), (2, 2, 4)), ((1, 1, 8, 9), (1, 2)), ((1, 1, 8), (1, 1, 4))],
)
def test_sample_refuses_points_that_do_not_fit(field, points):
    with pytest.raises(ValueError, match="sample: points must have shape.*axis 1"):
        sample(torch.zeros(field), torch.zeros(points))
