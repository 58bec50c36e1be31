# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch

from common.data.pairs import PairDataset
from common.transforms.released import RandomSwap, ReleasedAugmentation

SIZES = [(20, 26), (14, 17, 20)]
each_size = pytest.mark.parametrize("size", SIZES)


def pair_of(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pair = {f"{role}_image": torch.rand(1, *size, generator=generator) for role in ("moving", "fixed")}
    return pair | {f"{key[:-6]}_label": (value > 0.5).byte() for key, value in pair.items()}


def drawn(transform, pair, seed):
    transform.set_random_state(seed=seed)
    return transform(dict(pair))


@pytest.mark.parametrize("dims", [2, 3])
def test_without_noise_a_cube_is_permuted_and_mirrored_the_pair_alike(dims):
    """Every signed permutation of the axes is drawn, and nothing else."""
    pair = pair_of((7,) * dims)
    transform = ReleasedAugmentation(deviation=0.0)
    turned = {}
    for axes in itertools.permutations(range(1, dims + 1)):
        for flips in itertools.product((False, True), repeat=dims):
            mirrored = [axis + 1 for axis, flip in enumerate(flips) if flip]
            turned[axes, flips] = {key: value.permute(0, *axes).flip(mirrored) for key, value in pair.items()}
    seen = set()
    for seed in range(40 if dims == 2 else 25):
        moved = drawn(transform, pair, seed)
        roles = ("moving", "fixed", "moving")
        found = [
            (name, swapped)
            for name, other in turned.items()
            for swapped in (False, True)
            if all(
                torch.allclose(moved[f"{roles[k]}_image"], other[f"{roles[k + swapped]}_image"], atol=1e-4)
                for k in range(2)
            )
        ]
        (one,) = found
        seen.add(one)
        for role, other in (("moving", "fixed" if one[1] else "moving"), ("fixed", "moving" if one[1] else "fixed")):
            assert torch.equal(moved[f"{role}_label"], turned[one[0]][f"{other}_label"])
    assert len({name for name, _ in seen}) >= (8 if dims == 2 else 15) and {swap for _, swap in seen} == {False, True}


@each_size
def test_each_image_has_noise_of_its_own_and_labels_follow(size):
    axes = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    label = sum((axis // 5) % 2 for axis in axes)[None]
    pair = {f"{role}_image": 10.0 * label for role in ("moving", "fixed")}
    pair |= {f"{role}_label": label.byte() for role in ("moving", "fixed")}
    moved = drawn(ReleasedAugmentation(), pair, 3)
    assert not torch.equal(moved["moving_image"], moved["fixed_image"])
    for role in ("moving", "fixed"):
        value = moved[f"{role}_image"] / 10
        inner = (value - value.round()).abs() < 1e-3
        assert inner.float().mean() > 0.3 and moved[f"{role}_label"].dtype == torch.uint8
        assert torch.equal(value[inner].round().byte(), moved[f"{role}_label"][inner])


@each_size
def test_a_draw_is_a_function_of_its_seed(size):
    pair, transform = pair_of(size), ReleasedAugmentation()
    first, again, other = drawn(transform, pair, 3), drawn(transform, pair, 3), drawn(transform, pair, 4)
    assert all(torch.equal(first[key], again[key]) for key in pair)
    assert not torch.equal(first["moving_image"], other["moving_image"])
    assert set(first) == set(pair) and all(first[key].shape == pair[key].shape for key in pair)


def test_noise_has_the_published_deviation():
    """Of the linear part, from the slopes of a ramp along each axis that the other image keeps apart."""
    size, transform = (41, 41), ReleasedAugmentation()
    ramp = torch.linspace(-1, 1, 41)[None, :, None].expand(1, 41, 41).contiguous()
    slopes = []
    for seed in range(60):
        moved = drawn(transform, {"moving_image": ramp, "fixed_image": ramp}, seed)
        for image in moved.values():
            middle = image[0, 15:26, 15:26]
            slope = torch.stack([middle.diff(dim=axis).mean() * 20 for axis in (0, 1)])
            slopes.append(slope.abs().min())  # the other is 1 or -1 and its noise
    assert 0.8 * 0.05 < torch.stack(slopes).square().mean().sqrt() < 1.2 * 0.05 and size == tuple(ramp.shape[1:])


def test_a_swap_exchanges_all_that_belongs_to_an_image_and_loses_none():
    """Published code overwrites one image of half the pairs with the other."""
    pair, transform, swaps = pair_of((6, 6)), RandomSwap(), 0
    for seed in range(30):
        moved = drawn(transform, pair, seed)
        swapped = torch.equal(moved["moving_image"], pair["fixed_image"])
        swaps += swapped
        for role, other in (("moving", "fixed"), ("fixed", "moving")):
            for kind in ("image", "label"):
                assert torch.equal(moved[f"{role}_{kind}"], pair[f"{other if swapped else role}_{kind}"])
    assert 8 <= swaps <= 22


def test_training_pairs_pass_through_it():
    size = (16, 20)
    pairs = [pair_of(size, seed) | {"centre": torch.tensor([7.5, 9.5])} for seed in range(2)]
    data = PairDataset(pairs, size, with_labels=True, augmentation=ReleasedAugmentation())
    batch = data.__getitems__([(0, 5), (1, 6)])
    again = data.__getitems__([(0, 5)])
    assert torch.equal(batch[0]["moving_image"], again[0]["moving_image"])
    assert batch[1]["fixed_image"].shape == (1, *size) and batch[1]["fixed_label"].dtype == torch.uint8
    assert batch[0]["moving_image"].min() == 0 and batch[0]["moving_image"].max() == 1


def test_negative_deviation_is_refused():
    with pytest.raises(ValueError, match="deviation: expected at least 0, got -1"):
        ReleasedAugmentation(-1)
