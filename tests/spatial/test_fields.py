# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from common.spatial.fields import compose, invert, resized
from common.spatial.integrate import integrate_svf
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
    grid = identity_grid(list(shape), torch.device("cpu"), torch.float64)
    origin, last = grid + expected, torch.tensor([29.0, 25.0]).view(1, 2, 1, 1)
    inside = ((origin >= 0) & (origin <= last)).all(1, keepdim=True).expand_as(expected)  # up to the border itself
    assert inside.float().mean() > 0.8
    inverse = invert(linear_field(matrix, shape))
    torch.testing.assert_close(inverse[inside], expected[inside], atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [-0.9, -0.4, 0.5, 3.0])
def test_inverse_of_a_stretch_has_its_closed_form_up_to_and_beyond_the_border(shape, factor):
    """u = a (x - c) along the first axis and its border value beyond: y = c + (x - c) / (1 + a), or x - u(border).

    Fixed-point iterations converge for |a| < 1 alone, and slowly near -1.
    """
    n = shape[0]
    grid = identity_grid(list(shape), torch.device("cpu"), torch.float64)[None]
    ddf, centre = torch.zeros_like(grid), (n - 1) / 2
    ddf[:, 0] = factor * (grid[:, 0] - centre)
    inverse = invert(ddf)
    origin = centre + (grid[:, 0] - centre) / (1 + factor)
    border = factor * centre
    origin = torch.where(origin < 0, grid[:, 0] + border, torch.where(origin > n - 1, grid[:, 0] - border, origin))
    assert (origin < 0).any() == (factor < 0)
    torch.testing.assert_close(inverse[:, 0], origin - grid[:, 0], atol=2e-3, rtol=0)
    assert not inverse[:, 1:].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_of_a_translation_is_its_negative_everywhere(shape):
    ddf = torch.tensor([2.5, -4.0, 1.0])[: len(shape)].view(1, -1, *[1] * len(shape)).expand(1, -1, *shape)
    torch.testing.assert_close(invert(ddf), -ddf, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("shape", "strength"), [((64, 64), 8.0), ((24, 28, 20), 2.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_of_a_strong_diffeomorphism_is_converged_in_every_voxel(shape, strength, dtype, caplog):
    """A random velocity that does not end at the border; its map shrinks voxels to less than a tenth."""
    generator = torch.Generator().manual_seed(0)
    nodes = strength * torch.randn(1, len(shape), *[6] * len(shape), generator=generator)
    mode = "bicubic" if len(shape) == 2 else "trilinear"
    velocity = torch.nn.functional.interpolate(nodes, size=shape, mode=mode, align_corners=True)
    ddf = integrate_svf(velocity).to(dtype)
    assert 0 < jacobian_determinant(ddf).min() < 0.1 and ddf.abs().max() > 3
    inverse = invert(ddf)
    assert inverse.dtype == dtype
    assert compose(ddf, inverse).norm(dim=1).max() < 2e-4 and not caplog.records


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_of_the_identity_is_the_identity(shape):
    assert not invert(torch.zeros(2, len(shape), *shape)).any()


def test_inverse_of_a_map_that_folds_is_finite_and_the_warning_says_how_far_off_it_is(caplog):
    field = smooth_field((24, 33), 25.0)
    assert jacobian_determinant(field).min() < 0
    inverse = invert(field)
    assert inverse.isfinite().all()
    missed = compose(field, inverse).norm(dim=1)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert (
        f"invert: {int((missed > 1e-4).sum())} of {24 * 33} voxels are not inverted to 0.0001 voxel" in record.message
    )
    assert f"the worst is off by {float(missed.max()):.3g} voxels" in record.message


def test_too_few_iterations_are_said(caplog):
    field = smooth_field((24, 33), 3.0)
    invert(field, iterations=1)
    assert "after 1 iterations, the worst is off by" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [({"iterations": 0}, "got 0 and"), ({"tolerance": 0.0}, "and 0.0"), ({"tolerance": float("nan")}, "and nan")],
)
def test_inversion_without_an_end_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        invert(torch.zeros(1, 2, 4, 5), **options)


def test_inverse_of_a_field_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="ddf: expected finite displacements"):
        invert(torch.full((1, 2, 4, 5), float("nan")))


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
