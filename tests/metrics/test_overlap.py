# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from monai.metrics import compute_dice, compute_iou

from common.metrics.overlap import Overlap, count_overlap

SHAPES = [(17, 23), (9, 14, 11)]


def random_masks(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.rand(3, 1, *shape, generator=torch.Generator().manual_seed(seed)) < 0.4


def squares(shift: int) -> tuple[torch.Tensor, torch.Tensor]:
    predicted, reference = torch.zeros(2, 1, 1, 20, 26, dtype=torch.bool)
    reference[..., 4:14, 5:15] = True
    predicted[..., 4:14, 5 + shift : 15 + shift] = True
    return predicted, reference


@pytest.mark.parametrize("shift", [0, 1, 3, 10])
def test_overlap_of_shifted_squares(shift):
    overlap = count_overlap(*squares(shift))
    assert overlap.dice().item() == pytest.approx(1 - shift / 10, abs=1e-6)
    assert overlap.jaccard().item() == pytest.approx((10 - shift) / (10 + shift), abs=1e-6)
    assert [count.item() for count in overlap] == [10 * (10 - shift), 100, 100]


@pytest.mark.parametrize("shape", SHAPES)
def test_overlap_agrees_with_monai(shape):
    predicted, reference = random_masks(shape, 0), random_masks(shape, 1)
    overlap = count_overlap(predicted, reference)
    dice, iou = compute_dice(predicted, reference)[:, 0], compute_iou(predicted, reference)[:, 0]
    torch.testing.assert_close(overlap.dice(), dice, rtol=0, atol=1e-6)
    torch.testing.assert_close(overlap.jaccard(), iou, rtol=0, atol=1e-6)


def test_jaccard_follows_from_dice():
    overlap = count_overlap(random_masks(SHAPES[1], 2), random_masks(SHAPES[1], 3))
    dice = overlap.dice()
    torch.testing.assert_close(overlap.jaccard(), dice / (2 - dice), rtol=0, atol=1e-6)


def test_counts_of_slices_add_up_to_the_volume():
    predicted, reference = random_masks(SHAPES[1], 4), random_masks(SHAPES[1], 5)
    slices = [count_overlap(predicted[..., i], reference[..., i]) for i in range(SHAPES[1][2])]
    volume = Overlap(*(sum(counts) for counts in zip(*slices, strict=True)))
    torch.testing.assert_close(volume.dice(), count_overlap(predicted, reference).dice(), rtol=0, atol=0)


def test_overlap_of_an_empty_prediction_is_zero_and_of_an_empty_reference_nan():
    full = torch.ones(1, 1, 5, 6, dtype=torch.bool)
    empty = torch.zeros_like(full)
    for measure in (Overlap.dice, Overlap.jaccard):
        assert measure(count_overlap(empty, full)).item() == 0.0
        assert torch.isnan(measure(count_overlap(full, empty))).all()
        assert torch.isnan(measure(count_overlap(empty, empty))).all()


def test_large_structures_are_counted_exactly():
    """float32 does not count beyond 2^24."""
    mask = torch.ones(1, 1, 4100, 4100, dtype=torch.bool)
    assert count_overlap(mask, mask).shared.item() == 4100**2


def test_overlap_refuses_bad_input():
    mask = torch.zeros(1, 1, 5, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"one shape \(B, 1, H, W\[, D\]\), got \(1, 1, 5, 6\) and \(1, 1, 6, 5\)"):
        count_overlap(mask, mask.transpose(2, 3))
    with pytest.raises(ValueError, match="pass one label at a time"):
        count_overlap(mask.expand(1, 2, 5, 6), mask.expand(1, 2, 5, 6))
    with pytest.raises(TypeError, match="reference: expected a mask of bool, got torch.float32"):
        count_overlap(mask, mask.float())
