# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from monai.losses import BendingEnergyLoss, DiffusionLoss

from common.losses.smoothness import Bending, Diffusion

SHAPES = [(7, 10), (5, 6, 9)]


def random_field(shape, dtype=torch.float32):
    return torch.rand(2, len(shape), *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def linear_field(shape, slopes):
    """u_c(x) = sum_i slopes[c][i] x_i."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij"))
    return torch.einsum("ci,i...->c...", slopes, grid)[None]


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_field_costs_the_mean_of_its_squared_slopes(shape):
    dims = len(shape)
    slopes = torch.randn(dims, dims, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(Diffusion()(linear_field(shape, slopes)), slopes.square().mean())


@pytest.mark.parametrize("shape", SHAPES)
def test_constant_field_costs_nothing(shape):
    field = torch.full((2, 3, *shape), 4.2, requires_grad=True)
    energy = Diffusion()(field)
    (gradient,) = torch.autograd.grad(energy, field)
    assert energy.item() == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_pattern_of_period_two_costs_where_central_differences_see_nothing(axis):
    shape = (6, 8, 10)
    index = torch.arange(shape[axis - 2]).view(*(-1 if i == axis - 2 else 1 for i in range(3)))
    field = ((-1.0) ** index).expand(1, 3, *shape)
    assert Diffusion()(field).item() == pytest.approx(4 / 3)
    assert DiffusionLoss(normalize=False)(field).item() == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_weight_multiplies_the_difference_that_starts_at_its_voxel(shape):
    step = 3
    field = torch.zeros(1, 1, *shape)
    field[:, :, step + 1 :] = 2.0
    differences = (shape[0] - 1) * shape[1] * (shape[2] if len(shape) == 3 else 1)
    per_row = differences // (shape[0] - 1)
    for row in range(shape[0]):
        weight = torch.zeros(1, 1, *shape)
        weight[:, :, row] = 0.5
        expected = 0.5 * 4 * per_row / differences / len(shape) if row == step else 0
        assert Diffusion()(field, weight).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_weight_of_one_changes_nothing_and_a_constant_one_scales(shape):
    field = random_field(shape)
    ones = torch.ones(2, 1, *shape)
    torch.testing.assert_close(Diffusion()(field, ones), Diffusion()(field))
    torch.testing.assert_close(Diffusion()(field, 0.3 * ones), 0.3 * Diffusion()(field))


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 2)])
def test_gradient_with_respect_to_field_and_weight(shape):
    field = random_field(shape, torch.float64).requires_grad_()
    weight = random_field(shape, torch.float64)[:, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(Diffusion(), (field,))
    assert torch.autograd.gradcheck(Diffusion(), (field, weight))


def test_low_precision_field_is_differenced_in_float32():
    field = random_field((6, 7)).bfloat16()
    energy = Diffusion()(field)
    assert energy.dtype == torch.float32
    torch.testing.assert_close(energy, Diffusion()(field.float()))


def test_weight_of_another_grid_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"weight: expected \(1, 1, 6, 7\), got \(1, 1, 12, 14\).*resample_weight"):
        Diffusion()(torch.zeros(1, 2, 6, 7), torch.ones(1, 1, 12, 14))
    with pytest.raises(ValueError, match="weight: expected"):
        Diffusion()(torch.zeros(1, 2, 6, 7), torch.ones(1, 2, 6, 7))


@pytest.mark.parametrize("shape", [(2, 6, 1), (3, 4)])
def test_field_without_room_for_a_difference_is_refused(shape):
    with pytest.raises(ValueError, match="field: expected"):
        Diffusion()(torch.zeros(1, *shape) if len(shape) == 3 else torch.zeros(shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_weight_where_the_difference_ends_is_the_mirrored_one(shape):
    field, weight = random_field(shape), random_field(shape)[:, :1]
    axes = tuple(range(2, field.dim()))
    torch.testing.assert_close(Diffusion("end")(field, weight), Diffusion("start")(field.flip(axes), weight.flip(axes)))
    with pytest.raises(ValueError, match="weight_at: expected one of start, end, got 'middle'"):
        Diffusion("middle")


def quadratic_field(shape, hessians):
    """u_c(x) = 1/2 x' H_c x."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij"))
    return 0.5 * torch.einsum("cij,i...,j...->c...", hessians, grid, grid)[None]


@pytest.mark.parametrize("shape", SHAPES)
def test_quadratic_field_bends_by_the_mean_of_its_squared_second_derivatives(shape):
    dims = len(shape)
    hessians = torch.randn(dims, dims, dims, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hessians = hessians + hessians.transpose(1, 2)
    field = quadratic_field(shape, hessians)
    torch.testing.assert_close(Bending()(field), hessians.square().mean())
    # MONAI adds up over the entries of the Hessian
    torch.testing.assert_close(Bending()(field), BendingEnergyLoss(normalize=False)(field) / dims**2)


@pytest.mark.parametrize("shape", SHAPES)
def test_affine_field_does_not_bend_and_a_pattern_of_period_two_does(shape):
    dims = len(shape)
    slopes = torch.randn(dims, dims, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float(Bending()(linear_field(shape, slopes))) == pytest.approx(0, abs=1e-20)
    pattern = (-1.0) ** torch.arange(shape[0]).view(-1, *[1] * (dims - 1))
    field = pattern.expand(1, dims, *shape)
    assert float(Bending()(field)) == pytest.approx(16 / dims**2)


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 3)])
def test_gradient_of_the_bending_energy(shape):
    field = random_field(shape, torch.float64).requires_grad_()
    weight = random_field(shape, torch.float64)[:, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(Bending(), (field, weight))
    constant = torch.full((2, 1, *shape), 0.3, dtype=torch.float64)
    torch.testing.assert_close(Bending()(field, constant), 0.3 * Bending()(field))
    with pytest.raises(ValueError, match="every axis of S at least 3"):
        Bending()(field[:, :, :2])
