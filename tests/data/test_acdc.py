# SPDX-License-Identifier: Apache-2.0
import logging
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from common.data.acdc import datalist, example_pair, frame_files, load_pairs, split_of, subjects
from common.data.layout import DatasetLayoutError

SHAPE = (24, 20, 4)
# ED myocardium, one voxel cross a slice: its centroid
CENTRES = [None, (9, 8), (12, 7), (15, 10)]


def _save(path: Path, array: np.ndarray, zooms: tuple[float, ...] = (1.5, 1.25, 10.0)) -> None:
    # Left, posterior, superior as the release; a copy that has lost its spacing has lost the rest of its header too.
    signs = (1, 1, 1, 1) if zooms == (1.0, 1.0, 1.0) else (-1, -1, 1, 1)
    image = nibabel.Nifti1Image(array, np.diag([*zooms, 1.0] * np.array(signs)))
    nibabel.save(image, path)


def _labels(centres: list[tuple[int, int] | None]) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    for z, centre in enumerate(centres):
        if centre is not None:
            x, y = centre
            labels[x - 1 : x + 2, y, z] = labels[x, y - 1 : y + 2, z] = 2
            labels[x, y, z] = 3
    return labels


def _patient(parent: Path, number: int, zooms: tuple[float, ...] = (1.5, 1.25, 10.0), ddf: bool = False) -> Path:
    """Write one patient, ED frame 1, ES frame 12."""
    folder = parent / f"patient{number:03d}"
    folder.mkdir(parents=True)
    (folder / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")
    rng = np.random.default_rng(number)
    stem = folder / folder.name
    for frame in ("01", "12"):
        _save(Path(f"{stem}_frame{frame}.nii.gz"), rng.integers(0, 255, SHAPE).astype(np.int16), zooms)
        _save(Path(f"{stem}_frame{frame}_gt.nii.gz"), _labels(CENTRES), zooms)
    if ddf:
        field = rng.normal(size=(*SHAPE, 2)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(field, np.diag([-1, -1, 1, 1])), f"{stem}_frame01_to_frame12_ddf.nii.gz")
    return folder


def _raw(folder: Path, name: str) -> np.ndarray:
    return np.asanyarray(nibabel.load(folder / f"{folder.name}_{name}.nii.gz").dataobj)


@pytest.mark.parametrize("parent", ["training", "database/training", "."])
def test_every_slice_is_a_pair_as_stored(tmp_path: Path, parent: str) -> None:
    folder = _patient(tmp_path / parent, 7, ddf=True)
    pairs = load_pairs(tmp_path, percentiles=None)
    assert [pair["slice"] for pair in pairs] == [0, 1, 2, 3]
    for z, pair in enumerate(pairs):
        for key, name in [
            ("moving_image", "frame01"),
            ("fixed_image", "frame12"),
            ("moving_label", "frame01_gt"),
            ("fixed_label", "frame12_gt"),
        ]:
            assert np.array_equal(pair[key][0].numpy(), _raw(folder, name)[..., z])
            assert pair[key].is_contiguous() and type(pair[key]) is torch.Tensor
        assert pair["moving_image"].dtype == torch.float32 and pair["moving_label"].dtype == torch.uint8
        field = _raw(folder, "frame01_to_frame12_ddf")[:, :, z]
        assert np.array_equal(pair["true_ddf"].numpy(), field.transpose(2, 0, 1))
        assert pair["spacing"].tolist() == [1.5, 1.25]
        assert (pair["subject"], pair["group"]) == ("patient007", "DCM")


def test_spacing_of_one_millimetre_everywhere_is_unknown(tmp_path: Path) -> None:
    _patient(tmp_path, 1, zooms=(1.0, 1.0, 1.0))
    _patient(tmp_path, 2, zooms=(1.0, 1.0, 8.0))
    pairs = load_pairs(tmp_path)
    assert pairs[0]["spacing"].isnan().all() and "true_ddf" not in pairs[0]
    assert pairs[0]["fixed_image"].shape == (1, 24, 20)
    # known, and not that of training
    assert pairs[-1]["spacing"].tolist() == [1.5, 1.5] and pairs[-1]["fixed_image"].shape == (1, 16, 13)


def test_split_rule_gives_the_published_sizes() -> None:
    splits = [split_of(f"patient{number:03d}") for number in range(1, 151)]
    assert [splits.count(split) for split in ("train", "validation", "test")] == [80, 20, 50]
    assert [n for n in range(1, 21) if splits[n - 1] == "validation"] == [4, 9, 14, 19]
    assert splits[99] == "train" and splits[100] == splits[103] == "test"
    with pytest.raises(ValueError, match="subject: expected a name like 'patient001', got 'patient01'"):
        split_of("patient01")


def test_splits_are_read_from_training_and_testing(tmp_path: Path) -> None:
    for number in (10, 3, 4):
        _patient(tmp_path / "training", number)
    _patient(tmp_path / "testing", 104)
    assert subjects(tmp_path) == ["patient003", "patient004", "patient010", "patient104"]
    assert subjects(tmp_path, "train") == ["patient003", "patient010"]
    assert subjects(tmp_path, "validation") == ["patient004"]
    assert {pair["subject"] for pair in load_pairs(tmp_path, "test")} == {"patient104"}
    assert len(load_pairs(tmp_path, "all")) == 16


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("middle_slice", [(12, 7)] * 4),  # slice 4 // 2
        ("slice", [(12, 7), (9, 8), (12, 7), (15, 10)]),
        ("volume", [(12, 25 / 3)] * 4),
    ],
)
def test_centres_on_the_myocardium(tmp_path: Path, mode: str, expected: list[tuple[float, float]]) -> None:
    _patient(tmp_path, 1)
    centres = torch.stack([pair["centre"] for pair in load_pairs(tmp_path, crop_center=mode)])
    assert torch.allclose(centres, torch.tensor(expected, dtype=torch.float32), atol=1e-5)


def test_nearest_slice_stands_in_for_a_middle_slice_without_myocardium(tmp_path: Path) -> None:
    folder = _patient(tmp_path, 1)
    _save(folder / "patient001_frame01_gt.nii.gz", _labels([(9, 8), None, None, (15, 10)]))
    assert load_pairs(tmp_path)[0]["centre"].tolist() == [15.0, 10.0]


def test_automatic_centre_needs_no_myocardium(tmp_path: Path) -> None:
    folder = _patient(tmp_path, 1)
    _save(folder / "patient001_frame01_gt.nii.gz", np.zeros(SHAPE, np.uint8))
    with pytest.raises(DatasetLayoutError, match="patient001: expected myocardium .*crop_center='auto'"):
        load_pairs(tmp_path)
    moving, fixed = (np.zeros(SHAPE, np.float32) for _ in range(2))
    moving[:2, :2], fixed[:2, :2] = 1, 1
    fixed[11:14, 8:11] = 1
    _save(folder / "patient001_frame01.nii.gz", moving)
    _save(folder / "patient001_frame12.nii.gz", fixed)
    centre = load_pairs(tmp_path, crop_center="auto")[0]["centre"]
    assert torch.allclose(centre, torch.tensor([12.0, 9.0]), atol=1.01)


def _break(folder: Path, fault: str) -> None:
    stem = str(folder / folder.name)
    image = np.ones(SHAPE, np.float32) * np.arange(SHAPE[2])
    if fault == "info":
        (folder / "Info.cfg").unlink()
    elif fault == "key":
        (folder / "Info.cfg").write_text("ED: 1\nGroup: DCM\n")
    elif fault == "frame":
        Path(f"{stem}_frame12.nii.gz").unlink()
    elif fault == "label":
        Path(f"{stem}_frame12_gt.nii.gz").unlink()
    elif fault == "image shape":
        for kind, values in (("", image), ("_gt", _labels(CENTRES))):
            _save(Path(f"{stem}_frame12{kind}.nii.gz"), values[:-1])
    elif fault == "affine":
        for kind, values in (("", image), ("_gt", _labels(CENTRES))):
            _save(Path(f"{stem}_frame12{kind}.nii.gz"), values, (1.5, 1.5, 10.0))
    elif fault == "label shape":
        _save(Path(f"{stem}_frame01_gt.nii.gz"), _labels(CENTRES)[:, :-1])
    elif fault == "label value":
        _save(Path(f"{stem}_frame01_gt.nii.gz"), _labels(CENTRES).astype(np.int16) * 100)
    elif fault == "nan":
        image[3, 2, 1] = np.nan
        _save(Path(f"{stem}_frame12.nii.gz"), image)
    elif fault == "constant":
        _save(Path(f"{stem}_frame12.nii.gz"), np.full(SHAPE, 7, np.int16))
    elif fault == "no volume":
        for frame in ("01", "12"):
            _save(Path(f"{stem}_frame{frame}.nii.gz"), image[:, 0])
    elif fault == "truncated":
        path = Path(f"{stem}_frame12.nii.gz")
        path.write_bytes(path.read_bytes()[:-600])
    elif fault == "garbage":
        Path(f"{stem}_frame12.nii.gz").write_bytes(b"not a volume")
    elif fault == "ddf":
        _save(Path(f"{stem}_frame01_to_frame12_ddf.nii.gz"), image)


FAULTS = {
    "info": "no file .*Info.cfg",
    "key": r"expected lines 'ED: <frame>' and 'ES: <frame>'.*\['ED', 'Group'\]",
    "frame": "no file .*patient002_frame12.nii.gz",
    "label": "no file .*patient002_frame12_gt.nii.gz",
    "image shape": "expected ED and ES on one grid",
    "affine": "expected ED and ES on one grid",
    "label shape": "expected labels of the image's field of view; the borders of .*patient002_frame01_gt.nii.gz",
    "label value": r"expected the labels 0, 1, 2, 3 in .*_frame01_gt.nii.gz, got \[0, 200, 300\]",
    "nan": "image: expected finite values; .*patient002_frame12.nii.gz holds 1 NaN",
    "constant": "image: expected an image with contrast; .*patient002_frame12.nii.gz is constant .7 everywhere",
    "no volume": r"expected labels of the image's field of view; the borders of .*_frame01_gt.nii.gz",
    "truncated": "image: expected a readable NIfTI file .*patient002_frame12.nii.gz is not .*cut short",
    "garbage": "image: expected a readable NIfTI file .*patient002_frame12.nii.gz is not",
    "ddf": "expected displacements of shape",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_patient_is_named_or_skipped_with_a_warning(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    _patient(tmp_path, 1)
    _break(_patient(tmp_path, 2), fault)
    with pytest.raises(DatasetLayoutError, match=f"patient002: {FAULTS[fault]}"):
        load_pairs(tmp_path)
    with caplog.at_level(logging.WARNING, logger="common.data.layout"):
        pairs = load_pairs(tmp_path, skip_invalid=True)
    assert {pair["subject"] for pair in pairs} == {"patient001"}
    assert "skipping patient002" in caplog.text and "skipped 1 invalid subject(s)" in caplog.text
    shutil.rmtree(tmp_path / "patient001")
    with pytest.raises(DatasetLayoutError, match="no valid subject is left"):
        load_pairs(tmp_path, skip_invalid=True)


def test_missing_folder_names_layout_and_origin(tmp_path: Path) -> None:
    with pytest.raises(DatasetLayoutError, match="no folder .*training/patient001.*Human Heart Project"):
        load_pairs(tmp_path / "absent")
    with pytest.raises(DatasetLayoutError, match="no patient folder .*CREATIS"):
        load_pairs(tmp_path)


def test_files_of_a_patient_and_of_the_example(tmp_path: Path) -> None:
    for number in (3, 9, 4):
        _patient(tmp_path / "training", number)
    folder = tmp_path / "training" / "patient004"
    expected = tuple(folder / f"patient004_frame{frame}.nii.gz" for frame in ("01", "12"))
    assert example_pair(tmp_path) == frame_files(tmp_path, "patient004") == expected
    with pytest.raises(DatasetLayoutError, match=r"subject: expected one of .*'patient009'\], got 'patient005'"):
        frame_files(tmp_path, "patient005")


def test_patients_whose_files_are_missing_are_left_out_of_the_list(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _patient(tmp_path, 1)
    (_patient(tmp_path, 2) / "Info.cfg").unlink()
    with pytest.raises(DatasetLayoutError, match="patient002: no file .*Info.cfg"):
        datalist(tmp_path)
    entries = datalist(tmp_path, skip_invalid=True)
    assert {entry["subject"] for entry in entries} == {"patient001"} and "skipping patient002" in caplog.text
    (tmp_path / "patient001" / "patient001_frame01.nii.gz").write_bytes(b"not a volume")
    with pytest.raises(DatasetLayoutError, match="patient001: image: expected a readable NIfTI file"):
        datalist(tmp_path)


def test_a_folder_of_decoded_patients_leaves_the_same_ones_out(tmp_path: Path) -> None:
    _patient(tmp_path / "data", 1)
    _break(_patient(tmp_path / "data", 2), "nan")
    pairs = load_pairs(tmp_path / "data", skip_invalid=True, cache=tmp_path / "cache")
    assert [(pair["subject"], pair["slice"]) for pair in pairs] == [("patient001", z) for z in range(SHAPE[2])]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with pytest.raises(DatasetLayoutError, match="patient002: image: expected finite values"):
        load_pairs(tmp_path / "data", cache=tmp_path / "cache")[SHAPE[2]]


def test_bad_selections_are_errors(tmp_path: Path) -> None:
    _patient(tmp_path, 1)
    with pytest.raises(DatasetLayoutError, match="split: 'test' is empty"):
        load_pairs(tmp_path, "test")
    with pytest.raises(ValueError, match="split: expected one of"):
        subjects(tmp_path, "val")
    with pytest.raises(ValueError, match="crop_center: expected one of"):
        load_pairs(tmp_path, crop_center="centre")
    _patient(tmp_path / "training", 1)
    with pytest.raises(DatasetLayoutError, match="patient001 is there twice"):
        subjects(tmp_path)
