# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from common.data.pairs import PairDataset, SeededSampler, evaluation_loader, training_loader
from common.transforms.augment import random_affine


def _pairs(count: int, d: int = 2) -> list[dict[str, Any]]:
    """Pairs of different native sizes; one voxel in the first corner is far brighter than the crop."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for index in range(count):
        shape = (30 + index % 3, 26 - index % 2, 22)[:d]
        images = torch.rand(2, 1, *shape, generator=generator) + index
        images[(slice(None), 0, *([0] * d))] = 1000.0
        pairs.append(
            {
                "moving_image": images[0],
                "fixed_image": images[1],
                "moving_label": (images[0] > index + 0.5).byte(),
                "fixed_label": (images[1] > index + 0.5).byte(),
                "centre": torch.tensor([16.0, 14.0, 12.0][:d]),
                "subject": f"patient{index:03d}",
                "group": "NOR",
                "slice": index,
                "spacing": torch.full((d,), torch.nan),
            }
        )
    return pairs


@pytest.mark.parametrize("d", [2, 3])
def test_images_are_normalised_after_the_crop(d: int) -> None:
    pairs = _pairs(3, d)
    size = (12, 8, 10)[:d]
    for index, item in enumerate(PairDataset(pairs, size, with_labels=True)):
        window = tuple(slice(int(a), int(a) + s) for a, s in zip(item["crop_start"], size, strict=True))
        part = pairs[index]["moving_image"][(slice(None), *window)]
        expected = (part - part.min()) / (part.max() - part.min())
        assert torch.allclose(item["moving_image"], expected, atol=1e-6)
        assert (item["fixed_image"].min(), item["fixed_image"].max()) == (0.0, 1.0)
        assert torch.equal(item["fixed_label"], pairs[index]["fixed_label"][(slice(None), *window)])
        if index == 2:
            break


def test_training_items_hold_only_the_images_and_pairs_stay_untouched() -> None:
    pairs = _pairs(1)
    before = pairs[0]["moving_image"].clone()
    assert set(PairDataset(pairs, (12, 10), jitter=2)[0, 5]) == {"moving_image", "fixed_image"}
    assert torch.equal(pairs[0]["moving_image"], before) and "crop_start" not in pairs[0]


def test_true_displacement_is_cropped_with_the_images() -> None:
    pairs = _pairs(2)
    for pair in pairs:
        pair["true_ddf"] = torch.cat([pair["moving_image"], -pair["moving_image"]])
    item = PairDataset(pairs, (12, 10), with_labels=True)[1]
    x, y = item["crop_start"].tolist()
    assert torch.equal(item["true_ddf"], pairs[1]["true_ddf"][:, x : x + 12, y : y + 10])


def test_jitter_is_a_function_of_the_draw_seed_and_absent_for_plain_indices() -> None:
    dataset = PairDataset(_pairs(2), (12, 10), jitter=3)
    exact = PairDataset(_pairs(2), (12, 10))
    assert torch.equal(dataset[1]["moving_image"], exact[1]["moving_image"])
    draws = [dataset[1, seed]["moving_image"] for seed in range(20)]
    assert all(torch.equal(dataset[1, seed]["moving_image"], draw) for seed, draw in enumerate(draws))
    assert len({draw.numpy().tobytes() for draw in draws}) > 10
    # both images of a pair move together
    same = _pairs(1)
    same[0]["fixed_image"] = same[0]["moving_image"]
    item = PairDataset(same, (12, 10), jitter=3)[0, 4]
    assert torch.equal(item["moving_image"], item["fixed_image"])


@pytest.mark.parametrize("d", [2, 3])
def test_augmentation_is_a_function_of_the_draw_seed_and_absent_for_plain_indices(d: int) -> None:
    size = (12, 10, 8)[:d]
    dataset, exact = PairDataset(_pairs(2, d), size, augmentation=random_affine(d)), PairDataset(_pairs(2, d), size)
    assert torch.equal(dataset[1]["moving_image"], exact[1]["moving_image"])
    draws, again = ([dataset[1, seed]["moving_image"] for seed in (7, 2**61, 8)] for _ in range(2))
    assert all(torch.equal(*both) for both in zip(draws, again, strict=True))
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    for draw in draws:
        assert type(draw) is torch.Tensor and draw.min() == 0 and draw.max() == 1 and draw.shape == (1, *size)


class Only(Sequence):
    """Pairs that are decoded when they are asked for, and counted."""

    def __init__(self, pairs: list[dict[str, Any]]) -> None:
        self.pairs, self.asked = pairs, []

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(index)
        return self.pairs[index]


@pytest.mark.parametrize("d", [2, 3])
def test_labels_and_masks_of_training_move_with_their_images(d: int) -> None:
    """The label is shown as an image, so that the crop and the augmentation say where it went."""
    pairs, size = _pairs(3, d), (12, 10, 8)[:d]
    for pair in pairs:
        for role in ("moving", "fixed"):
            pair[f"{role}_image"] = pair[f"{role}_label"].float()
            pair[f"{role}_mask"] = pair[f"{role}_label"] > 0
    dataset = PairDataset(pairs, size, jitter=4, with_labels=True)
    keys = {f"{role}_{kind}" for role in ("moving", "fixed") for kind in ("image", "label", "mask")}
    for seed in range(5):
        item = dataset[1, seed]
        assert set(item) == keys
        for role in ("moving", "fixed"):
            assert torch.equal(item[f"{role}_label"].float(), item[f"{role}_image"])
            assert torch.equal(item[f"{role}_mask"], item[f"{role}_label"] > 0)
    moved = PairDataset(pairs, size, jitter=4, with_labels=True, augmentation=random_affine(d))[1, 3]
    assert set(moved) == keys
    for role in ("moving", "fixed"):
        label, image = moved[f"{role}_label"], moved[f"{role}_image"]
        assert label.dtype == torch.uint8 and moved[f"{role}_mask"].dtype == torch.bool
        assert type(label) is torch.Tensor and set(label.unique().tolist()) == {0, 1}
        certain = (image < 0.01) | (image > 0.99)
        assert certain.float().mean() > 0.05 and torch.equal(label[certain].float(), image[certain].round())


@pytest.mark.parametrize("augmented", [False, True])
def test_images_of_training_are_the_same_with_labels_and_without(augmented: bool) -> None:
    options = {"jitter": 3, "augmentation": random_affine(2) if augmented else None}
    with_labels, without = (PairDataset(_pairs(2), (12, 10), with_labels=w, **options) for w in (True, False))
    for seed in (0, 7, 2**61):
        for key in ("moving_image", "fixed_image"):
            assert torch.equal(with_labels[1, seed][key], without[1, seed][key])


def test_batches_of_training_hold_labels_and_masks_where_there_are_any() -> None:
    pairs = _pairs(5)
    for pair in pairs:
        pair["fixed_mask"] = pair["moving_mask"] = torch.ones_like(pair["fixed_label"])
    keys = {"moving_image", "fixed_image", "moving_mask", "fixed_mask"}
    for with_labels in (False, True):
        dataset = PairDataset(pairs, (12, 10), with_labels=with_labels)
        batch = next(iter(training_loader(dataset, 4, seed=1)))
        assert set(batch) == keys | ({"moving_label", "fixed_label"} if with_labels else set())
        assert batch["moving_mask"].shape == (4, 1, 12, 10)


def test_evaluation_without_labels_has_all_the_rest() -> None:
    item = PairDataset(_pairs(2), (12, 10))[1]
    assert set(item) == {"moving_image", "fixed_image", "subject", "group", "slice", "spacing", "crop_start"}


def test_labels_that_the_data_do_not_have_are_an_error() -> None:
    pairs = [{key: pair[key] for key in pair if not key.endswith("label")} for pair in _pairs(2)]
    assert len(PairDataset(pairs, (12, 10))) == 2
    message = r"with_labels: expected moving_label and fixed_label in the pairs, got the keys .*Leave with_labels out"
    with pytest.raises(ValueError, match=message):
        PairDataset(pairs, (12, 10), with_labels=True)


def test_pairs_that_are_decoded_when_asked_for_give_the_same_items_and_are_not_all_read_at_once() -> None:
    pairs = Only(_pairs(4))
    lazy, eager = (PairDataset(p, (12, 10), jitter=2, with_labels=True) for p in (pairs, _pairs(4)))
    assert pairs.asked == [0] and len(lazy) == 4
    for item in (2, (2, 5)):
        for key, value in lazy[item].items():
            assert (
                value == eager[item][key]
                if isinstance(value, (str, int))
                else torch.equal(value.nan_to_num(), eager[item][key].nan_to_num())
            )
    assert pairs.asked == [0, 2, 2]
    del pairs.pairs[3]["fixed_label"]
    with pytest.raises(ValueError, match=r"data\[3\]: expected the keys .*fixed_label.* in every pair"):
        lazy[3]


@pytest.mark.parametrize("count", [16, 19])
def test_steps_of_two_ranks_hold_the_samples_of_one_process_with_twice_the_batch(count: int) -> None:
    dataset, batch = PairDataset(_pairs(count), (12, 10)), 4

    def steps(replicas: int, rank: int, size: int) -> list[set[tuple[int, int]]]:
        sampler = SeededSampler(dataset, 3, replicas, rank, drop_last=True)
        sampler.set_epoch(2)
        drawn = list(sampler)
        assert len(drawn) == len(sampler) == count // replicas
        return [set(drawn[i : i + size]) for i in range(0, len(drawn) - size + 1, size)]

    single, first, second = steps(1, 0, 2 * batch), steps(2, 0, batch), steps(2, 1, batch)
    assert len(single) == len(first) == len(second) == count // (2 * batch)
    assert [a | b for a, b in zip(first, second, strict=True)] == single
    assert all(not a & b for a, b in zip(first, second, strict=True))


def test_ranks_repeat_the_beginning_of_the_order_where_nothing_is_dropped() -> None:
    dataset = PairDataset(_pairs(5), (12, 10))
    drawn = [list(SeededSampler(dataset, 0, 3, rank)) for rank in range(3)]
    order = [drawn[i % 3][i // 3] for i in range(6)]
    assert sorted(index for index, _ in order[:5]) == [0, 1, 2, 3, 4] and order[5] == order[0]


def test_order_and_draws_depend_on_seed_and_epoch_only() -> None:
    dataset = PairDataset(_pairs(12), (12, 10))

    def order(seed: int, epoch: int) -> tuple[tuple[int, int], ...]:
        sampler = SeededSampler(dataset, seed)
        sampler.set_epoch(epoch)
        torch.rand(seed + epoch + 1)  # the global random state has no influence
        return tuple(sampler)

    runs = {(seed, epoch): order(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert all(order(*key) == value for key, value in runs.items())
    assert len({tuple(index for index, _ in run) for run in runs.values()}) == 9
    assert len({draw for run in runs.values() for _, draw in run}) == 9 * 12
    assert all(sorted(index for index, _ in run) == list(range(12)) for run in runs.values())


def test_updates_of_an_epoch_draw_with_replacement_and_each_draw_has_its_own_seed() -> None:
    dataset, batch, updates = PairDataset(_pairs(5), (12, 10), jitter=3), 4, 25
    loader = training_loader(dataset, batch, seed=2, updates_per_epoch=updates)
    assert len(loader) == updates and [len(b["moving_image"]) for b in loader] == [batch] * updates
    loader.sampler.set_epoch(1)
    first = list(loader.sampler)
    assert first == list(loader.sampler) and len({seed for _, seed in first}) == updates * batch
    counts = [sum(index == i for index, _ in first) for i in range(5)]
    assert sum(counts) == 100 and all(5 < count < 40 for count in counts)  # 20 expected of each
    assert any(len({index for index, _ in first[i : i + batch]}) < batch for i in range(0, 100, batch))
    loader.sampler.set_epoch(2)
    assert list(loader.sampler) != first


def test_updates_with_replacement_are_shared_by_the_ranks() -> None:
    dataset = PairDataset(_pairs(5), (12, 10))
    single = list(SeededSampler(dataset, 3, 1, 0, samples=24))
    ranks = [list(SeededSampler(dataset, 3, 2, rank, samples=24)) for rank in range(2)]
    assert [len(rank) for rank in ranks] == [12, 12] == [len(SeededSampler(dataset, 3, 2, 1, samples=24))] * 2
    assert [entry for pair in zip(*ranks, strict=True) for entry in pair] == single


@pytest.mark.parametrize("updates", [0, -1, 2.5])
def test_other_numbers_of_updates_are_errors(updates: float) -> None:
    with pytest.raises(ValueError, match="updates_per_epoch: expected a whole number from 1"):
        training_loader(PairDataset(_pairs(5), (12, 10)), 2, 0, updates_per_epoch=updates)


def test_crop_that_leaves_the_image_is_shifted_or_filled_with_zeros() -> None:
    pairs = _pairs(1)
    pairs[0]["centre"] = torch.tensor([1.0, 12.0])
    shifted, filled = (PairDataset(pairs, (12, 10), with_labels=True, crop_shift=shift)[0] for shift in (True, False))
    assert shifted["crop_start"].tolist() == [0, 8] and filled["crop_start"].tolist() == [-5, 7]
    assert (filled["moving_image"][:, :5] == 0).all() and (filled["moving_image"][:, 5:] > 0).all()


def test_batches_are_equal_with_workers_and_after_a_resume() -> None:
    dataset = PairDataset(_pairs(10), (12, 10), jitter=3)

    def epoch_of(epoch: int, workers: int, before: int = 0) -> list[torch.Tensor]:
        loader = training_loader(dataset, 4, seed=1, num_workers=workers)
        for earlier in range(before):
            loader.sampler.set_epoch(earlier)
            list(loader)
        loader.sampler.set_epoch(epoch)
        return [batch["moving_image"].clone() for batch in loader]

    expected = epoch_of(2, workers=0, before=2)
    assert [tuple(batch.shape) for batch in expected] == [(4, 1, 12, 10)] * 2
    state = torch.get_rng_state()
    for other in (epoch_of(2, workers=0), epoch_of(2, workers=2)):
        assert all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    batches = list(training_loader(PairDataset(_pairs(3), (12, 10)), 8, seed=0))
    assert [len(batch["moving_image"]) for batch in batches] == [3]


def test_evaluation_is_in_order_and_complete() -> None:
    dataset = PairDataset(_pairs(5), (12, 10), jitter=4, with_labels=True)
    batches = list(evaluation_loader(dataset, 2))
    assert [name for batch in batches for name in batch["subject"]] == [f"patient{i:03d}" for i in range(5)]
    assert torch.cat([batch["slice"] for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    first = batches[0]
    assert first["moving_label"].shape == (2, 1, 12, 10) and first["moving_label"].dtype == torch.uint8
    assert first["spacing"].shape == (2, 2) and first["spacing"].isnan().all()
    assert isinstance(first["group"], list) and first["crop_start"].tolist() == [[11, 10], [11, 10]]


def test_bad_data_is_an_error() -> None:
    with pytest.raises(ValueError, match="data: expected at least one pair"):
        PairDataset([], (12, 10))
    pairs = _pairs(2)
    pairs[0]["true_ddf"] = torch.zeros(2, 30, 26)
    with pytest.raises(ValueError, match=r"data\[1\]: expected the keys .*true_ddf"):
        PairDataset(pairs, (12, 10), with_labels=True)
    del pairs[1]["centre"]
    with pytest.raises(ValueError, match=r"data\[1\]: expected the keys .*centre"):
        PairDataset(pairs, (12, 10))


def _between(names: Sequence[str]) -> list[dict[str, Any]]:
    """Pairs of each subject with the next one as moving; labels are the subjects' numbers."""
    ramp, pairs = torch.arange(48.0).reshape(1, 8, 6) / 1000, []
    for index, fixed in enumerate(names):
        moving = (index + 1) % len(names)
        pairs.append(
            {
                "moving_image": ramp.clone(), "fixed_image": ramp.flip(1), "centre": torch.tensor([3.5, 2.5]),
                "moving_label": torch.full((1, 8, 6), moving), "fixed_label": torch.full((1, 8, 6), index),
                "subject": fixed, "case": f"{names[moving]}_to_{fixed}",
            }
        )  # fmt: skip
    return pairs


@pytest.mark.parametrize("lazily", [False, True])
def test_a_random_target_is_any_other_subject_and_changes_with_the_epoch(lazily: bool) -> None:
    data: Any = _between("abcd")
    if lazily:
        data = type(
            "Lazy", (Sequence,), {"__len__": lambda self: 4, "__getitem__": lambda self, i: _between("abcd")[i]}
        )()
    dataset = PairDataset(data, (8, 6), with_labels=True, random_target=True)
    loader = training_loader(dataset, 1, seed=0)
    drawn = []
    for epoch in range(40):
        loader.sampler.set_epoch(epoch)
        drawn.append([(int(b["moving_label"].max()), int(b["fixed_label"].max())) for b in loader])
        assert sorted(moving for moving, _ in drawn[-1]) == [0, 1, 2, 3]  # each moves once an epoch
    pairs = [pair for epoch in drawn for pair in epoch]
    counts = [pairs.count((a, b)) for a in range(4) for b in range(4)]
    assert [counts[5 * k] for k in range(4)] == [0] * 4 and min(c for k, c in enumerate(counts) if k % 5) >= 4
    loader.sampler.set_epoch(7)
    assert [(int(b["moving_label"].max()), int(b["fixed_label"].max())) for b in loader] == drawn[7]
    assert [int(dataset[index]["fixed_label"].max()) for index in range(4)] == [0, 1, 2, 3]  # evaluation as listed


def test_a_random_target_needs_pairs_of_subjects() -> None:
    with pytest.raises(ValueError, match="random_target: expected 'subject' and 'case' in the pairs, got the keys"):
        PairDataset(_pairs(2), (12, 10), random_target=True)
