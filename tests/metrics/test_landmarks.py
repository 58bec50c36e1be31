# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from common.metrics.landmarks import LandmarkMeasures, landmark_errors
from tests.metrics.synthetic import SHAPES, shifted

NAN = float("nan")


def points(shape, count=5, seed=0):
    """Points in the middle half of a grid, (2, N, d)."""
    size = torch.tensor(shape, dtype=torch.float32)
    return size * (0.25 + 0.5 * torch.rand(2, count, len(shape), generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_true_shift_has_no_error(shape):
    shift = torch.tensor([1.5, -2.0, 0.5][: len(shape)])
    fixed = points(shape)
    spacing = torch.tensor([[0.5, 2.0, 3.0][: len(shape)]] * 2)
    cases = shifted(shape, shift.tolist(), moving_points=fixed + shift, fixed_points=fixed, spacing=spacing)
    columns = LandmarkMeasures()(cases)
    before = float((shift * spacing[0]).norm())
    assert columns["tre_mm"].tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    assert columns["tre_mm_before"].tolist() == pytest.approx([before, before], rel=1e-5)
    assert set(columns) == {f"tre_mm{q}{when}" for q in ("", "_q25", "_q50", "_q75") for when in ("", "_before")}


@pytest.mark.parametrize("shape", SHAPES)
def test_errors_agree_with_scipy(shape):
    generator = torch.Generator().manual_seed(3)
    ddf = torch.randn(2, len(shape), *shape, generator=generator)
    fixed, moving = points(shape, seed=1), points(shape, seed=2)
    errors = landmark_errors(ddf, moving, fixed)
    for case in range(2):
        found = np.stack([map_coordinates(u, fixed[case].T.numpy(), order=1) for u in ddf[case].numpy()], axis=1)
        expected = fixed[case].numpy() + found - moving[case].numpy()
        np.testing.assert_allclose(errors[case].numpy(), expected, atol=1e-5)


def test_mean_and_quantiles_are_over_the_points_that_are_there():
    fixed = torch.full((2, 5, 2), 6.0)
    moving = fixed.clone()
    moving[0, :, 0] += torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    moving[1, :2, 0] += 2.0
    moving[1, 2:] = NAN
    cases = shifted((14, 17), (0.0, 0.0), moving_points=moving, fixed_points=fixed, spacing=torch.ones(2, 2))
    columns = LandmarkMeasures(quantiles=(0.3, 1.0))(cases)
    assert columns["tre_mm"].tolist() == pytest.approx([2.0, 2.0])
    assert columns["tre_mm_q30"].tolist() == pytest.approx([1.2, 2.0])
    assert columns["tre_mm_q100"].tolist() == pytest.approx([4.0, 2.0])


def test_unknown_spacing_is_reported_in_voxels():
    fixed = points((14, 17))
    spacing = torch.tensor([[2.0, 2.0], [NAN, NAN]])
    batch = {"moving_points": fixed + 3.0, "fixed_points": fixed}
    columns = LandmarkMeasures(())(shifted((14, 17), (0.0, 0.0), spacing=spacing, **batch))
    length = 3 * 2**0.5
    assert columns["tre_mm"].tolist() == pytest.approx([2 * length, NAN], nan_ok=True)
    assert columns["tre_voxels"].tolist() == pytest.approx([NAN, length], nan_ok=True)
    assert set(LandmarkMeasures(())(shifted((14, 17), (0.0, 0.0), **batch))) == {"tre_voxels", "tre_voxels_before"}


def test_landmarks_refuse_bad_input():
    ddf, fixed = torch.zeros(2, 2, 14, 17), points((14, 17))
    with pytest.raises(ValueError, match=r"shape \(B, N, d\) = \(2, 5, 2\), got \(2, 4, 2\) and \(2, 5, 2\)"):
        landmark_errors(ddf, fixed[:, 1:], fixed)
    with pytest.raises(ValueError, match="points in voxels, one a row"):
        landmark_errors(ddf, fixed[0], fixed[0])
    with pytest.raises(ValueError, match=r"quantiles: expected numbers in \[0, 1\], got \[25\]"):
        LandmarkMeasures([25])
    with pytest.raises(ValueError, match="landmarks: the data hold no moving_points and no fixed_points"):
        LandmarkMeasures()(shifted((14, 17), (0.0, 0.0)))


def test_the_other_direction_and_all_points_together():
    shape, spacing = (14, 17), torch.tensor([[2.0, 1.0]] * 2)
    fixed = points(shape, count=4)
    moving = fixed + torch.tensor([1.0, -2.0])
    moving[1, 3] = NAN
    cases = shifted(shape, (1.0, -2.0), moving_points=moving, fixed_points=fixed, spacing=spacing)
    cases.reverse_ddf = -cases.ddf + torch.tensor([1.5, 0.0]).reshape(1, 2, 1, 1)
    measure = LandmarkMeasures(quantiles=[0.5], both_ways=True)
    columns = measure(cases)
    assert columns["tre_mm"].tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    assert columns["tre_mm_reverse"].tolist() == pytest.approx([3.0, 3.0], abs=1e-5)
    pools = {name: value[value.isfinite()] for name, value in cases.pools.items()}
    (row,) = measure.of_pool(pools)["landmarks"]
    assert row["points"] == 7 and row["tre_mm_reverse_q50"] == pytest.approx(3.0, abs=1e-5)
    assert row["tre_mm_q50_before"] == pytest.approx(8**0.5, rel=1e-5)
    assert measure.of_pool({}) == {}
    quick = shifted(shape, (1.0, -2.0), thorough=False, moving_points=moving, fixed_points=fixed, spacing=spacing)
    assert not [name for name in measure(quick) if "reverse" in name]


def test_landmarks_may_be_optional():
    cases = shifted((14, 17), (0.0, 0.0))
    assert LandmarkMeasures(required=False)(cases) == {}
    with pytest.raises(ValueError, match="landmarks: the data hold no moving_points"):
        LandmarkMeasures()(cases)
