# SPDX-License-Identifier: Apache-2.0
"""The files warp labels as the challenge does to what the evaluation here measures."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from common.cli.learn2reg import learn2reg
from common.data import ixi_phantom, oasis, oasis_phantom
from common.io.learn2reg import read_disp, suffix
from common.spatial.warp import warp

SHAPE = (36, 48, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("oasis") / "data"
    return oasis_phantom.make_oasis_phantom(path, n_train=2, n_validation=3, n_test=3, shape=SHAPE)


class Truth(torch.nn.Module):
    """Registers each pair by its true displacement, on a window that may be larger."""

    def __init__(self, pairs: list, size: tuple[int, ...]) -> None:
        super().__init__()
        self.fields = []
        for pair in pairs:
            padding = [(s - n) for n, s in zip(pair["true_ddf"].shape[1:], size, strict=True)]
            flat = [amount for extra in reversed(padding) for amount in (extra // 2, extra - extra // 2)]
            self.fields.append(torch.nn.functional.pad(pair["true_ddf"], flat)[None])

    def forward(self, image: torch.Tensor, fixed: object = None, condition: object = None) -> torch.Tensor:
        return self.fields.pop(0)


@pytest.mark.parametrize(("form", "size"), [("nii.gz", (36, 40, 48)), ("npz", (48, 48, 64)), ("half", (36, 40, 48))])
def test_the_files_reproduce_the_warped_labels(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, size: tuple[int, ...]
) -> None:
    pairs = oasis.load_pairs(folder, "validation")
    monkeypatch.setattr("common.cli.learn2reg.registration", lambda method, options: Truth(pairs, size))
    text = learn2reg(
        "baseline_oasis", str(tmp_path), form=form, dataset_dir=str(folder), architecture="identity", device="cpu",
        spatial_size=list(size), batch_size=1,
    )  # fmt: skip
    assert text.startswith("Wrote 2 displacements into ")
    files = [f"disp_{number:04d}_{number + 1:04d}.{suffix(form)}" for number in (395, 396)]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    for number, (pair, file) in enumerate(zip(pairs, files, strict=True), start=395):
        disp = read_disp(tmp_path / file)
        assert disp.shape == (*SHAPE, 3)
        labels = [np.asarray(nibabel.load(folder / "labelsTr" / f"OASIS_{n:04d}_0000.nii.gz").dataobj)
                  for n in (number, number + 1)]  # fmt: skip
        points = np.indices(SHAPE) + np.moveaxis(disp, -1, 0)  # as the challenge warps
        warped = map_coordinates(labels[1], points, order=0)
        ours = warp(pair["moving_label"][None], pair["true_ddf"][None], mode="nearest")[0, 0].numpy()
        ours = ours[::-1, ::-1].transpose(0, 2, 1)  # left, down, front to right, front, up
        assert (warped == ours).mean() > (
            0.995 if form == "half" else 0.9999
        )  # rounding; points half-way between voxels
        before, after = ((labels[0] != other).mean() for other in (labels[1], warped))
        assert after < 0.5 * before


def test_test_subjects_need_no_labels(folder: Path, tmp_path: Path) -> None:
    learn2reg(
        "baseline_oasis", str(tmp_path), "test", dataset_dir=str(folder), architecture="identity", device="cpu",
        spatial_size=[36, 40, 48],
    )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disp_0415_0416.nii.gz", "disp_0416_0417.nii.gz"]
    assert not read_disp(tmp_path / "disp_0415_0416.nii.gz").any()


def test_a_list_of_pairs_is_what_is_written(folder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("fixed,moving\n396,395\n")
    learn2reg(
        "baseline_oasis", str(tmp_path / "out"), dataset_dir=str(folder), architecture="identity", device="cpu",
        spatial_size=[36, 40, 48], pairs=str(pairs),
    )  # fmt: skip
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["disp_0396_0395.nii.gz"]


def test_other_layouts_and_options_are_refused(folder: Path, tmp_path: Path) -> None:
    arguments = {"device": "cpu", "architecture": "identity"}
    with pytest.raises(ValueError, match="form: expected one of nii.gz, npz, half, got 'nii'"):
        learn2reg("baseline_oasis", str(tmp_path), form="nii")
    with pytest.raises(ValueError, match="Unknown override '--spatial_siz'.*Did you mean '--spatial_size'"):
        learn2reg("baseline_oasis", str(tmp_path), spatial_siz=[1], **arguments)
    with pytest.raises(ValueError, match="bundle: expected one of OASIS, .* got baseline_acdc"):
        learn2reg("baseline_acdc", str(tmp_path), **arguments)
    other = ixi_phantom.make_ixi_phantom(tmp_path / "ixi", 1, 1, 1, shape=SHAPE)
    with pytest.raises(ValueError, match="dataset_dir: expected data in Learn2Reg's layout, .*of case atlas_to_Val"):
        learn2reg("baseline_ixi", str(tmp_path), dataset_dir=str(other), spatial_size=[36, 40, 48], **arguments)
    assert not list(tmp_path.glob("disp*"))
