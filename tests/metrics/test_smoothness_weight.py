# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from common.metrics.cases import Cases
from common.metrics.smoothness_weight import SmoothnessWeightMeasures

LABELS = {"stiff": 1, "soft": 2}


def cases_of(volume, thorough=True, **batch):
    shape = volume.shape[2:]
    ddf = torch.zeros(len(volume), len(shape), *shape)
    return Cases(batch, ddf, torch.zeros_like(volume), thorough=thorough, estimate=lambda: {"weight_volume": volume})


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5)])
def test_means_are_those_of_the_image_and_of_each_structure(shape):
    volume = torch.full((2, 1, *shape), 0.5)
    volume[:, :, 0] = 1.0
    label = torch.zeros(2, 1, *shape, dtype=torch.uint8)
    label[:, :, 0], label[0, :, 1] = 1, 2
    columns = SmoothnessWeightMeasures(LABELS)(cases_of(volume, fixed_label=label))
    assert columns["weight"].tolist() == pytest.approx([0.625, 0.625])
    assert columns["weight_stiff"].tolist() == pytest.approx([1.0, 1.0])
    assert columns["weight_soft"][0].item() == pytest.approx(0.5) and columns["weight_soft"][1].isnan()


def test_there_are_no_columns_while_training_nor_without_a_weight():
    volume = torch.rand(1, 1, 4, 6)
    assert SmoothnessWeightMeasures()(cases_of(volume, thorough=False)) == {}
    without = Cases({}, torch.zeros(1, 2, 4, 6), volume)
    assert SmoothnessWeightMeasures(LABELS)(without) == {}


def test_structures_need_labels():
    with pytest.raises(ValueError, match="weight of the smoothness: the data hold no fixed_label"):
        SmoothnessWeightMeasures(LABELS)(cases_of(torch.rand(1, 1, 4, 6)))
