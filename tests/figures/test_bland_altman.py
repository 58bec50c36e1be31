# SPDX-License-Identifier: Apache-2.0
import math

import matplotlib.image
import numpy as np
import pytest

from common.figures.bland_altman import agreement, bland_altman

NAN = float("nan")


def test_bias_and_limits_are_those_of_the_differences_without_what_is_unknown(tmp_path):
    found = bland_altman(tmp_path / "ef.png", [55, 60, 48, NAN, 50], [50, 58, 50, 51, NAN], "ejection fraction", "%")
    deviation = np.std([5, 2, -2], ddof=1)
    assert found == agreement([55, 60, 48], [50, 58, 50]) and found.n == 3
    assert found.bias == pytest.approx(5 / 3) and found.deviation == pytest.approx(deviation)
    assert (found.lower, found.upper) == pytest.approx((5 / 3 - 1.96 * deviation, 5 / 3 + 1.96 * deviation))
    assert matplotlib.image.imread(tmp_path / "ef.png").std() > 0.05


def test_one_subject_has_a_bias_and_no_limits(tmp_path):
    found = bland_altman(tmp_path / "ef.png", [55], [50], "ejection fraction", "%")
    assert found.bias == 5 and math.isnan(found.upper) and (tmp_path / "ef.png").stat().st_size > 1000


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"expected as many numbers, got \(2,\) and \(1,\)"):
        agreement([1, 2], [1])
    with pytest.raises(ValueError, match="at least one pair of numbers"):
        agreement([NAN, 1], [1, NAN])
