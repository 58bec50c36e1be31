# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from monai.metrics import compute_dice

from common.metrics.overlap import dice_score

SHAPES = [(17, 23), (9, 14, 11)]


def random_labels(shape: tuple[int, ...], seed: int, classes: int = 4, batch: int = 3) -> torch.Tensor:
    return torch.randint(0, classes, (batch, 1, *shape), generator=torch.Generator().manual_seed(seed))


def squares(shift: int) -> tuple[torch.Tensor, torch.Tensor]:
    predicted, reference = torch.zeros(2, 1, 1, 20, 26, dtype=torch.long)
    reference[..., 4:14, 5:15] = 2
    predicted[..., 4:14, 5 + shift : 15 + shift] = 2
    return predicted, reference


@pytest.mark.parametrize("shift", [0, 1, 3, 10])
def test_dice_of_shifted_squares(shift):
    predicted, reference = squares(shift)
    assert dice_score(predicted, reference, [2]).item() == pytest.approx(1 - shift / 10, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_dice_agrees_with_monai(shape):
    predicted, reference = random_labels(shape, 0), random_labels(shape, 1)
    expected = compute_dice(predicted, reference, include_background=True, num_classes=4)
    torch.testing.assert_close(dice_score(predicted, reference, [0, 1, 2, 3]), expected, rtol=0, atol=1e-6)


def test_dice_follows_the_order_of_the_labels_and_ignores_others():
    predicted, reference = random_labels((12, 15), 2, classes=60), random_labels((12, 15), 3, classes=60)
    both = torch.cat([predicted, -predicted], 0), torch.cat([reference, -reference], 0)
    scores = dice_score(*both, labels=[7, 3, 40])
    for column, label in enumerate([7, 3, 40]):
        alone = dice_score((predicted == label).int(), (reference == label).int(), [1])
        torch.testing.assert_close(scores[:3, column], alone[:, 0], rtol=0, atol=0, equal_nan=True)
    assert torch.isnan(scores[3:]).all()  # negative labels are no label, nor do they spill into another case


def test_dice_of_an_empty_prediction_is_zero_and_of_an_empty_reference_nan():
    full = torch.ones(1, 1, 5, 6, dtype=torch.int32)
    empty = torch.zeros_like(full)
    assert dice_score(empty, full, [1]).item() == 0.0
    assert torch.isnan(dice_score(full, empty, [1])).all()
    assert torch.isnan(dice_score(empty, empty, [1])).all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64])
def test_dice_takes_every_integer_type(dtype):
    predicted, reference = squares(5)
    result = dice_score((predicted > 0).to(dtype), (reference > 0).to(dtype), [1])
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(0.5, abs=1e-6)


def test_dice_refuses_bad_input():
    labels = torch.zeros(1, 1, 5, 6, dtype=torch.long)
    with pytest.raises(ValueError, match=r"one shape \(B, 1, H, W\[, D\]\), got \(1, 1, 5, 6\) and \(1, 1, 6, 5\)"):
        dice_score(labels, labels.transpose(2, 3), [1])
    with pytest.raises(ValueError, match="take the argmax"):
        dice_score(labels.expand(1, 2, 5, 6), labels.expand(1, 2, 5, 6), [1])
    with pytest.raises(TypeError, match="reference: expected an integer label map, got torch.float32"):
        dice_score(labels, labels.float(), [1])
    with pytest.raises(ValueError, match="one label or more"):
        dice_score(labels, labels, [])
    with pytest.raises(ValueError, match=r">= 0, got \[1, -2\]"):
        dice_score(labels, labels, [1, -2])
