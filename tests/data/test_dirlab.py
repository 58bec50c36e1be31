# SPDX-License-Identifier: Apache-2.0
"""The readers of DIR-Lab, on files in the official formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data import copdgene, dirlab
from common.data.copdgene_phantom import write_dirlab_case
from common.data.layout import DatasetLayoutError
from common.data.pairs import PairDataset, evaluation_loader
from common.metrics.cases import Cases
from common.metrics.landmarks import LandmarkMeasures
from common.spatial.warp import warp

SIZE = (48, 40, 48)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dirlab")
    write_dirlab_case(folder, 1, np.random.default_rng(0))
    return folder


@pytest.fixture
def copy(phantom: Path, tmp_path: Path) -> Path:
    """One that may be damaged."""
    return Path(shutil.copytree(phantom, tmp_path / "copy"))


def entry_of(folder: Path) -> dict:
    (entry,) = dirlab.find_cases(folder)
    return entry


def write_points(path: Path, points: np.ndarray) -> None:
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in points.tolist()), encoding="ascii")


def points_of(path: str | Path) -> np.ndarray:
    return np.loadtxt(path, dtype=int)


def measured(folder: Path, displacement: tuple[float, float, float] = (0, 0, 0)) -> dict[str, float]:
    """Columns of a constant displacement, in voxels of the working grid, and of its inverse the other way."""
    dataset = PairDataset(copdgene.load_pairs(folder, "test", SIZE), SIZE, with_labels=True)
    (batch,) = evaluation_loader(dataset, 4)
    ddf = torch.zeros(1, 3, *SIZE) + torch.tensor(displacement).reshape(1, 3, 1, 1, 1)
    cases = Cases(batch, ddf, warp(batch["moving_image"], ddf), reverse_ddf=-ddf)
    measure = LandmarkMeasures(both_ways=True)
    columns = {name: float(value) for name, value in measure(cases).items()}
    pooled = measure.of_pool({name: value[value.isfinite()] for name, value in cases.pools.items()})["landmarks"][0]
    assert pooled == pytest.approx(columns | {"points": float(batch["fixed_points"].shape[1])})  # of one case
    return columns


def test_the_published_tables_are_complete() -> None:
    assert list(dirlab.COPDGENE) == list(dirlab.FOUR_D) == list(range(1, 11))
    assert np.mean([distance for _, _, distance in dirlab.COPDGENE.values()]) == pytest.approx(23.36, abs=0.005)
    assert dirlab.COPDGENE[1] == (121, 0.625, 26.334) and dirlab.FOUR_D[7] == (512, 136, 0.97)


def test_the_first_error_is_exactly_that_of_the_files(phantom: Path) -> None:
    entry = entry_of(phantom)
    fixed, moving = points_of(entry["fixed_points"]), points_of(entry["moving_points"])
    apart = np.linalg.norm((fixed - moving) * np.array(entry["grid"]["spacing"]), axis=1)
    columns = measured(phantom)
    assert (
        columns["tre_mm"] == pytest.approx(apart.mean(), abs=1e-4) == pytest.approx(entry["grid"]["distance"], abs=1e-4)
    )
    for quantile in (25, 50, 75):
        assert columns[f"tre_mm_q{quantile}"] == pytest.approx(np.percentile(apart, quantile), abs=1e-3)
    assert columns["tre_mm_reverse"] == pytest.approx(columns["tre_mm"], abs=1e-4)
    assert len(fixed) == 300 and fixed.min() >= 1 and (fixed <= np.array(entry["grid"]["size"])).all()


def test_a_translation_shows_the_direction_and_the_axes(copy: Path) -> None:
    """Moving points 4 voxels further to the left, back and down than fixed ones: x + u(x) must find them there."""
    entry = entry_of(copy)
    shift = np.array([8, 4, 2])  # voxels of 1.25, 1.25, 2.5 mm
    fixed = np.clip(points_of(entry["fixed_points"]), 1, np.array(entry["grid"]["size"]) - shift)
    write_points(Path(entry["fixed_points"]), fixed)
    write_points(Path(entry["moving_points"]), fixed + shift)
    # 10 mm to the left, 5 mm to the back, 5 mm downwards; the working grid has 2 mm and runs upwards
    columns = measured(copy, (5.0, 2.5, -2.5))
    assert columns["tre_mm_before"] == pytest.approx(150**0.5, abs=1e-3)
    assert columns["tre_mm"] == pytest.approx(0, abs=1e-3) == pytest.approx(columns["tre_mm_reverse"], abs=1e-3)
    assert measured(copy, (-5.0, -2.5, 2.5))["tre_mm"] == pytest.approx(2 * 150**0.5, abs=1e-3)


def test_hounsfield_units_and_axes_of_a_raw_image(tmp_path: Path) -> None:
    values = np.zeros((3, 4, 5), "<i2")  # x, y, z
    values[2, 0, 4] = 1024 + 55
    (tmp_path / "a.img").write_bytes(values.tobytes(order="F"))
    image = dirlab.read_image(tmp_path / "a.img", {"size": [3, 4, 5], "spacing": [0.5, 0.5, 2.5]})
    assert image.array[2, 0, 4] == 55 and image.array[0, 0, 0] == -1024 and image.spacing == (0.5, 0.5, 2.5)
    # RAS: the last x lies leftmost, the last z lowest
    np.testing.assert_allclose(image.affine @ [2, 0, 4, 1], [-1.0, 0, -10.0, 1])
    with pytest.raises(
        DatasetLayoutError, match=r"expected 3 x 4 x 6 numbers of 16 bits, 144 bytes, in .*a.img, got 120"
    ):
        dirlab.read_image(tmp_path / "a.img", {"size": [3, 4, 6], "spacing": [1, 1, 1]})


@pytest.mark.parametrize(
    ("folder", "image", "points"),
    [
        ("Case1Pack", "Images/case1_{}_s.img", "ExtremePhases/Case1_300_{}_xyz.txt"),
        ("Case3Pack", "Images/case3_{}-ssm.img", "ExtremePhases/Case3_300_{}_xyz.txt"),
        ("Case8Deploy", "Images/case8_{}.img", "extremePhases/case8_dirLab300_{}_xyz.txt"),
    ],
)
def test_4dct_is_found_under_its_names(tmp_path: Path, folder: str, image: str, points: str) -> None:
    for phase in ("T00", "T50"):
        for pattern in (image, points):
            file = tmp_path / folder / pattern.format(phase)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("1\t2\t3\n")
    entry, number = entry_of(tmp_path), int(folder[4])
    plane, slices, mm = dirlab.FOUR_D[number]
    assert entry["subject"] == f"case{number}" and copdgene.split_of(entry["subject"]) == "test"
    assert entry["grid"] == {"size": [plane, plane, slices], "spacing": [mm, mm, 2.5], "distance": None}
    assert "T50" in entry["moving_image"] and "T50" in entry["moving_points"] and "T00" in entry["fixed_image"]


def test_landmarks_of_another_distance_than_published_are_said(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = entry_of(copy)
    dirlab.read_landmarks(entry)
    assert not caplog.text
    dirlab.read_landmarks({**entry, "grid": {**entry["grid"], "distance": 26.334}})
    assert "copd1: the landmarks lie" in caplog.text and "26.334 mm" in caplog.text


def _broken(copy: Path, kind: str) -> None:
    entry = entry_of(copy)
    moving, size = points_of(entry["moving_points"]), np.array(entry["grid"]["size"])
    path, grid = Path(entry["moving_points"]), copy / "copd1" / "copd1_grid.json"
    if kind == "outside":
        moving[6] = size + 1
    elif kind == "from 0":
        moving[0] = (0, 5, 5)
    elif kind == "unequal":
        moving = moving[:-1]
    elif kind == "upside down":
        moving[:, 2] = size[2] + 1 - moving[:, 2]
    elif kind == "exchanged":
        moving = np.clip(moving[:, [2, 1, 0]], 1, size)
    if kind == "words":
        path.write_text("x y z\n")
    elif kind == "columns":
        path.write_text("1 2\n3 4\n")
    elif kind == "empty":
        path.write_text("")
    elif kind == "no points":
        path.unlink()
    elif kind == "twice":
        shutil.copytree(copy / "copd1", copy / "copd1" / "copd1")
    elif kind == "size":
        grid.write_text(json.dumps(json.loads(grid.read_text()) | {"size": [80, 64, 38]}))
    elif kind == "no grid":
        grid.unlink()  # then the published sizes count
    else:
        write_points(path, moving)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("outside", r"copd1: expected landmarks inside the image, 1 to \[77, 64, 38\].*1 of 300 lie outside, .*line 7"),
        ("from 0", r"1 of 300 lie outside, the first in line 1: \[0.0, 5.0, 5.0\]. Points are counted from 1"),
        ("unequal", "copd1: expected as many landmarks in both images, .* got 299 in .*eBH.* and 300 in .*iBH"),
        ("upside down", r"copd1: expected the landmarks of .*eBH.* in the lungs: .* when mirrored from top to bottom"),
        ("words", r"copd1: expected landmarks in .*, three numbers x, y, z a line; got \['x y z'\]"),
        ("columns", "copd1: expected landmarks in .*three numbers"),
        ("empty", "copd1: expected landmarks in .* got no line"),
        ("no points", "copd1: expected one file .*copd1_300_eBH_xyz_r1.txt"),
        ("twice", r"copd1: expected one file .*copd1_eBHCT.img in .*, got \['copd1_eBHCT.img', 'copd1_eBHCT.img'\]"),
        ("size", "copd1: expected 80 x 64 x 38 numbers of 16 bits"),
        ("no grid", "copd1: expected 512 x 512 x 121 numbers of 16 bits"),
    ],
)  # fmt: skip
def test_broken_copies_are_said(copy: Path, kind: str, message: str) -> None:
    _broken(copy, kind)
    with pytest.raises(DatasetLayoutError, match=message):
        copdgene.load_pairs(copy, "test", SIZE)


def test_a_working_grid_that_cuts_landmarks_is_refused(phantom: Path) -> None:
    with pytest.raises(
        DatasetLayoutError, match=r"inside the working grid of \[16, 40, 48\] .* lie outside. Raise spatial"
    ):
        copdgene.load_pairs(phantom, "test", (16, 40, 48))


def test_dirlab_alone_has_a_test_split_and_an_example(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRATION_BUNDLES_CACHE", str(tmp_path))
    assert copdgene.subjects(phantom) == copdgene.subjects(phantom, "test") == ["copd1"]
    with pytest.raises(DatasetLayoutError, match="no subject of 'train'"):
        copdgene.datalist(phantom, "train")
    moving, fixed = copdgene.example_pair(phantom)
    assert moving.is_relative_to(tmp_path) and moving.is_file() and fixed.is_file()
