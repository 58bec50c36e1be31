# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from common.spatial.units import (
    flip_ras_lps,
    physical_to_voxel,
    plane_affine,
    unit_to_voxel,
    voxel_to_physical,
    voxel_to_unit,
)
from common.spatial.warp import identity_grid

SHAPES = [(5, 9), (4, 7, 3)]


def oblique_affine(dims: int) -> np.ndarray:
    """Rotation in every plane, anisotropic spacing, one flipped axis."""
    generator = np.random.default_rng(3)
    rotation = np.linalg.qr(generator.normal(size=(dims, dims)))[0]
    rotation[:, 0] *= -np.sign(np.linalg.det(rotation))
    affine = np.eye(dims + 1)
    affine[:dims, :dims] = rotation * np.array([0.7, 1.9, 3.1][:dims])
    affine[:dims, dims] = [11.0, -23.0, 5.0][:dims]
    return affine


@pytest.mark.parametrize("shape", SHAPES)
def test_identity_in_units_ends_at_zero_and_one(shape):
    grid_unit = voxel_to_unit(identity_grid(list(shape), torch.device("cpu"))[None])
    for axis in range(len(shape)):
        assert grid_unit[0, axis].min() == 0.0
        assert grid_unit[0, axis].max() == 1.0
        step = grid_unit[0, axis].diff(dim=axis)
        torch.testing.assert_close(step, torch.full_like(step, 1.0 / (shape[axis] - 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_unit_and_voxel_are_inverse_and_scriptable(shape):
    field = torch.randn(2, len(shape), *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unit_to_voxel(voxel_to_unit(field)), field)
    torch.testing.assert_close(torch.jit.script(unit_to_voxel)(field), unit_to_voxel(field))
    torch.testing.assert_close(torch.jit.script(voxel_to_unit)(field), voxel_to_unit(field))


def test_an_axis_of_one_voxel_stays_finite():
    field = torch.ones(1, 3, 4, 5, 1)
    assert torch.isfinite(voxel_to_unit(field)).all()
    torch.testing.assert_close(unit_to_voxel(voxel_to_unit(field)), field)


@pytest.mark.parametrize("function", [unit_to_voxel, voxel_to_unit])
def test_a_field_without_batch_axis_is_refused(function):
    with pytest.raises(ValueError, match="must have shape .B, d, .S. .*batch axis"):
        function(torch.zeros(3, 4, 5, 6))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batched", [True, False])
def test_physical_displacement_is_the_difference_of_mapped_positions(shape, batched):
    dims, affine = len(shape), oblique_affine(len(shape))
    ddf = torch.randn(2, dims, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grid = identity_grid(list(shape), torch.device("cpu"), torch.float64)

    def to_mm(points: np.ndarray) -> np.ndarray:
        return np.einsum("ij,j...->i...", affine, np.concatenate([points, np.ones((1, *shape))]))[:dims]

    expected = np.stack([to_mm((grid + one).numpy()) - to_mm(grid.numpy()) for one in ddf])
    got = voxel_to_physical(ddf, affine) if batched else torch.stack([voxel_to_physical(one, affine) for one in ddf])
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_physical_and_voxel_are_inverse(shape):
    affine = oblique_affine(len(shape))
    ddf = torch.randn(1, len(shape), *shape, generator=torch.Generator().manual_seed(2))
    there = voxel_to_physical(ddf, torch.as_tensor(affine))
    assert (there - ddf).abs().max() > 0.1
    torch.testing.assert_close(physical_to_voxel(there, affine), ddf, rtol=1e-5, atol=1e-5)


def test_spacing_alone_scales_each_channel():
    ddf = torch.ones(3, 2, 3, 4)
    physical = voxel_to_physical(ddf, np.diag([1.5, -2.0, 8.0, 1.0]))
    assert physical[:, 0, 0, 0].tolist() == [1.5, -2.0, 8.0]


@pytest.mark.parametrize(
    ("ddf", "affine", "match"),
    [
        (torch.zeros(1, 2, 5, 6), np.eye(4), "must have shape .B, 3"),
        (torch.zeros(3, 5, 6), np.eye(3), "must have shape .B, 2"),
        (torch.zeros(3, 5, 6, 7), np.eye(3)[:2], "affine must have shape"),
        (torch.zeros(3, 5, 6, 7), np.diag([1.0, 0.0, 1.0, 1.0]), "finite and invertible"),
        (torch.zeros(3, 5, 6, 7), np.diag([1.0, np.nan, 1.0, 1.0]), "finite and invertible"),
    ],
)
def test_affines_that_do_not_fit_are_refused(ddf, affine, match):
    for function in (voxel_to_physical, physical_to_voxel):
        with pytest.raises(ValueError, match=match):
            function(ddf, affine)


@pytest.mark.parametrize("shape", SHAPES)
def test_ras_lps_flips_the_first_two_components_only(shape):
    dims = len(shape)
    field = torch.ones(2, dims, *shape)
    flipped = flip_ras_lps(field, channel=1)
    assert flipped[0].flatten(1)[:, 0].tolist() == [-1.0, -1.0, 1.0][:dims]
    assert torch.equal(flip_ras_lps(flipped, channel=1), field)
    assert torch.equal(flip_ras_lps(field[0], channel=0), flipped[0])
    assert torch.equal(flip_ras_lps(field.movedim(1, -1), channel=-1), flipped.movedim(1, -1))


def test_flip_refuses_an_axis_that_is_not_the_components():
    with pytest.raises(ValueError, match="2 or 3 components along axis 0"):
        flip_ras_lps(torch.ones(1, 3, 4, 4, 4), channel=0)


def test_plane_affine_keeps_in_plane_part_and_refuses_a_tilted_plane():
    affine = np.array([[0.0, 2.0, 0.0, 7.0], [-1.5, 0.0, 0.0, 8.0], [0.0, 0.0, 3.0, 9.0], [0.0, 0.0, 0.0, 1.0]])
    assert plane_affine(affine).tolist() == [[0.0, 2.0, 7.0], [-1.5, 0.0, 8.0], [0.0, 0.0, 1.0]]
    affine[2, 0] = 0.4
    with pytest.raises(ValueError, match="tilted plane"):
        plane_affine(affine)
    with pytest.raises(ValueError, match="shape .4, 4."):
        plane_affine(np.eye(3))
