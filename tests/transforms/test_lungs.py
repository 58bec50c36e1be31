# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from common.io.images import Image
from common.io.orientation import reorient
from common.transforms.lungs import LungIntensities, lung_mask, mirrored_axis


def chest(spacing: tuple[float, float, float] = (2.0, 2.0, 2.0)) -> tuple[Image, torch.Tensor]:
    """A body of two round lungs with a vessel through one, air around, and a little gas below; in LPS."""
    shape = tuple(round(n / mm) for n, mm in zip((120, 90, 80), spacing, strict=True))
    x, y, z = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)), indexing="ij"
    )
    lungs = np.zeros(shape, bool)
    for middle in (-22, 22):
        lungs |= (x - middle) ** 2 + y**2 + z**2 < 18**2
    values = np.where((x / 55) ** 2 + (y / 40) ** 2 < 1, 40.0, -1000.0)
    values[lungs] = -800
    values[(np.hypot(x - 22, y) < 2.2) & lungs] = 60.0  # a vessel from bottom to top
    values[x**2 + y**2 + (z + 34) ** 2 < 5**2] = -950.0  # gas
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    return Image(torch.from_numpy(values).float(), affine, spacing), torch.from_numpy(lungs)


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (0.9, 0.9, 2.5)])
def test_lungs_are_found_with_their_vessels_and_nothing_else(spacing: tuple[float, float, float]) -> None:
    image, lungs = chest(spacing)
    found = lung_mask(image)
    assert found.dtype == torch.bool and found.shape == lungs.shape
    overlap = 2 * (found & lungs).sum() / (found.sum() + lungs.sum())
    assert overlap > 0.96  # looked at every 2 mm
    inner = torch.from_numpy(np.abs(np.arange(image.array.shape[2]) - (image.array.shape[2] - 1) / 2) * spacing[2] < 12)
    vessel = (image.array == 60) & inner
    assert vessel.any() and found[vessel].float().mean() > 0.95
    assert not found[image.array == -950].any() and not found[image.array == -1000].any()


@pytest.mark.parametrize("codes", ["RAS", "SPL"])
def test_the_order_of_axes_does_not_matter(codes: str) -> None:
    image, _ = chest((0.9, 1.1, 2.5))
    expected, turned = lung_mask(image), reorient(image, codes)
    back = reorient(turned._replace(array=lung_mask(turned)), "LPS")
    assert "".join(nib.aff2axcodes(back.affine)) == "LPS" and torch.equal(back.array, expected)


def test_lungs_may_reach_top_and_bottom() -> None:
    image, lungs = chest()
    cut = image._replace(array=image.array[:, :, 14:26].contiguous())
    found = lung_mask(cut)
    assert 2 * (found & lungs[:, :, 14:26]).sum() / (found.sum() + lungs[:, :, 14:26].sum()) > 0.95


def test_intensities_are_between_0_and_1_inside_the_lungs() -> None:
    image, lungs = chest()
    seen = LungIntensities()(image, lungs).array
    assert seen[(image.array == -800) & lungs].unique().tolist() == pytest.approx([0.2])
    assert (seen[~lungs] == 0).all() and seen.max() == 1
    whole = LungIntensities(-1000, 1000, masked=False)(image).array
    assert whole[image.array == 40].unique().tolist() == pytest.approx([0.52])
    made = LungIntensities()(image).array
    assert torch.equal(made, LungIntensities()(image, lung_mask(image)).array)


def test_bad_input_is_refused() -> None:
    image, lungs = chest()
    with pytest.raises(ValueError, match="low, high: expected two HU in order"):
        LungIntensities(0, -1000)
    with pytest.raises(ValueError, match=r"mask: expected the shape \(60, 45, 40\) of its image, got \(59, 45, 40\)"):
        LungIntensities()(image, lungs[1:])
    with pytest.raises(
        ValueError, match="expected a CT of the chest in HU, with lungs below -400 HU inside the body; got"
    ):
        lung_mask(image._replace(array=image.array / 1000))


def test_a_mirrored_axis_is_one_that_fits_better() -> None:
    assert mirrored_axis([0.95, 0.9, 0.4, 0.3]) is None
    assert mirrored_axis([0.6, 0.62, 0.4, 0.98]) == 2
    assert mirrored_axis([0.6, 0.65, 0.4, 0.66]) is None
