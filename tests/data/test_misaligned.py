# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from common.data.misaligned import misaligned
from common.data.triangles import load_pairs

SIZES = [(32, 40), (16, 20, 18)]
each_size = pytest.mark.parametrize("size", SIZES)


def pairs(size, count=3):
    return load_pairs("phantom", "train", count, size, "filled")


@each_size
def test_the_moving_image_and_its_label_move_alike_and_the_fixed_one_stays(size):
    before, after = pairs(size), misaligned(pairs(size), 0.2)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one["fixed_image"], other["fixed_image"])
        assert not torch.equal(one["moving_image"], other["moving_image"])
        inside = other["moving_label"] > 0
        clear = (other["moving_image"] - 0.5).abs() > 0.45
        assert torch.equal(inside[clear], (other["moving_image"] > 0.5)[clear])
        assert other["moving_label"].dtype == torch.uint8


@each_size
def test_overlap_falls_with_the_misalignment(size):
    def overlap(listed):
        return torch.stack([
            2 * ((pair["moving_label"] > 0) & (pair["reference"] > 0)).sum()
            / ((pair["moving_label"] > 0).sum() + (pair["reference"] > 0).sum()) for pair in listed
        ]).mean()  # fmt: skip

    given = [pair | {"reference": pair["moving_label"]} for pair in pairs(size, 8)]
    assert overlap(misaligned(given, 0.0)) == 1
    assert 1 > overlap(misaligned(given, 0.1)) > overlap(misaligned(given, 0.3))


def test_a_map_is_a_function_of_seed_and_number():
    first, again, other = (misaligned(pairs((32, 40)), 0.2, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a["moving_image"], b["moving_image"]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0]["moving_image"], other[0]["moving_image"])
    shorter = misaligned(pairs((32, 40), 2), 0.2, 1)
    assert torch.equal(shorter[1]["moving_image"], first[1]["moving_image"])


def test_without_misalignment_the_pairs_are_those_given_and_with_it_no_truth_is_left():
    given = [pair | {"true_ddf": torch.zeros(2, 32, 40)} for pair in pairs((32, 40))]
    assert misaligned(given, 0) is given
    assert all("true_ddf" not in pair for pair in misaligned(given, 0.1))


@pytest.mark.parametrize("value", [-0.1, 0.5, float("nan")])
def test_values_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match="misalignment: expected a number from 0 to 0.4"):
        misaligned([], value)
