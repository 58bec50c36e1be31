# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from monai.networks.utils import one_hot

from common.metrics.surface import surface_distances

CASES = [((27, 34), None), ((27, 34), (1.4, 0.7)), ((15, 19, 12), None), ((15, 19, 12), (1.5, 0.8, 3.0))]


def blobs(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Two cases with three irregular labels each, some of which touch the border."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((2, 3, *shape), generator=generator)
    smooth = torch.nn.functional.avg_pool2d if len(shape) == 2 else torch.nn.functional.avg_pool3d
    return smooth(noise, 5, stride=1, padding=2).argmax(1, keepdim=True) + 1


@pytest.mark.parametrize(("shape", "spacing"), CASES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_distances_agree_with_monai(shape, spacing, symmetric):
    predicted, reference = blobs(shape, 0), blobs(shape, 1)
    ours = surface_distances(predicted, reference, [1, 2, 3], spacing=spacing, symmetric=symmetric)
    hot_p, hot_r = one_hot(predicted, 4)[:, 1:], one_hot(reference, 4)[:, 1:]
    options = {"include_background": True, "spacing": None if spacing is None else list(spacing)}
    # directed: from the fixed to the warped surface
    average = compute_average_surface_distance(hot_r, hot_p, symmetric=symmetric, **options)
    torch.testing.assert_close(ours.hd, compute_hausdorff_distance(hot_p, hot_r, **options), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        ours.hd95, compute_hausdorff_distance(hot_p, hot_r, percentile=95, **options), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(ours.asd, average, rtol=1e-5, atol=1e-5)
    assert ours.hd.shape == (2, 3)


@pytest.mark.parametrize("k", [0, 1, 4])
@pytest.mark.parametrize("spacing", [None, (2.0, 0.5)])
def test_hausdorff_of_shifted_squares(k, spacing):
    predicted, reference = torch.zeros(2, 1, 1, 20, 30, dtype=torch.long)
    reference[..., 5:15, 6:16] = 3
    predicted[..., 5:15, 6 + k : 16 + k] = 3
    size = 1.0 if spacing is None else spacing[1]
    assert surface_distances(predicted, reference, [3], spacing).hd.item() == pytest.approx(k * size, abs=1e-6)


def test_average_distance_of_two_lines_is_their_distance_and_directed_differs():
    predicted, reference = torch.zeros(2, 1, 1, 9, 12, 7, dtype=torch.long)
    reference[..., 2, :, 3] = 1
    predicted[..., 6, :, 3] = 1
    distances = surface_distances(predicted, reference, [1])
    assert [value.item() for value in distances] == pytest.approx([4.0, 4.0, 4.0], abs=1e-6)
    predicted[..., 2, :, 3] = 1  # the reference line is now part of the prediction
    assert surface_distances(predicted, reference, [1], symmetric=False).asd.item() == 0.0
    assert surface_distances(predicted, reference, [1]).asd.item() == pytest.approx(4.0 / 3.0, abs=1e-6)


def test_distances_are_symmetric_and_ignore_a_common_shift():
    predicted, reference = blobs((21, 25), 2), blobs((21, 25), 3)
    there, back = surface_distances(predicted, reference, [2]), surface_distances(reference, predicted, [2])
    padded = [torch.nn.functional.pad(value, (5, 0, 3, 8)) for value in (predicted, reference)]
    for a, b, c in zip(there, back, surface_distances(*padded, [2]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        torch.testing.assert_close(a, c, rtol=0, atol=1e-6)


def test_a_label_missing_in_either_map_is_nan_and_leaves_the_others_alone():
    predicted, reference = torch.zeros(2, 1, 1, 10, 13, dtype=torch.int16)
    predicted[..., 2:4, 2:4], reference[..., 2:4, 2:4] = 1, 1
    predicted[..., 6:8, 6:8] = 2
    reference[..., 6:8, 1:3] = 7
    for value in surface_distances(predicted, reference, [1, 2, 7, 9]):
        assert value[0, 0] == 0.0
        assert torch.isnan(value[0, 1:]).all()


def test_background_can_be_scored():
    predicted, reference = torch.ones(2, 1, 1, 6, 9, dtype=torch.long)
    predicted[..., 2, 2], reference[..., 2, 5] = 0, 0
    assert surface_distances(predicted, reference, [0]).hd.item() == pytest.approx(3.0, abs=1e-6)


def test_distances_refuse_bad_input():
    labels = torch.zeros(1, 1, 5, 6, dtype=torch.long)
    with pytest.raises(ValueError, match=r"spacing: expected 2 positive numbers in mm.*got \[1.0, 1.0, 1.0\]"):
        surface_distances(labels, labels, [1], spacing=(1.0, 1.0, 1.0))
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="pass None where the voxel size is not known"):
            surface_distances(labels, labels, [1], spacing=(1.0, bad))
    with pytest.raises(ValueError, match=r"got \(1, 1, 5, 6\) and \(1, 1, 5, 5\)"):
        surface_distances(labels, labels[..., :5], [1])
    with pytest.raises(TypeError, match="predicted: expected an integer label map"):
        surface_distances(labels.float(), labels, [1])
