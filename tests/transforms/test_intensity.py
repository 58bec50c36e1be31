# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from monai.transforms import ScaleIntensity

from common.transforms.intensity import min_max


@pytest.mark.parametrize("shape", [(1, 7, 5), (2, 6, 5, 9)])
def test_min_max_agrees_with_monai(shape: tuple[int, ...]) -> None:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 40 - 7
    expected = ScaleIntensity(0.0, 1.0)(image)
    assert torch.allclose(min_max(image), torch.as_tensor(expected), atol=1e-6)


def test_min_max_is_invariant_to_gain_and_offset() -> None:
    image = torch.rand(1, 9, 8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(min_max(300 * image - 20), min_max(image), atol=1e-5)


def test_constant_image_becomes_zeros() -> None:
    assert torch.equal(min_max(torch.full((1, 4, 5), 3.5)), torch.zeros(1, 4, 5))


def test_integer_image_is_scaled_in_float() -> None:
    assert torch.equal(min_max(torch.tensor([[[0, 1], [2, 4]]])), torch.tensor([[[0.0, 0.25], [0.5, 1.0]]]))


def test_each_image_of_a_batch_has_its_own_range_and_its_channels_share_it() -> None:
    batch = torch.stack([torch.arange(12.0).reshape(2, 2, 3), torch.full((2, 2, 3), 5.0)])
    scaled = min_max(batch, batched=True)
    assert torch.allclose(scaled[0], min_max(batch[0])) and torch.allclose(scaled[0], batch[0] / 11)
    assert torch.equal(scaled[1], torch.zeros(2, 2, 3))
    assert scaled[0, 1].min() == pytest.approx(6 / 11)
