# SPDX-License-Identifier: Apache-2.0
"""Statistics that respect the subject.

The slices of one heart are not independent, so that tests and intervals work on one mean a subject, never on cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class PairedComparison(NamedTuple):
    """Comparison of a with b on the subjects' mean differences a − b.

    ``n_unpaired`` counts the cases that only one of the two scored and that therefore entered no difference.
    ``effect_size`` is Cohen's d_z: the mean difference over the standard deviation (n − 1) of the differences, NaN
    where they are all equal and not 0. ``p_ttest_cases`` is the papers' test, of ``n_cases`` taken as independent.
    """

    n_subjects: int
    mean_difference: float
    ci_low: float
    ci_high: float
    p_wilcoxon: float
    p_ttest: float
    n_unpaired: int
    effect_size: float
    p_ttest_cases: float
    n_cases: int


def subject_means(values: Sequence[float], subjects: Sequence[str]) -> dict[str, float]:
    """Mean of each subject's values.

    Args:
        values: one a case; NaN (not scorable) is ignored.
        subjects: the subject of each case.

    Returns:
        subject → mean, sorted by subject; NaN for a subject without any value, so that it is not lost silently.

    Raises:
        ValueError: if the lengths differ or are 0.
    """
    groups = _group(_as_array("values", values, subjects), subjects)
    return {subject: float(np.mean(group)) if len(group) else math.nan for subject, group in groups.items()}


def bootstrap_interval(
    values_by_subject: Mapping[str, float], n: int = 10000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, subjects resampled with replacement.

    Args:
        values_by_subject: subject → mean (``subject_means``); NaN is ignored.
        n: resamples.
        level: coverage, in (0, 1).
        seed: the interval is a function of the values and this number, not of their order.

    Returns:
        (low, high), in the unit of the values.

    Raises:
        ValueError: with fewer than two subjects, or ``level`` outside (0, 1).

    Reference:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, Eq. 13.5.
    """
    values = np.array([values_by_subject[subject] for subject in sorted(values_by_subject)], dtype=np.float64)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        raise ValueError(
            f"values_by_subject: expected at least 2 subjects with a value, got {len(values)};"
            " an interval over subjects needs more of them."
        )
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number in (0, 1), got {level}; 0.95 for a 95 % interval.")
    # batch bounds the memory of the resamples, whatever the number of subjects
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=n, batch=1000, confidence_level=level, method="percentile",
        random_state=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired_comparison(
    a: Sequence[float], b: Sequence[float], subjects: Sequence[str], n: int = 10000, level: float = 0.95, seed: int = 0
) -> PairedComparison:
    """Compare two methods on the same cases: difference a − b a case, its mean a subject, tests over subjects.

    Args:
        a: one value a case, NaN where not scorable.
        b: the same cases in the same order.
        subjects: the subject of each case.
        n: bootstrap resamples.
        level: coverage of the interval.
        seed: of the bootstrap.

    Returns:
        Mean difference (each subject weighs the same), bootstrap interval, two-sided Wilcoxon signed-rank and paired
        t p-values (1 where all differences are 0), the number of cases that only one of the two scored, Cohen's d_z,
        and the t-test of the cases. Subjects that neither scored are not counted in ``n_subjects``.

    Raises:
        ValueError: if lengths differ, fewer than two subjects can be compared, or a subject is scored by one method
            only (named in the message).

    Reference:
        Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, chapter 2 (d_z).
    """
    array_a, array_b = _as_array("a", a, subjects), _as_array("b", b, subjects)
    groups_a, groups_b = _group(array_a, subjects), _group(array_b, subjects)
    groups = _group(array_a - array_b, subjects)
    alone = [subject for subject in groups if bool(len(groups_a[subject])) != bool(len(groups_b[subject]))]
    # a subject scored by both, yet never in the same case, cannot be compared either
    alone += [s for s in groups if s not in alone and len(groups_a[s]) and len(groups_b[s]) and not len(groups[s])]
    if alone:
        raise ValueError(
            f"a and b: expected every subject scored by both, got values from one only for {sorted(alone)};"
            " score both methods on the same cases, or leave these subjects out of both and say so."
        )
    means = {subject: float(np.mean(group)) for subject, group in groups.items() if len(group)}
    low, high = bootstrap_interval(means, n=n, level=level, seed=seed)
    differences = np.array(list(means.values()))
    # SciPy has no rank or t statistic for differences that are all 0
    same = not differences.any()
    spread = float(differences.std(ddof=1))
    cases = np.concatenate([group for group in groups.values() if len(group)])
    return PairedComparison(
        n_subjects=len(means),
        mean_difference=float(differences.mean()),
        ci_low=low,
        ci_high=high,
        p_wilcoxon=1.0 if same else float(stats.wilcoxon(differences).pvalue),
        p_ttest=1.0 if same else float(stats.ttest_1samp(differences, 0.0).pvalue),
        n_unpaired=int((np.isnan(array_a) != np.isnan(array_b)).sum()),
        effect_size=0.0 if same else float(differences.mean()) / spread if spread else math.nan,
        p_ttest_cases=1.0 if not cases.any() else float(stats.ttest_1samp(cases, 0.0).pvalue),
        n_cases=len(cases),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: p̃_(i) = max_{j ≤ i} min(1, (m − j + 1) p_(j)).

    Args:
        p_values: m p-values in any order.

    Returns:
        Adjusted p-values in the same order; reject where ≤ α for a family-wise error of α.

    Raises:
        ValueError: if a value is not in [0, 1].

    Reference:
        Holm, Scandinavian Journal of Statistics 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p_values: expected numbers in [0, 1], got {p.tolist()}; leave out tests that did not run.")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty_like(stepped)
    adjusted[order] = stepped
    return adjusted.tolist()


def design_effect(values: Sequence[float], subjects: Sequence[str]) -> float:
    """1 + (m − 1) ICC: by how much clustering inflates the variance of the mean over cases.

    The intra-class correlation is that of the one-way analysis of variance, not cut at 0; with unequal clusters m is
    the size-weighted mean Σ n_i² / N.

    Args:
        values: one a case; NaN is ignored.
        subjects: the subject of each case.

    Returns:
        The factor; N / factor is the effective number of cases. 1 where every subject has one case, NaN where
        all values are equal.

    Raises:
        ValueError: if the lengths differ or fewer than two subjects have values.

    Reference:
        Donner and Klar, Design and Analysis of Cluster Randomization Trials, 2000, chapter 1.
    """
    groups = [group for group in _group(_as_array("values", values, subjects), subjects).values() if len(group)]
    k, total = len(groups), sum(len(group) for group in groups)
    if k < 2:
        raise ValueError(f"subjects: expected at least 2 with values, got {k}; clustering needs several subjects.")
    if total == k:
        return 1.0
    sizes = np.array([len(group) for group in groups])
    means = np.array([group.mean() for group in groups])
    grand_mean = np.concatenate(groups).mean()
    between = float((sizes * (means - grand_mean) ** 2).sum() / (k - 1))
    within = float(sum(((group - group.mean()) ** 2).sum() for group in groups) / (total - k))
    weighted_size = float((sizes**2).sum() / total)
    anova_size = (total - weighted_size) / (k - 1)
    denominator = between + (anova_size - 1) * within
    if denominator == 0:
        return math.nan
    return 1.0 + (weighted_size - 1.0) * (between - within) / denominator


def _as_array(name: str, values: Sequence[float], subjects: Sequence[str]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (len(subjects),) or len(subjects) == 0:
        raise ValueError(
            f"{name}: expected one value a case, {len(subjects)} as in subjects and at least 1,"
            f" got shape {array.shape}; pass the two columns of the same rows."
        )
    return array


def _group(values: np.ndarray, subjects: Sequence[str]) -> dict[str, np.ndarray]:
    """Values of each subject without NaN, sorted by subject; a subject without any keeps an empty group."""
    groups: dict[str, list[float]] = {str(subject): [] for subject in sorted(subjects, key=str)}
    for value, subject in zip(values, subjects, strict=True):
        if not math.isnan(value):
            groups[str(subject)].append(float(value))
    return {subject: np.array(group) for subject, group in groups.items()}
