# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from monai.networks.blocks import DVF2DDF
from scipy.linalg import expm

from common.spatial.fields import compose
from common.spatial.integrate import integrate_svf, integrate_tvf, resize_field
from common.spatial.warp import identity_grid

SHAPES = [(23, 31), (15, 19, 17)]


def smooth_field(shape, amplitude, seed=0, dtype=torch.float64):
    """A sum of slow sines, zero on the border."""
    generator = torch.Generator().manual_seed(seed)
    grid = identity_grid(list(shape), torch.device("cpu"), dtype)
    unit = torch.stack([axis / (n - 1) for axis, n in zip(grid, shape, strict=True)])
    window = torch.sin(torch.pi * unit).prod(0)
    phases = torch.rand(len(shape), len(shape), generator=generator, dtype=dtype)
    channels = [torch.cos(torch.pi * (unit + phase.view([-1] + [1] * len(shape)))).prod(0) for phase in phases]
    return (amplitude * window * torch.stack(channels))[None]


def interior(field, margin):
    return field[(..., *[slice(margin, -margin)] * (field.dim() - 2))]


def linear_field(matrix, shape):
    """v(x) = A (x - c), c the centre of the grid."""
    grid = identity_grid(list(shape), torch.device("cpu"), torch.float64)
    centre = torch.tensor([(n - 1) / 2 for n in shape], dtype=torch.float64).view([-1] + [1] * len(shape))
    return torch.einsum("ij,j...->i...", torch.as_tensor(matrix, dtype=torch.float64), grid - centre)[None]


def rotation(dims, angle):
    matrix = torch.zeros(dims, dims, dtype=torch.float64)
    matrix[0, 1], matrix[1, 0] = -angle, angle
    if dims == 3:
        matrix[1, 2], matrix[2, 1] = -angle / 2, angle / 2
    return matrix


@pytest.mark.parametrize("shape", SHAPES)
def test_constant_velocity_is_its_own_displacement(shape):
    velocity = torch.tensor([1.5, -4.25, 0.5][: len(shape)]).view([1, -1] + [1] * len(shape)).expand(2, -1, *shape)
    torch.testing.assert_close(integrate_svf(velocity), velocity.contiguous(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_is_the_matrix_exponential(shape):
    velocity_matrix = rotation(len(shape), 0.35)
    displacement = integrate_svf(linear_field(velocity_matrix, shape), steps=10)
    expected = linear_field(torch.from_numpy(expm(velocity_matrix.numpy())) - torch.eye(len(shape)), shape)
    margin = max(shape) // 4
    assert interior(expected, margin).abs().max() > 1
    torch.testing.assert_close(interior(displacement, margin), interior(expected, margin), atol=5e-3, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_more_steps_come_closer_to_the_exponential(shape):
    matrix = rotation(len(shape), 0.35)
    expected = linear_field(torch.from_numpy(expm(matrix.numpy())) - torch.eye(len(shape)), shape)
    margin = max(shape) // 4
    errors = [
        float(interior(integrate_svf(linear_field(matrix, shape), steps) - expected, margin).abs().max())
        for steps in (2, 4, 6)
    ]
    # Euler's error falls with 2^-steps, hence to about a quarter every two steps.
    assert errors[1] < 0.35 * errors[0] and errors[2] < 0.35 * errors[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_minus_the_velocity_is_the_inverse(shape):
    velocity = smooth_field(shape, 2.0)
    forth, back = integrate_svf(velocity), integrate_svf(-velocity)
    assert forth.abs().max() > 0.7
    # What remains is linear interpolation on a coarse grid: a few hundredths of a voxel.
    assert compose(forth, back).abs().max() < 0.06
    assert compose(back, forth).abs().max() < 0.06


def test_no_steps_return_the_velocity():
    velocity = smooth_field((12, 17), 3.0)
    torch.testing.assert_close(integrate_svf(velocity, steps=0), velocity, atol=0, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_monai(shape):
    velocity = smooth_field(shape, 3.0, seed=2, dtype=torch.float32)
    expected = DVF2DDF(num_steps=7, padding_mode="border")(velocity)
    torch.testing.assert_close(integrate_svf(velocity, steps=7), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_time_varying_integration_of_constant_steps_adds_them_up(shape):
    first = torch.tensor([1.5, -2.0, 0.5][: len(shape)]).view([1, -1] + [1] * len(shape)).expand(1, -1, *shape)
    total = integrate_tvf([first, 2 * first, -0.5 * first])
    torch.testing.assert_close(total, 2.5 * first, atol=1e-4, rtol=0)


def test_time_varying_integration_samples_later_steps_where_earlier_ones_lead():
    shape = (20, 24)
    turn, stretch = rotation(2, 0.1), torch.diag(torch.tensor([0.1, -0.05], dtype=torch.float64))
    first, second = linear_field(turn, shape), linear_field(stretch, shape)
    # x -> (I + stretch)(I + turn) x
    expected = linear_field((torch.eye(2) + stretch) @ (torch.eye(2) + turn) - torch.eye(2), shape)
    total = integrate_tvf([first, second])
    torch.testing.assert_close(interior(total, 4), interior(expected, 4), atol=1e-10, rtol=0)
    assert (interior(integrate_tvf([second, first]) - expected, 4).abs().max()) > 1e-3


@pytest.mark.parametrize(("old", "new"), [((9, 15), (17, 8)), ((6, 9, 12), (11, 5, 12)), ((128, 96), (64, 48))])
def test_linear_field_survives_any_resize_in_unit_coordinates(old, new):
    def stretched(shape):
        """u_unit(x_unit) = M x_unit, expressed in voxels of a grid."""
        extent = torch.tensor([n - 1.0 for n in shape], dtype=torch.float64)
        matrix = torch.randn(len(shape), len(shape), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        unit = identity_grid(list(shape), torch.device("cpu"), torch.float64) / extent.view([-1] + [1] * len(shape))
        return (torch.einsum("ij,j...->i...", matrix, unit) * extent.view([-1] + [1] * len(shape)))[None]

    torch.testing.assert_close(resize_field(stretched(old), list(new)), stretched(new), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_field_comes_back_from_a_finer_grid(shape):
    field = torch.randn(2, len(shape), *shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    # 2 n - 1 points contain the old ones.
    finer = resize_field(field, [2 * n - 1 for n in shape])
    torch.testing.assert_close(resize_field(finer, list(shape)), field, atol=1e-10, rtol=0)


def test_same_size_returns_the_field_itself():
    field = smooth_field((8, 11), 1.0)
    assert resize_field(field, [8, 11]) is field


def test_axis_of_one_voxel_resizes_to_finite_values():
    resized = resize_field(torch.ones(1, 3, 4, 6, 1), [8, 12, 2])
    assert resized.shape == (1, 3, 8, 12, 2) and resized.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
def test_scripted_equals_eager(shape):
    velocity = smooth_field(shape, 2.0)
    half = [n // 2 for n in shape]
    assert torch.equal(torch.jit.script(integrate_svf)(velocity), integrate_svf(velocity))
    assert torch.equal(torch.jit.script(resize_field)(velocity, half), resize_field(velocity, half))
    steps = [velocity, -velocity]
    assert torch.equal(torch.jit.script(integrate_tvf)(steps), integrate_tvf(steps))
