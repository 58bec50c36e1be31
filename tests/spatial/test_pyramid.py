# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch

from common.spatial.pyramid import halved, warp_onto
from common.spatial.warp import warp

SHAPES = [(8, 6), (7, 5), (6, 8, 4), (7, 5, 3), (2, 1, 7), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_second_voxel_becomes_the_mean_of_its_neighbourhood_within_the_image(shape):
    image = torch.rand(2, 3, *shape, dtype=torch.float64)
    half = halved(image)
    assert half.shape == (2, 3, *(-(-n // 2) for n in shape))
    for place in itertools.product(*(range(n) for n in half.shape[2:])):
        window = tuple(slice(max(2 * i - 1, 0), 2 * i + 2) for i in place)
        expected = image[(..., *window)].flatten(2).mean(2)
        torch.testing.assert_close(half[(..., *place)], expected)


@pytest.mark.parametrize(("shape", "coarse"), [((9, 13), (5, 4)), ((9, 7, 5), (3, 4, 5))])
def test_linear_image_is_sampled_where_the_coarse_voxels_went(shape, coarse):
    """Its value at a voxel of the coarse grid is the position there, in voxels of the fine grid."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    spacing = torch.tensor([(n - 1) / (m - 1) for n, m in zip(shape, coarse, strict=True)])
    inner = 0.3 * torch.rand(1, len(shape), *coarse)
    places = torch.stack(torch.meshgrid(*(torch.arange(m, dtype=torch.float32) for m in coarse), indexing="ij"))
    inner = torch.where(places[None] >= torch.tensor(coarse).view(-1, *[1] * len(shape)) - 1, -inner, inner)
    sampled = warp_onto(torch.stack(axes)[None], inner)
    torch.testing.assert_close(sampled, (places + inner) * spacing.view(1, -1, *[1] * len(shape)))


def test_on_the_images_own_grid_it_is_the_warp_with_its_border_continued():
    image, ddf = torch.rand(2, 1, 8, 9), 4 * torch.randn(2, 2, 8, 9)
    torch.testing.assert_close(warp_onto(image, ddf), warp(image, ddf, padding="border"), atol=0, rtol=0)
