# SPDX-License-Identifier: Apache-2.0
"""The commands register, transform and score: what they write, that it fits together, and what they refuse."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from common.cli.pairs import _difference, read_pairs
from common.cli.register import register
from common.cli.transform import score, transform
from common.cli.words import paths
from common.io.composite import load_transform
from common.io.images import load_image, load_label
from common.io.landmarks import Landmarks, load_landmarks, save_landmarks
from tests.test_registration import GRIDS, bend, picture

QUICK = {"affine": "none", "levels_mm": "4,2", "steps": "20,10"}
FILES = {"warped.nii.gz", "forward.nii.gz", "inverse.nii.gz", "forward.h5", "inverse.h5", "jacobian.nii.gz",
         "registration.png", "report.html", "metrics.json", "provenance.json"}  # fmt: skip
WITH_LABELS = {"warped_label.nii.gz"}
WITH_POINTS = {
    f"{stem}.{suffix}" for stem in ("moving_points_in_fixed", "fixed_points_in_moving") for suffix in ("csv", "fcsv")
}
POINTS = np.array([[5.0, -9, 14], [0, -6, 11], [9, -12, 16]])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A pair with labels and landmarks; moving is NRRD, on another grid."""
    folder = tmp_path_factory.mktemp("pair")
    images = {"fixed": picture(*GRIDS["straight"], bend), "moving": picture(*GRIDS["permuted"])}
    found = {}
    for role, image in images.items():
        for kind, values in (("", image.array.numpy()), ("_label", (image.array.numpy() > 60).astype(np.uint8) * 4)):
            name = folder / f"{role}{kind}.nii.gz"
            nib.save(nib.Nifti1Image(values, image.affine), name)
            found[f"{role}{kind}"] = str(name)
        points = POINTS if role == "fixed" else bend(POINTS)
        found[f"{role}_points"] = str(folder / f"{role}.fcsv")
        save_landmarks(found[f"{role}_points"], Landmarks(points, ("a", "b", "c")))
    itk.imwrite(itk.imread(found["moving"], itk.F), str(folder / "moving.nrrd"))
    return found | {"moving": str(folder / "moving.nrrd")}


@pytest.fixture(scope="module")
def done(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "registered"
    said = register(str(folder), **files, **QUICK, interpolation="one_hot")
    assert "correlation" in said and "Dice" in said and "landmarks" in said
    return folder


def test_everything_is_written(files: dict[str, str], done: Path) -> None:
    hidden = {path.name for path in done.iterdir() if path.name.startswith(".")}
    assert {path.name for path in done.iterdir()} - hidden == FILES | WITH_LABELS | WITH_POINTS
    metrics = json.loads((done / "metrics.json").read_text())
    assert metrics["foldings_percent"] == 0
    assert metrics["similarity"]["after"]["ncc"] > max(0.98, metrics["similarity"]["before"]["ncc"])
    assert metrics["dice"]["after"]["4"] > max(0.9, metrics["dice"]["before"]["4"])
    assert metrics["tre_mm"]["after"]["mean"] < 0.7 * metrics["tre_mm"]["before"]["mean"]
    record = json.loads((done / "provenance.json").read_text())
    assert record["inputs"]["moving"]["path"] == files["moving"] and len(record["inputs"]["moving"]["sha256"]) == 64
    assert record["settings"]["levels_mm"] == [4.0, 2.0] and record["versions"]["torch"]
    assert load_image(done / "warped.nii.gz").array.shape == load_image(files["fixed"]).array.shape
    assert load_label(done / "warped_label.nii.gz").stored == np.uint8


def test_saved_transforms_give_the_same_again(files: dict[str, str], done: Path, tmp_path: Path) -> None:
    for name in ("forward.h5", "forward.nii.gz"):
        transform(str(done / name), files["fixed"], image=files["moving"], output=str(tmp_path / "w.nii.gz"))
        again, ours = (load_image(path).array for path in (tmp_path / "w.nii.gz", done / "warped.nii.gz"))
        assert (again - ours).abs().max() < 0.02
    transform(str(done / "forward.h5"), files["fixed"], label=files["moving_label"], output=str(tmp_path / "l.nii.gz"),
              interpolation="one_hot")  # fmt: skip
    assert load_label(tmp_path / "l.nii.gz").array.equal(load_label(done / "warped_label.nii.gz").array)


def test_points_are_carried_as_the_image_is(files: dict[str, str], done: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "p.csv")
    transform(str(done / "forward.h5"), files["fixed"], points=files["moving_points"], output=out)
    expected = load_landmarks(done / "moving_points_in_fixed.csv", None).points_mm
    there = load_landmarks(out, None).points_mm
    np.testing.assert_allclose(there, expected, atol=0.1)
    forward = load_transform(done / "forward.h5", None)
    np.testing.assert_allclose(forward.points(there), load_landmarks(files["moving_points"], None).points_mm, atol=1e-3)
    transform(str(done / "inverse.h5"), files["moving"], points=files["fixed_points"], output=out)
    expected = load_landmarks(done / "fixed_points_in_moving.csv", None).points_mm
    np.testing.assert_allclose(load_landmarks(out, None).points_mm, expected, atol=0.1)


def test_inverting_and_composing(files: dict[str, str], done: Path, tmp_path: Path) -> None:
    """The inverse brings fixed onto moving as the saved inverse does; forward after inverse changes nothing."""
    out = str(tmp_path / "w.nii.gz")
    transform(str(done / "forward.nii.gz"), files["moving"], image=files["fixed"], output=out, invert="true")  # type: ignore[arg-type]
    again = load_image(out).array
    transform(str(done / "inverse.nii.gz"), files["moving"], image=files["fixed"], output=out)
    assert (again - load_image(out).array)[4:-4, 4:-4, 4:-4].abs().max() < 0.5
    both = f"{done / 'forward.h5'},{done / 'inverse.h5'}"
    transform(both, files["fixed"], image=files["fixed"], output=out, output_transform=str(tmp_path / "t.nii.gz"))
    off = (load_image(out).array - load_image(files["fixed"]).array)[4:-4, 4:-4, 4:-4]
    assert off.abs().max() < 1.5  # of some 150
    assert np.abs(nib.load(tmp_path / "t.nii.gz").get_fdata()[4:-4, 4:-4, 4:-4]).max() < 0.2  # mm
    twice = f"{done / 'forward.h5'},inverse:{done / 'forward.h5'}"
    transform(twice, files["fixed"], output_transform=str(tmp_path / "t.nii.gz"))
    assert np.abs(nib.load(tmp_path / "t.nii.gz").get_fdata()[4:-4, 4:-4, 4:-4]).max() < 1e-3  # mm, solved for there


def test_score_agrees_with_the_registration(files: dict[str, str], done: Path, tmp_path: Path) -> None:
    text = score(str(done / "forward.nii.gz"), **files, output=str(tmp_path / "s.json"))
    found, expected = json.loads(text), json.loads((done / "metrics.json").read_text())
    assert json.loads((tmp_path / "s.json").read_text()) == found
    assert found["dice"]["after"]["4"] == pytest.approx(expected["dice"]["after"]["4"], abs=0.01)
    assert found["tre_mm"]["after"]["mean"] == pytest.approx(expected["tre_mm"]["after"]["mean"], abs=0.01)
    assert found["similarity"]["after"]["ncc"] == pytest.approx(expected["similarity"]["after"]["ncc"], abs=1e-3)


def listed(path: Path, rows: list[dict[str, str]]) -> str:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_a_list_of_pairs_goes_on_after_a_failure_and_where_it_was(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    rows = [{"name": name, "moving": files["moving"], "fixed": fixed, "moving_label": files["moving_label"]}
            for name, fixed in (("bad", str(tmp_path / "broken.nii.gz")), ("good", files["fixed"]))]  # fmt: skip
    pairs, out = listed(tmp_path / "pairs.csv", rows), tmp_path / "out"
    said = register(str(out), pairs=pairs, **QUICK | {"steps": "2,2"})
    assert "1 pairs registered, 0 had been before, 1 failed" in said
    with (out / "errors.csv").open() as stream:
        (error,) = csv.DictReader(stream)
    assert error["name"] == "bad" and "broken.nii.gz" in error["error"]
    assert not list(out.glob("bad/*.nii.gz")) and (out / "good" / "warped_label.nii.gz").is_file()
    written = (out / "good" / "forward.h5").stat().st_mtime_ns
    said = register(str(out), pairs=listed(tmp_path / "pairs.csv", rows[1:]), **QUICK | {"steps": "2,2"})
    assert "0 pairs registered, 1 had been before, 0 failed" in said
    assert (out / "good" / "forward.h5").stat().st_mtime_ns == written and not (out / "errors.csv").exists()


def test_a_result_of_other_settings_files_or_weights_is_not_taken_for_done(
    files: dict[str, str], done: Path, tmp_path: Path
) -> None:
    settings = {"affine": "none", "levels_mm": [4.0, 2.0], "steps": [20, 10], "device": "cuda"}
    pair = {"name": "x", **files}
    assert _difference(done, pair, settings, "one_hot") is None
    assert _difference(done, pair, {**settings, "steps": 3}, "one_hot") == "settings"
    assert _difference(done, pair, settings, "nearest") == "settings"
    assert _difference(done, {key: path for key, path in pair.items() if key != "moving_label"}, settings, "one_hot")
    assert _difference(done, {**pair, "fixed": files["moving"]}, settings, "one_hot") == "files"
    assert _difference(tmp_path, pair, settings, "one_hot") == ""
    record = json.loads((done / "provenance.json").read_text())
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "provenance.json").write_text(json.dumps({**record, "weights": {files["fixed"]: "other"}}))
    assert _difference(tmp_path, pair, settings, "one_hot") == "weights"


def test_paths_with_commas_are_told_from_lists(tmp_path: Path) -> None:
    odd = tmp_path / "a,b #1.h5"
    odd.touch()
    assert paths(str(odd), "transforms") == [str(odd)]
    assert paths(f"x.h5, inverse:{odd},y.mat", "transforms") == ["x.h5", f"inverse:{odd}", "y.mat"]


def test_an_interrupted_pair_leaves_nothing_half_written(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("common.engines.saving.draw_registration", killed)
    with pytest.raises(KeyboardInterrupt):
        register(str(tmp_path / "out"), moving=files["moving"], fixed=files["fixed"], **QUICK | {"steps": "1,1"})
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".registration")]


def test_shards_take_every_pair_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"moving": f"{n}.nii.gz", "fixed": "f.nii.gz"} for n in range(5)]
    pairs, seen = listed(tmp_path / "pairs.csv", rows), []
    monkeypatch.setattr(
        "common.cli.register.register_files", lambda pair, *_: seen.append(Path(pair["moving"]).name) or ""
    )
    for number in range(2):
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("WORLD_SIZE", "2")
        register(str(tmp_path / "out"), pairs=pairs)
    assert sorted(seen) == [f"{n}.nii.gz" for n in range(5)]
    assert seen[:3] == ["0.nii.gz", "2.nii.gz", "4.nii.gz"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("moving,fixd\na,b\n", "columns of name, moving, fixed"),
        ("moving,fixed\n", "0 rows"),
        ("moving,fixed\na,\n", "line 2 .* lacks moving or fixed"),
        ("moving,fixed\na,b\na,b\n", "line 3 .* another name than 'a_to_b'"),
        ("name,moving,fixed\n../x,a,b\n", "another name than '../x'"),
        ("name,moving,fixed\nErrors_2.csv,a,b\n", "another name than 'Errors_2.csv'"),
    ],
)
def test_bad_lists(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(ValueError, match=f"pairs: .*{message}"):
        read_pairs(tmp_path / "pairs.csv")
    with pytest.raises(FileNotFoundError, match="pairs: expected a CSV file"):
        read_pairs(tmp_path / "none.csv")


def test_bad_input_of_register(files: dict[str, str], tmp_path: Path) -> None:
    pair = {"moving": files["moving"], "fixed": files["fixed"]}
    (tmp_path / "file").touch()
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "warped.nii.gz").touch()
    save_landmarks(tmp_path / "far.csv", Landmarks(POINTS + 500, ("a", "b", "c")))
    save_landmarks(tmp_path / "two.csv", Landmarks(POINTS[:2], ("a", "b")))
    out = str(tmp_path / "out")
    refused = [
        (str(tmp_path / "file" / "out"), pair, "output_dir: .*file is a file"),
        (str(tmp_path / "ours"), pair, "output_dir: .*warped.nii.gz is not known as a file of an earlier run"),
        (str(tmp_path / "file"), {"pairs": "p.csv"}, "output_dir: .*file is a file"),
        (out, {"moving": files["moving"]}, "fixed: expected two images"),
        (out, {"pairs": "p.csv", **pair}, "moving: expected no file beside pairs"),
        (out, {**pair, "levels_mm": "four"}, "levels_mm: expected numbers like 4,2,1"),
        (out, {**pair, "steps": "1.5"}, "steps: expected a whole number from 0"),
        (out, {**pair, "fixed_labels": "a.nii.gz"}, "option: .*Did you mean 'fixed_label'"),
        (out, {**pair, "interpolation": "cubic"}, "interpolation: expected one of nearest, one_hot"),
        (out, {**pair, "device": "gpu"}, "device must be like"),
        (out, {**pair, "moving_points": str(tmp_path / "far.csv")}, "moving_points: expected points inside"),
        (out, {**pair, "moving_points": files["moving_points"], "fixed_points": str(tmp_path / "two.csv")},
         "expected as many points"),
        (out, {**pair, "moving_label": files["moving_points"]}, "moving_label: "),
        (out, {**pair, "initial_transform": files["moving_points"]}, "initial_transform: .*ITK cannot read"),
    ]  # fmt: skip
    for folder, options, message in refused:
        with pytest.raises(ValueError, match=message):
            register(folder, **options)
    assert not (tmp_path / "out").exists()


def test_label_maps_must_be_of_their_image(files: dict[str, str], done: Path, tmp_path: Path) -> None:
    label = nib.load(files["fixed_label"])
    away = label.affine + np.outer(np.eye(4)[0], [0, 0, 0, 900])
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), away), tmp_path / "away.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj)[:, :, 3], label.affine), tmp_path / "plane.nii.gz")
    pair = {"moving": files["moving"], "fixed": files["fixed"]}
    for name, message in (("away", "the two do not overlap in space"), ("plane", "expected 3 axes, as its image has")):
        for option in ("moving_label", "fixed_label", "fixed_mask"):
            given = {**pair, option: str(tmp_path / f"{name}.nii.gz")}
            with pytest.raises(ValueError, match=f"{option}: .*{message}"):
                register(str(tmp_path / "out"), **given, **QUICK)
            if option != "fixed_mask":
                with pytest.raises(ValueError, match=f"{option}: .*{message}"):
                    score(str(done / "forward.h5"), **given)
    assert not (tmp_path / "out").exists()


def test_bad_input_of_transform(files: dict[str, str], done: Path, tmp_path: Path) -> None:
    forward, fixed, out = str(done / "forward.h5"), files["fixed"], str(tmp_path / "o.nii.gz")
    for arguments, options, message in (
        ((forward, fixed), {}, "expected one of them with output, or output_transform"),
        ((forward, fixed), {"image": files["moving"]}, "expected one of them with output"),
        ((forward, fixed), {"image": files["moving"], "label": fixed, "output": out}, "expected one of them"),
        ((files["fixed_points"], fixed), {"image": fixed, "output": out}, "transforms: .*ITK cannot read"),
        ((forward, files["fixed_points"]), {"image": fixed, "output": out}, "reference: "),
        ((" , ", fixed), {"image": fixed, "output": out}, "transforms: expected the path of a file"),
        ((forward, fixed), {"image": fixed, "output": str(tmp_path / "o.jpg")}, "ends in one of .nii, .nii.gz"),
        ((forward, fixed), {"image": fixed, "output": str(fixed)}, "output: expected another file .* is that of image"),
        (
            (forward, fixed),
            {"image": fixed, "output": out, "output_transform": str(tmp_path / "t.txt")},
            "output_transform: expected a file whose name ends",
        ),
        ((forward, fixed), {"image": fixed, "output": f"{fixed}/o.nii.gz"}, "output: .* is a file. Choose another"),
    ):
        with pytest.raises(ValueError, match=message):
            transform(*arguments, **options)
    assert not list(tmp_path.iterdir())
