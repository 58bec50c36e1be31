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

from common.data.layout import DatasetLayoutError
from common.data.oasis import LABELS, datalist, example_pair, load_pairs, split_of, subjects
from common.data.oasis_labels import LABEL_SETS, NAMES, TISSUES, tissue_of, tissues
from common.data.oasis_phantom import make_oasis_phantom
from common.data.pairs import PairDataset

SMALL: dict[str, Any] = {"n_train": 2, "n_validation": 2, "n_test": 2, "shape": (36, 48, 40)}
LAYOUTS = ("learn2reg", "neurite", "pickle")
NAME = {"learn2reg": "OASIS_{:04d}", "neurite": "OASIS_OAS1_{:04d}_MR1", "pickle": "p_{:04d}"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same subjects in each layout."""
    folder = tmp_path_factory.mktemp("oasis")
    return {layout: make_oasis_phantom(folder / layout, layout=layout, **SMALL) for layout in LAYOUTS}


@pytest.fixture
def folders(made: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies, to be spoilt."""
    return {layout: Path(shutil.copytree(folder, tmp_path / layout)) for layout, folder in made.items()}


def _save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(values, nibabel.load(path).affine if affine is None else affine), path)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("label_set", ["35", 4])
def test_the_three_layouts_give_equal_arrays(made: dict[str, Path], split: str, label_set: str | int) -> None:
    first, *others = (load_pairs(made[layout], split, label_set=label_set) for layout in LAYOUTS)
    assert len(first) == {"train": 2, "validation": 1}[split]
    for pairs in others:
        for pair, other in zip(first, pairs, strict=True):
            assert pair["moving_image"].shape == (1, 36, 40, 48)
            for key in ("moving_image", "fixed_image", "moving_label", "fixed_label", "centre", "spacing"):
                assert pair[key].dtype == other[key].dtype and torch.equal(pair[key], other[key])
                assert other[key].is_contiguous()


def test_axes_are_left_down_front(made: dict[str, Path]) -> None:
    label = load_pairs(made["learn2reg"], "train")[0]["fixed_label"][0]
    place = {name: torch.nonzero(label == value).double().mean(0) for name, value in LABELS.items()}
    assert place["left_thalamus"][0] > place["right_thalamus"][0] + 3
    assert place["brain_stem"][1] > place["third_ventricle"][1] + 5
    assert place["left_caudate"][2] > place["left_cerebellum_cortex"][2] + 5
    stored = np.asarray(nibabel.load(made["learn2reg"] / "labelsTr" / "OASIS_0001_0000.nii.gz").dataobj)
    assert stored.shape == SMALL["shape"]  # right, front, up
    assert np.array_equal(stored.transpose(0, 2, 1)[::-1, ::-1], label.numpy())
    own = np.asarray(nibabel.load(made["neurite"] / "OASIS_OAS1_0001_MR1" / "aligned_seg35.nii.gz").dataobj)
    assert np.array_equal(own, label.numpy())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_go_by_number(made: dict[str, Path], layout: str) -> None:
    name, gap = NAME[layout].format, 43 if layout == "neurite" else 0
    assert subjects(made[layout], "train") == [name(1), name(2)]
    assert subjects(made[layout], "validation") == [name(395 + gap), name(396 + gap)]
    assert [split_of(name(n + gap)) for n in (394, 395, 414, 415)] == ["train", "validation", "validation", "test"]
    cases = [entry["case"] for entry in datalist(made[layout], "all")]
    assert cases[:3] == [f"{name(m)}_to_{name(f)}" for m, f in ((2, 1), (1, 2), (396 + gap, 395 + gap))]
    if layout == "learn2reg":
        assert cases[3:] == ["OASIS_0416_to_OASIS_0415"]
    else:
        with pytest.raises(DatasetLayoutError, match="no subject of 'test' among the 4"):
            subjects(made[layout], "test")


def test_a_split_whose_subjects_have_no_labels_has_images_alone(folders: dict[str, Path]) -> None:
    folder = folders["learn2reg"]
    pair = load_pairs(folder, "test")[0]
    assert pair["case"] == "OASIS_0416_to_OASIS_0415" and not {"moving_label", "fixed_label"} & pair.keys()
    with pytest.raises(ValueError, match="these data have no labels"):
        PairDataset([pair], (36, 40, 48), with_labels=True)
    assert not any(key.endswith("label") for entry in datalist(folder, "all") for key in entry)
    shutil.copytree(folder / "labelsTr", folder / "labelsTs")
    for number in (415, 416):
        (folder / "labelsTs" / f"OASIS_{number - 20:04d}_0000.nii.gz").rename(
            folder / "labelsTs" / f"OASIS_{number:04d}_0000.nii.gz"
        )
    assert load_pairs(folder, "test")[0]["fixed_label"].unique().numel() > 30
    assert not any(key.endswith("label") for key in load_pairs(folder, "train", label_set=None)[0])


def test_every_structure_is_of_one_tissue() -> None:
    values = {name: sorted(LABELS[n] for n in NAMES if tissue_of(n) == name) for name in TISSUES}
    assert values == {
        "cortex": [2, 21],
        "subcortical_grey_matter": [6, 7, 8, 9, 10, 14, 15, 16, 25, 26, 27, 28, 29, 30, 31, 32],
        "white_matter": [1, 5, 13, 17, 20, 24, 33],
        "csf": [3, 4, 11, 12, 18, 19, 22, 23, 34, 35],
    }
    every = tissues(torch.arange(36))
    assert every[0] == 0 and every[LABELS["brain_stem"]] == TISSUES["white_matter"] and every.dtype == torch.uint8
    assert (len(LABELS), LABELS["left_cerebral_cortex"], LABELS["right_choroid_plexus"]) == (35, 2, 35)
    assert LABEL_SETS == {"35": LABELS, "4": TISSUES}


def test_the_published_tissues_come_first(folders: dict[str, Path]) -> None:
    folder = folders["neurite"]
    made = load_pairs(folder, "train", label_set="4")[0]["fixed_label"]
    own = folder / "OASIS_OAS1_0001_MR1" / "aligned_seg4.nii.gz"
    shutil.copy(own.with_name("aligned_seg35.nii.gz"), own)
    _save(own, np.where(made[0].numpy() == 2, 3, made[0].numpy()).astype(np.uint8))
    pairs = load_pairs(folder, "train", label_set="4")
    assert torch.equal(pairs[0]["fixed_label"], torch.where(made == 2, 3, made))
    assert pairs[1]["fixed_label"].unique().tolist() == [0, 1, 2, 3, 4]  # made of the 35
    assert load_pairs(folder, "train")[0]["fixed_label"].max() == 35
    _save(own, np.full(made.shape[1:], 7, np.uint8))
    with pytest.raises(DatasetLayoutError, match=r"expected the labels 0, 1, 2, 3, 4 in .*aligned_seg4.*got \[7\]"):
        load_pairs(folder, "train", label_set="4")


def test_structures_may_be_absent_and_unknown_values_may_not(folders: dict[str, Path]) -> None:
    file = folders["learn2reg"] / "labelsTr" / "OASIS_0002_0000.nii.gz"
    label = np.asarray(nibabel.load(file).dataobj)
    _save(file, np.where(label == 18, 0, label).astype(np.uint8))
    pair = load_pairs(folders["learn2reg"], "train")[1]
    assert pair["subject"] == "OASIS_0002" and not (pair["fixed_label"] == 18).any()
    _save(file, np.where(label == 18, 36, label).astype(np.uint8))
    with pytest.raises(DatasetLayoutError, match=r"expected the labels 0, 1, .*, 35 in .*OASIS_0002_0000.*"):
        load_pairs(folders["learn2reg"], "train")
    file = folders["pickle"] / "Train" / "p_0002.pkl"
    image, label = pickle.loads(file.read_bytes())
    file.write_bytes(pickle.dumps((image, np.where(label == 18, 77, label))))
    with pytest.raises(DatasetLayoutError, match=r"expected the labels 0 to 35 in .*p_0002.pkl, got \[.*77\]"):
        load_pairs(folders["pickle"], "train")


def test_a_volume_of_another_shape_names_the_file(folders: dict[str, Path]) -> None:
    for layout, name in (("learn2reg", "OASIS_0002_0000"), ("neurite", "OASIS_OAS1_0002_MR1/aligned_norm")):
        for file in folders[layout].rglob("*.nii.gz"):
            if "0002" in str(file):
                _save(file, np.asarray(nibabel.load(file).dataobj)[:, 1:])
        axes = {"learn2reg": r"\[36, 40, 47\]", "neurite": r"\[36, 39, 48\]"}[layout]
        for label_set in ("35", None):
            with pytest.raises(
                DatasetLayoutError, match=rf"expected \[36, 40, 48\] voxels along LIA in .*{name}.*{axes}"
            ):
                load_pairs(folders[layout], "train", label_set=label_set)
    file = folders["pickle"] / "Train" / "p_0002.pkl"
    image, label = pickle.loads(file.read_bytes())
    file.write_bytes(pickle.dumps((image[1:], label[1:])))
    with pytest.raises(DatasetLayoutError, match=r"expected \[36, 40, 48\] voxels .*p_0002.pkl.*got \[35, 40, 48\]"):
        load_pairs(folders["pickle"], "train")
    for arrays in ((image, label[1:]), (image,), (image[0], label[0])):
        file.write_bytes(pickle.dumps(arrays))
        with pytest.raises(DatasetLayoutError, match=r"expected 2 arrays of one shape \(X, Y, Z\) in .*p_0002.pkl"):
            load_pairs(folders["pickle"], "train")


def test_missing_files_are_named(folders: dict[str, Path]) -> None:
    (folders["learn2reg"] / "labelsTr" / "OASIS_0002_0000.nii.gz").unlink()
    with pytest.raises(DatasetLayoutError, match="OASIS_0002: there is .*imagesTr.*, but no labels .*labelsTr"):
        load_pairs(folders["learn2reg"], "train")
    for part in ("seg35", "norm"):
        (folders["neurite"] / "OASIS_OAS1_0439_MR1" / f"aligned_{part}.nii.gz").unlink()
        with pytest.raises(DatasetLayoutError, match=f"OASIS_OAS1_0439_MR1: no file .*aligned_{part}.nii.gz"):
            subjects(folders["neurite"])


def test_the_whole_set_has_the_challenges_pairs(tmp_path: Path) -> None:
    """19 of validation, 38 of test, each fixed subject with the next number as moving; files are listed, not read."""
    for number in range(1, 454):
        part = "Tr" if number < 415 else "Ts"
        for kind in ("images", "labels")[: 2 if number < 415 else 1]:
            file = tmp_path / f"{kind}{part}" / f"OASIS_{number:04d}_0000.nii.gz"
            file.parent.mkdir(exist_ok=True)
            file.touch()
    for split, numbers in (("validation", range(395, 414)), ("test", range(415, 453))):
        cases = [f"OASIS_{number + 1:04d}_to_OASIS_{number:04d}" for number in numbers]
        assert [entry["case"] for entry in datalist(tmp_path, split)] == cases
    assert len(subjects(tmp_path, "train")) == len(datalist(tmp_path, "train")) == 394


def test_a_gap_between_the_validation_subjects_is_an_error(folders: dict[str, Path]) -> None:
    for kind in ("images", "labels"):
        file = folders["learn2reg"] / f"{kind}Tr" / "OASIS_0396_0000.nii.gz"
        shutil.copy(file, file.with_name("OASIS_0398_0000.nii.gz"))
    with pytest.raises(DatasetLayoutError, match="no subject between OASIS_0396 and OASIS_0398"):
        datalist(folders["learn2reg"], "validation")
    for kind in ("images", "labels"):
        for number in (396, 398):
            (folders["learn2reg"] / f"{kind}Tr" / f"OASIS_{number:04d}_0000.nii.gz").unlink()
    with pytest.raises(DatasetLayoutError, match="OASIS_0395 is the only subject of 'validation'"):
        datalist(folders["learn2reg"], "validation")


def test_pickles_lie_in_one_folder_or_several(folders: dict[str, Path]) -> None:
    folder = folders["pickle"]
    expected = [entry["case"] for entry in datalist(folder, "all")]
    shutil.copytree(folder / "Train", folder / "All")
    shutil.copy(folder / "Train" / "p_0001.pkl", folder / "All" / "p_0396.pkl")
    assert [entry["case"] for entry in datalist(folder, "all")] == expected
    for file in [*folder.glob("Train/*"), *folder.glob("Test/*")]:
        shutil.move(file, folder / file.name)
    shutil.rmtree(folder / "All")
    assert [entry["case"] for entry in datalist(folder, "all")] == expected
    (folder / "p_0395_0396.pkl").rename(folder / "p_0438_0439.pkl")
    with pytest.raises(DatasetLayoutError, match="expected the numbers of .*p_0438_0439.pkl to be two of 0395 to 0414"):
        datalist(folder, "validation")


def test_a_pickle_of_a_pair_is_moving_then_fixed(made: dict[str, Path]) -> None:
    moving, fixed, moving_label, fixed_label = pickle.loads((made["pickle"] / "Test" / "p_0395_0396.pkl").read_bytes())
    pair = load_pairs(made["pickle"], "validation")[0]
    assert pair["case"] == "p_0396_to_p_0395" and pair["subject"] == "p_0395"
    for key, array in (("moving_image", moving), ("fixed_image", fixed), ("moving_label", moving_label),
                       ("fixed_label", fixed_label)):  # fmt: skip
        assert np.array_equal(pair[key][0].numpy(), array)


def test_inference_reads_no_pickles(made: dict[str, Path]) -> None:
    with pytest.raises(DatasetLayoutError, match="p_0395_0396.pkl is no image file. Name two NIfTI files"):
        example_pair(made["pickle"])
    assert [path.name for path in example_pair(made["learn2reg"])] == [
        "OASIS_0396_0000.nii.gz",
        "OASIS_0395_0000.nii.gz",
    ]


def test_code_in_a_pickle_is_refused(folders: dict[str, Path]) -> None:
    (folders["pickle"] / "Train" / "p_0001.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(DatasetLayoutError, match="p_0001.pkl is no pickle of arrays alone: it names os.system"):
        load_pairs(folders["pickle"], "train")


@pytest.mark.parametrize("layout", ["learn2reg", "neurite"])
def test_a_list_of_pairs_names_subjects_by_number_name_or_file(folders: dict[str, Path], layout: str) -> None:
    """The columns and numbers are those of the challenge's ``pairs_val.csv``."""
    first, second = subjects(folders[layout], "validation")
    training = subjects(folders[layout], "train")[0]
    number = int(second.removesuffix("_MR1")[-4:])
    path = folders[layout] / "pairs_val.csv"
    path.write_text(f"fixed,moving\n{number},{training}\n./imagesTr/{first}_0000.nii.gz, {number:04d}\n")
    pairs = load_pairs(folders[layout], "validation", pairs=path)
    assert [pair["case"] for pair in pairs] == [f"{training}_to_{second}", f"{second}_to_{first}"]
    path.write_text("fixed,moving\n999,1\n")
    with pytest.raises(DatasetLayoutError, match="pairs: .* names .*'999'"):
        datalist(folders[layout], "validation", pairs=path)


def test_volumes_are_shared_between_pairs(made: dict[str, Path]) -> None:
    pairs = load_pairs(made["learn2reg"], "train")
    assert pairs[0]["moving_image"] is pairs[1]["fixed_image"] and pairs[0]["fixed_label"] is pairs[1]["moving_label"]


def test_bad_arguments_are_errors(made: dict[str, Path]) -> None:
    folder = made["learn2reg"]
    with pytest.raises(ValueError, match=r"spatial_size: expected at least the \[36, 40, 48\] voxels .*\[36, 40, 40\]"):
        load_pairs(folder, "train", (36, 40, 40))
    assert len(load_pairs(folder, "train", (160, 192, 224))) == 2
    with pytest.raises(ValueError, match="label_set: expected one of .*got '24'"):
        load_pairs(folder, "train", label_set=24)
    with pytest.raises(ValueError, match="partners: expected at least 1, got 0"):
        datalist(folder, "train", partners=0)
