# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from common.data import drive
from common.data.drive_phantom import make_drive_phantom
from common.data.layout import DatasetLayoutError
from common.data.pairs import PairDataset
from common.data.pictures import read_mask, read_picture
from common.io.images import load_image
from common.metrics.cases import Cases
from common.metrics.displacement import DisplacementMeasures, MagnitudeMeasures
from common.spatial.warp import warp
from common.transforms.loading import LoadPaird
from common.transforms.registration import CropPaird

SHAPE = (188, 195)  # right, down
SIZE = (47, 52)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_drive_phantom(tmp_path_factory.mktemp("drive") / "data", n_training=5, n_test=2, shape=SHAPE)


@pytest.fixture
def copy(phantom: Path, tmp_path: Path) -> Path:
    """One that may be damaged."""
    return Path(shutil.copytree(phantom, tmp_path / "copy"))


def grey(path: Path | str) -> np.ndarray:
    """Values of a picture, a row a line."""
    with Picture.open(path) as picture:
        assert picture.size == SHAPE
        return np.asarray(picture.convert("L"))


def test_files_are_named_and_coded_as_the_release(phantom: Path) -> None:
    for part, number in (("training", "21"), ("test", "01")):
        with Picture.open(phantom / part / "images" / f"{number}_{part}.tif") as picture:
            assert picture.size == SHAPE and picture.mode == "RGB"
        for file in (f"1st_manual/{number}_manual1.gif", f"mask/{number}_{part}_mask.gif"):
            assert set(np.unique(grey(phantom / part / file))) == {0, 255}
    assert 0.03 < (grey(phantom / "training/1st_manual/21_manual1.gif") > 0).mean() < 0.15


def test_a_phantom_depends_on_seed_and_number_alone(phantom: Path, tmp_path: Path) -> None:
    again = make_drive_phantom(tmp_path / "again", n_training=2, n_test=0, shape=SHAPE)
    for file in sorted(again.rglob("*.*")):
        assert file.read_bytes() == (phantom / file.relative_to(again)).read_bytes()
    other = make_drive_phantom(tmp_path / "other", n_training=1, n_test=0, shape=SHAPE, seed=1)
    name = "training/1st_manual/21_manual1.gif"
    assert (other / name).read_bytes() != (phantom / name).read_bytes()
    with pytest.raises(FileExistsError, match="training exists already"):
        make_drive_phantom(phantom)
    with pytest.raises(ValueError, match="n_training 1 to 20"):
        make_drive_phantom(tmp_path / "none", n_training=21)


@pytest.mark.parametrize("parent", ["", "DRIVE"])
def test_images_are_found_in_both_places(phantom: Path, tmp_path: Path, parent: str) -> None:
    shutil.copytree(phantom, tmp_path / parent, dirs_exist_ok=True)
    names = [f"{n}_training" for n in (21, 22, 23, 25)]
    assert drive.subjects(tmp_path, "train") == names and drive.subjects(tmp_path, "validation") == ["24_training"]
    assert drive.subjects(tmp_path, "test") == ["01_test", "02_test"]
    assert drive.subjects(tmp_path, "train", "official") == sorted([*names, "24_training"])
    with pytest.raises(DatasetLayoutError, match="no image of 'validation' .partition 'official'. among the 7"):
        drive.subjects(tmp_path, "validation", "official")


def test_a_release_without_the_tests_drawings_has_no_test_split(copy: Path) -> None:
    shutil.rmtree(copy / "test" / "1st_manual")
    assert len(drive.subjects(copy)) == 5
    with pytest.raises(DatasetLayoutError, match="split: no image of 'test'"):
        drive.load_pairs(copy, "test")


def test_fixed_is_moving_under_the_true_displacement_at_every_size(phantom: Path) -> None:
    entry = drive.datalist(phantom, "validation")[0]
    whole = drive.read_pair({**entry, "spatial_size": None})
    exact = warp(whole["moving_image"][None], whole["true_ddf"][None])[0]
    torch.testing.assert_close(whole["fixed_image"], exact, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(whole["moving_image"][0].numpy(), grey(entry["moving_label"]).T / 255)
    (small,) = drive.load_pairs(phantom, "validation", SIZE)
    moved = warp(small["moving_image"][None], small["true_ddf"][None])[0]
    before, after = ((small["fixed_image"] - image).square().mean() for image in (small["moving_image"], moved))
    assert after < 0.2 * before  # thin vessels, interpolated twice
    # the same share of the picture's extent, whatever its size
    for axis in range(2):
        lengths = [pair["true_ddf"][axis].abs().mean() / pair["true_ddf"].shape[axis + 1] for pair in (whole, small)]
        assert float(lengths[0]) == pytest.approx(float(lengths[1]), rel=0.02)


def test_deformations_differ_by_seed_image_and_number_alone(phantom: Path) -> None:
    many = drive.load_pairs(phantom, "train", SIZE, deformations=2)
    assert [pair["case"] for pair in many][:3] == [
        "21_training_deformation00", "21_training_deformation01", "22_training_deformation00",
    ]  # fmt: skip
    fields = [pair["true_ddf"].numpy().tobytes() for pair in many]
    fields += [
        pair["true_ddf"].numpy().tobytes() for pair in drive.load_pairs(phantom, "train", SIZE, deformation_seed=1)
    ]
    assert len(set(fields)) == len(fields) == 12
    official = drive.load_pairs(phantom, "train", SIZE, partition="official")
    assert len(official) == 5 and torch.equal(official[0]["true_ddf"], many[0]["true_ddf"])


def test_the_photographs_green_channel_may_be_registered(phantom: Path) -> None:
    (pair,) = drive.load_pairs(phantom, "validation", SIZE, picture="photograph")
    inside = pair["moving_mask"] > 0
    assert pair["moving_image"][~inside].mean() < 5 < 40 < pair["moving_image"][inside].mean()
    vessel = (pair["moving_label"] > 0) & inside
    assert pair["moving_image"][vessel].mean() < 0.9 * pair["moving_image"][inside & ~vessel].mean()  # dark
    (drawn,) = drive.load_pairs(phantom, "validation", SIZE)
    assert torch.equal(pair["true_ddf"], drawn["true_ddf"]) and torch.equal(pair["fixed_label"], drawn["fixed_label"])


def test_the_true_displacement_reaches_the_measure(phantom: Path) -> None:
    item = PairDataset(drive.load_pairs(phantom, "validation", SIZE), SIZE, with_labels=True)[0]
    batch = {key: value[None] for key, value in item.items() if isinstance(value, torch.Tensor)}
    truth = batch["true_ddf"]
    perfect = DisplacementMeasures(mask=None, unit=True)(Cases(batch, truth, batch["moving_image"]))
    assert perfect["epe"].item() == 0 and perfect["epe_unit"].item() == 0
    per_axis = truth / (torch.tensor(SIZE, dtype=torch.float32) - 1).reshape(1, 2, 1, 1)
    expected = per_axis.norm(dim=1).mean().item()
    assert perfect["epe_unit_before"].item() == pytest.approx(expected, rel=1e-5)
    length = MagnitudeMeasures()(Cases(batch, truth, batch["moving_image"]))["magnitude_unit"]
    assert length.item() == pytest.approx(expected, rel=1e-5)
    assert perfect["epe_before"].item() == pytest.approx(truth.norm(dim=1).mean().item(), rel=1e-5)


def test_inference_brings_a_file_to_what_training_sees(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRATION_BUNDLES_CACHE", str(tmp_path))
    moving, fixed = drive.example_pair(phantom)
    assert moving.is_relative_to(tmp_path) and load_image(moving).array.shape == SHAPE
    item = LoadPaird(2, orientation=drive.ORIENTATION, resize=SIZE)({"moving": str(moving), "fixed": str(fixed)})
    image = CropPaird(SIZE, crop_center="middle")(item)["image"]
    pair = PairDataset(drive.load_pairs(phantom, "validation", SIZE), SIZE)[0]
    for channel, key in enumerate(("moving_image", "fixed_image")):
        torch.testing.assert_close(torch.as_tensor(image[channel]), pair[key][0], atol=1e-5, rtol=0)


def _broken(copy: Path, kind: str) -> None:
    vessels, photograph = copy / "training/1st_manual/24_manual1.gif", copy / "training/images/24_training.tif"
    if kind in ("gif", "tif"):
        path = vessels if kind == "gif" else photograph
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "no picture":
        vessels.write_text("none")
    elif kind == "one value":
        Picture.new("L", SHAPE).save(vessels)
    elif kind == "another grid":
        mask = copy / "training/mask/24_training_mask.gif"
        Picture.fromarray(grey(mask)[:90, :90]).save(mask)
    elif kind == "frames":
        first, second = (Picture.fromarray(values) for values in (grey(vessels), grey(vessels)[::-1]))
        first.save(vessels, save_all=True, append_images=[second])
    else:
        (copy / "training/mask/24_training_mask.gif").unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gif", "24_training: expected vessels, one TIFF, GIF or PNG picture, in .*24_manual1.gif, which cannot"),
        ("tif", "24_training: expected a photograph, one TIFF, GIF or PNG picture, in .*24_training.tif, which cannot"),
        ("no picture", "24_training: expected vessels, .*24_manual1.gif, which cannot be read as one"),
        ("one value", r"24_training: expected vessels, a picture of two values, in .*got 1: \[0.0\]; restore"),
        ("another grid", r"24_training: expected pictures of one size, .*\(188, 195\), a field of view of \(90, 90\)"),
        ("frames", "24_training: expected vessels, .*which cannot be read as one: it has 2 frames"),
        ("no mask", "24_training: there are vessels, but no .*24_training_mask.gif"),
    ],
)  # fmt: skip
def test_broken_copies_are_said(copy: Path, kind: str, message: str) -> None:
    _broken(copy, kind)
    with pytest.raises(DatasetLayoutError, match=message):
        drive.load_pairs(copy, "validation", SIZE, picture="photograph" if kind == "tif" else "vessels")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"deformations": 0}, "deformations: expected a whole number from 1, got 0"),
        ({"deformation_seed": -1}, "deformation_seed: expected a whole number from 0, got -1"),
        ({"picture": "photo"}, "picture: expected one of vessels, photograph, got 'photo'. Did you mean 'photograph'"),
        ({"partition": "numbers"}, "partition: expected one of number, official"),
        ({"spatial_size": (32, 32, 32)}, "spatial_size: expected two numbers"),
    ],
)
def test_bad_arguments_are_refused(phantom: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drive.load_pairs(phantom, "train", **arguments)


def test_pictures_run_to_the_right_and_downwards(tmp_path: Path) -> None:
    values = np.zeros((4, 6, 3), np.uint8)
    values[1, 5] = (10, 200, 30)  # row 1, column 5
    for name in ("a.png", "a.tif"):
        Picture.fromarray(values).save(tmp_path / name)
        read = read_picture(tmp_path / name, "it")
        assert read.shape == (6, 4) and read[5, 1] == 200 and read.sum() == 200
    assert read_mask(tmp_path / "a.png", "it").sum() == 1
    with pytest.raises(DatasetLayoutError, match="expected it in .*absent.gif, there is no such file"):
        read_picture(tmp_path / "absent.gif", "it")
