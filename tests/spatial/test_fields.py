# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from common.spatial.fields import compose, invert
from common.spatial.jacobian import jacobian_determinant
from common.spatial.warp import identity_grid, warp

SHAPES = [(24, 33), (16, 21, 18)]


def smooth_field(shape, amplitude, seed=0):
    """Slow sines that vanish on the border."""
    grid = identity_grid(list(shape), torch.device("cpu"), torch.float64)
    unit = torch.stack([axis / (n - 1) for axis, n in zip(grid, shape, strict=True)])
    window = torch.sin(torch.pi * unit).prod(0)
    phase = torch.rand(len(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    channels = [torch.cos(torch.pi * (unit.sum(0) + p)) for p in phase]
    return (amplitude * window * torch.stack(channels))[None]


def smooth_image(shape):
    grid = identity_grid(list(shape), torch.device("cpu"), torch.float64)
    unit = torch.stack([axis / (n - 1) for axis, n in zip(grid, shape, strict=True)])
    return torch.sin(torch.pi * unit).prod(0)[None, None]


def linear_field(matrix, shape):
    grid = identity_grid(list(shape), torch.device("cpu"), torch.float64)
    centre = torch.tensor([(n - 1) / 2 for n in shape], dtype=torch.float64).view([-1] + [1] * len(shape))
    return torch.einsum("ij,j...->i...", matrix, grid - centre)[None]


@pytest.mark.parametrize("shape", SHAPES)
def test_identity_is_neutral(shape):
    field, zero = smooth_field(shape, 2.0), torch.zeros(1, len(shape), *shape, dtype=torch.float64)
    torch.testing.assert_close(compose(field, zero), field, atol=1e-10, rtol=0)
    torch.testing.assert_close(compose(zero, field), field, atol=1e-10, rtol=0)


def test_affine_maps_compose_as_their_matrices():
    shape = (20, 26)
    outer = torch.tensor([[0.05, -0.1], [0.08, 0.02]], dtype=torch.float64)
    inner = torch.tensor([[-0.06, 0.04], [0.1, 0.03]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    expected = linear_field((eye + outer) @ (eye + inner) - eye, shape)
    composed = compose(linear_field(outer, shape), linear_field(inner, shape))
    inside = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(composed[inside], expected[inside], atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_pulling_through_the_composition_is_pulling_through_outer_then_inner(shape):
    image, outer, inner = smooth_image(shape), smooth_field(shape, 2.0), smooth_field(shape, 2.0, seed=5)
    at_once = warp(image, compose(outer, inner))
    in_turn = warp(warp(image, outer), inner)
    other_order = warp(image, compose(inner, outer))
    error, confusion = (at_once - in_turn).abs().max(), (other_order - in_turn).abs().max()
    # The images lie in [0, 1]; what remains is that pulling twice interpolates twice.
    assert error < 0.02
    assert confusion > 5 * error


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_undoes_a_smooth_field_on_both_sides(shape):
    field = smooth_field(shape, 1.0)
    assert jacobian_determinant(field).min() > 0.5 and field.abs().max() > 0.8
    inverse = invert(field)
    assert compose(field, inverse).abs().max() < 2e-4
    # The other order meets the inverse between its grid points.
    assert compose(inverse, field).abs().max() < 0.1


def test_inverse_of_an_affine_map_is_the_inverse_matrix():
    shape = (30, 26)
    matrix = torch.tensor([[0.1, -0.2], [0.15, -0.1]], dtype=torch.float64)
    expected = linear_field(torch.linalg.inv(torch.eye(2).double() + matrix) - torch.eye(2), shape)
    inside = (..., slice(8, -8), slice(8, -8))
    inverse = invert(linear_field(matrix, shape), tolerance=1e-8)
    torch.testing.assert_close(inverse[inside], expected[inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_of_the_identity_is_the_identity(shape):
    assert not invert(torch.zeros(2, len(shape), *shape)).any()


def test_inverse_stays_finite_where_the_map_folds():
    field = smooth_field((24, 33), 25.0)
    assert jacobian_determinant(field).min() < 0
    assert invert(field).isfinite().all()
