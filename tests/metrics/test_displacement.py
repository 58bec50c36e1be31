# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch

from common.metrics.displacement import DisplacementMeasures, MagnitudeMeasures, end_point_error
from tests.metrics.synthetic import shifted


@pytest.mark.parametrize(("offset", "shape"), [((3.0, -4.0), (7, 11)), ((2.0, 3.0, -6.0), (5, 8, 6))])
def test_error_of_a_constant_offset_is_its_length(offset, shape):
    true = torch.randn(2, len(shape), *shape, generator=torch.Generator().manual_seed(0))
    ddf = true + torch.tensor(offset).reshape(1, -1, *[1] * len(shape))
    length = sum(value**2 for value in offset) ** 0.5
    assert end_point_error(ddf, true).tolist() == pytest.approx([length, length], abs=1e-5)
    assert end_point_error(true, true).tolist() == [0.0, 0.0]


def test_error_is_the_mean_inside_the_mask_and_nan_without_one():
    ddf = torch.zeros(2, 2, 4, 6)
    ddf[:, 0, 0] = 5.0
    mask = torch.zeros(2, 4, 6)
    mask[0, :2] = 1
    error = end_point_error(ddf, torch.zeros_like(ddf), mask)
    assert error[0].item() == pytest.approx(2.5, abs=1e-6)
    assert torch.isnan(error[1])
    assert end_point_error(ddf, torch.zeros_like(ddf))[0].item() == pytest.approx(1.25, abs=1e-6)


def test_error_refuses_bad_input():
    ddf = torch.zeros(1, 2, 4, 6)
    with pytest.raises(ValueError, match=r"got \(1, 2, 4, 6\) and \(1, 2, 6, 4\)"):
        end_point_error(ddf, ddf.transpose(2, 3))
    with pytest.raises(ValueError, match="move the components to the channel axis"):
        end_point_error(ddf.movedim(1, -1), ddf.movedim(1, -1))
    with pytest.raises(ValueError, match=r"mask: expected the shape .* of the field, \(1, 4, 6\), got \(1, 1, 4, 6\)"):
        end_point_error(ddf, ddf, torch.ones(1, 1, 4, 6))


def test_columns_before_and_after_are_those_of_the_labels_voxels():
    truth, label = torch.zeros(2, 2, 14, 17), torch.zeros(2, 1, 14, 17, dtype=torch.uint8)
    truth[:, 1], truth[:, :, 9:] = 2.0, 50.0
    label[..., :9, :] = 3
    cases = shifted((14, 17), (0.0, 1.5), true_ddf=truth, fixed_label=label)
    columns = DisplacementMeasures()(cases)
    assert columns["epe"].tolist() == pytest.approx([0.5, 0.5])
    assert columns["epe_before"].tolist() == pytest.approx([2.0, 2.0])
    everywhere = DisplacementMeasures(mask=None)(cases)
    assert everywhere["epe_before"][0] == pytest.approx((9 * 2 + 5 * 50 * 2**0.5) / 14)


def test_truth_may_be_optional_and_is_else_asked_for():
    cases = shifted((14, 17), (0.0, 0.0))
    assert DisplacementMeasures(required=False)(cases) == {}
    with pytest.raises(ValueError, match="displacement: the data hold no true_ddf"):
        DisplacementMeasures()(cases)
    cases = shifted((14, 17), (0.0, 0.0), true_ddf=torch.zeros(2, 2, 14, 17))
    with pytest.raises(ValueError, match="displacement: the data hold no fixed_label"):
        DisplacementMeasures()(cases)


@pytest.mark.parametrize(("offset", "shape"), [((3.0, -4.0), (7, 5)), ((2.0, 3.0, -6.0), (5, 7, 4))])
def test_magnitude_is_a_share_of_the_extent_along_each_axis(offset, shape):
    ddf = torch.tensor(offset).reshape(1, -1, *[1] * len(shape)).expand(2, -1, *shape)
    share = sum((value / (n - 1)) ** 2 for value, n in zip(offset, shape, strict=True)) ** 0.5
    columns = MagnitudeMeasures()(SimpleNamespace(ddf=ddf))
    assert list(columns) == ["magnitude_unit"] == list(MagnitudeMeasures.headlines)
    assert columns["magnitude_unit"].tolist() == pytest.approx([share, share], abs=1e-6)


def test_unit_columns_are_in_shares_of_the_extent():
    truth = torch.zeros(2, 2, 5, 9)
    truth[:, 0], truth[:, 1] = 0.4, 0.8  # a tenth of each axis's n - 1 intervals
    columns = DisplacementMeasures(mask=None, unit=True)(shifted((5, 9), (0.4, 0.0), true_ddf=truth))
    assert columns["epe_unit"].tolist() == pytest.approx([0.1, 0.1])
    assert columns["epe_unit_before"].tolist() == pytest.approx([0.1 * 2**0.5] * 2)
    assert columns["epe"].tolist() == pytest.approx([0.8, 0.8])
