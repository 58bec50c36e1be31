# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from common.metrics.cases import Cases
from common.metrics.ejection_fraction import SUMS, EjectionFractionMeasures


def ball(shape, radius, where=None):
    middle = [(n - 1) / 2 for n in shape] if where is None else where
    axes = torch.meshgrid(*[torch.arange(float(n)) - m for n, m in zip(shape, middle, strict=True)], indexing="ij")
    return (sum(axis**2 for axis in axes) <= radius**2)[None, None]


def scaling(shape, factor):
    """x + u(x) = middle + factor (x - middle): a ball of radius r becomes one of r / factor."""
    axes = [torch.arange(float(n)) - (n - 1) / 2 for n in shape]
    return torch.stack(torch.meshgrid(*[(factor - 1) * axis for axis in axes], indexing="ij"))[None]


def measured(moving, fixed, ddf, **options):
    cases = Cases({"moving_label": 3 * moving, "fixed_label": 3 * fixed}, ddf, ddf[:, :1], **options)
    measure = EjectionFractionMeasures(3)
    assert measure(cases) == {}
    sums = {name: values.sum(0) for name, values in cases.sums.items()}
    return measure.of_subject(sums)


@pytest.mark.parametrize("shape", [(65, 71), (41, 45, 43)])
def test_a_ball_that_shrinks_ejects_one_less_the_power_of_its_scale(shape):
    radius, factor = 16.0, 1.25
    diastole, systole = ball(shape, radius).float(), ball(shape, radius / factor).float()
    found = measured(diastole, systole, scaling(shape, factor))
    expected = 100 * (1 - factor ** -len(shape))
    assert found["ejection_fraction"] == pytest.approx(expected, abs=1.5)
    assert found["ejection_fraction_registered"] == pytest.approx(expected, abs=1.5)
    error = found["ejection_fraction_registered"] - found["ejection_fraction"]
    assert found["ejection_fraction_error"] == pytest.approx(error) and found["slices_lost"] == 0


def test_slices_of_a_subject_are_summed_and_those_lost_are_counted():
    shape = (21, 23)
    full, empty = ball(shape, 6).float(), torch.zeros(1, 1, *shape)
    moving, fixed = torch.cat([full, full, empty]), torch.cat([ball(shape, 3).float(), empty, empty])
    found = measured(moving, fixed, torch.zeros(3, 2, *shape))
    assert found["slices_lost"] == 1 and found["ejection_fraction_registered"] == 0
    assert found["ejection_fraction"] == pytest.approx(100 * (1 - float(fixed.sum() / moving.sum())))


def test_a_subject_without_a_cavity_has_no_ejection_fraction():
    empty = torch.zeros(1, 1, 8, 9)
    found = measured(empty, ball((8, 9), 3).float(), torch.zeros(1, 2, 8, 9))
    assert math.isnan(found["ejection_fraction"]) and math.isnan(found["ejection_fraction_error"])


def test_nothing_is_counted_while_training_and_labels_are_needed():
    ddf = torch.zeros(1, 2, 8, 9)
    quick = Cases({}, ddf, ddf[:, :1], thorough=False)
    measure = EjectionFractionMeasures(3)
    assert measure(quick) == {} and SUMS not in quick.sums and measure.of_subject({}) == {}
    with pytest.raises(ValueError, match="ejection fraction: the data hold no moving_label"):
        measure(Cases({}, ddf, ddf[:, :1]))
