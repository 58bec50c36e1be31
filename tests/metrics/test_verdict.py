# SPDX-License-Identifier: Apache-2.0
import pytest

from common.metrics.verdict import doubtful, doubts, looked_at

FINE = {
    "foldings_percent": 0.01,
    "mse": 0.01,
    "mse_before": 0.05,
    "dice": 0.8,
    "dice_before": 0.5,
    "inverse_error": 0.1,
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"foldings_percent": 0.6}, "The map folds at 0.6 % of the voxels, more than 0.5 %."),
        ({"mse": 0.06}, "The mean squared difference of the images did not fall: 0.05 before, 0.06 after."),
        ({"similarity": -0.2, "similarity_before": -0.3}, "The dissimilarity of the images did not fall"),
        ({"dice": 0.4}, "The labels fit worse than before: Dice 0.500 to 0.400."),
        ({"strong_change": 0.05}, "5 % of the voxels shrink below a fifth of their volume or grow above fivefold."),
        ({"inverse_error": 0.7}, "There and back again misses by 0.7 voxels on average."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_doubt_is_a_sentence_of_its_own(change, sentence):
    assert doubts(FINE) == []
    (found,) = doubts(FINE | change)
    assert sentence in found


def test_what_is_not_known_is_no_doubt():
    assert doubts({}) == [] and doubts({"dice": float("nan"), "mse": None, "foldings_percent": "many"}) == []
    assert doubts({"mse": 0.5}) == []  # nothing to compare it with


def test_what_was_looked_at_is_said():
    (sentence,) = looked_at(FINE)
    assert (
        "foldings 0.01 %" in sentence
        and "Dice 0.800, before 0.5" in sentence
        and "inverse error 0.1 voxels" in sentence
    )
    assert looked_at({}) == ["Nothing was measured that could speak against it."]


def test_doubtful_cases_are_named():
    rows = [FINE | {"case": "a"}, FINE | {"case": "b", "dice": 0.1}, {"case": "c", "mse": 2.0, "mse_before": 1.0}]
    found = doubtful(rows)
    assert list(found) == ["b", "c"] and "fit worse" in found["b"][0]
