# SPDX-License-Identifier: Apache-2.0
"""One suite over all data sets. It finds the modules itself: a new one is tested without a change here."""

from __future__ import annotations

import importlib
import json
import pkgutil
from functools import partial
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import common.data
from common.data.layout import DatasetLayoutError
from common.data.pairs import PairDataset, evaluation_loader, training_loader
from common.io.images import load_image
from common.spatial.warp import warp

FOUND = [importlib.import_module(f"common.data.{info.name}") for info in pkgutil.iter_modules(common.data.__path__)]
DATASETS = [module for module in FOUND if hasattr(module, "load_pairs")]
IMAGES, LABELS = ("moving_image", "fixed_image"), ("moving_label", "fixed_label")
FILES = (*IMAGES, *LABELS, "moving_mask", "fixed_mask", "true_ddf", "noise_level")
KEYS = {*FILES, "centre", "subject", "case", "slice", "spacing", "group"}
every_dataset = pytest.mark.parametrize("data", DATASETS, ids=lambda module: module.__name__.rpartition(".")[2])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A few small cases of each data set."""
    made = {}
    for data in DATASETS:
        made[data.__name__] = "phantom"
        if data.PHANTOM is not None:
            made[data.__name__] = tmp_path_factory.mktemp("phantom") / "data"
            data.PHANTOM.make(made[data.__name__], **data.PHANTOM.small)
    return made


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The validation pairs of each."""
    return {data.__name__: data.load_pairs(folders[data.__name__], "validation") for data in DATASETS}


def assert_same(pairs: Any, others: Any) -> None:
    assert len(pairs) == len(others) > 0
    for pair, other in zip(pairs, others, strict=True):
        assert pair.keys() == other.keys()
        for key, value in pair.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, other[key], rtol=0, atol=0, equal_nan=True, msg=key)
                assert type(value) is torch.Tensor
            else:
                assert value == other[key]


def test_data_sets_are_found() -> None:
    assert len(DATASETS) > 0


@every_dataset
def test_what_training_and_inference_need_has_the_same_names(data: ModuleType) -> None:
    assert {"train", "validation", "all"} <= set(data.SPLITS) <= {"train", "validation", "test", "all"}
    assert all(isinstance(name, str) and isinstance(value, int) and value > 0 for name, value in data.LABELS.items())
    assert len(set(data.LABELS.values())) == len(data.LABELS)
    axes = [next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair) for letter in data.ORIENTATION]
    assert sorted(axes) == [0, 1, 2]
    assert data.SPACING is None or (len(data.SPACING) in (2, 3) and min(data.SPACING) > 0)
    assert data.SPACING_RANGE is None or 0 < data.SPACING_RANGE[0] < data.SPACING_RANGE[1]
    assert data.LAYOUT and "Reference:" in data.__doc__
    for name in ("subjects", "datalist", "load_pairs"):
        assert list(signature(getattr(data, name)).parameters)[:2] == ["dataset_dir", "split"]
    for name in ("root", "example_pair"):
        first, *others = signature(getattr(data, name)).parameters.values()
        assert first.name == "dataset_dir" and all(other.default is not other.empty for other in others)


@every_dataset
def test_subjects_are_sorted_and_every_one_is_in_one_split(data: ModuleType, folders: dict[str, Any]) -> None:
    splits = {split: data.subjects(folders[data.__name__], split) for split in data.SPLITS}
    every = splits.pop("all")
    assert every == data.subjects(folders[data.__name__]) == sorted(set(every))
    assert sorted(name for names in splits.values() for name in names) == every
    for split, names in splits.items():
        assert names and names == sorted(names)
        assert {data.split_of(name) for name in names} == {split}
    with pytest.raises(ValueError, match="subject: expected a name like"):
        data.split_of("no subject")


@every_dataset
def test_the_list_of_a_split_is_json_and_names_files_or_says_what_is_generated(
    data: ModuleType, folders: dict[str, Any]
) -> None:
    for split in data.SPLITS:
        entries = data.datalist(folders[data.__name__], split)
        assert entries and json.loads(json.dumps(entries)) == entries
        fixed, names = {entry["subject"] for entry in entries}, set(data.subjects(folders[data.__name__], split))
        paired = {name for entry in entries for name in entry.get("case", "").split("_to_")}
        assert fixed <= names <= fixed | paired  # a subject may be moving alone
        for entry in entries:
            files = [entry[key] for key in FILES if key in entry]
            assert "generated" in entry or (set(IMAGES) <= entry.keys() and all(Path(file).is_file() for file in files))


@every_dataset
def test_pairs_have_the_documented_entries(data: ModuleType, loaded: dict[str, Any]) -> None:
    pairs = loaded[data.__name__]
    assert isinstance(pairs, list)
    for pair in pairs:
        assert pair.keys() == pairs[0].keys() <= KEYS and {*IMAGES, "centre", "subject", "spacing"} <= pair.keys()
        shape, d = pair["fixed_image"].shape, pair["fixed_image"].ndim - 1
        for key in (name for name in FILES if name in pair):
            assert pair[key].shape == ((d if key == "true_ddf" else 1), *shape[1:]) and pair[key].is_contiguous()
            real = key in (*IMAGES, "true_ddf", "noise_level")
            assert pair[key].dtype == (torch.float32 if real else torch.uint8)
        assert pair["centre"].shape == pair["spacing"].shape == (d,)
        assert pair["centre"].dtype == pair["spacing"].dtype == torch.float32
        assert all(0 <= c <= n - 1 for c, n in zip(pair["centre"].tolist(), shape[1:], strict=True))
        assert all(pair[key].isfinite().all() for key in IMAGES)
    for key in (name for name in LABELS if name in pairs[0]):
        assert {value for pair in pairs for value in pair[key].unique().tolist()} == {0, *data.LABELS.values()}
    names = [(pair.get("case", pair["subject"]), pair.get("slice")) for pair in pairs]
    assert len(set(names)) == len(names)


@every_dataset
def test_known_spacing_is_that_of_the_data_set(data: ModuleType, loaded: dict[str, Any]) -> None:
    spacing = torch.stack([pair["spacing"] for pair in loaded[data.__name__]])
    if data.INFERENCE.get("resize"):
        assert ((spacing > 0) | spacing.isnan()).all()  # each image has its own, pictures none
        return
    if data.SPACING is None:
        assert spacing.isnan().all()
        return
    assert spacing.shape[1] == len(data.SPACING)
    low, high = data.SPACING_RANGE or (0.99 * min(data.SPACING), 1.01 * max(data.SPACING))
    assert ((low <= spacing) & (spacing <= high) | spacing.isnan()).all()


@every_dataset
def test_pairs_come_in_the_order_of_the_list_and_are_the_same_again(
    data: ModuleType, folders: dict[str, Any], loaded: dict[str, Any]
) -> None:
    torch.manual_seed(3)
    assert_same(data.load_pairs(folders[data.__name__], "validation"), loaded[data.__name__])
    entries = data.datalist(folders[data.__name__], "validation")
    for entry, pair in zip(entries, loaded[data.__name__], strict=True):
        assert all(entry[key] == pair[key] for key in ("subject", "case", "slice", "group") if key in pair)


@every_dataset
def test_a_folder_of_decoded_files_gives_the_same_pairs_twice(
    data: ModuleType, folders: dict[str, Any], loaded: dict[str, Any], tmp_path: Path
) -> None:
    if data.PHANTOM is None:
        pytest.skip("generated, not decoded")
    for _ in range(2):
        pairs = data.load_pairs(folders[data.__name__], "validation", cache=tmp_path / "cache")
        assert not isinstance(pairs, list)
        assert_same(pairs, loaded[data.__name__])
    size = [16] * loaded[data.__name__][0]["centre"].numel()
    for item in (0, (0, 5)):
        lazy, eager = (PairDataset(p, size, jitter=3, with_labels=True)[item] for p in (pairs, loaded[data.__name__]))
        assert_same([lazy], [eager])


@every_dataset
def test_pairs_make_batches_for_training_and_evaluation(data: ModuleType, loaded: dict[str, Any]) -> None:
    pairs = loaded[data.__name__]
    size, labels = [16] * pairs[0]["centre"].numel(), "moving_label" in pairs[0]
    dataset = PairDataset(pairs, size, jitter=2, with_labels=labels)
    batch = next(iter(training_loader(dataset, 2, seed=0)))
    assert batch["moving_image"].shape == (2, 1, *size) and (not labels or batch["fixed_label"].shape == (2, 1, *size))
    batches = list(evaluation_loader(dataset, 3))
    assert [name for batch in batches for name in batch["subject"]] == [pair["subject"] for pair in pairs]
    assert all(batch["fixed_image"].min() >= 0 and batch["fixed_image"].max() <= 1 for batch in batches)


@every_dataset
def test_the_true_displacement_of_a_phantom_brings_the_labels_together(
    data: ModuleType, loaded: dict[str, Any]
) -> None:
    pairs = [pair for pair in loaded[data.__name__] if "true_ddf" in pair]
    if not pairs:
        pytest.skip("no true displacement")
    overlap = {}
    for name in ("before", "after"):
        common_voxels, voxels = 0, 0
        for pair in pairs:
            moving, fixed = pair["moving_label"] > 0, pair["fixed_label"] > 0
            if name == "after":
                moving = warp(moving.float()[None], pair["true_ddf"][None])[0] >= 0.5
            common_voxels += int((moving & fixed).sum())
            voxels += int(moving.sum() + fixed.sum())
        overlap[name] = 2 * common_voxels / voxels
    assert overlap["after"] > overlap["before"] + 0.05


@every_dataset
def test_the_example_is_two_images(data: ModuleType, folders: dict[str, Any]) -> None:
    moving, fixed = data.example_pair(folders[data.__name__])
    assert isinstance(moving, Path) and moving != fixed
    assert load_image(moving).array.dim() == load_image(fixed).array.dim()


@every_dataset
def test_an_unknown_split_names_the_nearest(data: ModuleType, folders: dict[str, Any]) -> None:
    for function in (data.subjects, data.datalist, data.load_pairs):
        with pytest.raises(ValueError, match="split: expected one of .*got 'valdation'. Did you mean 'validation'"):
            function(folders[data.__name__], "valdation")


@every_dataset
def test_a_folder_that_is_missing_or_empty_says_what_belongs_there(data: ModuleType, tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        for function in (data.subjects, data.datalist, data.load_pairs, data.example_pair):
            with pytest.raises(DatasetLayoutError, match="dataset_dir: ") as error:
                function(folder)
            assert data.LAYOUT in str(error.value)
    with pytest.raises(DatasetLayoutError, match="dataset_dir: ") as error:
        data.root(tmp_path / "absent")
    assert data.LAYOUT in str(error.value)


@every_dataset
def test_the_word_phantom_stands_for_synthetic_data_and_is_said(
    data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if data.PHANTOM is None:
        assert str(data.root("phantom")) == "phantom" and data.subjects("phantom")
        return

    small = partial(data.PHANTOM.make, **data.PHANTOM.small)
    monkeypatch.setenv("REGISTRATION_BUNDLES_CACHE", str(tmp_path))
    monkeypatch.setattr(data, "PHANTOM", data.PHANTOM._replace(make=small))
    folder = data.root("phantom")
    assert "SYNTHETIC DATA" in caplog.text and folder.is_relative_to(tmp_path)
    assert data.subjects("phantom") == data.subjects(folder)
    assert data.datalist("phantom", "validation") == data.datalist(folder, "validation")
    assert data.example_pair("phantom") == data.example_pair(folder)
