# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import make_interp_spline

from common.data.elastic import elastic_displacement
from common.spatial.jacobian import jacobian_determinant
from common.spatial.warp import warp


def draw(shape: tuple[int, ...], stages: list[tuple[float, int]], seed: int = 0) -> torch.Tensor:
    return elastic_displacement(shape, np.random.default_rng(seed), stages)


@pytest.mark.parametrize("shape", [(73, 60), (24, 31, 20)])
def test_the_outer_control_points_lie_on_the_corners(shape: tuple[int, ...]) -> None:
    """Two control points an axis: their corners' values, in units of an image of 584 pixels."""
    u = draw(shape, [(25.0, 2)], seed=3)
    d = len(shape)
    control = np.random.default_rng(3).normal(0, 25 * max(shape) / 584, (d, *[2] * d))
    corners = u[(slice(None), *np.ix_(*([0, -1] for _ in shape)))]
    np.testing.assert_allclose(corners.numpy(), control, atol=1e-4)
    assert u.shape == (d, *shape) and u.dtype == torch.float32


def test_a_stage_interpolates_its_control_points_smoothly() -> None:
    shape, points = (81, 61), 5
    u = draw(shape, [(10.0, points)], seed=1)
    control = np.random.default_rng(1).normal(0, 10 * 81 / 584, (2, points, points))
    np.testing.assert_allclose(u[:, ::20, ::15].numpy(), control, atol=1e-4)
    inner = make_interp_spline(np.arange(points), control[0][:, 2], k=3)(np.linspace(0, 4, 81))
    # another condition at the ends: there the two splines differ a little
    assert np.abs(u[0, :, 30].numpy() - inner)[20:61].max() < 0.2 * np.abs(control).max()


def test_stages_follow_one_another() -> None:
    """deformed twice = deformed by the sum of both as one map, to interpolation."""
    shape = (96, 80)
    rng = np.random.default_rng(5)
    first, second = (elastic_displacement(shape, rng, [stage]) for stage in ((25.0, 3), (12.0, 6)))
    both = draw(shape, [(25.0, 3), (12.0, 6)], seed=5)
    x = torch.linspace(0, 6, shape[0])[:, None] + torch.linspace(0, 5, shape[1])
    image = torch.sin(x)[None, None]
    twice = warp(warp(image, first[None]), second[None])
    once = warp(image, both[None])
    inside = (slice(None), slice(None), slice(12, -12), slice(12, -12))
    assert (twice - once)[inside].abs().max() < 5e-3


def test_size_is_in_proportion_and_maps_do_not_fold() -> None:
    lengths = {}
    for shape in ((565, 584), (141, 146)):
        fields = [draw(shape, [(25.0, 3), (12.0, 6)], seed) for seed in range(3)]
        assert min(float(jacobian_determinant(u[None]).min()) for u in fields) > 0
        lengths[shape] = np.mean([float(u.norm(dim=0).mean()) for u in fields])
    assert lengths[565, 584] / lengths[141, 146] == pytest.approx(4, rel=0.02)
    assert 15 < lengths[565, 584] < 45  # pixels


def test_no_deformation_is_none_and_draws_depend_on_the_generator_alone() -> None:
    assert draw((20, 30), [(0.0, 4)]).abs().max() == 0
    assert torch.equal(draw((20, 30), [(9.0, 4)], 2), draw((20, 30), [(9.0, 4)], 2))
    assert not torch.equal(draw((20, 30), [(9.0, 4)], 2), draw((20, 30), [(9.0, 4)], 3))


@pytest.mark.parametrize(
    ("shape", "stages", "message"),
    [
        ((20,), [(1.0, 3)], r"shape: expected 2 or 3 numbers of at least 2 pixels, got \(20,\)"),
        ((20, 1), [(1.0, 3)], "shape: expected 2 or 3 numbers"),
        ((20, 30), [], "stages: expected a standard deviation from 0"),
        ((20, 30), [(1.0, 1)], "at least 2 control points"),
        ((20, 30), [(-1.0, 3)], "stages: expected a standard deviation from 0"),
        ((20, 30), [(500.0, 8)], r"each of 50 draws of .* folds on an image of \(20, 30\); lower"),
    ],
)
def test_bad_arguments_are_refused(shape: tuple[int, ...], stages: list[tuple[float, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(shape, stages)
