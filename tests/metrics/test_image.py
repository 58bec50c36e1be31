# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from common.metrics.cases import Cases
from common.metrics.image import ImageMeasures
from tests.metrics.synthetic import SHAPES


@pytest.mark.parametrize("shape", SHAPES)
def test_squared_differences_before_and_after(shape):
    fixed = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(1))
    batch = {"moving_image": fixed + 0.5, "fixed_image": fixed}
    offset = torch.tensor([0.1, -0.3]).reshape(2, *[1] * (len(shape) + 1))
    columns = ImageMeasures()(Cases(batch, torch.zeros(2, len(shape), *shape), fixed + offset))
    assert columns["mse"].tolist() == pytest.approx([0.01, 0.09], abs=1e-6)
    assert columns["mse_before"].tolist() == pytest.approx([0.25, 0.25], abs=1e-6)
