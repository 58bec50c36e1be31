# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from common.spatial.integrate import resize_field
from common.spatial.jacobian import jacobian_determinant, jacobian_matrix
from common.spatial.warp import identity_grid

SHAPES = [(9, 14), (5, 8, 11), (2, 3, 2)]


def affine_field(matrix, shape):
    """u(x) = (A - I) x + t."""
    grid = identity_grid(list(shape), torch.device("cpu"), torch.float64)
    dims = len(shape)
    field = torch.einsum("ij,j...->i...", matrix - torch.eye(dims, dtype=torch.float64), grid)
    return (field + torch.arange(1.0, dims + 1).view([-1] + [1] * dims))[None]


@pytest.mark.parametrize("shape", SHAPES)
def test_affine_map_has_its_own_matrix_everywhere(shape):
    matrix = torch.randn(len(shape), len(shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    field = affine_field(matrix, shape).repeat(2, *[1] * (len(shape) + 1))
    jacobian = jacobian_matrix(field)
    expected = matrix.view([1, *matrix.shape] + [1] * len(shape)).expand_as(jacobian)
    torch.testing.assert_close(jacobian, expected, atol=1e-10, rtol=0)
    determinant = jacobian_determinant(field)
    assert determinant.shape == (2, *shape)
    torch.testing.assert_close(determinant, torch.full_like(determinant, float(torch.det(matrix))), atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_determinant_agrees_with_linear_algebra(shape):
    field = torch.randn(2, len(shape), *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrices = jacobian_matrix(field).movedim((1, 2), (-2, -1))
    torch.testing.assert_close(jacobian_determinant(field), torch.det(matrices), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_identity_keeps_volume(shape):
    assert (jacobian_determinant(torch.zeros(1, len(shape), *shape)) == 1).all()


def test_quadratic_map_has_its_derivative_inside():
    x = torch.arange(12.0, dtype=torch.float64)
    field = torch.zeros(1, 2, 12, 7, dtype=torch.float64)
    field[0, 0] = 0.05 * x[:, None] ** 2
    # central differences of a parabola are exact
    expected = (1 + 0.1 * x)[1:-1, None].expand(10, 7)
    torch.testing.assert_close(jacobian_determinant(field)[0, 1:-1], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_mirrored_axis_folds(dims):
    shape = (6, 9, 7)[:dims]
    matrix = torch.eye(dims, dtype=torch.float64)
    matrix[1, 1] = -1
    assert (jacobian_determinant(affine_field(matrix, shape)) < 0).all()


def test_collapse_has_no_volume():
    matrix = torch.diag(torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    assert jacobian_determinant(affine_field(matrix, (4, 5, 6))).abs().max() < 1e-12


def test_determinant_does_not_depend_on_the_grid():
    coarse = affine_field(torch.tensor([[1.2, 0.1], [-0.3, 0.9]], dtype=torch.float64), (9, 13))
    fine = resize_field(coarse, [17, 25])
    assert math.isclose(float(jacobian_determinant(fine).mean()), 1.2 * 0.9 + 0.03, abs_tol=1e-9)


@pytest.mark.parametrize("shape", [(1, 3, 8, 9, 1), (1, 2, 1, 9), (1, 3, 8, 9), (1, 2, 8, 9, 7)])
def test_single_voxel_axes_and_wrong_channels_are_refused(shape):
    with pytest.raises(ValueError, match="jacobian: ddf must have shape.*at least 2 voxels"):
        jacobian_determinant(torch.zeros(shape))
