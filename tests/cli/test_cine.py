# SPDX-License-Identifier: Apache-2.0
"""A cycle of three frames of the cardiac phantom: ED, ES, and ED again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from common.cli.cine import cine
from common.data.acdc_folder import patient_files, patient_folders
from common.data.acdc_phantom import make_acdc_phantom
from common.io.results import read_metrics
from common.metrics.strain import polar_strains
from common.spatial.inversion import invert

PAIRWISE = {"architecture": "pairwise", "device": "cpu"}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("acdc")
    make_acdc_phantom(folder, n_train=1, n_test=0, shape=(112, 104), n_slices=3)
    return patient_files(patient_folders(folder)[0])


@pytest.fixture
def patient(phantom: dict[str, Any], tmp_path: Path) -> Path:
    """In ACDC's layout, its frames in one file."""
    diastole, systole = (nib.load(phantom[f"{role}_image"]) for role in ("moving", "fixed"))
    frames = [np.asarray(frame.dataobj) for frame in (diastole, systole, diastole)]
    path = tmp_path / "patient001_4d.nii.gz"
    nib.save(nib.Nifti1Image(np.stack(frames, axis=-1), diastole.affine), path)
    shutil.copy(phantom["moving_label"], tmp_path / "patient001_frame01_gt.nii.gz")
    shutil.copy(phantom["fixed_label"], tmp_path / "patient001_frame02_gt.nii.gz")
    (tmp_path / "Info.cfg").write_text("ED: 1\nES: 2\n")
    return path


def true_strain(phantom: dict[str, Any]) -> list[float]:
    """From the phantom's displacement, which goes from ES to ED, in per cent."""
    label = np.asarray(nib.load(phantom["moving_label"]).dataobj)
    ddf = np.asarray(nib.load(phantom["true_ddf"]).dataobj)  # (X, Y, Z, 2)
    forward = invert(torch.from_numpy(ddf).permute(2, 3, 0, 1).double())
    muscle, cavity = (torch.from_numpy(label == value).movedim(2, 0) for value in (2, 3))
    means = polar_strains(forward, muscle, cavity, (1.0, 1.0))
    weights = muscle.flatten(1).sum(1).double() * means[:, 0].isfinite()
    return (100 * (weights[:, None] * means.nan_to_num()).sum(0) / weights.sum()).tolist()


def test_volume_and_strain_over_the_cycle_are_the_phantoms(
    phantom: dict[str, Any], patient: Path, tmp_path: Path
) -> None:
    text = cine(str(patient), str(tmp_path / "out"), **PAIRWISE)
    rows = read_metrics(tmp_path / "out" / "cine.csv", ["frame"])
    assert [row["frame"] for row in rows] == ["1", "2", "3"]
    label = np.asarray(nib.load(phantom["moving_label"]).dataobj)
    voxel = np.prod(nib.load(phantom["moving_label"]).header.get_zooms()) / 1000
    assert rows[0]["volume_ml"] == pytest.approx((label == 3).sum() * voxel, rel=1e-5)
    assert rows[2]["volume_ml"] == pytest.approx(rows[0]["volume_ml"], rel=0.02)  # ED registered to itself
    assert rows[1]["volume_ml"] < 0.8 * rows[0]["volume_ml"]
    ejected = 100 * (1 - rows[1]["volume_ml"] / rows[0]["volume_ml"])
    assert f"ED frame 1, ES frame 2: ejection fraction {ejected:.1f} %" in text and "Of the labels: " in text
    truth = true_strain(phantom)
    assert truth[0] > 10 and truth[1] < -5
    assert rows[1]["radial"] == pytest.approx(truth[0], abs=12) and rows[1]["radial"] > 5
    assert rows[1]["circumferential"] == pytest.approx(truth[1], abs=7)  # smooth fields shorten less
    assert abs(rows[2]["radial"]) < 1 and rows[0]["radial"] == 0
    labels = nib.load(tmp_path / "out" / "labels.nii.gz")
    assert (
        labels.shape == (*label.shape, 3)
        and labels.get_data_dtype() == nib.load(phantom["moving_label"]).get_data_dtype()
    )
    assert np.array_equal(np.asarray(labels.dataobj)[..., 0], label)
    assert (tmp_path / "out" / "cine.png").stat().st_size > 10_000


def test_bad_input_says_what_to_do(patient: Path, phantom: dict[str, Any], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(ValueError, match="image: expected a 4D NIfTI file .* register two images use inferring"):
        cine(phantom["moving_image"], out)
    with pytest.raises(ValueError, match="es: expected a frame from 1 to 3, got 4"):
        cine(str(patient), out, es=4)
    with pytest.raises(ValueError, match=r"bundle: expected one for 2D slices .*got baseline_hippocampus"):
        cine(str(patient), out, bundle="baseline_hippocampus")
    with pytest.raises(FileNotFoundError, match="es_label: there is no"):
        cine(str(patient), out, es_label="absent.nii.gz")
    with pytest.raises(ValueError, match=r"lv: label 7 is absent at end-diastole in .*pass the value it has, --lv N"):
        cine(str(patient), out, lv=7)
    own = nib.load(phantom["moving_label"])
    other = tmp_path / "other.nii.gz"
    values = np.asarray(own.dataobj).copy()
    values[..., ::2][values[..., ::2] == 2] = 0
    values[..., 1::2][values[..., 1::2] == 3] = 0
    nib.save(nib.Nifti1Image(values, own.affine), other)
    with pytest.raises(ValueError, match="myocardium, lv: expected a slice with both"):
        cine(str(patient), out, label=str(other))
    nib.save(nib.Nifti1Image(np.asarray(own.dataobj)[1:], own.affine), other)
    with pytest.raises(ValueError, match="label: expected the grid of the frames"):
        cine(str(patient), out, label=str(other))
    (patient.parent / "Info.cfg").unlink()
    with pytest.raises(ValueError, match=r"ed: expected the frame of end-diastole.*Pass --ed 1"):
        cine(str(patient), out)
    (patient.parent / "patient001_frame01_gt.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="label: expected the labels of end-diastole"):
        cine(str(patient), out, ed=1)
    assert not Path(out).exists()


def test_a_frame_that_cannot_be_registered_is_named_before_any_is(patient: Path, tmp_path: Path) -> None:
    stored = nib.load(patient)
    for value, message in ((np.nan, "expected finite values"), (0.0, "expected an image with contrast")):
        values = np.asarray(stored.dataobj, dtype=np.float32)
        values[..., 2] = value
        path = patient.with_name("patient001.nii.gz")
        nib.save(nib.Nifti1Image(values, stored.affine), path)
        with pytest.raises(ValueError, match=rf"image: {message}.*frame 3 of {path}"):
            cine(str(path), str(tmp_path / "out"), **PAIRWISE)
    assert not (tmp_path / "out").exists()


QUICK: dict[str, Any] = PAIRWISE | {"architectures#pairwise": {"levels": [2], "steps": [12]}}
STORED = {
    "slices first": [[1, 1], [2, 1], [0, 1]],  # where each axis goes, and whether it is turned round
    "mirrored": [[0, -1], [1, 1], [2, -1]],
    "transposed": [[1, 1], [0, -1], [2, 1]],
}


def stored_as(name: str, patient: Path, folder: Path) -> Path:
    """Two frames and the labels of ED with other axes, every voxel at its place."""
    folder.mkdir()
    image = nib.load(patient).slicer[..., :2]
    label = nib.load(patient.with_name("patient001_frame01_gt.nii.gz"))
    for each, file in ((image, patient.name), (label, "patient001_frame01_gt.nii.gz")):
        nib.save(each.as_reoriented(STORED[name]) if name in STORED else each, folder / file)
    return folder / patient.name


def test_volumes_and_strains_do_not_depend_on_how_the_file_is_stored(patient: Path, tmp_path: Path) -> None:
    rows, labels = {}, {}
    for name in ("as it is", *STORED):
        path = stored_as(name, patient, tmp_path / name)
        cine(str(path), str(tmp_path / f"{name} out"), ed=1, es=2, **QUICK)
        rows[name] = read_metrics(tmp_path / f"{name} out" / "cine.csv", ["frame"])[1]
        carried = nib.load(tmp_path / f"{name} out" / "labels.nii.gz")
        assert carried.shape[:3] == nib.load(path).shape[:3] and np.allclose(carried.affine, nib.load(path).affine)
        labels[name] = np.asarray(nib.as_closest_canonical(carried).dataobj)[..., 1]
    expected = rows.pop("as it is")
    assert expected["radial"] > 3
    for name, row in rows.items():
        assert row["volume_ml"] == pytest.approx(expected["volume_ml"], rel=0.01), name
        for key in ("radial", "circumferential"):
            assert row[key] == pytest.approx(expected[key], abs=0.3), name
        assert np.mean(labels[name] != labels["as it is"]) < 1e-3


def test_slices_that_lose_their_cavity_are_warned_of(
    patient: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = patient.with_name("patient001_frame02_gt.nii.gz")
    label = nib.load(path)
    values = np.asarray(label.dataobj).copy()
    values[..., -1][values[..., -1] == 3] = 0
    nib.save(nib.Nifti1Image(values, label.affine), path)
    cine(str(patient), str(tmp_path / "out"), architecture="identity", device="cpu")
    assert any("slice(s) with a cavity at ED have none at ES" in record.getMessage() for record in caplog.records)
