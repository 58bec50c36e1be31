# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from common.data.decoded import DecodedPairs
from common.data.layout import DatasetLayoutError, Invalid
from common.data.pairs import PairDataset, training_loader

READ: list[str] = []


def read(part: Mapping[str, Any]) -> dict[str, Any]:
    """A volume of the number that stands in its file."""
    path = Path(part["file"])
    READ.append(path.name)
    number = path.read_text()
    if not number.isdigit():
        raise DatasetLayoutError(f"{path.name}: expected a number, got {number!r}.")
    return {"image": torch.arange(30.0).reshape(1, 6, 5) * float(number) + part["offset"], "label": torch.ones(1, 6, 5)}


def join(entry: Mapping[str, Any], moving: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    images = {"moving_image": moving["image"], "fixed_image": fixed["image"], "fixed_label": fixed["label"]}
    return images | {"centre": torch.tensor([3.0, 2.0]), "subject": entry["subject"]}


@pytest.fixture
def datalist(tmp_path: Path) -> list[dict[str, str]]:
    """Three files, of which every ordered pair is one."""
    READ.clear()
    for number in (1, 2, 3):
        (tmp_path / f"{number}.txt").write_text(str(number))
    pairs = [(m, f) for m in (1, 2, 3) for f in (1, 2, 3) if m != f]
    return [
        {"moving": str(tmp_path / f"{m}.txt"), "fixed": str(tmp_path / f"{f}.txt"), "subject": str(f)} for m, f in pairs
    ]


def decoded(datalist: list[dict[str, str]], cache: str | Path = "memory", offset: float = 0.0, **options: Any) -> Any:
    def parts(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"file": entry[role], "offset": offset} for role in ("moving", "fixed")]

    return DecodedPairs(datalist, parts, read, join, cache, **options)


def assert_same(pairs: Any, others: Any) -> None:
    assert len(pairs) == len(others)
    for pair, other in zip(pairs, others, strict=True):
        assert pair.keys() == other.keys() and pair["subject"] == other["subject"]
        for key in ("moving_image", "fixed_image", "fixed_label", "centre"):
            assert torch.equal(pair[key], other[key]) and pair[key].dtype == other[key].dtype
            assert type(pair[key]) is torch.Tensor


def test_a_file_is_decoded_once_in_memory_at_the_start_and_shared(datalist: list[dict[str, str]]) -> None:
    pairs = decoded(datalist)
    assert sorted(READ) == ["1.txt", "2.txt", "3.txt"]
    assert len({pair["fixed_image"].data_ptr() for pair in pairs}) == 3
    assert [pair["subject"] for pair in pairs[1:3]] == [datalist[1]["subject"], datalist[2]["subject"]]
    assert len(READ) == 3
    with pytest.raises(IndexError):
        pairs[6]


def test_a_folder_is_filled_when_a_file_is_first_asked_for_and_used_again(
    datalist: list[dict[str, str]], tmp_path: Path
) -> None:
    expected = list(decoded(datalist))
    READ.clear()
    pairs = decoded(datalist, tmp_path / "cache")
    assert not READ
    pairs[0]
    assert sorted(READ) == ["1.txt", "2.txt"]
    assert_same(pairs, expected)
    assert sorted(READ) == ["1.txt", "2.txt", "3.txt"] and len(list((tmp_path / "cache").iterdir())) == 3
    assert_same(decoded(datalist, str(tmp_path / "cache")), expected)
    assert len(READ) == 3


def test_other_options_and_changed_files_are_decoded_anew(datalist: list[dict[str, str]], tmp_path: Path) -> None:
    list(decoded(datalist, tmp_path / "cache"))
    moved = decoded(datalist, tmp_path / "cache", offset=5.0)[0]
    assert moved["moving_image"].min() == 5 and len(READ) == 5
    (tmp_path / "1.txt").write_text("7")
    os.utime(tmp_path / "1.txt", ns=(1, 1))
    changed = decoded(datalist, tmp_path / "cache")[0]
    assert changed["moving_image"].max() == 7 * 29 and READ[5:] == ["1.txt"]


def test_items_of_a_dataset_are_equal_from_memory_and_from_a_folder_in_other_processes(
    datalist: list[dict[str, str]], tmp_path: Path
) -> None:
    batches = []
    for pairs, workers in ((list(decoded(datalist)), 0), (decoded(datalist, tmp_path / "cache"), 2)):
        loader: DataLoader = training_loader(PairDataset(pairs, (4, 3), jitter=1), 2, seed=3, num_workers=workers)
        batches.append([batch["moving_image"] for batch in loader])
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True)) and len(batches[0]) == 3


@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_a_cached_file_that_was_cut_short_is_written_anew(
    kept: float, datalist: list[dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = list(decoded(datalist, tmp_path / "cache"))
    for file in (tmp_path / "cache").iterdir():
        raw = file.read_bytes()
        file.write_bytes(raw[: kept if isinstance(kept, int) else int(kept * len(raw))])
    READ.clear()
    assert_same(decoded(datalist, tmp_path / "cache"), expected)
    assert len(READ) == 3
    assert_same(decoded(datalist, tmp_path / "cache"), expected)
    assert len(READ) == 3


@pytest.mark.parametrize("folder", [False, True])
def test_a_file_that_is_not_as_published_says_so_in_its_own_words(
    folder: bool, datalist: list[dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "2.txt").write_text("two")
    cache = tmp_path / "cache" if folder else "memory"
    with pytest.raises(DatasetLayoutError, match="^2.txt: expected a number, got 'two'.$"):
        decoded(datalist, cache)[0]


@pytest.mark.parametrize("folder", [False, True])
def test_subjects_that_cannot_be_decoded_are_left_out(
    folder: bool, datalist: list[dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "2.txt").write_text("two")
    datalist = [entry for entry in datalist if entry["moving"] != str(tmp_path / "2.txt")]
    pairs, invalid = decoded(datalist, tmp_path / "cache" if folder else "memory", lazily=True), Invalid(skip=True)
    with caplog.at_level(logging.WARNING):
        pairs.drop(invalid)
        invalid.report("train", tmp_path, len(pairs))
    assert invalid.subjects == ["2"] and {pair["subject"] for pair in pairs} == {"1", "3"}
    assert "skipping 2: 2.txt: expected a number" in caplog.text and "skipped 1 invalid subject(s)" in caplog.text
    with pytest.raises(DatasetLayoutError, match=r"split 'train': no valid subject is left in .*; skipped \['2'\]"):
        invalid.report("train", tmp_path, 0)
