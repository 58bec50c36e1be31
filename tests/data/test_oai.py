# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from common.data import oai
from common.data.layout import DatasetLayoutError
from common.data.oai_phantom import make_oai_phantom

SIZE = (40, 48, 48)
LIST = Path("splits/val/pair_path_list.txt")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_oai_phantom(tmp_path_factory.mktemp("oai") / "data", n_train=6, n_validation=2, n_test=2)


@pytest.fixture
def copy(phantom: Path, tmp_path: Path) -> Path:
    """One that may be damaged."""
    return Path(shutil.copytree(phantom, tmp_path / "copy"))


def knee(copy: Path, number: int, ending: str = "image") -> Path:
    (path,) = (copy / "images").glob(f"{number}_*_{ending}.nii.gz")
    return path


def rewrite(path: Path, change) -> None:
    nifti = nibabel.load(path)
    values, affine = change(np.asarray(nifti.dataobj), nifti.affine)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def test_a_knee_depends_on_seed_and_number_alone(phantom: Path, tmp_path: Path) -> None:
    again = make_oai_phantom(tmp_path / "again", n_train=2, n_validation=2, n_test=2)
    for file in sorted(again.rglob("*.nii.gz")):
        assert file.read_bytes() == (phantom / file.relative_to(again)).read_bytes()
    with pytest.raises(FileExistsError, match="splits exists already"):
        make_oai_phantom(phantom)
    with pytest.raises(ValueError, match="2 to 1000 knees in every part"):
        make_oai_phantom(tmp_path / "none", n_test=1)


def test_lists_say_who_validates_and_any_two_train(phantom: Path) -> None:
    assert [len(oai.subjects(phantom, split)) for split in oai.SPLITS] == [6, 2, 2, 10]
    first, second = oai.datalist(phantom, "validation")
    a, b = "9500001_20050101_SAG_3D_DESS_LEFT_016600001", "9500002_20050101_SAG_3D_DESS_RIGHT_016600002"
    assert (phantom / LIST).read_text().splitlines()[0].split() == [
        *(f"images/{name}_image.nii.gz" for name in (a, b)), *(f"images/{name}_label_all.nii.gz" for name in (a, b))
    ]  # fmt: skip
    assert first["case"] == f"validation_{a}_to_validation_{b}" and first["subject"] == f"validation_{b}"
    assert second["case"] == f"validation_{b}_to_validation_{a}"
    assert Path(first["moving_image"]) == knee(phantom, 9500001)
    assert len(oai.datalist(phantom, "train", partners=3)) == 18


def test_right_knees_lie_as_left_ones(copy: Path) -> None:
    """A right knee and its mirror image, named as a left one, are read alike."""
    right = knee(copy, 9500002)
    assert "RIGHT" in right.name
    for ending in ("image", "label_all"):
        source = knee(copy, 9500002, ending)
        target = source.with_name(source.name.replace("9500002", "9500004").replace("RIGHT", "LEFT"))
        shutil.copy(source, target)
        rewrite(target, lambda values, affine: (values[::-1], affine))
    words = [str(path.relative_to(copy)) for ending in ("image", "label_all") for path in (
        knee(copy, 9500002, ending), knee(copy, 9500004, ending))]  # fmt: skip
    (copy / LIST).write_text(" ".join(words) + "\n")
    (pair,) = oai.load_pairs(copy, "validation", SIZE)
    assert torch.equal(pair["moving_image"], pair["fixed_image"]) and torch.equal(
        pair["moving_label"], pair["fixed_label"]
    )
    stored = torch.from_numpy(np.asarray(nibabel.load(knee(copy, 9500002, "label_all")).dataobj).copy())
    assert torch.equal(pair["moving_label"][0], stored.flip(0))


def test_axes_are_read_by_their_headers(copy: Path) -> None:
    expected = oai.load_pairs(copy, "validation", SIZE)
    for ending in ("image", "label_all"):
        path = knee(copy, 9500001, ending)
        nifti = nibabel.load(path)
        codes = nibabel.orientations.axcodes2ornt(("S", "R", "A"))
        turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(nifti.affine), codes)
        nibabel.save(nifti.as_reoriented(turn), path)
    for pair, other in zip(oai.load_pairs(copy, "validation", SIZE), expected, strict=True):
        assert torch.equal(pair["moving_label"], other["moving_label"])
        torch.testing.assert_close(pair["fixed_image"], other["fixed_image"])


def test_full_resolution_is_halved(copy: Path) -> None:
    (before, _) = oai.load_pairs(copy, "validation", SIZE)
    for number in (9500001, 9500002):
        for ending in ("image", "label_all"):
            double = lambda values, affine: (values.repeat(2, 0).repeat(2, 1).repeat(2, 2), affine * [0.5, 0.5, 0.5, 1])  # noqa: E731
            rewrite(knee(copy, number, ending), double)
    (after, _) = oai.load_pairs(copy, "validation", SIZE)
    assert after["spacing"].tolist() == pytest.approx(list(oai.SPACING))
    same = (before["moving_label"] == after["moving_label"]).float().mean()
    assert same > 0.999 and after["moving_image"].shape == (1, *SIZE)


def test_cartilages_may_be_merged(phantom: Path) -> None:
    (apart, _), (merged, _) = (oai.load_pairs(phantom, "validation", SIZE, label_set=s) for s in oai.LABEL_SETS)
    assert apart["fixed_label"].unique().tolist() == [0, 1, 2] and merged["fixed_label"].unique().tolist() == [0, 1]
    assert torch.equal(merged["fixed_label"] > 0, apart["fixed_label"] > 0)
    assert 0.2 < float((apart["fixed_label"] == 2).sum() / (apart["fixed_label"] == 1).sum()) < 1.5


@pytest.mark.parametrize("folder", ["images", ""])
def test_plain_nifti_is_split_by_number(copy: Path, tmp_path: Path, folder: str) -> None:
    shutil.rmtree(copy / "splits")
    plain = tmp_path / "plain"
    shutil.copytree(copy / "images", plain / folder, dirs_exist_ok=True)
    assert [name.split("_")[1] for name in oai.subjects(plain, "validation")] == ["9000004"]
    assert len(oai.subjects(plain, "train")) == 9
    assert len(oai.datalist(plain, "train")) == 9
    with pytest.raises(DatasetLayoutError, match="no knee of 'test'"):
        oai.datalist(plain, "test")


def _broken(copy: Path, kind: str) -> None:
    label, listed = knee(copy, 9500001, "label_all"), copy / LIST
    if kind == "another grid":
        rewrite(label, lambda values, affine: (values[:-6], affine))
    elif kind == "values":
        rewrite(label, lambda values, affine: (values + 5, affine))
    elif kind == "words":
        listed.write_text("images/a_image.nii.gz images/b_image.nii.gz\n")
    elif kind == "absent":
        listed.write_text(listed.read_text().replace("9500002", "9500008"))
    elif kind == "twice":
        listed.write_text(listed.read_text() * 2)
    else:
        shutil.rmtree(copy / "splits")
        label.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("another grid", "9500001_.*LEFT_.*: expected labels of the image's field of view"),
        ("values", r"9500001_.*: expected the labels 0, 1, 2 in .*, got \[5, 6, 7\]"),
        (
            "words",
            "pair_path_list.txt, line 1: expected imageA imageB segmentationA segmentationB, .*got 'images/a_image",
        ),
        ("absent", "pair_path_list.txt, line 1: no file .*9500008.*correct the list, or put the images there"),
        ("twice", "val/pair_path_list.txt lists a pair twice"),
        ("no labels", "9500001_.*_image.nii.gz: there is no 9500001_.*_label_all.nii.gz beside it"),
    ],
)
def test_broken_copies_are_said(copy: Path, kind: str, message: str) -> None:
    _broken(copy, kind)
    with pytest.raises(DatasetLayoutError, match=message):
        oai.load_pairs(copy, "train" if kind == "no labels" else "validation", SIZE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_set": "merge"}, "label_set: expected one of cartilages, merged, got 'merge'. Did you mean 'merged'"),
        ({"spatial_size": (40, 48)}, "spatial_size: expected three numbers"),
        ({"partners": 0}, "partners: expected at least 1"),
        ({"percentiles": (99, 1)}, "percentiles: expected 0 <= lower < upper"),
    ],
)
def test_bad_arguments_are_refused(phantom: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        oai.load_pairs(phantom, "train", **{"spatial_size": SIZE, **arguments})
