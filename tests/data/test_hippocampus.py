# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from common.data.hippocampus import datalist, example_pair, image_files, load_pairs, split_of, subjects
from common.data.layout import DatasetLayoutError
from common.data.pairs import PairDataset

SIZE = (12, 14, 11)


def _save(folder: Path, number: int, image: np.ndarray, label: np.ndarray, spacing: float = 1.0) -> None:
    for part, values in (("imagesTr", image), ("labelsTr", label)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        affine = np.diag([spacing, spacing, spacing, 1.0])
        nibabel.save(nibabel.Nifti1Image(values, affine), folder / part / f"hippocampus_{number:03d}.nii.gz")


def _subject(folder: Path, number: int, shape: tuple[int, int, int] = (9, 12, 10), spacing: float = 1.0) -> None:
    """An image of noise, and labels: a box symmetric about the middle, its halves 1 and 2."""
    image = np.random.default_rng(number).normal(50, 10, shape).astype(np.float32)
    label = np.zeros(shape, np.uint8)
    x, y, z = (slice((n - 1) // 2 - 1, n // 2 + 2) for n in shape)
    label[x, y, z] = 2
    label[x, shape[1] // 2 : y.stop, z] = 1
    _save(folder, number, image, label, spacing)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven subjects, 4 and 19 for validation."""
    for number in (1, 3, 4, 17, 19, 20, 101):
        _subject(tmp_path, number)
    return tmp_path


def _names(*numbers: int) -> list[str]:
    return [f"hippocampus_{number:03d}" for number in numbers]


@pytest.mark.parametrize("parent", [".", "Task04_Hippocampus"])
def test_splits_go_by_the_last_digit(tmp_path: Path, parent: str) -> None:
    for number in (20, 4, 3, 19):
        _subject(tmp_path / parent, number)
    (tmp_path / parent / "imagesTr" / "._hippocampus_005.nii.gz").touch()  # what macOS leaves in archives
    assert subjects(tmp_path) == _names(3, 4, 19, 20)
    assert subjects(tmp_path, "train") == _names(3, 20)
    assert subjects(tmp_path, "validation") == _names(4, 19)
    moving, fixed = image_files(tmp_path, "hippocampus_019", "hippocampus_003")
    assert moving == tmp_path / parent / "imagesTr" / "hippocampus_019.nii.gz" and moving.is_file()
    assert fixed == tmp_path / parent / "imagesTr" / "hippocampus_003.nii.gz" and fixed.is_file()


def test_subjects_that_are_not_there_are_errors(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"split: expected one of .*validation.*got 'test'"):
        subjects(folder, "test")
    with pytest.raises(DatasetLayoutError, match="no folder imagesTr in .*Medical Segmentation Decathlon"):
        subjects(folder / "imagesTr")
    with pytest.raises(DatasetLayoutError, match=r"\['hippocampus_002'\] is not among them"):
        image_files(folder, "hippocampus_001", "hippocampus_002")
    for number in (4, 19):
        (folder / "imagesTr" / f"hippocampus_{number:03d}.nii.gz").unlink()
    with pytest.raises(DatasetLayoutError, match="no subject of 'validation' among the 5"):
        subjects(folder, "validation")


def test_the_example_is_the_first_two_subjects_for_validation(folder: Path) -> None:
    assert example_pair(folder) == image_files(folder, "hippocampus_004", "hippocampus_019")
    with pytest.raises(ValueError, match="subject: expected a name like 'hippocampus_001', got 'patient001'"):
        split_of("patient001")


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_a_list_of_pairs_names_subjects_in_several_ways(folder: Path, start: str) -> None:
    path = folder / "pairs.csv"
    rows = "hippocampus_004,1\n./imagesTr/hippocampus_017.nii.gz, 004\n101,hippocampus_004.nii\n"
    path.write_text(f"{start}fixed,moving\n{rows}", encoding="utf-8")
    cases = [entry["case"] for entry in datalist(folder, "train", pairs=path)]
    expected = [(1, 4), (4, 17), (4, 101)]
    assert cases == ["{}_to_{}".format(*_names(*pair)) for pair in expected]


def test_pairs_have_the_promised_entries_and_share_their_volumes(folder: Path) -> None:
    pairs = load_pairs(folder, "all", SIZE, partners=2)
    assert len(pairs) == 14
    for pair in pairs:
        for key in ("moving_image", "fixed_image", "moving_label", "fixed_label"):
            assert pair[key].shape == (1, *SIZE)
            assert pair[key].dtype == (torch.float32 if key.endswith("image") else torch.uint8)
        assert torch.equal(pair["centre"], torch.tensor([5.5, 6.5, 5.0]))
        assert torch.equal(pair["spacing"], torch.ones(3))
        assert pair["case"].endswith(f"_to_{pair['subject']}")
    assert pairs[0]["case"] == "hippocampus_020_to_hippocampus_001"
    for kind in ("image", "label"):
        pointers = {pair[f"{role}_{kind}"].data_ptr() for pair in pairs for role in ("moving", "fixed")}
        assert len(pointers) == 7


def test_only_the_subjects_of_the_split_or_list_are_read(folder: Path) -> None:
    assert [pair["case"] for pair in load_pairs(folder, "validation", SIZE)] == [
        "hippocampus_019_to_hippocampus_004",
        "hippocampus_004_to_hippocampus_019",
    ]
    (folder / "pairs.csv").write_text("moving,fixed\n1,4\n")
    for number in (3, 17, 19, 20, 101):
        (folder / "labelsTr" / f"hippocampus_{number:03d}.nii.gz").unlink()
    pairs = load_pairs(folder, "train", SIZE, pairs=folder / "pairs.csv")
    assert [pair["case"] for pair in pairs] == ["hippocampus_001_to_hippocampus_004"]


def test_another_spacing_is_brought_to_that_of_the_data_set(tmp_path: Path) -> None:
    """The same subject at 2 mm: its labels cover nearly the same of the working grid."""
    fine, size = np.indices((24, 28, 20)).astype(np.float32), (26, 30, 22)
    image = np.sin(fine / 4).sum(0).astype(np.float32)
    label = (np.abs(fine - np.array([11.5, 13.5, 9.5])[:, None, None, None]) < 6).all(0).astype(np.uint8)
    _save(tmp_path, 1, image, label)
    _save(tmp_path, 2, image[::2, ::2, ::2], label[::2, ::2, ::2], spacing=2.0)
    by_subject = {pair["subject"]: pair for pair in load_pairs(tmp_path, "train", size, percentiles=None)}
    own, coarse = by_subject["hippocampus_001"], by_subject["hippocampus_002"]
    assert coarse["spacing"].tolist() == own["spacing"].tolist() == [1.0] * 3
    both = (own["fixed_label"] * coarse["fixed_label"]).sum()
    assert 2 * both / (own["fixed_label"].sum() + coarse["fixed_label"].sum()) > 0.85
    inside = (slice(None), slice(4, -4), slice(4, -4), slice(4, -4))
    assert np.corrcoef(own["fixed_image"][inside].ravel(), coarse["fixed_image"][inside].ravel())[0, 1] > 0.9


@pytest.mark.parametrize("size", [(12, 14, 10), (13, 15, 11), (8, 9, 8), (9, 10, 13)])
def test_centres_are_aligned_to_half_a_voxel(tmp_path: Path, size: tuple[int, int, int]) -> None:
    shapes = {1: (9, 12, 10), 2: (10, 11, 13), 3: (15, 16, 9)}
    for number, shape in shapes.items():
        _subject(tmp_path, number, shape)
    for pair in load_pairs(tmp_path, "train", size):
        inside = torch.nonzero(pair["fixed_label"][0]).double().mean(0)
        assert (inside - pair["centre"]).abs().max() <= 0.5
        odd = [(n - s) % 2 for n, s in zip(shapes[int(pair["subject"][-1])], size, strict=True)]
        assert torch.equal((inside - pair["centre"]).abs(), torch.tensor(odd) / 2)


def test_a_padded_volume_is_whole_and_a_larger_one_is_cut_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pair = load_pairs(folder, "train", SIZE)[0]
    assert not caplog.records
    stored = np.asarray(nibabel.load(folder / "labelsTr" / "hippocampus_001.nii.gz").dataobj)
    assert np.array_equal(pair["fixed_label"][0, 1:10, 1:13, :10].numpy(), stored)
    assert pair["fixed_label"].sum() == stored.sum()
    border = pair["fixed_image"].clone()
    border[:, 1:10, 1:13, :10] = border.min()
    assert (border == pair["fixed_image"].min()).all()  # the image is padded with its smallest value
    _subject(folder, 3, (9, 18, 10))
    with caplog.at_level(logging.WARNING):
        by_subject = {pair["subject"]: pair for pair in load_pairs(folder, "train", SIZE)}
    assert "hippocampus_003, [9, 18, 10] voxels, is larger than spatial_size [12, 14, 11]" in caplog.text
    assert len(caplog.records) == 1
    stored = np.asarray(nibabel.load(folder / "labelsTr" / "hippocampus_003.nii.gz").dataobj)
    assert np.array_equal(by_subject["hippocampus_003"]["fixed_label"][0, 1:10, :, :10].numpy(), stored[:, 2:16])


def test_extreme_voxels_are_clipped_to_the_percentiles_of_the_whole_volume(tmp_path: Path) -> None:
    shape = (9, 18, 10)  # larger than the grid: its cut border counts too
    image = np.random.default_rng(0).normal(50, 10, shape).astype(np.float32)
    image[4, 9, 5], image[3, 9, 5] = 5000, -5000
    for number in (1, 2):
        _save(tmp_path, number, image, np.ones(shape, np.uint8))
    low, high = np.percentile(image, [1, 99])
    loaded = load_pairs(tmp_path, "train", SIZE)[0]["fixed_image"]
    assert loaded.max().item() == pytest.approx(high, rel=1e-6)
    assert loaded.min().item() == pytest.approx(low, rel=1e-6)
    assert np.allclose(loaded[0, 1:10, :, :10].numpy(), np.clip(image, low, high)[:, 2:16], rtol=1e-6)


def test_missing_and_unfitting_labels_are_errors(folder: Path) -> None:
    label_file = folder / "labelsTr" / "hippocampus_017.nii.gz"
    _save(folder, 17, np.random.default_rng(0).random((9, 12, 10), np.float32), np.ones((9, 12, 11), np.uint8))
    with pytest.raises(DatasetLayoutError, match=r"hippocampus_017: expected labels of .*\(9, 12, 11\).*\(9, 12, 10\)"):
        load_pairs(folder, "train", SIZE)
    label_file.unlink()
    with pytest.raises(DatasetLayoutError, match=r"hippocampus_017: there is .*imagesTr.* but no labels .*labelsTr"):
        load_pairs(folder, "train", SIZE)
    assert len(load_pairs(folder, "validation", SIZE)) == 2
    shutil.rmtree(folder / "labelsTr")
    with pytest.raises(DatasetLayoutError, match="no labels"):
        load_pairs(folder, "validation", SIZE)


def test_a_flat_file_is_an_error(folder: Path) -> None:
    _save(folder, 17, np.random.default_rng(0).random((9, 12), np.float32), np.ones((9, 12), np.uint8))
    with pytest.raises(DatasetLayoutError, match=r"hippocampus_017: expected .* one shape \(X, Y, Z\), got \(9, 12\)"):
        load_pairs(folder, "train", SIZE)


def test_bad_arguments_are_errors(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"spatial_size: expected three numbers.* got \[12, 14\]"):
        load_pairs(folder, "train", (12, 14))
    with pytest.raises(ValueError, match="split: expected one of"):
        load_pairs(folder, "valid", SIZE)
    with pytest.raises(ValueError, match="partners: expected at least 1, got -1"):
        load_pairs(folder, "validation", SIZE, partners=-1)


def test_pairs_make_a_dataset_for_evaluation(folder: Path) -> None:
    pairs = load_pairs(folder, "validation", SIZE)
    dataset = PairDataset(pairs, SIZE, with_labels=True)
    item = dataset[1]
    assert len(dataset) == 2
    assert (item["subject"], item["case"]) == ("hippocampus_019", "hippocampus_004_to_hippocampus_019")
    assert item["crop_start"].tolist() == [0, 0, 0]  # the volumes lie on this grid already
    assert torch.equal(item["fixed_label"], pairs[1]["fixed_label"])
    for key in ("moving_image", "fixed_image"):
        assert torch.equal(torch.stack(torch.aminmax(item[key])), torch.tensor([0.0, 1.0]))
