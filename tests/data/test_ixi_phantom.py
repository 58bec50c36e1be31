# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from common.data.ixi import LABELS, load_pairs
from common.data.ixi_labels import FREESURFER
from common.data.ixi_phantom import make_ixi_phantom
from common.spatial.warp import warp

SHAPE = (40, 56, 48)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ixi_phantom(tmp_path_factory.mktemp("ixi"), n_train=1, n_validation=2, n_test=1)


def _contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("layout", ["nifti", "pickle"])
def test_same_seed_writes_the_same_bytes_whatever_the_number_of_subjects(tmp_path: Path, layout: str) -> None:
    small = {"n_validation": 1, "n_test": 1, "shape": (32, 40, 36), "layout": layout}
    few = _contents(make_ixi_phantom(tmp_path / "few", n_train=1, **small))
    many = _contents(make_ixi_phantom(tmp_path / "many", n_train=2, **small))
    other = _contents(make_ixi_phantom(tmp_path / "other", n_train=1, seed=1, **small))
    assert len(few) == {"nifti": 2 * 4 + 2, "pickle": 4}[layout] and len(many) == len(few) + len(few) // 4
    assert few == {name: many[name] for name in few}
    assert few.keys() == other.keys() and not set(few.values()) & set(other.values())


def test_files_are_those_of_the_layout(phantom: Path) -> None:
    folder = phantom / "IXI_data"
    assert sorted(p.name for p in folder.iterdir()) == ["Test", "Train", "Val", "atlas.nii.gz", "atlas_seg.nii.gz"]
    names = [p.name for p in sorted((folder / "Val").iterdir())]
    assert names == [f"atlas_to_Val_subject_{n}_ddf.nii.gz" for n in (403, 404)] + [
        f"subject_{n}{end}.nii.gz" for n in (403, 404) for end in ("", "_seg")
    ]
    image, label = (nibabel.load(folder / f"atlas{end}.nii.gz") for end in ("", "_seg"))
    assert nibabel.aff2axcodes(image.affine) == ("L", "I", "A") and image.shape == label.shape == (40, 48, 56)
    assert 0 <= np.asarray(image.dataobj).min() and np.asarray(image.dataobj).max() <= 1
    assert set(np.unique(np.asarray(label.dataobj))) == {0, *FREESURFER.values()}


def test_every_subject_has_every_class_on_its_side(phantom: Path) -> None:
    for pair in load_pairs(phantom, "all"):
        label = pair["fixed_label"][0].numpy()
        assert (np.bincount(label.flat, minlength=46)[1:] >= 2).all(), pair["subject"]
        for name, value in LABELS.items():
            x = (SHAPE[0] - 1) / 2 - np.argwhere(label == value)[:, 0].mean()  # to the right
            side = -1 if name.startswith("left") else 1 if name.startswith("right") else 0
            both = "hypointensities" in name  # small, and on both sides
            assert both or (side * x > 0.5 if side else abs(x) < 2.5), (pair["subject"], name)


def test_the_true_displacement_brings_atlas_and_subject_together(phantom: Path) -> None:
    pairs = [*load_pairs(phantom, "validation"), *load_pairs(phantom, "test")]
    dice = []
    for pair in pairs:
        field = pair["true_ddf"][None]
        error = [((moving - pair["fixed_image"]) ** 2).mean().item()
                 for moving in (pair["moving_image"], warp(pair["moving_image"][None], field)[0])]  # fmt: skip
        assert error[1] < 0.4 * error[0]
        for value in LABELS.values():
            fixed, moving = pair["fixed_label"] == value, pair["moving_label"] == value
            for mask in (moving, warp(moving.float()[None], field)[0] >= 0.5):
                dice.append(float(2 * (mask & fixed).sum() / (mask.sum() + fixed.sum())))
    before, after = np.array(dice).reshape(-1, 2).mean(0)
    assert before < 0.6 and after > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_train": 0}, "n_train: expected 1 to 403, got 0"),
        ({"n_validation": 59}, "n_validation: expected 1 to 58, got 59"),
        ({"n_test": 116}, "n_test: expected 1 to 115, got 116"),
        ({"shape": (40, 56, 30)}, "shape: expected three numbers of at least 32"),
        ({"layout": "pickles"}, "layout: expected one of nifti, pickle, got 'pickles'. Did you mean 'pickle'"),
        ({"seed": -1}, "seed: expected 0 or more"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_ixi_phantom(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_filled_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Train").mkdir()
    with pytest.raises(FileExistsError, match="is not empty; name an empty folder"):
        make_ixi_phantom(tmp_path)
