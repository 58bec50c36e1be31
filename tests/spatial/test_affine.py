# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F

from common.spatial.affine import affine_ddf
from common.spatial.jacobian import jacobian_determinant
from common.spatial.warp import identity_grid, warp

SIZES = [(9, 14), (7, 10, 12)]
each_size = pytest.mark.parametrize("size", SIZES)


def drawn(dims, batch=2, strength=0.2):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(dims) + strength * torch.randn(batch, dims, dims, generator=generator)
    return matrix, strength * torch.randn(batch, dims, generator=generator)


@each_size
def test_identity_moves_nothing_and_a_translation_is_a_share_of_the_extent(size):
    dims = len(size)
    eye, shift = torch.eye(dims)[None], torch.arange(1.0, dims + 1)[None] / 10
    assert not affine_ddf(eye, torch.zeros(1, dims), list(size)).any()
    ddf = affine_ddf(eye, shift, list(size))
    expected = (shift * (torch.tensor(size) - 1)).view(1, dims, *[1] * dims).expand_as(ddf)
    torch.testing.assert_close(ddf, expected, atol=1e-6, rtol=0)


@each_size
def test_agrees_with_torchs_affine_grid(size):
    """Whose coordinates run from -1 to 1, the last axis first."""
    matrix, shift = drawn(len(size))
    flipped = torch.cat([matrix.flip(1, 2), 2 * shift.flip(1)[:, :, None]], dim=2)
    image = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1))
    grid = F.affine_grid(flipped, list(image.shape), align_corners=True)
    expected = F.grid_sample(image, grid, padding_mode="border", align_corners=True)
    found = warp(image, affine_ddf(matrix, shift, list(size)), padding="border")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@each_size
def test_the_centre_stays_without_a_translation(size):
    odd = [n + (n + 1) % 2 for n in size]
    matrix, shift = drawn(len(size))
    ddf = affine_ddf(matrix, torch.zeros_like(shift), odd)
    assert ddf[(slice(None), slice(None), *[n // 2 for n in odd])].abs().max() < 1e-5


def test_quarter_turn_of_a_square_maps_the_grid_onto_itself():
    angle = math.pi / 2
    turn = torch.tensor([[[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]])
    position = identity_grid([5, 5], torch.device("cpu")) + affine_ddf(turn, torch.zeros(1, 2), [5, 5])[0]
    torch.testing.assert_close(position[:, 1, 3], torch.tensor([1.0, 1.0]), atol=1e-5, rtol=0)


@each_size
def test_determinant_is_that_of_the_matrix(size):
    matrix, shift = drawn(len(size))
    found = jacobian_determinant(affine_ddf(matrix, shift, list(size)))
    cube = torch.ones(len(size))  # a diagonal scaling between cube and voxels leaves the determinant
    expected = torch.linalg.det(matrix * cube).view(-1, *[1] * len(size)).expand_as(found)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_axis_of_one_voxel_does_not_move_and_the_function_scripts():
    matrix, shift = drawn(3)
    ddf = affine_ddf(matrix, shift, [6, 1, 4])
    assert not ddf[:, 1].any() and ddf.isfinite().all()
    torch.testing.assert_close(torch.jit.script(affine_ddf)(matrix, shift, [6, 1, 4]), ddf, atol=0, rtol=0)


@pytest.mark.parametrize("shapes", [((1, 2, 3), (1, 2)), ((1, 2, 2), (1, 3)), ((1, 3, 3), (1, 3))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match=r"affine_ddf: expected a matrix \(B, d, d\).*d = 2 axes"):
        affine_ddf(torch.zeros(shapes[0]), torch.zeros(shapes[1]), [4, 4])
