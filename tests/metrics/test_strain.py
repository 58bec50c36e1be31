# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from common.metrics.strain import green_strain, polar_strains

SPACING = (1.4, 1.0)


def places(shape, spacing):
    axes = [size * (torch.arange(float(n), dtype=torch.float64) - (n - 1) / 2)
            for n, size in zip(shape, spacing, strict=True)]  # fmt: skip
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def field(shape, spacing, matrix):
    """x + u(x) = matrix x in mm around the middle, as a displacement in voxels."""
    x = places(shape, spacing)
    moved = torch.einsum("ij,j...->i...", torch.tensor(matrix, dtype=torch.float64), x)
    sizes = torch.tensor(spacing, dtype=torch.float64).reshape(-1, *[1] * len(shape))
    return ((moved - x) / sizes)[None]


def ring(shape, spacing, inner, outer):
    distance = places(shape, spacing).norm(dim=0)[None]
    return (distance > inner) & (distance <= outer), distance <= inner


@pytest.mark.parametrize(("shape", "spacing"), [((9, 11), SPACING), ((7, 6, 8), (1.0, 2.0, 0.5))])
def test_strain_of_a_linear_map_is_half_of_its_square_less_one(shape, spacing):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(len(shape), dtype=torch.float64) + 0.2 * torch.randn(
        len(shape), len(shape), generator=generator, dtype=torch.float64
    )
    expected = 0.5 * (matrix.T @ matrix - torch.eye(len(shape)))
    strain = green_strain(field(shape, spacing, matrix.tolist()), spacing)
    torch.testing.assert_close(strain.flatten(3), expected[None, :, :, None].expand_as(strain.flatten(3)))


def test_a_rotation_does_not_strain():
    angle = math.radians(25)
    turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    assert green_strain(field((9, 11), SPACING, turn), SPACING).abs().max() < 1e-12


@pytest.mark.parametrize("stretch", [0.8, 1.1])
def test_a_ring_that_shrinks_evenly_has_the_same_strain_both_ways(stretch):
    shape = (41, 57)
    muscle, cavity = ring(shape, SPACING, 9, 15)
    found = polar_strains(field(shape, SPACING, [[stretch, 0], [0, stretch]]), muscle, cavity, SPACING)
    assert found.tolist()[0] == pytest.approx([(stretch**2 - 1) / 2] * 2, abs=1e-9)


def test_a_wall_that_thickens_has_positive_radial_and_negative_circumferential_strain():
    """r² -> r² - c² keeps areas: λ_c = r' / r, λ_r = 1 / λ_c."""
    shape, spacing, c = (81, 81), (0.5, 0.5), 5.0
    muscle, cavity = ring(shape, spacing, 9, 14)
    x = places(shape, spacing)
    radius = x.norm(dim=0).clamp(min=1.0)
    scale = ((radius**2 - c**2).clamp(min=1.0)).sqrt() / radius
    ddf = ((scale - 1) * x / spacing[0])[None]
    around = scale[muscle[0]]
    expected = [((1 / around**2 - 1) / 2).mean().item(), ((around**2 - 1) / 2).mean().item()]
    found = polar_strains(ddf, muscle, cavity, spacing).tolist()[0]
    assert expected[0] > 0.05 and expected[1] < -0.05 and found == pytest.approx(expected, abs=2e-3)


def test_slices_without_a_cavity_have_no_strain():
    muscle, cavity = ring((21, 23), SPACING, 4, 8)
    both = [torch.cat([mask, mask]) for mask in (muscle, cavity)]
    both[1][1] = False
    found = polar_strains(torch.zeros(2, 2, 21, 23), *both, SPACING)
    assert found[0].tolist() == [0, 0] and found[1].isnan().all()


def test_bad_input_is_refused():
    muscle, cavity = ring((21, 23), SPACING, 4, 8)
    with pytest.raises(ValueError, match="spacing: expected 2 numbers above 0"):
        green_strain(torch.zeros(1, 2, 21, 23), (1.0, 0.0))
    with pytest.raises(ValueError, match="short-axis slices"):
        polar_strains(torch.zeros(1, 3, 5, 6, 7), muscle, cavity, (1, 1, 1))
