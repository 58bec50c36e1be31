# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from common.data.brain_phantom import positions
from common.data.oasis import LABELS, load_pairs
from common.data.oasis_brain import draw_map, from_template, paint, to_template
from common.data.oasis_phantom import make_oasis_phantom
from common.spatial.warp import warp

SHAPE = (40, 56, 48)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_oasis_phantom(tmp_path_factory.mktemp("oasis"), n_train=2, n_validation=3)


def _contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_same_seed_writes_the_same_bytes_whatever_the_number_of_subjects(tmp_path: Path) -> None:
    small = {"n_validation": 2, "n_test": 0, "shape": (32, 40, 36)}
    few = _contents(make_oasis_phantom(tmp_path / "few", n_train=2, **small))
    many = _contents(make_oasis_phantom(tmp_path / "many", n_train=3, **small))
    other = _contents(make_oasis_phantom(tmp_path / "other", n_train=2, seed=1, **small))
    assert len(few) == 4 * 3 + 1 + 1 and len(many) == 5 * 3 + 1 + 1
    assert few == {name: many[name] for name in few}
    few.pop("OASIS_dataset.json"), other.pop("OASIS_dataset.json")
    assert few.keys() == other.keys() and not set(few.values()) & set(other.values())


def test_layout_is_that_of_learn2reg(phantom: Path) -> None:
    numbers = [1, 2, 395, 396, 397]
    assert sorted(p.name for p in phantom.iterdir()) == [
        "OASIS_dataset.json", "imagesTr", "imagesTs", "labelsTr", "masksTr",
    ]  # fmt: skip
    assert json.loads((phantom / "OASIS_dataset.json").read_text())["tensorImageShape"] == {"0": list(SHAPE)}
    for part, dtype in (("imagesTr", np.float32), ("labelsTr", np.uint8), ("masksTr", np.uint8)):
        names = [p.name for p in sorted((phantom / part).glob("*_0000.nii.gz"))]
        assert names == [f"OASIS_{number:04d}_0000.nii.gz" for number in numbers]
        for name in names:
            image = nibabel.load(phantom / part / name)
            assert image.shape == SHAPE and image.get_data_dtype() == dtype
            assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S") and image.header.get_zooms() == (1, 1, 1)
    assert [p.name for p in sorted((phantom / "imagesTs").glob("*_0000.nii.gz"))] == [
        "OASIS_0415_0000.nii.gz", "OASIS_0416_0000.nii.gz",
    ]  # fmt: skip


def test_every_subject_has_every_structure_on_its_side(phantom: Path) -> None:
    for file in sorted((phantom / "labelsTr").iterdir()):
        label = np.asarray(nibabel.load(file).dataobj)
        sizes = np.bincount(label.flat, minlength=36)
        assert (sizes[1:] >= 4).all(), file.name
        for name, value in LABELS.items():
            x = np.argwhere(label == value)[:, 0].mean() - (SHAPE[0] - 1) / 2  # to the right
            side = -1 if name.startswith("left") else 1 if name.startswith("right") else 0
            assert side * x > 0.5 if side else abs(x) < 1.5, (file.name, name)


def test_images_are_skull_stripped_with_the_contrast_of_t1(phantom: Path) -> None:
    for file in sorted((phantom / "labelsTr").iterdir()):
        label = np.asarray(nibabel.load(file).dataobj)
        image = np.asarray(nibabel.load(phantom / "imagesTr" / file.name).dataobj)
        mask = np.asarray(nibabel.load(phantom / "masksTr" / file.name).dataobj)
        white, grey, fluid = (np.median(image[np.isin(label, values)]) for values in ([1, 20], [2, 21], [3, 22]))
        assert fluid < 0.6 * grey < 0.6 * 0.9 * white and image.min() == 0 and image.max() <= 1
        assert np.array_equal(mask > 0, image > 0) and (image[0] == 0).all() and (mask[label > 0]).mean() > 0.99


def test_the_true_displacement_brings_images_and_labels_together(phantom: Path) -> None:
    for split, count in (("validation", 2), ("test", 1)):
        pairs = load_pairs(phantom, split)
        assert len(pairs) == count
        for pair in pairs:
            field = pair["true_ddf"][None]
            error = [((moving - pair["fixed_image"]) ** 2).mean().item()
                     for moving in (pair["moving_image"], warp(pair["moving_image"][None], field)[0])]  # fmt: skip
            assert error[1] < 0.35 * error[0]
    dice = []
    for pair in load_pairs(phantom, "validation"):
        for value in LABELS.values():
            fixed = pair["fixed_label"] == value
            for moving in (
                pair["moving_label"] == value,
                warp((pair["moving_label"] == value).float()[None], pair["true_ddf"][None])[0] >= 0.5,
            ):
                dice.append(float(2 * (moving & fixed).sum() / (moving.sum() + fixed.sum())))
    before, after = np.array(dice).reshape(-1, 2).mean(0)
    assert 0.3 < before < 0.65 and after > 0.83


def test_subjects_correspond_by_maps_without_foldings() -> None:
    points, mm = positions((20, 28, 24))
    for number in range(1, 13):
        subject = draw_map(np.random.default_rng((0, number)))
        template = to_template(points, subject)
        jacobian = np.stack([np.stack(np.gradient(part, mm), -1) for part in template], -2)
        determinant = np.linalg.det(jacobian)
        assert (determinant * np.sign(determinant.flat[0])).min() > 0.2, number
        assert np.abs(from_template(template, subject) - points).max() < 2e-3


def test_labels_are_those_of_the_template_at_the_subjects_points() -> None:
    points, mm = positions((32, 45, 38))
    subject = draw_map(np.random.default_rng(3))
    _, label = paint(to_template(points, subject), mm)
    _, same = paint(to_template(from_template(to_template(points, subject), subject), subject), mm)
    assert (label != same).mean() < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_train": 1}, "n_train: expected 2 to 394, got 1"),
        ({"n_validation": 21}, "n_validation: expected 2 to 20, got 21"),
        ({"n_test": 40}, "n_test: expected 0 to 39, got 40"),
        ({"shape": (40, 56)}, "shape: expected three numbers of at least 32"),
        ({"shape": (40, 56, 30)}, "shape: expected three numbers of at least 32"),
        ({"layout": "pickles"}, "layout: expected one of .*Did you mean 'pickle'"),
        ({"seed": -1}, "seed: expected 0 or more"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_oasis_phantom(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_filled_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labelsTr").mkdir()
    with pytest.raises(FileExistsError, match="is not empty; name an empty folder"):
        make_oasis_phantom(tmp_path)
