# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from common.metrics.landmarks import end_point_error


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
