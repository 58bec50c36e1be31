# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from common.data import stiff_soft
from common.data.generated import generator_of
from common.spatial.jacobian import jacobian_determinant
from common.spatial.warp import warp

SIZES = ((64, 48), (26, 32, 24))


def pairs_of(size, count=6):
    return stiff_soft.load_pairs(split="validation", count=count, spatial_size=size)


@pytest.mark.parametrize("size", SIZES)
def test_the_ball_is_moved_as_a_whole_and_its_surroundings_are_not(size):
    for pair in pairs_of(size):
        ddf, stiff = pair["true_ddf"], pair["fixed_label"][0] == stiff_soft.LABELS["stiff"]
        inside = ddf[:, stiff]
        middle = inside.median(1, keepdim=True).values
        assert ((inside - middle).norm(dim=0) < 0.15).float().mean() > 0.9  # but for rounding at its border
        outside = ddf[:, ~stiff]
        assert outside.std(1).norm() > 5 * inside.std(1).norm()


@pytest.mark.parametrize("size", SIZES)
def test_true_displacement_registers_images_and_labels_without_folding(size):
    for pair in pairs_of(size):
        ddf = pair["true_ddf"][None]
        assert jacobian_determinant(ddf).min() > 0.09
        interior = (slice(None), *[slice(3, -3)] * len(size))
        warped = warp(pair["moving_image"][None], ddf)[0]
        before, after = (
            float((image - pair["fixed_image"])[interior].square().mean()) for image in (pair["moving_image"], warped)
        )
        assert after < 2 * stiff_soft.NOISE**2 < before
        label = warp(pair["moving_label"].float()[None], ddf, mode="nearest")[0]
        assert ((label == pair["fixed_label"])[interior]).float().mean() > 0.99


def test_stiffness_is_one_inside_zero_beyond_the_margin_and_half_between():
    points = np.array([[0.0, 4.0, 6.5, 9.0, 20.0]])
    assert stiff_soft.stiffness(points, np.zeros(1), 4.0, 5.0).tolist() == [1, 1, 0.5, 0, 0]


def test_a_pair_depends_on_its_name_and_the_seed_alone():
    one, other = (stiff_soft.load_pairs(count=count)[1] for count in (2, 4))
    assert torch.equal(one["moving_image"], other["moving_image"])
    assert not torch.equal(one["moving_image"], stiff_soft.load_pairs(count=2, seed=1)[1]["moving_image"])


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"spatial_size: .* at least 24 voxels, got \(64, 20\)"):
        stiff_soft.datalist(spatial_size=(64, 20))
    with pytest.raises(ValueError, match="seed: expected a whole number from 0, got -1"):
        generator_of("train_00000", -1)
