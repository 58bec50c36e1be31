# SPDX-License-Identifier: Apache-2.0
"""Calibration and rank correlation in closed form, and the columns and tables of the measure."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.metrics.cases import EvaluationMeasure
from common.metrics.sparsification import official_ause, sparsification
from common.metrics.uncertainty import UncertaintyMeasures, mean_square_z, rank_correlation, reliability
from tests.metrics.synthetic import SHAPES, shifted


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_rank_correlation_of_monotone_maps_is_one(shape):
    values = random(2, *shape)
    for other, expected in ((values.exp(), 1.0), (-values.square(), -1.0)):
        assert rank_correlation(values, other).tolist() == pytest.approx([expected] * 2)
    assert rank_correlation(values, torch.ones_like(values)).isnan().all()
    assert rank_correlation(values, values, torch.zeros_like(values)).isnan().all()


def test_rank_correlation_is_that_of_mean_ranks():
    """Ranks (1, 2.5, 2.5, 4) and (2, 1, 3, 4): covariance 3 over the root of 4.5 · 5."""
    one, other = torch.tensor([[[1.0, 2.0], [2.0, 9.0]]]), torch.tensor([[[0.2, 0.1], [0.7, 0.8]]])
    assert rank_correlation(one, other).item() == pytest.approx(3.0 / (4.5 * 5.0) ** 0.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_deviation_equal_to_the_residual_is_calibrated(shape):
    deviation = 0.1 + random(2, *shape)
    bins = reliability(deviation.square(), deviation)
    assert bins.ence().tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert (bins.variance.diff(dim=1) > 0).all()
    assert mean_square_z(deviation.square(), deviation).tolist() == pytest.approx([1.0, 1.0])
    half = reliability(deviation.square(), deviation / 2)
    assert half.ence().tolist() == pytest.approx([1.0, 1.0], rel=1e-5)
    assert mean_square_z(deviation.square(), deviation / 2).tolist() == pytest.approx([4.0, 4.0])


def test_bins_hold_equally_many_pixels_in_order_of_the_deviation():
    deviation = torch.tensor([[[4.0, 1.0, 3.0], [2.0, 6.0, 5.0]]])
    error = torch.tensor([[[16.0, 4.0, 25.0], [4.0, 9.0, 9.0]]])
    bins = reliability(error, deviation, bins=3)
    assert bins.variance.tolist() == [[2.5, 12.5, 30.5]] and bins.error.tolist() == [[4.0, 20.5, 9.0]]
    expected = np.mean([abs(v**0.5 - e**0.5) / v**0.5 for v, e in ((2.5, 4.0), (12.5, 20.5), (30.5, 9.0))])
    assert bins.ence().item() == pytest.approx(expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_deviation_has_bins_that_are_all_alike(shape):
    error = random(1, *shape)
    sigma = error.double().mean().sqrt().item()
    bins = reliability(error, torch.full_like(error, sigma))
    assert bins.error[0].numpy() == pytest.approx(error.mean().item()) and bins.ence().item() < 1e-6


def test_vanishing_deviations_and_empty_bins_give_numbers():
    error = torch.full((1, 2, 3), 0.01)
    assert reliability(error, torch.zeros_like(error)).ence().item() == pytest.approx((0.1 - 1e-3) / 1e-3)
    assert mean_square_z(error, torch.zeros_like(error)).item() == pytest.approx(0.01 / 1e-6)
    bins = reliability(error, torch.full_like(error, 0.1), bins=8)
    assert bins.error.isnan().sum() == 2 and bins.ence().item() == pytest.approx(0.0, abs=1e-6)
    assert reliability(error, error, torch.zeros_like(error)).ence().isnan().all()


def test_noise_of_the_predicted_deviation_is_calibrated():
    generator = torch.Generator().manual_seed(1)
    deviation = 0.02 + 0.2 * random(1, 120, 130)
    error = (deviation * torch.randn(1, 120, 130, generator=generator)).square()
    assert mean_square_z(error, deviation).item() == pytest.approx(1.0, abs=0.04)
    assert reliability(error, deviation).ence().item() < 0.03
    assert reliability(error, 1.5 * deviation).ence().item() == pytest.approx(1 / 3, abs=0.03)


def cases_of(shape, estimate, count=2, **batch):
    """Cases with a residual, and an uncertainty given as a function of it."""
    cases = shifted(shape, (0.0,) * len(shape), count, **batch)
    cases.warped_image = cases.batch["fixed_image"] - random(count, 1, *shape, seed=4)
    residual = cases.batch["fixed_image"] - cases.warped_image
    return replace(cases, estimate=lambda: estimate(residual)), residual[:, 0]


def tables_of(cases):
    return UncertaintyMeasures().of_evaluation({name: value.sum(0) for name, value in cases.sums.items()})


@pytest.mark.parametrize("shape", SHAPES)
def test_columns_of_a_deviation_are_those_of_the_functions(shape):
    sigma = 0.05 + random(2, 1, *shape, seed=7)
    cases, residual = cases_of(shape, lambda r: {"noise_deviation": sigma}, noise_level=sigma.square())
    columns = UncertaintyMeasures()(cases)
    error, sigma = residual.square(), sigma[:, 0]
    expected = {
        "ause": sparsification(error, sigma).ause,
        "ause_official": official_ause(error, sigma),
        "spearman_residual": rank_correlation(sigma, residual),
        "spearman_noise": torch.ones(2).double(),
        "ence": reliability(error, sigma).ence(),
        "z_square": mean_square_z(error, sigma),
    }
    assert columns.keys() == expected.keys()
    for name, values in columns.items():
        assert torch.allclose(values, expected[name]), name


def test_a_score_ranks_and_is_not_calibrated():
    cases, _ = cases_of((14, 17), lambda r: {"score": 1 - r.abs()})
    columns = UncertaintyMeasures()(cases)
    assert columns.keys() == {"ause", "ause_official", "spearman_residual"}
    assert columns["ause"].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert columns["spearman_residual"].tolist() == pytest.approx([1.0, 1.0])
    assert cases.sums.keys() == {"sparsification"}


def test_the_displacements_deviation_has_its_own_area_and_curve():
    cases, _ = cases_of((8, 11, 9), lambda r: {"displacement_deviation": r.abs()})
    assert UncertaintyMeasures()(cases)["ause_displacement"].tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert tables_of(cases).keys() == {"sparsification_displacement"}


def test_the_mask_leaves_pixels_out_except_of_the_published_area():
    label = torch.zeros(2, 1, 14, 17)
    label[..., :5, :] = 3
    cases, residual = cases_of((14, 17), lambda r: {"noise_deviation": 0.1 + r.square()}, fixed_label=label)
    columns = UncertaintyMeasures(mask="fixed_label")(cases)
    sigma = 0.1 + residual.square()
    assert torch.allclose(columns["ence"], reliability(residual[:, :5].square(), sigma[:, :5]).ence())
    assert torch.allclose(columns["ause_official"], official_ause(residual.square(), sigma))
    with pytest.raises(ValueError, match="uncertainty: the data hold no lung"):
        UncertaintyMeasures(mask="lung")(cases)


def test_a_method_without_uncertainty_is_refused_or_has_no_columns():
    cases = shifted((14, 17), (0.0, 0.0))
    assert UncertaintyMeasures(required=False)(cases) == {} and cases.sums == {}
    with pytest.raises(ValueError, match="uncertainty: expected a method with an estimator .* required: false"):
        UncertaintyMeasures()(cases)

    def asked():
        raise AssertionError("the quick variant must not run the estimator")

    assert UncertaintyMeasures()(replace(cases, thorough=False, estimate=asked)) == {}


def test_tables_are_means_over_the_cases_that_have_curves():
    cases, residual = cases_of((14, 17), lambda r: {"noise_deviation": 0.05 + random(3, 1, 14, 17)}, count=3)
    cases.warped_image[2] = cases.batch["fixed_image"][2]  # no residual, no curve
    measure = UncertaintyMeasures()
    assert isinstance(measure, EvaluationMeasure)
    columns = measure(cases)
    assert columns["ause"].isnan().tolist() == [False, False, True]
    tables = tables_of(cases)
    sigma = 0.05 + random(3, 1, 14, 17)[:2, 0]
    curves = sparsification(residual[:2].square(), sigma)
    relative = (curves.curve / curves.random[:, None]).numpy()
    rows = tables["sparsification"]
    assert [row["fraction"] for row in rows] == [k / 100 for k in range(100)] and rows[0]["curve"] == 1
    assert [row["curve"] for row in rows] == pytest.approx(relative.mean(0))
    assert [row["curve_sd"] for row in rows] == pytest.approx(relative.std(0, ddof=1), abs=1e-7)
    assert [row["oracle"] for row in rows] == pytest.approx((curves.oracle / curves.random[:, None]).mean(0).tolist())
    area = np.mean([row["curve"] - row["oracle"] for row in rows])
    assert area == pytest.approx(columns["ause"][:2].mean().item(), abs=0.01)
    all_sigma = 0.05 + random(3, 1, 14, 17)[:, 0]
    bins = reliability(torch.cat([residual[:2], torch.zeros(1, 14, 17)]).square(), all_sigma)
    assert [row["predicted"] for row in tables["reliability"]] == pytest.approx(bins.variance.mean(0).sqrt().tolist())
    assert [row["observed"] for row in tables["reliability"]] == pytest.approx(bins.error.mean(0).sqrt().tolist())


def test_one_case_has_no_band():
    cases, _ = cases_of((14, 17), lambda r: {"noise_deviation": 0.1 + r.abs()}, count=1)
    UncertaintyMeasures()(cases)
    rows = tables_of(cases)["sparsification"]
    assert np.isnan([row["curve_sd"] for row in rows]).all() and np.isfinite([row["curve"] for row in rows]).all()
