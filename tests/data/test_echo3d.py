# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from common.data.echo3d import datalist, example_pair, load_pairs, split_of, subjects
from common.data.layout import DatasetLayoutError
from common.data.pairs import PairDataset, evaluation_loader, training_loader

SIZE = (12, 12, 12)


def _subject(folder: Path, name: str, shape: tuple[int, ...] = (20, 18, 22), spacing: float = 0.5) -> None:
    """Noise, and boxes: myocardium around the cavity, which is smaller at ES."""
    (folder / name).mkdir(parents=True)
    affine = np.diag([spacing, spacing, spacing, 1])
    for number, phase in enumerate(("ED", "ES")):
        image = np.random.default_rng(number).integers(0, 255, shape).astype(np.uint8)
        label = np.zeros(shape, np.uint8)
        for value, margin in ((2, 4), (1, 6 + number)):
            label[tuple(slice(margin, n - margin) for n in shape)] = value
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / name / f"{phase}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, affine), folder / name / f"{phase}_label.nii.gz")


def _named(split: str, count: int) -> list[str]:
    names = [f"pig{number:02d}" for number in range(100)]
    return [name for name in names if split_of(name) == split][:count]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two subjects for training, and one in each of the others."""
    for split, count in (("train", 2), ("validation", 1), ("test", 1)):
        for name in _named(split, count):
            _subject(tmp_path, name)
    return tmp_path


def test_about_sixty_twenty_twenty_per_cent_by_name() -> None:
    splits = [split_of(f"pig{number:04d}") for number in range(2000)]
    shares = [splits.count(split) / 2000 for split in ("train", "validation", "test")]
    assert np.allclose(shares, [0.6, 0.2, 0.2], atol=0.03)
    assert [split_of(name) for name in ("pig00", "pig01", "pig02", "pig03")] == [
        "train", "validation", "train", "test",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="subject: expected a name like 'pig07'"):
        split_of("../pig")


def test_split_files_come_first(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = subjects(folder)
    (folder / "train.txt").write_text(f"{names[0]}\n{names[1]}\n\n")
    (folder / "validation.txt").write_text(f"{names[2]}\r\n")
    with caplog.at_level(logging.WARNING):
        assert subjects(folder, "train") == names[:2]
    assert f"train.txt, validation.txt list no split for ['{names[3]}'], which are left out" in caplog.text
    assert subjects(folder, "validation") == names[2:3] and subjects(folder) == names[:3]
    with pytest.raises(DatasetLayoutError, match="no subject of 'test' among the 4 .*list some in test.txt"):
        subjects(folder, "test")
    (folder / "test.txt").write_text(names[0])
    with pytest.raises(DatasetLayoutError, match=f"test.txt lists '{names[0]}', which train.txt lists too"):
        subjects(folder)
    (folder / "test.txt").write_text("dog01")
    with pytest.raises(DatasetLayoutError, match="test.txt lists 'dog01', which is not in"):
        subjects(folder)


def test_whole_volumes_are_brought_to_one_size(folder: Path) -> None:
    pair = load_pairs(folder, "train", SIZE)[0]
    assert pair["moving_image"].shape == pair["fixed_label"].shape == (1, *SIZE)
    np.testing.assert_allclose(pair["spacing"], 0.5 * np.array([20, 18, 22]) / 12, rtol=1e-6)
    assert pair["centre"].tolist() == [5.5] * 3
    for role, inner in (("moving", 6), ("fixed", 7)):
        share = (pair[f"{role}_label"] == 1).float().mean().item()
        assert share == pytest.approx(np.prod([1 - 2 * inner / n for n in (20, 18, 22)]), rel=0.35)
    stored = np.asarray(nibabel.load(folder / subjects(folder, "train")[0] / "ED.nii.gz").dataobj)
    same = load_pairs(folder, "train", stored.shape)[0]
    assert np.array_equal(same["moving_image"][0].numpy(), stored)
    assert example_pair(folder)[1] == folder / _named("validation", 1)[0] / "ES.nii.gz"


def test_labels_of_original_size_travel_where_asked_for_and_may_differ_in_shape(folder: Path) -> None:
    assert "moving_label_original" not in load_pairs(folder, "train", SIZE)[0]
    _subject(folder, _named("train", 3)[2], (16, 30, 24))
    pairs = load_pairs(folder, "train", SIZE, original_labels=True)
    dataset = PairDataset(pairs, SIZE, with_labels=True)
    (batch,) = evaluation_loader(dataset, 3)
    assert batch["fixed_label"].shape == (3, 1, *SIZE) and batch["subject"] == subjects(folder, "train")
    assert [tuple(label.shape) for label in batch["moving_label_original"]] == [
        (1, 20, 18, 22), (1, 20, 18, 22), (1, 16, 30, 24),
    ]  # fmt: skip
    assert batch["spacing_original"].tolist() == [[0.5] * 3] * 3
    stored = np.asarray(nibabel.load(folder / batch["subject"][2] / "ES_label.nii.gz").dataobj)
    assert np.array_equal(batch["fixed_label_original"][2][0].numpy(), stored)
    assert "fixed_label_original" not in next(iter(training_loader(dataset, 2, seed=0)))


def test_voxels_of_one_millimetre_mean_unknown_spacing(tmp_path: Path) -> None:
    _subject(tmp_path, _named("train", 1)[0], spacing=1.0)
    pair = load_pairs(tmp_path, "train", SIZE, original_labels=True)[0]
    assert pair["spacing"].isnan().all() and pair["spacing_original"].isnan().all()


def _spoil(folder: Path, file: str, values: Any = None, affine: Any = None) -> None:
    path = folder / _named("train", 1)[0] / file
    image = nibabel.load(path)
    values = np.asarray(image.dataobj) if values is None else values(np.asarray(image.dataobj))
    nibabel.save(nibabel.Nifti1Image(values, image.affine if affine is None else affine), path)


@pytest.mark.parametrize(
    ("file", "values", "affine", "message"),
    [
        (
            "ES_label.nii.gz",
            lambda v: v + 2,
            None,
            r"expected the labels 0, 1, 2 in .*ES_label.nii.gz, got \[2, 3, 4\]",
        ),
        ("ED_label.nii.gz", lambda v: v[1:], None, "expected labels of the image's field of view"),
        ("ED.nii.gz", lambda v: v[..., 0], None, r"expected an image and labels of one shape \(X, Y, Z\)"),
        ("ED.nii.gz", lambda v: np.zeros_like(v), None, "expected an image with contrast"),
    ],
)
def test_files_that_are_not_as_the_layout_says(folder: Path, file: str, values: Any, affine: Any, message: str) -> None:
    _spoil(folder, file, values, affine)
    with pytest.raises(DatasetLayoutError, match=rf"{_named('train', 1)[0]}: .*{message}"):
        load_pairs(folder, "train", SIZE)
    left = load_pairs(folder, "train", SIZE, skip_invalid=True)
    assert [pair["subject"] for pair in left] == _named("train", 2)[1:]


def test_phases_on_different_grids_are_an_error(folder: Path) -> None:
    for file in ("ES.nii.gz", "ES_label.nii.gz"):
        _spoil(folder, file, None, np.diag([0.6, 0.5, 0.5, 1]))
    with pytest.raises(DatasetLayoutError, match="expected ED and ES on one grid.*resample ES to ED"):
        load_pairs(folder, "train", SIZE)


def test_missing_files_are_named(folder: Path) -> None:
    name = _named("train", 1)[0]
    (folder / name / "ES_label.nii.gz").unlink()
    with pytest.raises(DatasetLayoutError, match=f"{name}: no file .*ES_label.nii.gz"):
        datalist(folder, "train")
    assert [entry["subject"] for entry in datalist(folder, "train", skip_invalid=True)] == _named("train", 2)[1:]
    (folder / "my pig").mkdir()
    (folder / name / "ED.nii.gz").rename(folder / "my pig" / "ED.nii.gz")
    with pytest.raises(DatasetLayoutError, match=r"expected names of letters.*got \['my pig'\]; rename"):
        subjects(folder)


def test_bad_arguments_are_errors(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"spatial_size: expected three numbers.* got \[12, 14\]"):
        load_pairs(folder, "train", (12, 14))
