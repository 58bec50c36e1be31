# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from common.data import camus
from common.data.camus_phantom import make_camus_phantom
from common.data.layout import DatasetLayoutError
from common.data.reading import read_case
from common.transforms.loading import LoadPaird
from common.transforms.registration import CropPaird

SHAPE = (64, 48)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_camus_phantom(tmp_path_factory.mktemp("camus"), n_train=3, shape=SHAPE)


@pytest.fixture
def copy(phantom: Path, tmp_path: Path) -> Path:
    """One that may be damaged."""
    return Path(shutil.copytree(phantom, tmp_path / "copy"))


def _patient(copy: Path, number: int = 1) -> Path:
    return copy / "database_nifti" / f"patient{number:04d}"


def _rewrite(path: Path, change) -> None:
    nifti = nibabel.load(path)
    values, affine = change(np.asarray(nifti.dataobj), nifti.affine)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


@pytest.mark.parametrize("parent", ["", "database_nifti", "CAMUS_public/database_nifti"])
def test_patients_are_found_in_every_place_of_the_release(phantom: Path, tmp_path: Path, parent: str) -> None:
    shutil.copytree(phantom / "database_nifti", tmp_path / parent, dirs_exist_ok=True)
    assert camus.subjects(tmp_path) == [f"patient{n:04d}" for n in (1, 2, 3, 4)]
    assert camus.subjects(tmp_path, "validation") == ["patient0004"]


def test_every_view_is_a_pair_with_its_quality(phantom: Path) -> None:
    pairs = camus.load_pairs(phantom, "train", (32, 24))
    assert [pair["case"] for pair in pairs] == [f"patient{n:04d}_{v}" for n in (1, 2, 3) for v in ("2CH", "4CH")]
    assert [pair["group"] for pair in pairs] == ["Medium"] * 2 + ["Poor"] * 2 + ["Good"] * 2
    assert len(camus.load_pairs(phantom, "train", (32, 24), views=["4CH"])) == 3
    with pytest.raises(ValueError, match="views: expected one of 2CH, 4CH"):
        camus.datalist(phantom, views=["3CH"])


def test_the_whole_image_is_brought_to_one_size_and_its_spacing_follows(phantom: Path) -> None:
    whole, small = (camus.load_pairs(phantom, "validation", size)[0] for size in (SHAPE, (32, 24)))
    assert whole["moving_image"].shape == (1, *SHAPE) and small["moving_image"].shape == (1, 32, 24)
    torch.testing.assert_close(small["spacing"], 2 * whole["spacing"])
    torch.testing.assert_close(2 * small["true_ddf"].abs().mean(), whole["true_ddf"].abs().mean(), rtol=0.02, atol=0)
    blocks = torch.nn.functional.avg_pool2d(whole["moving_image"], 2)
    assert (blocks - small["moving_image"]).abs().mean() < 0.15 * (blocks - blocks.mean()).abs().mean()
    with pytest.raises(ValueError, match="spatial_size: expected two numbers"):
        camus.load_pairs(phantom, "validation", (32, 24, 16))


def test_images_without_spacing_or_info_are_read_as_stored(copy: Path) -> None:
    """Processed copies: 1 mm all round, an identity header, no Info, no split files."""
    stored = camus.load_pairs(copy, "validation", SHAPE)
    for path in _patient(copy, 4).glob("*_E?*.nii.gz"):
        if "ddf" not in path.name:
            _rewrite(path, lambda values, _: (values, np.eye(4)))
    for path in (*copy.rglob("Info*"), *copy.rglob("*ddf*"), *copy.rglob("subgroup*")):
        path.unlink()
    for pair, before in zip(camus.load_pairs(copy, "validation", SHAPE), stored, strict=True):
        assert pair["spacing"].isnan().all() and pair["group"] == ""
        assert torch.equal(pair["moving_image"], before["moving_image"])
        assert torch.equal(pair["fixed_label"], before["fixed_label"])


def test_two_axes_and_three_are_the_same(copy: Path) -> None:
    stored = camus.load_pairs(copy, "validation", (32, 24))
    for path in _patient(copy, 4).glob("*2CH_E*.nii.gz"):
        if "ddf" not in path.name:
            _rewrite(path, lambda values, affine: (values[..., None], affine))
    for pair, before in zip(camus.load_pairs(copy, "validation", (32, 24)), stored, strict=True):
        assert torch.equal(pair["moving_image"], before["moving_image"])
        assert torch.equal(pair["fixed_label"], before["fixed_label"])


def test_inference_sees_what_training_sees(phantom: Path) -> None:
    moving, fixed = camus.example_pair(phantom)
    options = {key: camus.INFERENCE[key] for key in ("align", "orientation")}
    item = LoadPaird(2, **options, resize=(32, 24))({"moving": str(moving), "fixed": str(fixed)})
    seen = CropPaird((32, 24), crop_center="middle")(item)["image"]
    pair = camus.load_pairs(phantom, "validation", (32, 24))[0]
    for channel, key in enumerate(("moving_image", "fixed_image")):
        image = pair[key][0]
        scaled = (image - image.min()) / (image.max() - image.min())
        torch.testing.assert_close(seen[channel].as_tensor().squeeze(), scaled, atol=2e-3, rtol=0)


def test_the_release_s_split(copy: Path) -> None:
    split = copy / "database_split"
    (split / "subgroup_training.txt").write_text("patient0004\npatient0002\n")
    (split / "subgroup_validation.txt").write_text("patient0001\n")
    (split / "subgroup_testing.txt").write_text("patient0003\n")
    named = {name: camus.subjects(copy, name, "official") for name in ("train", "validation", "test")}
    assert named == {"train": ["patient0002", "patient0004"], "validation": ["patient0001"], "test": ["patient0003"]}
    # by number, whom the release sets aside for testing is not trained on
    assert camus.subjects(copy, "train") == ["patient0001", "patient0002"]
    assert camus.subjects(copy, "test") == ["patient0003"]
    (split / "subgroup_training.txt").write_text("patient0001\n")
    with pytest.raises(DatasetLayoutError, match="patient0001 is in two of the files"):
        camus.subjects(copy, "train")
    shutil.rmtree(split)
    for arguments in (("train", "official"), ("test", "number")):
        with pytest.raises(DatasetLayoutError, match=r"needs .*subgroup_training.txt, which is missing"):
            camus.subjects(copy, *arguments)
    with pytest.raises(ValueError, match="partition: expected one of number, official"):
        camus.subjects(copy, "train", "random")


def test_a_missing_view_or_phase_is_said_and_may_be_left_out(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    (_patient(copy, 2) / "patient0002_4CH_ES_gt.nii.gz").unlink()
    with pytest.raises(
        DatasetLayoutError, match="patient0002: no file .*_4CH_ES_gt.nii.gz; a view or phase is missing"
    ):
        camus.load_pairs(copy, "train", (32, 24))
    with caplog.at_level(logging.WARNING):
        pairs = camus.load_pairs(copy, "train", (32, 24), skip_invalid=True)
    assert {pair["subject"] for pair in pairs} == {"patient0001", "patient0003"}
    assert "skipped 1 invalid subject(s) of split 'train': patient0002" in caplog.text


BROKEN = {
    "ED and ES on one grid": ("2CH_ES.nii.gz", lambda values, affine: (values[1:], affine)),
    r"expected the labels 0, 1, 2, 3 in .*got \[0": ("2CH_ED_gt.nii.gz", lambda v, a: (np.where(v == 3, 4, v), a)),
    "expected one frame": ("4CH_ED.nii.gz", lambda values, affine: (np.stack([values] * 2, -1), affine)),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_file_is_named(copy: Path, message: str) -> None:
    name, change = BROKEN[message]
    path = _patient(copy) / f"patient0001_{name}"
    _rewrite(path, change)
    if "gt" not in name:  # labels keep to their image
        _rewrite(path.with_name(path.name.replace(".nii", "_gt.nii")), change)
    with pytest.raises(DatasetLayoutError, match=f"patient0001_{name[:3]}: .*{message}"):
        camus.load_pairs(copy, "train", (32, 24))


def test_a_patient_twice_and_none_at_all(copy: Path) -> None:
    shutil.copytree(_patient(copy), copy / "patient0001")
    with pytest.raises(DatasetLayoutError, match="patient0001 is there twice"):
        camus.subjects(copy)
    with pytest.raises(DatasetLayoutError, match="no patient folder in .*CREATIS"):
        camus.subjects(copy / "database_split")
    with pytest.raises(ValueError, match="'patient0001', got 'patient001'"):
        camus.split_of("patient001")


def test_a_volume_brought_to_a_size(tmp_path: Path) -> None:
    """Three axes as well: the published 3D echo is brought to 64³."""
    values = np.random.default_rng(0).normal(size=(8, 10, 12)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 1.0, 0.5, 1])), tmp_path / "image.nii.gz")
    nibabel.save(
        nibabel.Nifti1Image((values > 1).astype(np.uint8), np.diag([2.0, 1.0, 0.5, 1])), tmp_path / "label.nii.gz"
    )
    image, label = read_case(tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", (0, 1), resize=(4, 20, 12))
    assert image.array.shape == label.array.shape == (4, 20, 12)
    assert image.spacing == pytest.approx((4.0, 0.5, 0.5))
