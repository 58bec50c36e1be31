# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from monai.transforms import ClipIntensityPercentiles, ScaleIntensity

from common.transforms.crop import CropToCentred
from common.transforms.intensity import clip_percentiles, clipped, min_max


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


@pytest.mark.parametrize("shape", [(3, 1, 9, 7), (3, 2, 6, 5, 8)])
def test_what_lies_outside_becomes_zero_and_sets_no_range(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 30 - 10
    inside = torch.zeros(shape, dtype=torch.bool)
    inside[:2, :, 1:4, 2:5] = True  # nothing of the last image
    wild = torch.where(inside, images, torch.where(torch.rand(shape) < 0.5, -1e6, 1e6))
    scaled = min_max(wild, batched=True, inside=inside)
    for image, part in zip(scaled[:2], images[:2, :, 1:4, 2:5], strict=True):
        assert torch.equal(image[:, 1:4, 2:5], min_max(part))
    assert torch.equal(scaled, scaled * inside)


def test_a_mask_and_a_padding_with_the_smallest_value_are_one_normalisation() -> None:
    """What inference reads with a mask, training cuts out and pads."""
    image = torch.randn(1, 8, 11, generator=torch.Generator().manual_seed(0))
    cropped = CropToCentred("image", (12, 9))({"image": image, "centre": torch.tensor([3.0, 2.0])})["image"]
    inside = torch.zeros(1, 12, 9, dtype=torch.bool)
    inside[:, 2:10] = True
    assert torch.equal(min_max(cropped * inside, inside=inside), min_max(cropped))


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
    with pytest.raises(ValueError, match="percentiles: expected 0 <= lower < upper <= 100"):
        clip_percentiles(torch.rand(1, 4, 5), lower, upper)


@pytest.mark.parametrize("unit", [1e-30, 1e-9, 1.0, 1e30])
@pytest.mark.parametrize("batched", [False, True])
def test_min_max_does_not_depend_on_the_unit(unit: float, batched: bool) -> None:
    """Diffusivities in m²/s are of the order of 1e-9."""
    image = 1 + torch.rand(1, 9, 8, generator=torch.Generator().manual_seed(1))
    scaled = min_max((image * unit)[None], batched=True)[0] if batched else min_max(image * unit)
    assert torch.allclose(scaled, min_max(image), atol=1e-5) and (scaled.min(), scaled.max()) == (0.0, 1.0)


def test_a_range_of_rounding_errors_is_constant() -> None:
    image = torch.full((1, 4, 5), 1e6)
    image[0, 1, 1] += 0.125  # two units in the last place
    assert torch.equal(min_max(image), torch.zeros(1, 4, 5))


@pytest.mark.parametrize("shape", [(1, 128, 128), (1, 30, 40, 20)])
@pytest.mark.parametrize("percentiles", [(0, 99), (1, 99)])
@pytest.mark.parametrize("background", [0.0, 0.4, 0.7, 0.95, 0.99])
def test_a_few_bright_voxels_leave_the_image_as_it_was(
    shape: tuple[int, ...], percentiles: tuple[float, float], background: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(shape, generator=generator) + 1
    image[torch.rand(shape, generator=generator) < background] = 0
    spiked = image.clone()
    where = torch.randint(image.numel(), (max(1, int(3e-5 * image.numel())),), generator=generator)
    spiked.view(-1)[where] = 20 * image.max()
    expected = min_max(clip_percentiles(image, *percentiles))
    changed = (min_max(clip_percentiles(spiked, *percentiles)) - expected).abs().view(-1)
    changed[where] = 0
    assert changed.max() < 0.02


def test_percentiles_of_a_masked_image_are_those_inside_the_mask() -> None:
    image = torch.zeros(1, 40, 40)
    image[0, :10, :10] = torch.arange(1.0, 101).reshape(10, 10)
    result = clip_percentiles(image, 10, 90)
    assert result.min() == 0 and result.max() == pytest.approx(90.1)
    assert torch.equal(result[0, 10:], image[0, 10:])


def test_percentiles_can_be_those_of_a_given_mask() -> None:
    """A bright frame outside of the mask sets no range; a mask of nothing counts all."""
    image = torch.full((1, 40, 40), 1000.0)
    image[:, 10:30, 10:30] = torch.linspace(0, 100, 400).reshape(20, 20)
    inside = torch.zeros(1, 40, 40, dtype=torch.bool)
    inside[:, 10:30, 10:30] = True
    found = clip_percentiles(image, 1, 99, inside)
    assert found.min() == pytest.approx(1, abs=0.01) and found.max() == pytest.approx(99, abs=0.01)
    assert clip_percentiles(image, 1, 99, ~inside & inside).equal(clip_percentiles(image, 1, 99))


def test_percentiles_of_a_large_volume_are_sampled() -> None:
    image = torch.randn(1, 400, 300, 100, generator=torch.Generator().manual_seed(0))
    low, high = torch.aminmax(clip_percentiles(image))
    assert (low.item(), high.item()) == pytest.approx((-2.326, 2.326), abs=0.01)


def test_clipped_takes_two_percentiles_or_none() -> None:
    image = torch.arange(201.0)[None]
    assert torch.equal(clipped(image, [0, 99]), image.clamp(0, 198)) and clipped(image, None) is image
    for wrong in ("1, 99", [1], [1, 50, 99], 99):
        with pytest.raises(ValueError, match=r"percentiles: expected two numbers like \[1, 99\], or None"):
            clipped(image, wrong)  # type: ignore[arg-type]
