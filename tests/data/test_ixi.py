# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from common.data.ixi import datalist, example_pair, load_pairs, split_of, subjects
from common.data.ixi_labels import EVALUATED, FREESURFER, GROUPS, LABELS, classes
from common.data.ixi_phantom import make_ixi_phantom
from common.data.layout import DatasetLayoutError

SMALL: dict[str, Any] = {"n_train": 2, "n_validation": 2, "n_test": 1, "shape": (36, 48, 40)}
LAYOUTS = ("nifti", "pickle")
# as published: index 0 is background
PUBLISHED = [
    0, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28, 30, 31, 41, 42, 43, 44, 46, 47, 49, 50, 51, 52,
    53, 54, 58, 60, 62, 63, 72, 77, 80, 85, 251, 252, 253, 254, 255,
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same subjects in each layout."""
    folder = tmp_path_factory.mktemp("ixi")
    return {layout: make_ixi_phantom(folder / layout, layout=layout, **SMALL) for layout in LAYOUTS}


@pytest.fixture
def folders(made: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies, to be spoilt."""
    return {layout: Path(shutil.copytree(folder, tmp_path / layout)) for layout, folder in made.items()}


def test_classes_are_those_of_the_published_table() -> None:
    assert classes(torch.tensor(PUBLISHED)).tolist() == list(range(46))
    assert [FREESURFER[name] for name in LABELS] == PUBLISHED[1:] and list(LABELS.values()) == list(range(1, 46))
    others = sorted(set(range(256)) - set(PUBLISHED))
    assert not classes(torch.tensor(others)).any() and classes(torch.tensor([[77.0]])).dtype == torch.uint8
    assert (LABELS["left_thalamus"], LABELS["right_choroid_plexus"], LABELS["csf"]) == (7, 36, 16)


def test_thirty_classes_in_seventeen_groups_are_evaluated() -> None:
    assert sorted(EVALUATED.values()) == [*range(1, 4), *range(5, 17), 18, *range(20, 24), *range(25, 33), 34, 36]
    assert len(GROUPS) == 17 and sum(len(names) for names in GROUPS.values()) == 30
    assert {name for names in GROUPS.values() for name in names} == set(EVALUATED)
    assert GROUPS["thalamus"] == ["left_thalamus", "right_thalamus"] and GROUPS["csf"] == ["csf"]


@pytest.mark.parametrize("split", ["train", "validation", "test", "all"])
def test_the_two_layouts_give_equal_pairs(made: dict[str, Path], split: str) -> None:
    first, second = (load_pairs(made[layout], split) for layout in LAYOUTS)
    assert len(first) == len(second) == {"train": 2, "validation": 2, "test": 1, "all": 5}[split]
    for pair, other in zip(first, second, strict=True):
        assert pair["moving_image"].shape == (1, 36, 40, 48) and (pair["case"], pair["subject"]) == (
            other["case"],
            other["subject"],
        )
        for key in ("moving_image", "fixed_image", "moving_label", "fixed_label", "centre", "spacing"):
            assert pair[key].dtype == other[key].dtype and torch.equal(pair[key], other[key])
        assert ("true_ddf" in pair) == (split in ("validation", "test")) and "true_ddf" not in other


def test_the_atlas_moves_and_is_shared(made: dict[str, Path]) -> None:
    pairs = load_pairs(made["pickle"], "train")
    image, label = pickle.loads((made["pickle"] / "IXI_data" / "atlas.pkl").read_bytes())
    assert np.array_equal(pairs[0]["moving_image"][0].numpy(), image)
    assert np.array_equal(pairs[0]["moving_label"][0].numpy(), np.searchsorted(PUBLISHED, label))
    assert pairs[0]["moving_image"] is pairs[1]["moving_image"]
    image, _ = pickle.loads((made["pickle"] / "IXI_data" / "Train" / "subject_1.pkl").read_bytes())
    assert pairs[1]["subject"] == "Train_subject_1" and np.array_equal(pairs[1]["fixed_image"][0].numpy(), image)
    assert [pair["case"] for pair in pairs] == ["atlas_to_Train_subject_0", "atlas_to_Train_subject_1"]


def test_splits_are_folders(made: dict[str, Path]) -> None:
    for folder in (made["pickle"], made["pickle"] / "IXI_data"):
        assert subjects(folder, "validation") == ["Val_subject_403", "Val_subject_404"]
        assert subjects(folder) == [
            "Test_subject_461", "Train_subject_0", "Train_subject_1", "Val_subject_403", "Val_subject_404",
        ]  # fmt: skip
    assert [split_of(f"{name}_subject_7") for name in ("Train", "Val", "Test")] == ["train", "validation", "test"]
    with pytest.raises(ValueError, match="subject: expected a name like 'Train_subject_0', got 'atlas'"):
        split_of("atlas")


def test_labels_travel_where_they_are_asked_for(made: dict[str, Path]) -> None:
    for layout in LAYOUTS:
        entry = datalist(made[layout], "train", with_labels=False)[0]
        assert set(entry) == {"moving_image", "fixed_image", "subject", "case"}
        pair = load_pairs(made[layout], "train", with_labels=False)[0]
        assert not any("label" in key for key in pair)


def test_numbers_of_no_class_are_background_and_others_an_error(folders: dict[str, Path]) -> None:
    file = folders["pickle"] / "IXI_data" / "Val" / "subject_403.pkl"
    image, label = pickle.loads(file.read_bytes())
    file.write_bytes(pickle.dumps((image, np.where(label == 10, 29, label))))
    pair = load_pairs(folders["pickle"], "validation")[0]
    assert not (pair["fixed_label"] == LABELS["left_thalamus"]).any()
    assert (pair["fixed_label"][0].numpy() == 0)[label == 10].all()
    for wrong in (np.where(label == 10, 1002, label), np.where(label == 10, 2.5, label)):
        file.write_bytes(pickle.dumps((image, wrong)))
        with pytest.raises(DatasetLayoutError, match=r"expected FreeSurfer's numbers 0 to 255 .*subject_403.pkl"):
            load_pairs(folders["pickle"], "validation")
    file = folders["nifti"] / "IXI_data" / "Val" / "subject_403_seg.nii.gz"
    nifti = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.where(label == 10, 1002, label).astype(np.int16), nifti.affine), file)
    with pytest.raises(DatasetLayoutError, match=r"expected the labels 0, 1, .*, 255 in .*subject_403_seg"):
        load_pairs(folders["nifti"], "validation")


def test_a_missing_atlas_and_a_damaged_pickle_are_named(folders: dict[str, Path]) -> None:
    for layout, name in (("nifti", "atlas.nii.gz"), ("pickle", "atlas.pkl")):
        (folders[layout] / "IXI_data" / name).rename(folders[layout] / name)
        with pytest.raises(DatasetLayoutError, match=r"dataset_dir: no atlas.pkl or atlas.nii.gz in '.*IXI_data'"):
            datalist(folders[layout], "train")
        (folders[layout] / name).rename(folders[layout] / "IXI_data" / name)
    file = folders["pickle"] / "IXI_data" / "Train" / "subject_1.pkl"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetLayoutError, match=r"subject_1.pkl is no pickle of arrays alone.*Restore the published"):
        load_pairs(folders["pickle"], "train")
    file.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(DatasetLayoutError, match="subject_1.pkl is no pickle of arrays alone: it names os.system"):
        load_pairs(folders["pickle"], "train")
    image, label = pickle.loads(whole)
    for arrays, message in (
        ((image, label[1:]), r"expected 2 arrays of one shape \(X, Y, Z\) in .*subject_1.pkl"),
        ((image, label, label), r"expected 2 arrays of one shape \(X, Y, Z\) in .*subject_1.pkl"),
        ((image[1:], label[1:]), r"expected \[36, 40, 48\] voxels along LIA in .*subject_1.pkl.*got \[35, 40, 48\]"),
    ):
        file.write_bytes(pickle.dumps(arrays))
        with pytest.raises(DatasetLayoutError, match=message):
            load_pairs(folders["pickle"], "train")


def test_missing_files_of_a_subject_are_named(folders: dict[str, Path]) -> None:
    folder = folders["nifti"] / "IXI_data" / "Train"
    (folder / "subject_0_seg.nii.gz").unlink()
    with pytest.raises(DatasetLayoutError, match="subject_0: there is .*subject_0.nii.gz, but no labels .*_seg"):
        datalist(folders["nifti"], "train")
    (folder / "subject_1.nii.gz").unlink()
    (folder / "subject_0.nii.gz").unlink()
    with pytest.raises(DatasetLayoutError, match="Train_subject_1: there is no image beside its labels"):
        datalist(folders["nifti"], "train")
    shutil.rmtree(folder)
    with pytest.raises(DatasetLayoutError, match="dataset_dir: no subject of 'train' in"):
        subjects(folders["nifti"], "train")


def test_a_nifti_file_is_read_rather_than_a_pickle_beside_it(folders: dict[str, Path]) -> None:
    source = folders["nifti"] / "IXI_data" / "Val"
    for ending in ("", "_seg"):
        shutil.copy(source / f"subject_404{ending}.nii.gz", folders["pickle"] / "IXI_data" / "Val")
    entry = datalist(folders["pickle"], "validation")[1]
    assert entry["fixed_image"].endswith("subject_404.nii.gz") and entry["fixed_label"].endswith("_seg.nii.gz")
    assert entry["moving_image"].endswith("atlas.pkl") and len(load_pairs(folders["pickle"], "validation")) == 2


def test_inference_reads_no_pickles(made: dict[str, Path]) -> None:
    with pytest.raises(DatasetLayoutError, match="atlas.pkl is no image file. Name two NIfTI files"):
        example_pair(made["pickle"])
    assert [path.name for path in example_pair(made["nifti"])] == ["atlas.nii.gz", "subject_403.nii.gz"]


def test_a_window_that_cuts_is_refused(made: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"spatial_size: expected at least the \[36, 40, 48\] voxels .*\[36, 40, 40\]"):
        load_pairs(made["nifti"], "train", (36, 40, 40))
    assert len(load_pairs(made["nifti"], "train", (160, 192, 224))) == 2
