# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from common.io.images import Image
from common.io.resampling import excess_voxels, extent_in


def image(shape: tuple[int, ...], affine: np.ndarray) -> Image:
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0)[: len(shape)])
    return Image(torch.empty(shape, device="meta"), affine, spacing)


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 5)])
def test_an_image_reaches_half_a_voxel_beyond_its_own_grid(shape: tuple[int, ...]) -> None:
    own = image(shape, np.diag([2.0, 3.0, 4.0, 1.0]))
    lowest, highest = extent_in(own, own)
    np.testing.assert_allclose(lowest, [-0.5] * len(shape))
    np.testing.assert_allclose(highest, np.array(shape) - 0.5)


def test_turned_and_finer_grids_cover_the_same_field_of_view() -> None:
    grid = image((6, 8, 5), np.diag([-2.0, -2.0, 10.0, 1.0]))
    fine = np.array([[0, -1.0, 0, 0.5], [-1.0, 0, 0, 0.5], [0, 0, 10.0, 0], [0, 0, 0, 1]])  # axes swapped, 1 mm
    lowest, highest = extent_in(image((16, 12, 5), fine), grid)
    np.testing.assert_allclose(lowest, [-0.5, -0.5, -0.5])
    np.testing.assert_allclose(highest, [5.5, 7.5, 4.5])


def test_a_slanted_image_has_the_box_around_its_corners() -> None:
    angle = np.array([[np.sqrt(0.5), -np.sqrt(0.5), 0, 0], [np.sqrt(0.5), np.sqrt(0.5), 0, 0], [0, 0, 1, 0], [0] * 4])
    angle[3, 3] = 1
    lowest, highest = extent_in(image((3, 3), angle), image((9, 9), np.eye(4)))
    np.testing.assert_allclose(highest - lowest, [np.sqrt(18)] * 2)


def test_what_reaches_beyond_is_counted_in_voxels_of_the_other() -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[0, 3] = 3.0
    grid, moved = image((6, 8, 5), np.diag([2.0, 2.0, 2.0, 1.0])), image((6, 7, 5), affine)
    assert excess_voxels(moved, grid) == pytest.approx(1.5) and excess_voxels(grid, grid) == 0
