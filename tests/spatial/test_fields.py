# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from common.spatial.fields import all_finite, compose, resized
from common.spatial.warp import identity_grid, warp
from tests.spatial.synthetic import linear_field, smooth_field

SHAPES = [(24, 33), (16, 21, 18)]


def smooth_image(shape):
    grid = identity_grid(list(shape), torch.device("cpu"), torch.float64)
    unit = torch.stack([axis / (n - 1) for axis, n in zip(grid, shape, strict=True)])
    return torch.sin(torch.pi * unit).prod(0)[None, None]


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


@pytest.mark.parametrize(("shape", "size"), [((12, 10), (30, 25)), ((8, 6, 10), (12, 18, 10)), ((8, 6, 10), (4, 6, 5))])
def test_a_resized_field_is_the_same_linear_map_on_the_other_grid(shape, size):
    """u(x) = A (x - c) about the middle of the field of view, away from the border where it is constant."""
    dims = len(shape)
    matrix = torch.linspace(-0.2, 0.3, dims * dims, dtype=torch.float64).reshape(dims, dims)

    def field(n):
        scale = torch.tensor([new / old for new, old in zip(n, shape, strict=True)], dtype=torch.float64)
        grid = identity_grid(list(n), torch.device("cpu"), torch.float64)
        place = (grid + 0.5) / scale.reshape(-1, *[1] * dims) - torch.tensor(shape).reshape(-1, *[1] * dims) / 2
        return (torch.tensordot(matrix, place, 1) * scale.reshape(-1, *[1] * dims))[None]

    inside = (..., *(slice(-(-n // s), n - -(-n // s)) for n, s in zip(size, shape, strict=True)))
    expected, found = field(size)[inside], resized(field(shape), size)[inside]
    assert found.numel() > 0
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(resized(field(shape), shape), field(shape))


def test_a_size_of_other_axes_is_refused():
    for size in ((4, 4), (4, 4, 0)):
        with pytest.raises(ValueError, match="size: expected 3 numbers above 0"):
            resized(torch.zeros(1, 3, 4, 4, 4), size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(dtype, value):
    values = torch.randn(1, 2, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert all_finite(values)
    for place in (0, 33, 69):
        broken = values.clone()
        broken.view(-1)[place] = value
        assert not all_finite(broken)
