# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from common.metrics.surface import Surface, SurfaceDistances, directed_distance, surface_distances

CASES = [((27, 34), None), ((27, 34), (1.4, 0.7)), ((15, 19, 12), None), ((15, 19, 12), (1.5, 0.8, 3.0))]


def blob(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """An irregular mask that touches the border."""
    noise = torch.rand((1, 2, *shape), generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d if len(shape) == 2 else torch.nn.functional.avg_pool3d
    return smooth(noise, 5, stride=1, padding=2).argmax(1)[0].bool()


def surfaces(*masks: torch.Tensor, spacing=None) -> list[Surface]:
    found = [Surface.of(mask.numpy()) for mask in masks]
    return found if spacing is None else [surface.in_mm(spacing) for surface in found]


@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_distances_agree_with_monai(shape, spacing):
    predicted, reference = blob(shape, 0), blob(shape, 1)
    ours = surfaces(predicted, reference, spacing=spacing)
    pair = predicted[None, None], reference[None, None]
    options = {"include_background": True, "spacing": None if spacing is None else list(spacing)}
    expected = [
        compute_hausdorff_distance(*pair, **options),
        compute_hausdorff_distance(*pair, percentile=95, **options),
        compute_average_surface_distance(*pair, symmetric=True, **options),
        compute_average_surface_distance(*pair, symmetric=False, **options),
    ]
    values = [*surface_distances(*ours), directed_distance(*ours)]
    assert values == pytest.approx([value.item() for value in expected], rel=1e-5)


def test_isotropic_voxels_scale_the_distances():
    predicted, reference = blob((15, 19, 12), 2), blob((15, 19, 12), 3)
    scaled = surface_distances(*surfaces(predicted, reference)).scaled(1.37)
    assert scaled == pytest.approx(surface_distances(*surfaces(predicted, reference, spacing=[1.37] * 3)), rel=1e-6)


@pytest.mark.parametrize("k", [0, 1, 4])
@pytest.mark.parametrize("spacing", [None, (2.0, 0.5)])
def test_hausdorff_of_shifted_squares(k, spacing):
    predicted, reference = torch.zeros(2, 20, 30, dtype=torch.bool)
    reference[5:15, 6:16] = True
    predicted[5:15, 6 + k : 16 + k] = True
    size = 1.0 if spacing is None else spacing[1]
    assert surface_distances(*surfaces(predicted, reference, spacing=spacing)).hd == pytest.approx(k * size, abs=1e-6)


def test_average_distance_of_two_lines_is_their_distance_and_directed_differs():
    predicted, reference = torch.zeros(2, 9, 12, 7, dtype=torch.bool)
    reference[2, :, 3] = True
    predicted[6, :, 3] = True
    assert surface_distances(*surfaces(predicted, reference)) == pytest.approx([4.0, 4.0, 4.0], abs=1e-6)
    predicted[2, :, 3] = True  # the reference line is now part of the prediction
    predicted, reference = surfaces(predicted, reference)
    assert directed_distance(reference, predicted) == 0.0 and directed_distance(predicted, reference) == 2.0
    assert surface_distances(predicted, reference).asd == pytest.approx(4.0 / 3.0, abs=1e-6)


def test_distances_are_symmetric_and_ignore_a_common_shift():
    predicted, reference = blob((21, 25), 2), blob((21, 25), 3)
    there, back = (surface_distances(*surfaces(*pair)) for pair in ((predicted, reference), (reference, predicted)))
    padded = [torch.nn.functional.pad(value, (5, 0, 3, 8)) for value in (predicted, reference)]
    assert there == pytest.approx(back, abs=1e-6) and there == pytest.approx(surface_distances(*surfaces(*padded)))


def test_edges_have_a_face_neighbour_outside_and_the_border_is_outside():
    mask = np.zeros((6, 7), dtype=bool)
    mask[0:3, 2:5] = True
    points = {tuple(point) for point in Surface.of(mask).points.astype(int).tolist()}
    assert points == {(i, j) for i in range(3) for j in range(2, 5)} - {(1, 3)}


def test_an_empty_mask_has_no_distance():
    empty, full = surfaces(torch.zeros(5, 6, dtype=torch.bool), torch.ones(5, 6, dtype=torch.bool))
    for pair in ((empty, full), (full, empty), (empty, empty)):
        assert all(map(math.isnan, surface_distances(*pair))) and math.isnan(directed_distance(*pair))
    assert all(map(math.isnan, SurfaceDistances(math.nan, math.nan, math.nan).scaled(2.0)))


def test_surfaces_refuse_bad_input():
    surface = Surface.of(np.ones((5, 6), dtype=bool))
    with pytest.raises(ValueError, match=r"spacing: expected 2 positive numbers in mm.*got \[1.0, 1.0, 1.0\]"):
        surface.in_mm([1.0, 1.0, 1.0])
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="measure in voxels where the voxel size is not known"):
            surface.in_mm([1.0, bad])
    with pytest.raises(TypeError, match="mask: expected bool, got uint8"):
        Surface.of(np.ones((5, 6), dtype=np.uint8))
