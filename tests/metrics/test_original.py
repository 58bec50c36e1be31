# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch

from common.metrics.cases import Cases
from common.metrics.labels import LabelMeasures
from common.metrics.original import OriginalLabelMeasures

LABELS = {"cavity": 1, "myocardium": 2}


def _cases(batch: dict[str, Any], ddf: torch.Tensor, **more: Any) -> Cases:
    return Cases(batch, ddf, torch.zeros(len(ddf), 1, *ddf.shape[2:]), **more)


def _label(shape: tuple[int, ...], shift: int = 0) -> torch.Tensor:
    """A box of 2 around a box of 1, moved along the first axis."""
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    for value, part in ((2, 3), (1, 4)):
        label[(0, *(slice(part * n // 12, (12 - part) * n // 12) for n in shape))] = value
    return label.roll(shift, 1)


@pytest.mark.parametrize("shape", [(24, 36), (24, 36, 12)])
def test_at_the_network_s_size_it_is_what_label_measures_give(shape: tuple[int, ...]) -> None:
    d = len(shape)
    ddf = torch.randn(2, d, *shape, generator=torch.Generator().manual_seed(0))
    moving, fixed = _label(shape), _label(shape, 2)
    spacing = torch.tensor([[1.5, 0.8, 2.0][:d], [torch.nan] * d])
    batch = {
        "moving_label": torch.stack([moving, fixed]),
        "fixed_label": torch.stack([fixed, moving]),
        "spacing": spacing,
    }
    original = {"moving_label_original": [moving, fixed], "fixed_label_original": [fixed, moving],
                "spacing_original": spacing}  # fmt: skip
    expected = LabelMeasures(LABELS)(_cases(batch, ddf))
    found = OriginalLabelMeasures(LABELS)(_cases(original, ddf))
    expected.pop("scorable")
    assert found.keys() == {f"original_{name}" for name in expected}
    for name, value in expected.items():
        torch.testing.assert_close(found[f"original_{name}"], value, equal_nan=True)


def test_a_shift_is_scaled_to_each_case_s_own_size() -> None:
    """Half-sized and third-sized fields: one voxel there is two and three voxels here."""
    small = (12, 16, 10)
    ddf = torch.zeros(2, 3, *small)
    ddf[:, 0] = 1.0
    sizes = [tuple(2 * n for n in small), (36, 16, 20)]
    labels = [_label(size) for size in sizes]
    batch = {"moving_label_original": labels, "spacing_original": torch.full((2, 3), torch.nan),
             "fixed_label_original": [label.roll(-n, 1) for label, n in zip(labels, (2, 3), strict=True)]}  # fmt: skip
    found = OriginalLabelMeasures(LABELS, ["myocardium"])(_cases(batch, ddf))
    assert found["original_dice"].tolist() == found["original_dice_cavity"].tolist() == [1, 1]
    assert found["original_hd"].tolist() == [0, 0] and found["original_hd_before"].tolist() == [2, 3]
    assert (found["original_dice_before"] < 0.9).all()


def test_millimetres_are_those_of_the_original_grid() -> None:
    label = _label((24, 24, 24))
    batch = {"moving_label_original": [label, label], "fixed_label_original": [label.roll(2, 1)] * 2,
             "spacing_original": torch.tensor([[0.5, 2.0, 2.0], [torch.nan] * 3])}  # fmt: skip
    found = OriginalLabelMeasures(LABELS)(_cases(batch, torch.zeros(2, 3, 12, 12, 12)))
    torch.testing.assert_close(found["original_hd_mm_before"], torch.tensor([1.0, torch.nan]), equal_nan=True)


def test_quick_evaluations_leave_it_out_and_data_without_originals_are_an_error() -> None:
    measure = OriginalLabelMeasures(LABELS)
    assert measure(_cases({}, torch.zeros(1, 3, 4, 4, 4), thorough=False)) == {}
    with pytest.raises(
        ValueError, match="labels of original size: the data hold no moving_label_original and no fixed"
    ):
        measure(_cases({"moving_label": torch.zeros(1)}, torch.zeros(1, 3, 4, 4, 4)))
    with pytest.raises(ValueError, match="labels: expected at least one"):
        OriginalLabelMeasures({})
    assert measure.headlines[0] == "original_dice"
