# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from common.data import copdgene, lung_phantom
from common.data.copdgene_phantom import make_copdgene_phantom
from common.data.layout import DatasetLayoutError
from common.data.pairs import PairDataset, evaluation_loader
from common.spatial.jacobian import jacobian_determinant
from common.spatial.warp import warp
from common.transforms.loading import LoadPaird
from common.transforms.lungs import LungIntensities
from common.transforms.registration import CropPaird

SIZE = (48, 40, 48)
NAME = "10501X"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copdgene") / "data"
    return make_copdgene_phantom(folder, n_train=1, n_validation=1, n_dirlab=1)


@pytest.fixture
def copy(phantom: Path, tmp_path: Path) -> Path:
    """One that may be damaged."""
    return Path(shutil.copytree(phantom, tmp_path / "copy"))


def file_of(copy: Path, phase: str, ending: str) -> Path:
    return copy / NAME / f"{NAME}_{phase}_STD_PHA_COPD_{ending}.nii.gz"


def rewrite(path: Path, change) -> None:
    nifti = nibabel.load(path)
    values, affine = change(np.asarray(nifti.dataobj), nifti.affine)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def test_a_subject_depends_on_seed_and_number_alone(phantom: Path, tmp_path: Path) -> None:
    again = make_copdgene_phantom(tmp_path / "again", n_train=1, n_validation=1, n_dirlab=0)
    for file in sorted(again.rglob("*.nii.gz")):
        assert file.read_bytes() == (phantom / file.relative_to(again)).read_bytes()
    with pytest.raises(FileExistsError, match="holds such data already"):
        make_copdgene_phantom(phantom)
    with pytest.raises(ValueError, match="n_dirlab 0 to 10"):
        make_copdgene_phantom(tmp_path / "none", n_dirlab=11)


def test_the_chest_breathes_without_folding_and_far() -> None:
    chest = lung_phantom.draw_chest(np.random.default_rng(3))
    points = lung_phantom.positions((24, 20, 24), (4.0, 4.0, 4.0))
    there = lung_phantom.to_expiration(points, chest)
    np.testing.assert_allclose(lung_phantom.to_inspiration(there, chest), points, atol=2e-4)
    inside = lung_phantom.inside_lungs(points)
    apart = np.linalg.norm(there - points, axis=0)[inside]
    assert 4 < apart.mean() < 9 and apart.max() > 11  # mm, in lungs 64 mm high
    assert jacobian_determinant(torch.from_numpy((there - points) / 4)[None]).min() > 0.4


def test_true_displacement_and_intensities(phantom: Path) -> None:
    (pair,) = copdgene.load_pairs(phantom, "validation", SIZE)
    assert pair["subject"] == "validation_10501X"
    moved = warp(pair["moving_image"][None], pair["true_ddf"][None])[0]
    before, after = ((pair["fixed_image"] - image).square().mean() for image in (pair["moving_image"], moved))
    assert after < 0.7 * before  # lungs are lighter at inspiration, whatever the registration
    for role, density in (("moving", -740), ("fixed", -860)):
        lungs = pair[f"{role}_label"] > 0
        assert (pair[f"{role}_image"][~lungs] == 0).float().mean() > 0.99  # but at the edge, which is resampled
        assert float(pair[f"{role}_image"][lungs].median()) == pytest.approx((density + 1000) / 1000, abs=0.03)
        assert pair[f"{role}_image"].min() == 0 and pair[f"{role}_image"].max() <= 1


def test_splits_are_those_of_the_lists_or_of_the_name(copy: Path) -> None:
    assert copdgene.subjects(copy) == ["copd1", "train_10001X", f"validation_{NAME}"]
    assert copdgene.subjects(copy, "test") == ["copd1"]
    shutil.rmtree(copy / "splits")
    for number in range(20):
        shutil.copytree(copy / NAME, copy / f"{20000 + number}Y")
        for file in (copy / f"{20000 + number}Y").iterdir():
            file.rename(file.with_name(file.name.replace(NAME, f"{20000 + number}Y")))
    train, validation = copdgene.subjects(copy, "train"), copdgene.subjects(copy, "validation")
    assert len(train) + len(validation) == 22 and 0 < len(validation) < 6
    (copy / validation[0].partition("_")[2]).rename(copy / "elsewhere")  # who is where depends on the names alone
    assert copdgene.subjects(copy, "train") == train


def test_cases_with_and_without_landmarks_make_one_batch(phantom: Path) -> None:
    pairs = copdgene.load_pairs(phantom, "all", SIZE)
    assert all("true_ddf" not in pair for pair in pairs) and len(pairs) == 3
    (batch,) = evaluation_loader(PairDataset(pairs, SIZE), 3)
    assert batch["fixed_points"].shape == (3, 300, 3)
    assert batch["fixed_points"].isfinite().all(2).sum(1).tolist() == [0, 0, 300]


def test_landmarks_move_with_the_window(phantom: Path) -> None:
    pairs = copdgene.load_pairs(phantom, "test", SIZE)
    item = PairDataset(pairs, (40, 36, 44))[0]
    expected = pairs[0]["fixed_points"] - item["crop_start"]
    torch.testing.assert_close(item["fixed_points"], expected)
    assert item["crop_start"].tolist() == [4, 2, 2]


def test_an_absent_mask_is_made_from_the_ct_and_said(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    (given,) = copdgene.load_pairs(copy, "validation", SIZE)
    file_of(copy, "INSP", "label").unlink()
    with caplog.at_level(logging.INFO):
        (made,) = copdgene.load_pairs(copy, "validation", SIZE)
    assert "INSP_STD_PHA_COPD_img.nii.gz has no mask of the lungs; one is made from the CT" in caplog.text
    both = (given["fixed_label"] > 0) & (made["fixed_label"] > 0)
    assert 2 * both.sum() / (given["fixed_label"].sum() + made["fixed_label"].sum()) > 0.98


def test_lungs_that_the_grid_cuts_are_said(phantom: Path, caplog: pytest.LogCaptureFixture) -> None:
    copdgene.load_pairs(phantom, "validation", (24, 40, 48))
    assert "of the lungs lie outside spatial_size [24, 40, 48]" in caplog.text


def test_inference_sees_what_training_sees_where_masks_are_made(copy: Path) -> None:
    for phase in ("INSP", "EXP"):
        file_of(copy, phase, "label").unlink()
    item = LoadPaird(3, "centres", copdgene.ORIENTATION, copdgene.SPACING)(
        {"moving": str(file_of(copy, "EXP", "img")), "fixed": str(file_of(copy, "INSP", "img"))}
    )
    image = CropPaird(SIZE, crop_center="middle", intensities=LungIntensities())(item)["image"]
    pair = PairDataset(copdgene.load_pairs(copy, "validation", SIZE), SIZE)[0]
    for channel, key in enumerate(("moving_image", "fixed_image")):
        torch.testing.assert_close(torch.as_tensor(image[channel]), pair[key][0], atol=1e-5, rtol=0)


def _broken(copy: Path, kind: str) -> None:
    mask, image = file_of(copy, "INSP", "label"), file_of(copy, "INSP", "img")
    if kind == "another grid":
        rewrite(mask, lambda values, affine: (values[:-8], affine))
    elif kind == "upside down":
        rewrite(mask, lambda values, affine: (values[:, :, ::-1], affine))
    elif kind == "empty":
        rewrite(mask, lambda values, affine: (0 * values, affine))
    elif kind == "twice":
        shutil.copy(image, str(image).replace("STD_PHA", "STD_XYZ"))
    elif kind == "no image":
        image.unlink()
    elif kind == "no list":
        (copy / "splits" / "test.txt").unlink()
    else:
        mask.unlink()
        rewrite(image, lambda values, affine: (np.where(values < 0, 0, values), affine))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("another grid", "validation_10501X: .*expected labels of the image's field of view"),
        (
            "upside down",
            "validation_10501X: expected lungs in .* to lie where .* has air: .* when mirrored from top to",
        ),
        ("empty", "validation_10501X: expected a mask of the lungs in .*, it is empty"),
        ("twice", "10501X: expected one file 10501X_INSP_STD.*_COPD_img.nii.gz in .*, got"),
        ("no image", r"10501X: expected one file 10501X_INSP_STD.*_COPD_img.nii.gz in .*, got \[\]"),
        ("no list", "dataset_dir: no test.txt in"),
        ("no air", "validation_10501X: expected a CT of the chest in HU, with lungs below -400 HU inside the body"),
    ],
)
def test_broken_copies_are_said(copy: Path, kind: str, message: str) -> None:
    _broken(copy, kind)
    with pytest.raises(DatasetLayoutError, match=message):
        copdgene.load_pairs(copy, "validation", SIZE)


def test_a_size_of_two_numbers_is_refused(phantom: Path) -> None:
    with pytest.raises(ValueError, match="spatial_size: expected three numbers"):
        copdgene.load_pairs(phantom, "validation", (48, 48))
