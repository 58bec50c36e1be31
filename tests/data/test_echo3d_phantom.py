# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from common.data.echo3d import load_pairs, subjects
from common.data.echo3d_phantom import make_echo3d_phantom
from common.spatial.jacobian import jacobian_determinant
from common.spatial.warp import warp

SHAPE = (44, 42, 50)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_echo3d_phantom(tmp_path_factory.mktemp("echo3d"), 1, 2, 1, SHAPE)


def _contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def _read(folder: Path, file: str) -> np.ndarray:
    return np.asarray(nibabel.load(folder / file).dataobj)


def test_same_seed_writes_the_same_bytes_whatever_the_number_of_subjects(tmp_path: Path) -> None:
    small = {"n_validation": 0, "n_test": 0, "shape": (24, 24, 24)}
    few = _contents(make_echo3d_phantom(tmp_path / "few", n_train=1, **small))
    many = _contents(make_echo3d_phantom(tmp_path / "many", n_train=2, **small))
    other = _contents(make_echo3d_phantom(tmp_path / "other", n_train=1, seed=1, **small))
    assert len(few) == 6 and len(many) == 12
    assert few == {name: many[name] for name in few}
    assert few.keys() == other.keys() and not set(few.values()) & set(other.values())


def test_layout_is_the_documented_one(phantom: Path) -> None:
    assert [len(subjects(phantom, split)) for split in ("train", "validation", "test")] == [1, 2, 1]
    shapes = []
    for folder in sorted(phantom.iterdir()):
        assert sorted(p.name for p in folder.iterdir()) == [
            "ED.nii.gz", "ED_label.nii.gz", "ED_to_ES_ddf.nii.gz", "ES.nii.gz", "ES_label.nii.gz",
            "ES_noise.nii.gz",
        ]  # fmt: skip
        image = nibabel.load(folder / "ED.nii.gz")
        shapes.append(image.shape)
        assert image.get_data_dtype() == np.uint8 and _read(folder, "ED_to_ES_ddf.nii.gz").shape == (*image.shape, 3)
        np.testing.assert_allclose(np.array(image.header.get_zooms()) * image.shape, [112, 104, 124], rtol=1e-5)
        for phase in ("ED", "ES"):
            assert np.unique(_read(folder, f"{phase}_label.nii.gz")).tolist() == [0, 1, 2]
    assert len(set(shapes)) > 1  # own sizes


def test_the_ventricle_contracts_and_its_wall_keeps_its_volume(phantom: Path) -> None:
    for folder in phantom.iterdir():
        ed, es = (_read(folder, f"{phase}_label.nii.gz") for phase in ("ED", "ES"))
        ejection = 1 - (es == 1).sum() / (ed == 1).sum()
        assert 0.3 < ejection < 0.72
        assert (es == 2).sum() / (ed == 2).sum() == pytest.approx(1, abs=0.12)


def test_the_true_displacement_brings_tissue_and_labels_together(phantom: Path) -> None:
    for pair in load_pairs(phantom, "validation"):
        field = pair["true_ddf"][None]
        assert jacobian_determinant(field).min() > 0.3
        for value in (1, 2):
            fixed = pair["fixed_label"] == value
            moving = pair["moving_label"] == value
            warped = warp(moving.float()[None], field)[0] >= 0.5
            before, after = (float(2 * (m & fixed).sum() / (m.sum() + fixed.sum())) for m in (moving, warped))
            assert before < 0.85 and after > 0.9
        wall = (pair["fixed_label"] > 0)[0]
        likeness = [float(np.corrcoef(image[0][wall], pair["fixed_image"][0][wall])[0, 1])
                    for image in (pair["moving_image"], warp(pair["moving_image"][None], field)[0])]  # fmt: skip
        assert likeness[1] > likeness[0] + 0.15 and likeness[1] < 0.97  # speckle follows, and loses likeness


def test_the_image_is_a_sector_of_speckle_with_dark_blood(phantom: Path) -> None:
    for folder in phantom.iterdir():
        image, label = _read(folder, "ED.nii.gz").astype(float), _read(folder, "ED_label.nii.gz")
        assert 0.25 < (image > 0).mean() < 0.75 and not image[0, :, : image.shape[2] // 4].any()
        blood, wall = image[(label == 1) & (image > 0)], image[(label == 2) & (image > 0)]
        assert blood.mean() < 0.75 * wall.mean()
        depth = np.arange(image.shape[2])[None, None] * np.ones_like(image)
        seen = (image > 0) & (label == 0)
        near, far = (image[seen & part].mean() for part in (depth < image.shape[2] / 2, depth > 0.75 * image.shape[2]))
        assert far < near  # attenuation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_train": 101}, "n_train: expected 0 to 100, got 101"),
        ({"n_test": -1}, "n_test: expected 0 to 100, got -1"),
        ({"shape": (40, 40)}, "expected a shape of three numbers"),
        ({"shape": (40, 40, 20)}, "expected a shape of three numbers of at least 24"),
        ({"seed": -1}, "a seed of 0 or more"),
        ({"n_train": 0, "n_validation": 0, "n_test": 0}, "at least one subject"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_echo3d_phantom(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_filled_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pig").mkdir()
    with pytest.raises(FileExistsError, match="is not empty; name an empty folder"):
        make_echo3d_phantom(tmp_path)


def test_true_displacements_need_their_own_axes(phantom: Path, tmp_path: Path) -> None:
    from common.data.layout import DatasetLayoutError
    from common.data.reading import read_displacement, read_image

    folder = sorted(phantom.iterdir())[0]
    image, truth = read_image(folder / "ED.nii.gz"), nibabel.load(folder / "ED_to_ES_ddf.nii.gz")
    field = read_displacement(folder / "ED_to_ES_ddf.nii.gz", image, "RAS", 3)
    assert torch.equal(field, torch.from_numpy(np.moveaxis(np.asarray(truth.dataobj), -1, 0).copy()))
    with pytest.raises(DatasetLayoutError, match=r"expected displacements of shape \(X, Y, Z, 3\) along axes LPS"):
        read_displacement(folder / "ED_to_ES_ddf.nii.gz", image, "LPS", 3)
    nibabel.save(nibabel.Nifti1Image(np.asarray(truth.dataobj)[..., :2], truth.affine), tmp_path / "flat.nii.gz")
    with pytest.raises(DatasetLayoutError, match=r"shape \(X, Y, Z, 3\) along axes RAS .*got .* along RAS"):
        read_displacement(tmp_path / "flat.nii.gz", image, "RAS", 3)
