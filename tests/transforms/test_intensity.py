# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from monai.transforms import ClipIntensityPercentiles, ScaleIntensity

from common.transforms.intensity import clip_percentiles, min_max


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


def test_clip_percentiles_of_a_ramp() -> None:
    # the p-th percentile of 0 … 200 is 2 p
    ramp = torch.arange(201.0)[torch.randperm(201, generator=torch.Generator().manual_seed(0))][None]
    assert torch.equal(clip_percentiles(ramp), ramp.clamp(2, 198))
    assert torch.equal(clip_percentiles(ramp, 10, 75), ramp.clamp(20, 150))
    assert torch.equal(clip_percentiles(ramp, 0, 100), ramp)


@pytest.mark.parametrize("shape", [(1, 17, 15), (2, 9, 8, 11)])
def test_clip_percentiles_agrees_with_monai(shape: tuple[int, ...]) -> None:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 40 - 7
    expected = ClipIntensityPercentiles(2.0, 97.0)(image)
    assert torch.allclose(clip_percentiles(image, 2.0, 97.0), torch.as_tensor(expected), atol=1e-4)


def test_clip_percentiles_makes_the_range_robust() -> None:
    image = torch.rand(1, 20, 20, 20, generator=torch.Generator().manual_seed(0))
    image[0, 3, 4, 5] = 1
    spiked = image.clone()
    spiked[0, 3, 4, 5] = 1000
    assert torch.allclose(min_max(clip_percentiles(spiked)), min_max(clip_percentiles(image)), atol=0.01)
    assert spiked.max() == 1000  # not in place


def test_an_image_of_nearly_all_background_is_not_clipped() -> None:
    image = torch.zeros(1, 20, 20)
    image[0, 3, 4] = 5
    assert torch.equal(clip_percentiles(image), image)


@pytest.mark.parametrize(("lower", "upper"), [(-1, 99), (50, 50), (99, 1), (1, 101), (float("nan"), 99)])
def test_percentiles_out_of_order_are_errors(lower: float, upper: float) -> None:
    with pytest.raises(ValueError, match=r"lower, upper: expected 0 <= lower < upper <= 100"):
        clip_percentiles(torch.rand(1, 4, 5), lower, upper)
