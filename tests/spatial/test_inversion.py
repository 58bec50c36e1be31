# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from common.spatial import inversion
from common.spatial.fields import compose
from common.spatial.integrate import integrate_svf
from common.spatial.inversion import invert
from common.spatial.jacobian import jacobian_determinant
from common.spatial.warp import identity_grid, sample
from tests.spatial.synthetic import linear_field, smooth_field

SHAPES = [(24, 33), (16, 21, 18)]


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_at_points_between_the_voxels_and_outside_is_solved_for_there(shape, dtype, caplog):
    """On another grid and as a list; what the inverse at the voxels would be interpolated to is off by more."""
    ddf = smooth_field(shape, 1.5).to(dtype)
    ddf += 2.0  # does not end at the border
    points = 1.37 * identity_grid([n - 2 for n in shape], torch.device("cpu"), torch.float64) - 3.2
    found = invert(ddf, points=points)
    assert found.shape == (1, *points.shape) and found.dtype == dtype
    residual = found[0] + sample(ddf.double(), (points + found[0])[None])[0]
    assert residual.norm(dim=0).max() < 2e-4 and not caplog.records
    between = sample(invert(ddf).double(), points[None])[0]
    assert (between + sample(ddf.double(), (points + between)[None])[0]).norm(dim=0).max() > 0.01
    torch.testing.assert_close(invert(ddf, points=points.flatten(1)), found.flatten(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        invert(ddf, points=identity_grid(list(shape), torch.device("cpu"))), invert(ddf), atol=2e-4, rtol=0
    )


def test_points_of_another_number_of_axes_are_refused():
    with pytest.raises(ValueError, match=r"points: expected \(2, \*T\), a channel an axis of the field, got \(3, 7\)"):
        invert(torch.zeros(1, 2, 4, 5), points=torch.zeros(3, 7))


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
        f"invert: {int((missed > 1e-4).sum())} of {24 * 33} points are not inverted to 0.0001 voxel" in record.message
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


@pytest.mark.parametrize("shape", [*SHAPES, (5, 1), (4, 1, 3)])
def test_values_and_slopes_are_those_of_the_sampled_field(shape):
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(1, len(shape), *shape, generator=generator, dtype=torch.float64)
    size = torch.tensor(shape, dtype=torch.float64)
    points = torch.rand(200, len(shape), generator=generator, dtype=torch.float64) * (size + 2) - 1.5
    points.requires_grad_()
    expected = sample(field, points.T[None])[0]
    slopes = torch.stack([torch.autograd.grad(row.sum(), points, retain_graph=True)[0] for row in expected], dim=1)
    grid = inversion._Field(field[0].flatten(1).T.contiguous(), shape)
    got = grid.with_slopes(points.detach())
    torch.testing.assert_close(got[0], expected.T)
    assert torch.equal(grid.at(points.detach()), got[0])
    wide = torch.tensor([n > 1 for n in shape])
    torch.testing.assert_close(got[1][..., wide], slopes[..., wide])
    assert not got[1][..., ~wide].any()


def test_only_what_has_not_converged_is_worked_on(monkeypatch):
    """A strong deformation in a corner of a still image, in a batch with another."""
    field = torch.zeros(2, 2, 200, 200, dtype=torch.float64)
    field[:, :, :40, :40] = smooth_field((40, 40), 4.0)
    field[1] *= -1
    worked = []
    step = inversion._newton_step
    monkeypatch.setattr(inversion, "_newton_step", lambda *of: worked.append(len(of[1])) or step(*of))
    monkeypatch.setattr(inversion, "POINTS", 300)
    assert compose(field, invert(field)).norm(dim=1).max() < 1e-4
    assert 0 < max(worked) <= 300 and sum(worked) < 5 * 2 * 40 * 40
