# SPDX-License-Identifier: Apache-2.0
"""Levels follow the size of what is imaged, not how finely it is sampled."""

import pytest
import torch

from common.engines.presets import build_pairwise, plan, similarity_terms


def test_a_brain_is_registered_at_four_two_and_one_millimetres():
    shape = (160, 192, 224)
    assert plan(shape, (1, 1, 1)) == ((4, 2, 2, 1), (60, 60, 60, 40))
    assert plan(shape, (1, 1, 1), "fast") == ((4, 2, 2), (60, 30, 30))
    assert plan([2 * n for n in shape], (0.5, 0.5, 0.5)).levels_mm == (4, 2, 2, 1)


@pytest.mark.parametrize(
    ("shape", "spacing", "levels"),
    [
        ((35, 51, 35), (1, 1, 1), (4, 2, 2, 1)),
        ((70, 102, 70), (0.5, 0.5, 0.5), (4, 2, 2, 1)),
        ((512, 512, 300), (0.7, 0.7, 1), (8, 4, 4, 2)),  # not more than eight million voxels
        ((100, 80, 60), (0.1, 0.1, 0.1), (1, 0.5, 0.5, 0.25)),  # a mouse
        ((256, 216, 10), (1.5, 1.5, 10), (8, 4, 2, 2, 1)),
    ],
)
def test_levels_for_other_sizes(shape, spacing, levels):
    found = plan(shape, spacing)
    assert found.levels_mm == levels
    assert found.steps == (60,) * (len(levels) - 1) + (40,)


def test_levels_and_steps_are_taken_as_given():
    assert plan((30, 30, 30), (1, 1, 1), levels_mm=[3, 1.5], steps=7) == ((3, 1.5), (7, 7))
    assert plan((30, 30, 30), (1, 1, 1), levels_mm=[3, 1.5], steps=[7, 0]) == ((3, 1.5), (7, 0))
    assert plan((30, 30, 30), (1, 1, 1), levels_mm=[3, 2, 3, 1]) == ((3, 2, 3, 1), (60, 60, 60, 40))


def test_similarities_add_up():
    assert similarity_terms("lncc") == {"lncc": 1}
    assert similarity_terms("lncc + 0.5*mind") == {"lncc": 1, "mind": 0.5}
    solver = build_pairwise(plan((30, 30), (1, 1)), (1, 1), "lncc+0.5*mind")
    assert solver.smoothness_weight == pytest.approx(0.3 + 0.5 * 0.08)
    images = torch.rand(2, 1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    assert solver.similarity(*images).shape == (1, 1, 12, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "slow"}, "preset: expected one of fast, accurate"),
        ({"levels_mm": [1, 2]}, "levels_mm: .* coarse to fine"),
        ({"levels_mm": []}, "levels_mm: .* coarse to fine"),
        ({"levels_mm": [0]}, "levels_mm: expected a number above 0"),
        ({"levels_mm": ["coarse"]}, "levels_mm: expected a number above 0, got 'coarse'"),
        ({"steps": [1, 2]}, "steps: expected a whole number from 0 for each of the 4 levels"),
        ({"steps": -1}, "steps: expected a whole number from 0"),
        ({"steps": [1, 2.5, 3]}, r"steps: expected a whole number .* got \[1, 2.5, 3\]"),
        ({"steps": float("inf")}, "steps: expected a whole number"),
        ({"steps": ["a"] * 3}, "steps: expected a whole number"),
    ],
)
def test_bad_plans(options, message):
    with pytest.raises(ValueError, match=message):
        plan((40, 40, 40), (1, 1, 1), **options)


@pytest.mark.parametrize("text", ["", "ncc+", "0*lncc", "x*lncc", "tukei"])
def test_bad_similarities(text):
    with pytest.raises(ValueError, match="similarity: expected"):
        similarity_terms(text)
