# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from scipy import stats

from common.metrics.statistics import bootstrap_interval, design_effect, holm, paired_comparison, subject_means

NAN = math.nan


def clustered(subjects: int, cases: int, seed: int) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(subjects, 1)) + 0.5 * rng.normal(size=(subjects, cases))
    return values.ravel(), [f"patient{i:03d}" for i in range(subjects) for _ in range(cases)]


def test_subject_means_ignore_nan_and_keep_every_subject():
    means = subject_means([1.0, 3.0, NAN, 5.0, NAN], ["b", "b", "b", "a", "c"])
    assert list(means) == ["a", "b", "c"]
    assert (means["a"], means["b"]) == (5.0, 2.0)
    assert math.isnan(means["c"])


def test_bootstrap_interval_approaches_the_normal_one_for_many_subjects():
    values = np.random.default_rng(0).normal(2.0, 3.0, size=400)
    low, high = bootstrap_interval({f"s{i}": value for i, value in enumerate(values)}, n=5000)
    error = stats.norm.ppf(0.975) * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.03)


def test_bootstrap_interval_depends_on_values_and_seed_alone():
    values = dict(zip("abcdefgh", np.random.default_rng(0).normal(size=8), strict=True))
    interval = bootstrap_interval(values, n=500)
    assert bootstrap_interval(dict(reversed(values.items())), n=500) == interval
    assert bootstrap_interval({**values, "z": NAN}, n=500) == interval
    assert bootstrap_interval(values, n=500, seed=1) != interval
    narrow = bootstrap_interval(values, n=500, level=0.5)
    assert interval[0] < narrow[0] < narrow[1] < interval[1]
    assert bootstrap_interval({"a": 0.3, "b": 0.3}, n=100) == pytest.approx((0.3, 0.3), abs=1e-12)


def test_comparison_agrees_with_scipy_on_patient_means():
    a, subjects = clustered(12, 7, 0)
    b = a - 0.2 + 0.3 * np.random.default_rng(1).normal(size=a.size)
    result = paired_comparison(a, b, subjects, n=2000)
    means_a, means_b = a.reshape(12, 7).mean(1), b.reshape(12, 7).mean(1)
    assert result.n_subjects == 12
    assert result.n_unpaired == 0
    assert result.mean_difference == pytest.approx((means_a - means_b).mean(), abs=1e-12)
    assert result.p_ttest == pytest.approx(stats.ttest_rel(means_a, means_b).pvalue, rel=1e-9)
    assert result.p_wilcoxon == pytest.approx(stats.wilcoxon(means_a, means_b).pvalue, rel=1e-9)
    assert result.ci_low < result.mean_difference < result.ci_high
    opposite = paired_comparison(b, a, subjects, n=2000)
    assert opposite.mean_difference == pytest.approx(-result.mean_difference, abs=1e-12)
    assert opposite.p_wilcoxon == pytest.approx(result.p_wilcoxon, rel=1e-9)


def test_effect_size_and_the_papers_test_agree_with_their_definitions():
    a, subjects = clustered(12, 7, 0)
    b = a - 0.2 + 0.3 * np.random.default_rng(1).normal(size=a.size)
    a[3] = NAN
    result = paired_comparison(a, b, subjects, n=100)
    both = ~np.isnan(a)
    assert (result.n_cases, result.n_unpaired) == (83, 1)
    assert result.p_ttest_cases == pytest.approx(stats.ttest_rel(a[both], b[both]).pvalue, rel=1e-9)
    # d_z is the t statistic over the root of n: the p-value of that t is the one of the test on subjects
    t = result.effect_size * math.sqrt(12)
    assert 2 * stats.t.sf(abs(t), 11) == pytest.approx(result.p_ttest, rel=1e-9)
    assert result.p_ttest_cases < result.p_ttest  # what taking slices as independent does


def test_effect_size_of_equal_differences():
    subjects = ["a", "b", "c"]
    assert paired_comparison([1.0, 2.0, 4.0], [1.0, 2.0, 4.0], subjects, n=100).effect_size == 0
    assert math.isnan(paired_comparison([1.5, 2.5, 4.5], [1.0, 2.0, 4.0], subjects, n=100).effect_size)


def test_repeated_slices_do_not_make_a_difference_more_significant():
    a, subjects = clustered(9, 1, 2)
    b = a - 0.1 * np.arange(9)
    once = paired_comparison(a, b, subjects, n=200)
    often = paired_comparison(np.repeat(a, 10), np.repeat(b, 10), np.repeat(subjects, 10).tolist(), n=200)
    assert often.p_wilcoxon == pytest.approx(once.p_wilcoxon, rel=1e-9)
    assert often.p_ttest == pytest.approx(once.p_ttest, rel=1e-6)
    assert often.n_subjects == 9


def test_comparison_pairs_case_by_case_and_counts_what_has_no_partner():
    subjects = ["p", "p", "q", "q", "r", "r"]
    result = paired_comparison([1.0, 9.0, 2.0, NAN, NAN, NAN], [0.0, NAN, 0.0, 3.0, NAN, NAN], subjects, n=100)
    assert (result.n_subjects, result.n_unpaired) == (2, 2)
    assert result.mean_difference == pytest.approx(1.5, abs=1e-12)


def test_comparison_of_equal_methods_finds_nothing():
    a, subjects = clustered(5, 3, 4)
    assert paired_comparison(a, a, subjects, n=100) == (5, 0.0, 0.0, 0.0, 1.0, 1.0, 0, 0.0, 1.0, 15)


def test_holm_on_known_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-12)
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects():
    p = np.random.default_rng(3).uniform(0, 0.05, size=20)
    rejected: set[int] = set()
    for step, index in enumerate(np.argsort(p)):
        if p[index] > 0.05 / (20 - step):
            break
        rejected.add(int(index))
    assert {i for i, value in enumerate(holm(p)) if value <= 0.05} == rejected


def test_design_effect_of_identical_slices_is_the_cluster_size():
    assert design_effect([1.0] * 4 + [3.0] * 4 + [7.0] * 4, ["a"] * 4 + ["b"] * 4 + ["c"] * 4) == pytest.approx(4.0)


def test_design_effect_of_single_and_of_independent_cases_is_one():
    assert design_effect([1.0, 2.0, 5.0], ["a", "b", "c"]) == 1.0
    values = np.random.default_rng(0).normal(size=20000)
    subjects = [str(i // 5) for i in range(20000)]
    assert design_effect(values, subjects) == pytest.approx(1.0, abs=0.06)


def test_design_effect_agrees_with_the_analysis_of_variance():
    values, subjects = clustered(8, 6, 5)
    f = stats.f_oneway(*values.reshape(8, 6)).statistic
    icc = (f - 1) / (f + 5)
    assert design_effect(values, subjects) == pytest.approx(1 + 5 * icc, rel=1e-9)
    assert design_effect([*values, NAN], [*subjects, "unscored"]) == pytest.approx(1 + 5 * icc, rel=1e-9)


def test_design_effect_weighs_unequal_clusters():
    # sizes 3 and 1: n0 = 4 − 10/4 = 1.5, m = 10/4; MSB = 3·1² + 1·3² = 12, MSW = 2/2 = 1
    assert design_effect([1.0, 2.0, 3.0, 6.0], ["a", "a", "a", "b"]) == pytest.approx(1 + 1.5 * 11 / 12.5, rel=1e-9)
    assert math.isnan(design_effect([2.0, 2.0, 2.0], ["a", "a", "b"]))


def test_statistics_refuse_bad_input():
    with pytest.raises(ValueError, match=r"values: expected one value a case, 2 as in subjects"):
        subject_means([1.0], ["a", "b"])
    with pytest.raises(ValueError, match="at least 1"):
        subject_means([], [])
    with pytest.raises(ValueError, match="at least 2 subjects with a value, got 1"):
        bootstrap_interval({"a": 1.0, "b": NAN})
    with pytest.raises(ValueError, match=r"level: expected a number in \(0, 1\), got 95"):
        bootstrap_interval({"a": 1.0, "b": 2.0}, level=95)
    with pytest.raises(ValueError, match=r"one only for \['p2', 'p3'\]"):
        paired_comparison([1.0, NAN, 3.0, NAN], [2.0, 2.0, NAN, 5.0], ["p1", "p2", "p3", "p3"])
    with pytest.raises(ValueError, match=r"one only for \['p2'\]"):
        paired_comparison([1.0, NAN, 3.0], [2.0, 2.0, NAN], ["p1", "p2", "p2"])
    with pytest.raises(ValueError, match="b: expected one value a case"):
        paired_comparison([1.0, 2.0], [1.0], ["a", "b"])
    with pytest.raises(ValueError, match=r"p_values: expected numbers in \[0, 1\]"):
        holm([0.1, NAN])
    with pytest.raises(ValueError, match="subjects: expected at least 2 with values, got 1"):
        design_effect([1.0, 2.0], ["a", "a"])
