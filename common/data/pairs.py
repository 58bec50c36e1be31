# SPDX-License-Identifier: Apache-2.0
"""Pairs -> batches: crop, normalise, and an order that is a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from monai.transforms import Randomizable
from monai.utils import convert_to_tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data.distributed import DistributedSampler

from ..transforms.crop import ALONG, CropToCentred
from ..transforms.intensity import min_max, offset_and_scale

IMAGES = ("moving_image", "fixed_image")
LABELS = ("moving_label", "fixed_label")
MASKS = ("moving_mask", "fixed_mask")
POINTS = ("moving_points", "fixed_points")  # voxels, (N, d)
ORIGINALS = ("moving_label_original", "fixed_label_original")  # each of its case's own size
DETAILS = ("subject", "case", "slice", "spacing", "group", *ALONG, *POINTS, "spacing_original", *ORIGINALS)


class PairDataset(Dataset):
    """Image pairs cropped to one size and then scaled to [0, 1], each image over its crop.

    Items that are asked for with a draw seed (see ``SeededSampler``) are for training: jittered, augmented, and they
    hold the images, labels where asked for, and masks where there are any. Items that are asked for by their index are
    for evaluation: as they are, and they hold besides ``crop_start`` ``(d,)`` and what there is of ``DETAILS``, where
    ``noise_level`` is divided as the fixed image is: it is that of an image in [0, 1].

    Args:
        data: a dict a pair, as the data sets' ``load_pairs`` returns: ``moving_image``, ``fixed_image`` ``(C, *S)``,
            ``centre`` ``(d,)`` in voxels, and where there are any ``moving_label``, ``fixed_label``, ``moving_mask``,
            ``fixed_mask`` ``(1, *S)``, ``DETAILS``. Shapes may differ between pairs, keys may not. A list is looked
            through at once; of other sequences, whose pairs are decoded when asked for, the first pair.
        spatial_size: crop in voxels, one number an axis.
        jitter: largest random shift of the crop in voxels along each axis, in training.
        with_labels: items hold the labels, which are cropped and augmented with their images.
        random_target: in training, register each pair's moving image to the fixed image of a pair drawn at random, anew
            in each epoch, of another subject than the moving one; pairs need ``subject``, the fixed one, and ``case``,
            'MOVING_to_FIXED'.
        crop_shift: move a crop that would leave the image inside it; False fills it with 0, as the published AdaCS
            preprocessing does (see ``transforms.crop.crop_window``).
        augmentation: random transform of a dictionary of images and, where items have them, labels and masks, all
            ``(C, *spatial_size)``, before images are scaled, in training. It moves labels and masks as their image, as
            ``transforms.augment.random_affine`` does; they get their type back.

    Raises:
        ValueError: for no pairs, labels that are asked for where there are none, or pairs of different keys.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        spatial_size: Sequence[int],
        jitter: int = 0,
        with_labels: bool = False,
        augmentation: Randomizable | None = None,
        crop_shift: bool = True,
        random_target: bool = False,
    ) -> None:
        if not len(data):
            raise ValueError("data: expected at least one pair, got none; check dataset_dir and split.")
        known = data if isinstance(data, list) else [data[0]]
        present = {key for pair in known for key in pair}
        if with_labels and not present.intersection(LABELS):
            raise ValueError(
                f"with_labels: expected {' and '.join(LABELS)} in the pairs, got the keys {sorted(present)}: these "
                "data have no labels. Leave with_labels out, and every term and measure of labels."
            )
        self._training = IMAGES + (LABELS if with_labels else ()) + (MASKS if present.intersection(MASKS) else ())
        self._details = tuple(key for key in DETAILS if key in present)
        self.data, self.augmentation, self.random_target = data, augmentation, bool(random_target)
        if self.random_target and not {"subject", "case"} <= present:
            raise ValueError(
                f"random_target: expected 'subject' and 'case' in the pairs, got the keys {sorted(present)}; leave "
                "random_target out where the data are no pairs of different subjects."
            )
        self.crop = CropToCentred(self._training, spatial_size, jitter=jitter, shift=crop_shift)
        for index, pair in enumerate(known):
            self._check(index, pair)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        """Return a pair for evaluation, by its index, or for training, by (index, draw seed)."""
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int | tuple[int, int]]) -> list[dict[str, Any]]:
        """Return the pairs of a batch; torch's loader asks for them at once, and they are normalised at once."""
        pairs = [self._drawn(*item) if isinstance(item, tuple) else self._exact(item) for item in items]
        for pair in (pair for pair in pairs if "noise_level" in pair):
            pair["noise_level"] = pair["noise_level"] / offset_and_scale(pair["fixed_image"])[1]
        for key in IMAGES:
            for pair, image in zip(pairs, min_max(torch.stack([p[key] for p in pairs]), batched=True), strict=True):
                pair[key] = image
        return pairs

    def _exact(self, index: int) -> dict[str, Any]:
        pair = self._checked(index)
        moved = (*self._training, "centre", *(key for key in ALONG if key in self._details))
        cropped: Any = self.crop({key: pair[key] for key in moved})
        cropped = {key: pair[key] for key in self._details} | cropped
        cropped |= {key: cropped[key] - cropped["crop_start"] for key in POINTS if key in cropped}
        return {key: cropped[key] for key in (*self._training, *self._details, "crop_start")}

    def _drawn(self, index: int, draw_seed: int) -> dict[str, Any]:
        pair = self._checked(index)
        if self.random_target:
            pair = pair | self._target(pair["case"].partition("_to_")[0], draw_seed)
        generator = torch.Generator().manual_seed(draw_seed) if self.crop.jitter else None
        cropped: Any = self.crop({key: pair[key] for key in (*self._training, "centre")}, generator)
        parts = {key: cropped[key] for key in self._training}
        if self.augmentation is None:
            return parts
        self.augmentation.set_random_state(seed=draw_seed % 2**32)
        moved = self.augmentation(dict(parts))  # type: ignore[operator]
        return {key: convert_to_tensor(moved[key], track_meta=False, dtype=parts[key].dtype) for key in self._training}

    def _target(self, moving: str, draw_seed: int) -> dict[str, Any]:
        """What a pair drawn at random has of its fixed subject, which is not ``moving``."""
        generator = np.random.default_rng(draw_seed)
        while True:  # at the latest until the pair whose moving image that is
            other = self._checked(int(generator.integers(len(self.data))))
            if other["subject"] != moving:
                return {key: other[key] for key in ("centre", *self._training) if not key.startswith("moving")}

    def _checked(self, index: int) -> dict[str, Any]:
        pair = self.data[index]
        if not isinstance(self.data, list):
            self._check(index, pair)
        return pair

    def _check(self, index: int, pair: dict[str, Any]) -> None:
        needed = {*self._training, *self._details, "centre"}
        if not needed <= pair.keys():
            raise ValueError(
                f"data[{index}]: expected the keys {sorted(needed)} in every pair, got {sorted(pair)}; give all "
                "pairs the same keys."
            )


class SeededSampler(DistributedSampler):
    """Shuffled ``(index, draw_seed)``, a function of (seed, epoch) alone, in one process or many.

    Rank r of w takes every w-th entry from the r-th of one common order, so that a step of w ranks with batch b holds
    the samples of a step of one process with batch w b. ``draw_seed`` depends on (seed, epoch, index): not on workers,
    ranks or what ran before. Call ``set_epoch`` before each epoch.

    Args:
        dataset: what is sampled.
        seed: of order and draws, >= 0.
        num_replicas: processes; default: those of torch.distributed, 1 where it is not initialised.
        rank: this process; default likewise, 0.
        drop_last: leave the last ``len(dataset) % num_replicas`` entries of the order out; otherwise the order's
            beginning is repeated until all ranks have the same number.
        samples: entries of an epoch of all ranks together, drawn with replacement; None takes every pair once.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        samples: int | None = None,
    ) -> None:
        ready = dist.is_available() and dist.is_initialized()
        if num_replicas is None:
            num_replicas = dist.get_world_size() if ready else 1
        if rank is None:
            rank = dist.get_rank() if ready else 0
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed, drop_last=drop_last)
        self.samples = samples
        if samples is not None:
            self.num_samples = samples // self.num_replicas
            self.total_size = self.num_samples * self.num_replicas

    def __iter__(self) -> Iterator[tuple[int, int]]:
        count = len(self.dataset)  # type: ignore[arg-type]  # Dataset declares no length
        # The base class seeds with seed + epoch, where (0, 1) and (1, 0) coincide.
        state = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        mine = range(self.rank, self.total_size, self.num_replicas)
        if self.samples is not None:
            drawn = torch.randint(count, (self.samples,), generator=generator).tolist()
            seeds = torch.randint(2**62, (self.samples,), generator=generator).tolist()
            return iter([(drawn[i], seeds[i]) for i in mine])
        draws = torch.randint(2**62, (count,), generator=generator).tolist()
        order = torch.randperm(count, generator=generator).tolist()
        return iter([(order[i % count], draws[order[i % count]]) for i in mine])


def training_loader(
    dataset: PairDataset, batch_size: int, seed: int, num_workers: int = 0, updates_per_epoch: int | None = None
) -> DataLoader:
    """Batches for training, in an order that is a function of (seed, epoch): call ``loader.sampler.set_epoch``.

    The last incomplete batch is left out, unless the set is smaller than one batch of all processes together: that one
    smaller batch is kept then. The global random state is not touched.

    Args:
        dataset: of the training pairs.
        batch_size: pairs a process and step.
        seed: of order and jitter.
        num_workers: processes that prepare batches; 0 prepares them in this one, which is usually fast enough.
        updates_per_epoch: batches of an epoch, whose pairs are drawn at random with replacement; None takes every pair
            once an epoch.

    Returns:
        The loader.

    Raises:
        ValueError: for less than one update.
    """
    if updates_per_epoch is not None and not (int(updates_per_epoch) == updates_per_epoch >= 1):
        raise ValueError(
            f"updates_per_epoch: expected a whole number from 1, or null for one pass over all pairs, got "
            f"{updates_per_epoch!r}."
        )
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    samples = None if updates_per_epoch is None else int(updates_per_epoch) * batch_size * world
    drop_last = samples is not None or len(dataset) >= batch_size * world
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=SeededSampler(dataset, seed, drop_last=drop_last, samples=samples),
        num_workers=num_workers,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )


def evaluation_loader(dataset: PairDataset, batch_size: int, num_workers: int = 0) -> DataLoader:
    """All pairs once, in order, not sharded over processes.

    Tensors and numbers are stacked, strings stay lists, and so do labels at their original size (``ORIGINALS``), whose
    shapes differ; ``spacing`` ``(B, d)`` is NaN where unknown. Cases of fewer landmarks are filled up with NaN.

    Args:
        dataset: of the pairs.
        batch_size: pairs at a time.
        num_workers: see ``training_loader``.

    Returns:
        The loader.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
        collate_fn=_batch,
    )


def _batch(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    apart = {key: [pair.pop(key) for pair in pairs] for key in (*ORIGINALS, *POINTS) if key in pairs[0]}
    points = {key: pad_sequence(apart.pop(key), True, torch.nan) for key in POINTS if key in apart}
    return default_collate(pairs) | apart | points
