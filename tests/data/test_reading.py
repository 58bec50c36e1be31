# SPDX-License-Identifier: Apache-2.0
"""Data sets whose files are stored in other ways than they were published, with headers that say so."""

from __future__ import annotations

import itertools
import logging
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from common.data import acdc, hippocampus
from common.data.acdc_phantom import make_acdc_phantom
from common.data.hippocampus_phantom import make_hippocampus_phantom
from common.data.layout import DatasetLayoutError
from common.data.reading import read_case
from common.spatial.warp import warp

TENSORS = ("moving_image", "fixed_image", "moving_label", "fixed_label", "centre", "spacing", "true_ddf", "noise_level")


def store(path: Path, codes: str) -> None:
    """The same voxels at the same places, in other axes."""
    image = nib.load(path)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
    values = apply_orientation(np.asanyarray(image.dataobj), turn)
    stored = nib.Nifti1Image(values, image.affine @ inv_ornt_aff(turn, image.shape[:3]), dtype=values.dtype)
    stored.header.set_xyzt_units("mm")
    nib.save(stored, path)


def every_orientation() -> list[str]:
    return [
        "".join(letters[flip] for letters, flip in zip(order, flips, strict=True))
        for order in itertools.permutations(("RL", "AP", "SI"))
        for flips in itertools.product((0, 1), repeat=3)
    ]


def assert_equal_pairs(pairs: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(pairs) == len(expected)
    for pair, other in zip(pairs, expected, strict=True):
        assert pair.keys() == other.keys()
        for key in pair.keys() & set(TENSORS):
            torch.testing.assert_close(pair[key], other[key], rtol=0, atol=1e-5, equal_nan=True, msg=key)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    make_acdc_phantom(folder / "acdc", n_train=1, n_test=0, n_slices=3)
    make_hippocampus_phantom(folder / "hippocampus", n_train=2, n_validation=0)
    return folder


@pytest.fixture
def patients(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "acdc", tmp_path / "acdc"))


@pytest.fixture
def subjects(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "hippocampus", tmp_path / "hippocampus"))


@pytest.mark.parametrize("codes", ["LPS", "RAI", "ARS", "SRA", "IPL", "ASR"])
def test_an_acdc_patient_stored_in_other_axes_gives_the_same_pairs(patients: Path, codes: str) -> None:
    """Slices on the first, second or third axis; the true displacement keeps its own file."""
    expected = acdc.load_pairs(patients, "train")
    for path in (patients / "training" / "patient001").glob("*frame??*.nii.gz"):
        if not path.name.endswith("ddf.nii.gz"):
            store(path, codes)
    assert_equal_pairs(acdc.load_pairs(patients, "train"), expected)


def test_labels_stored_in_other_axes_lie_on_their_image(patients: Path, subjects: Path) -> None:
    folder = patients / "training" / "patient001"
    expected = acdc.load_pairs(patients, "train"), hippocampus.load_pairs(subjects)
    for number, codes in enumerate(every_orientation()[::5]):
        store(sorted(folder.glob("*_gt.nii.gz"))[number % 2], codes)
        store(sorted((subjects / "labelsTr").iterdir())[number % 2], codes)
        assert_equal_pairs(acdc.load_pairs(patients, "train"), expected[0])
        assert_equal_pairs(hippocampus.load_pairs(subjects), expected[1])


@pytest.mark.parametrize("codes", ["LPS", "ASR", "PIL"])
def test_a_hippocampus_stored_in_other_axes_gives_the_same_pairs(subjects: Path, codes: str) -> None:
    expected = hippocampus.load_pairs(subjects)
    for folder in ("imagesTr", "labelsTr"):
        store(subjects / folder / "hippocampus_001.nii.gz", codes)
    assert_equal_pairs(hippocampus.load_pairs(subjects), expected)


@pytest.mark.parametrize("factor", [2, 0.6])
def test_acdc_of_another_spacing_is_brought_to_that_of_training(tmp_path: Path, factor: float) -> None:
    """The true displacement follows: its length in millimetres stays."""
    usual = make_acdc_phantom(tmp_path / "usual", n_train=1, n_test=0, n_slices=1)
    other = make_acdc_phantom(
        tmp_path / "other", n_train=1, n_test=0, n_slices=1, shape=(int(160 / factor), int(144 / factor))
    )
    pairs = {root: acdc.load_pairs(root, "train", crop_center="volume") for root in (usual, other)}
    for one, two in zip(*pairs.values(), strict=True):
        assert one["spacing"].tolist() == [1.5625] * 2 and two["spacing"].tolist() == [1.5] * 2
        assert two["moving_image"].shape == two["moving_label"].shape == (1, *two["true_ddf"].shape[1:])
        assert np.abs(np.array(two["moving_image"].shape[1:]) - (167, 150)).max() <= 1
        assert torch.allclose(two["centre"] * 1.5, one["centre"] * 1.5625, atol=2.5)
        lengths = [float(pair["true_ddf"].norm(dim=0).max() * pair["spacing"][0]) for pair in (one, two)]
        assert lengths[0] == pytest.approx(lengths[1], rel=0.1)
        # the true displacement fits the labels as well as before
        assert _overlap_after_truth(two) > _overlap_after_truth(one) - 0.12 > 0.7


def _overlap_after_truth(pair: dict[str, Any]) -> float:
    moved = warp((pair["moving_label"] == 2).float()[None], pair["true_ddf"][None])[0] >= 0.5
    fixed = pair["fixed_label"] == 2
    return float(2 * (moved & fixed).sum() / (moved.sum() + fixed.sum()))


def test_isotropic_voxels_of_one_millimetre_stay_as_they_are(tmp_path: Path, patients: Path) -> None:
    next((patients / "training" / "patient001").glob("*ddf.nii.gz")).unlink()
    for path in (patients / "training" / "patient001").glob("*frame??*.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), np.eye(4)), path)
    pair = acdc.load_pairs(patients, "train")[0]
    assert pair["spacing"].isnan().all() and pair["moving_image"].shape == (1, 160, 144)


@pytest.mark.parametrize("value", [257, 514, -1, 4])
def test_labels_that_the_data_set_does_not_know_are_refused(patients: Path, subjects: Path, value: int) -> None:
    for path in ((patients / "training" / "patient001").glob("*frame01_gt.nii.gz"), (subjects / "labelsTr").iterdir()):
        file = sorted(path)[0]
        image = nib.load(file)
        values = np.asanyarray(image.dataobj).astype(np.int16)
        values[values == 1] = value
        nib.save(nib.Nifti1Image(values, image.affine), file)
    with pytest.raises(
        DatasetLayoutError, match=rf"patient001: expected the labels 0, 1, 2, 3 in .*_gt.nii.gz.*{value}"
    ):
        acdc.load_pairs(patients, "train")
    with pytest.raises(
        DatasetLayoutError, match=rf"hippocampus_001: expected the labels 0, 1, 2 in .*labelsTr.*{value}"
    ):
        hippocampus.load_pairs(subjects)


def test_labels_of_another_place_are_refused_and_those_without_orientation_lie_voxel_on_voxel(subjects: Path) -> None:
    expected = hippocampus.load_pairs(subjects)
    file = subjects / "labelsTr" / "hippocampus_001.nii.gz"
    label = nib.load(file)
    values = np.asanyarray(label.dataobj)
    away = label.affine.copy()
    away[1, 3] += 5
    nib.save(nib.Nifti1Image(values, away), file)
    with pytest.raises(
        DatasetLayoutError, match=r"hippocampus_001: expected labels of .* lie up to 5 voxels from those of"
    ):
        hippocampus.load_pairs(subjects)
    nib.save(nib.Nifti1Image(values, None), file)
    assert_equal_pairs(hippocampus.load_pairs(subjects), expected)


def test_finer_labels_are_read_at_the_nearest_voxel(subjects: Path) -> None:
    expected = hippocampus.load_pairs(subjects)
    file = subjects / "labelsTr" / "hippocampus_001.nii.gz"
    label = nib.load(file)
    fine = label.affine @ np.diag([1 / 3, 1 / 3, 1 / 3, 1])
    fine[:3, 3] = (label.affine @ [-1 / 3, -1 / 3, -1 / 3, 1])[:3]
    nib.save(nib.Nifti1Image(np.asanyarray(label.dataobj).repeat(3, 0).repeat(3, 1).repeat(3, 2), fine), file)
    assert_equal_pairs(hippocampus.load_pairs(subjects), expected)


def test_a_stack_whose_slices_cannot_be_told_is_refused_and_one_slice_is_said(
    tmp_path: Path, patients: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = patients / "training" / "patient001"
    files = [path for path in folder.glob("*frame??*.nii.gz") if not path.name.endswith("ddf.nii.gz")]
    next(folder.glob("*ddf.nii.gz")).unlink()
    stored = {path: nib.load(path) for path in files}
    stored = {path: (np.asanyarray(image.dataobj).copy(), image.affine) for path, image in stored.items()}
    for path, (values, affine) in stored.items():
        one = np.moveaxis(values[..., 1:2], 2, 0)
        nib.save(nib.Nifti1Image(one, affine[:, [2, 0, 1, 3]]), path)
    with caplog.at_level(logging.WARNING):
        (pair,) = acdc.load_pairs(patients, "train")
    assert "patient001" in caplog.text and "holds one slice" in caplog.text
    assert pair["moving_image"].shape == (1, 160, 144)
    for path, (values, _) in stored.items():
        nib.save(nib.Nifti1Image(values[:80, :80].repeat(27, 2)[..., :80], np.diag([1.5, 1.5, 1.5, 1])), path)
    with pytest.raises(DatasetLayoutError, match="patient001: .*does not say which axis holds the slices"):
        acdc.load_pairs(patients, "train")


def test_accents_in_info_cfg_are_read_in_latin_1_and_utf_8(patients: Path) -> None:
    info = patients / "training" / "patient001" / "Info.cfg"
    text = info.read_text().replace("Group: ", "Hôpital: Besançon\nGroup: é")
    for encoding in ("latin-1", "utf-8", "utf-8-sig"):
        info.write_bytes(text.encode(encoding))
        assert acdc.load_pairs(patients, "train")[0]["group"].startswith("é")


@pytest.mark.parametrize("percentiles", [None, (0, 99), (1, 99)])
def test_intensities_are_clipped_to_the_percentiles_of_each_volume(
    patients: Path, subjects: Path, percentiles: tuple[int, int] | None
) -> None:
    image = nib.load(next(patients.rglob("*frame01.nii.gz")))
    expected = np.asanyarray(image.dataobj).astype(np.float32)
    if percentiles:
        expected = np.clip(expected, *np.percentile(expected, percentiles))
    pairs = acdc.load_pairs(patients, "train", percentiles=percentiles)
    for z, pair in enumerate(pairs):
        np.testing.assert_allclose(pair["moving_image"][0].numpy(), expected[..., z], rtol=1e-6)
    largest = max(
        float(pair["moving_image"].max()) for pair in hippocampus.load_pairs(subjects, percentiles=percentiles)
    )
    raw = [np.asanyarray(nib.load(path).dataobj) for path in (subjects / "imagesTr").iterdir()]
    assert largest == pytest.approx(
        max(np.percentile(v, percentiles[1] if percentiles else 100) for v in raw), rel=1e-6
    )


@pytest.mark.parametrize("percentiles", ["0, 99", [1], [99, 1], 99])
def test_percentiles_that_are_not_two_in_order_are_refused(patients: Path, subjects: Path, percentiles: Any) -> None:
    for load, root in ((acdc.load_pairs, patients), (hippocampus.load_pairs, subjects)):
        with pytest.raises(ValueError, match="expected (two numbers like|0 <= lower < upper)"):
            load(root, "train", percentiles=percentiles)


def test_a_pair_that_is_listed_twice_is_refused_before_anything_is_read(subjects: Path) -> None:
    listed = subjects / "pairs.csv"
    listed.write_text("moving,fixed\n1,2\n2,1\nhippocampus_001.nii.gz,002\n")
    for path in (subjects / "labelsTr").iterdir():
        path.unlink()
    message = "pairs: .*pairs.csv lists a pair twice: hippocampus_001, hippocampus_002. Keep one row"
    with pytest.raises(DatasetLayoutError, match=message):
        hippocampus.load_pairs(subjects, pairs=listed)
    for path in (subjects, subjects / "absent.csv"):
        with pytest.raises(DatasetLayoutError, match=f"pairs: expected a CSV file, {path} is none"):
            hippocampus.load_pairs(subjects, pairs=path)


def test_files_that_are_refused_are_named_with_their_role(tmp_path: Path) -> None:
    image, label = tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((5, 6, 7), np.float32), np.eye(4)), image)
    nib.save(nib.Nifti1Image(np.full((5, 6, 7), 0.5, np.float32), np.eye(4)), label)
    with pytest.raises(DatasetLayoutError, match="labels: expected whole numbers.*label.nii.gz"):
        read_case(image, label, (0, 1))
    label.write_bytes(label.read_bytes()[:-40])
    with pytest.raises(DatasetLayoutError, match="labels: expected a readable NIfTI file .*label.nii.gz is not"):
        read_case(image, label, (0, 1))
    with pytest.raises(DatasetLayoutError, match="image: .*absent.nii.gz does not exist"):
        read_case(tmp_path / "absent.nii.gz", label, (0, 1))


def test_labels_of_another_grid_are_sampled_once(tmp_path: Path) -> None:
    """Image of 1 mm brought to 1.5 mm, labels of 0.4 mm: each is that of the label voxel nearest to the final one."""
    values = np.random.default_rng(0).integers(0, 4, (50, 40, 30)).astype(np.uint8)
    image, label = tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"
    fine = np.diag([0.4, 0.4, 0.4, 1.0])
    fine[:3, 3] = -0.3
    nib.save(nib.Nifti1Image(values, fine), label)
    nib.save(nib.Nifti1Image(np.random.default_rng(1).random((20, 16, 12)).astype(np.float32), np.eye(4)), image)
    seen, laid = read_case(image, label, range(4), spacing=(1.5, 1.5, 1.5))
    assert laid.array.shape == seen.array.shape == (13, 11, 8)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in laid.array.shape], indexing="ij"), -1)
    points = index @ seen.affine[:3, :3].T + seen.affine[:3, 3]
    voxels = (points + 0.3) / 0.4
    clear = (np.abs(voxels - np.floor(voxels) - 0.5) > 1e-3).all(-1)  # half way either voxel is the nearest
    nearest = values[tuple(np.clip(np.rint(voxels).astype(int), 0, np.array(values.shape) - 1)[clear].T)]
    assert clear.mean() > 0.4
    np.testing.assert_array_equal(laid.array.numpy()[clear], nearest)
