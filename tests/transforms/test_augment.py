# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from common.transforms.augment import augmentation, random_affine, random_flips
from common.transforms.released import RandomSwap, ReleasedAugmentation

SIZES = [(20, 25), (16, 19, 18)]


def drawn(transform, image, seed):
    """The augmented moving and fixed image of a pair of equal ones."""
    transform.set_random_state(seed=seed)
    pair = transform({"moving_image": image, "fixed_image": image})
    return pair["moving_image"].as_tensor(), pair["fixed_image"].as_tensor()


@pytest.mark.parametrize("size", SIZES)
def test_each_image_is_translated_by_itself_by_at_most_that_many_voxels(size):
    ramp = torch.arange(size[0], dtype=torch.float32).reshape(1, -1, *[1] * (len(size) - 1)).expand(1, *size)
    transform = random_affine(len(size), rotation=0.0, scale=0.0, shear=0.0, translation=3.0)
    middle = (0, slice(4, -4), *[slice(4, -4)] * (len(size) - 1))
    shifts = []
    for seed in range(20):
        moved = [image - ramp for image in drawn(transform, ramp, seed)]
        for shift in moved:
            torch.testing.assert_close(shift[middle], shift[middle].mean().expand_as(shift[middle]), atol=1e-3, rtol=0)
        shifts.append([float(shift[middle].mean()) for shift in moved])
    shifts = torch.tensor(shifts)
    assert 2 < shifts.abs().max() <= 3 and (shifts[:, 0] - shifts[:, 1]).abs().median() > 0.5


@pytest.mark.parametrize("size", SIZES)
def test_a_draw_is_a_function_of_its_seed_and_keeps_grid_and_range(size):
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(1))
    transform = random_affine(len(size))
    first, again, other = drawn(transform, image, 3), drawn(transform, image, 3), drawn(transform, image, 4)
    for one, two, three in zip(first, again, other, strict=True):
        assert torch.equal(one, two) and not torch.equal(one, three)
        assert one.shape == image.shape and image.min() <= one.min() and one.max() <= image.max() + 1e-6
    assert not torch.equal(*first)


@pytest.mark.parametrize("size", SIZES)
def test_labels_and_masks_move_with_their_image_and_change_no_draw(size):
    """A label map of blocks, shown as an image too: the warped image says where the labels went."""
    axes = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    label = sum((axis // 6) % 2 for axis in axes)[None]
    pair = {f"{role}_image": label.float() * 10 for role in ("moving", "fixed")}
    extra = {f"{role}_{kind}": label.byte() for role in ("moving", "fixed") for kind in ("label", "mask")}
    transform = random_affine(len(size))
    transform.set_random_state(seed=5)
    alone = transform(dict(pair))
    transform.set_random_state(seed=5)
    moved = transform(pair | extra)
    assert set(moved) == set(pair | extra) and set(alone) == set(pair)
    for role in ("moving", "fixed"):
        image = moved[f"{role}_image"]
        assert torch.equal(image, alone[f"{role}_image"])
        assert torch.equal(moved[f"{role}_label"], moved[f"{role}_mask"])
        inner = (image / 10 - (image / 10).round()).abs() < 1e-3  # away from the blocks' borders
        assert inner.float().mean() > 0.2
        assert torch.equal(moved[f"{role}_label"][inner], (image / 10).round()[inner])
        assert set(moved[f"{role}_label"].unique().tolist()) <= set(label.unique().tolist())
    assert not torch.equal(moved["moving_label"], moved["fixed_label"])


@pytest.mark.parametrize("size", SIZES)
def test_flips_mirror_a_pair_along_every_axis_half_of_the_time(size):
    """Both images, labels and masks alike, each to one of 2^d mirror images, by the seed alone."""
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(1))
    parts = {f"{role}_{kind}": (image * 9).byte() for role in ("moving", "fixed") for kind in ("label", "mask")}
    pair = {"moving_image": image, "fixed_image": 1 - image}
    axes = range(1, len(size) + 1)
    mirrored = [[axis for axis in axes if number >> (axis - 1) & 1] for number in range(2 ** len(size))]
    transform, counts = random_flips(len(size)), [0] * len(mirrored)
    for seed in range(60):
        transform.set_random_state(seed=seed)
        moved = {key: value.as_tensor() for key, value in transform(pair | parts).items()}
        transform.set_random_state(seed=seed)
        assert torch.equal(transform(dict(pair))["moving_image"].as_tensor(), moved["moving_image"])
        (number,) = [n for n, flips in enumerate(mirrored) if torch.equal(image.flip(flips), moved["moving_image"])]
        counts[number] += 1
        assert torch.equal(moved["fixed_image"], 1 - moved["moving_image"])
        for key in parts:
            assert moved[key].dtype == torch.uint8 and torch.equal(moved[key], (moved["moving_image"] * 9).byte())
    assert min(counts) > 0
    none = random_flips(len(size), probability=0.0)
    assert torch.equal(none(dict(pair))["fixed_image"].as_tensor(), pair["fixed_image"])


@pytest.mark.parametrize(("augment", "kind"), [("affine", "Compose"), (True, "Compose"), ("flips", "Compose")])
def test_augmentations_go_by_name(augment, kind):
    assert type(augmentation(augment, 2)).__name__ == kind
    assert type(augmentation("swap", 3)) is RandomSwap and type(augmentation("released", 3)) is ReleasedAugmentation
    assert augmentation(False, 2) is None and augmentation(None, 3) is None


def test_unknown_augmentation_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="augment: expected one of affine, flips, swap, released, got 'relesed'.*'rel"):
        augmentation("relesed", 2)
