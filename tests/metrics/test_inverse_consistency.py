# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from common.metrics.inverse_consistency import InverseConsistencyMeasures, inverse_consistency_error
from tests.metrics.synthetic import shifted

SHAPES = [(9, 14), (7, 10, 6)]


def random_fields(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(2, 2, len(shape), *shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_identity_and_opposite_translations_have_no_error(shape):
    shift = torch.arange(1.0, len(shape) + 1).view(1, -1, *[1] * len(shape)).expand(2, len(shape), *shape)
    assert inverse_consistency_error(0 * shift, 0 * shift).tolist() == [0, 0]
    assert inverse_consistency_error(shift, -shift).tolist() == pytest.approx([0, 0], abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_translations_have_the_length_of_their_sum_each_pair_alone(shape):
    field = torch.zeros(2, len(shape), *shape)
    field[1, 0], field[1, 1] = 1.5, -2.0
    assert inverse_consistency_error(field, field).tolist() == pytest.approx([0, 5], abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_scipy_and_depends_on_the_order(shape):
    ab, ba = random_fields(shape)
    error = inverse_consistency_error(ab, ba)
    for pair in range(2):
        inner = np.indices(shape) + ba[pair].numpy()
        outer = np.stack([map_coordinates(c, inner, order=1, mode="nearest") for c in ab[pair].numpy()])
        expected = np.sqrt(np.square(inner + outer - np.indices(shape)).sum(axis=0)).mean()
        assert error[pair].item() == pytest.approx(expected, abs=1e-9)
    assert (inverse_consistency_error(ba, ab) - error).abs().min() > 1e-3


def test_low_precision_is_computed_in_float32():
    ab, ba = random_fields((9, 14)).bfloat16()
    error = inverse_consistency_error(ab, ba)
    assert error.dtype == torch.float32
    torch.testing.assert_close(error, inverse_consistency_error(ab.float(), ba.float()), atol=0, rtol=1e-6)


@pytest.mark.parametrize(
    ("ab", "ba"), [((1, 2, 8, 9), (1, 2, 9, 8)), ((1, 3, 8, 9), (1, 3, 8, 9)), ((2, 8, 9), (2, 8, 9))]
)
def test_fields_that_do_not_fit_are_refused(ab, ba):
    with pytest.raises(ValueError, match="ddf_ab and ddf_ba: expected.*resize_field"):
        inverse_consistency_error(torch.zeros(ab), torch.zeros(ba))


def test_measure_needs_both_ways_unless_it_is_quick():
    cases = shifted((14, 17), (1.0, 0.5))
    with pytest.raises(ValueError, match="inverse_consistency: expected registrations both ways.*both_ways=True"):
        InverseConsistencyMeasures()(cases)
    assert InverseConsistencyMeasures()(shifted((14, 17), (1.0, 0.5), thorough=False)) == {}
    cases.reverse_ddf = -0.5 * cases.ddf
    expected = 0.5 * (1 + 0.25) ** 0.5
    assert InverseConsistencyMeasures()(cases)["inverse_consistency_error"].tolist() == pytest.approx([expected] * 2)
