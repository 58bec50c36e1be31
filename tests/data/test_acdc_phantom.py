# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import functools
import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from common.data import acdc_phantom
from common.data.acdc_phantom import make_acdc_phantom
from common.data.layout import DatasetLayoutError

SMALL = {"n_train": 1, "n_test": 1, "shape": (64, 48), "n_slices": 3}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_acdc_phantom(tmp_path_factory.mktemp("acdc"), n_train=5, n_test=1, n_slices=6)


def _folders(root: Path) -> list[Path]:
    return sorted(root.glob("t*/patient*"))


def _facts(folder: Path) -> dict[str, str]:
    return dict(line.split(": ") for line in (folder / "Info.cfg").read_text().splitlines())


def _load(folder: Path) -> tuple[np.ndarray, ...]:
    """ED image, ES image, ED label, ES label and the true displacement (2, X, Y, Z)."""
    es = int(_facts(folder)["ES"])
    stems = [f"{folder.name}_frame01", f"{folder.name}_frame{es:02d}"]
    names = [*stems, *(f"{stem}_gt" for stem in stems), f"{stems[0]}_to_frame{es:02d}_ddf"]
    arrays = [np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj) for name in names]
    return *arrays[:4], np.moveaxis(arrays[4], -1, 0)


def _warp(volume: np.ndarray, ddf: np.ndarray) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij")).astype(np.float64)
    grid[:2] += ddf
    return map_coordinates(volume.astype(np.float64), grid, order=1)


def _dice(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Per slice; NaN where a frame has less than 30 voxels, of which sampling alone would spoil the score."""
    both = (a.sum((0, 1)) >= 30) & (b.sum((0, 1)) >= 30)
    return np.where(both, 2 * (a & b).sum((0, 1)) / np.maximum(a.sum((0, 1)) + b.sum((0, 1)), 1), np.nan)


def _contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_same_seed_writes_the_same_bytes_whatever_the_number_of_patients(tmp_path: Path) -> None:
    few = _contents(make_acdc_phantom(tmp_path / "few", **SMALL))
    many = _contents(make_acdc_phantom(tmp_path / "many", **{**SMALL, "n_train": 3, "n_test": 2}))
    other = _contents(make_acdc_phantom(tmp_path / "other", **SMALL, seed=1))
    assert len(few) == 3 * 7 and len(many) == 6 * 7
    assert few == {name: many[name] for name in few}
    image = "training/patient001/patient001_frame01.nii.gz"
    assert other[image] != few[image]


def test_layout_is_that_of_the_release(phantom: Path) -> None:
    folders = _folders(phantom)
    assert [f"{f.parent.name}/{f.name}" for f in folders] == [
        "testing/patient101", *(f"training/patient{n:03d}" for n in range(1, 7))
    ]  # fmt: skip
    for folder in folders:
        facts = _facts(folder)
        assert list(facts) == ["ED", "ES", "Group", "Height", "NbFrame", "Weight"]
        assert facts["ED"] == "1" and 1 < int(facts["ES"]) <= int(facts["NbFrame"]) == 30
        es, name = int(facts["ES"]), folder.name
        frames = [f"{name}_frame{n:02d}{end}.nii.gz" for n in (1, es) for end in ("", "_gt")]
        truths = {f"{name}_frame01_to_frame{es:02d}_ddf.nii.gz", f"{name}_frame{es:02d}_noise.nii.gz"}
        expected = {"Info.cfg", *frames, *truths}
        assert {p.name for p in folder.iterdir()} == expected
        header = nib.load(folder / frames[0]).header
        assert header.get_data_shape() == (160, 144, 6) and header.get_data_dtype() == np.int16
        np.testing.assert_allclose(header.get_zooms(), (1.5625, 1.5625, 10.0))
    assert {_facts(folder)["Group"] for folder in folders} == {"NOR", "DCM", "HCM", "MINF", "RV"}


@pytest.mark.parametrize(
    ("n_train", "expected"), [(1, [1, 4]), (4, [1, 2, 3, 4, 5]), (9, list(range(1, 12))), (16, list(range(1, 21)))]
)
def test_validation_numbers_come_besides_the_training_numbers(n_train: int, expected: list[int]) -> None:
    numbers = acdc_phantom._first_patients(n_train)
    assert numbers == expected
    assert sum(number % 10 not in (4, 9) for number in numbers) == n_train


def test_labels_and_types(phantom: Path) -> None:
    for folder in _folders(phantom):
        ed, es, ed_label, es_label, ddf = _load(folder)
        assert ed_label.dtype == es_label.dtype == np.uint8 and ddf.dtype == np.float32
        assert set(np.unique(ed_label)) == set(np.unique(es_label)) == {0, 1, 2, 3}
        assert ddf.shape == (2, 160, 144, 6) and min(ed.min(), es.min()) >= 0
        blood, muscle = ed[ed_label == 3].mean(), ed[ed_label == 2].mean()
        assert blood > 2 * muscle > 0  # balanced SSFP


def test_true_displacement_carries_ed_to_es(phantom: Path) -> None:
    before, after = [], []
    for folder in _folders(phantom):
        ed, es, ed_label, es_label, ddf = _load(folder)
        before.append(_dice(ed_label == 2, es_label == 2))
        structures = [_dice(_warp(ed_label == k, ddf) >= 0.5, es_label == k) for k in (1, 2, 3)]
        assert min(np.nanmean(dice) for dice in structures) > 0.94, folder.name
        after.append(structures[1])
        warped = _warp(ed, ddf)
        assert np.mean((warped - es) ** 2) < 0.5 * np.mean((ed.astype(float) - es) ** 2)
    assert 0.4 < np.nanmean(before) < 0.65  # the ACDC patients: 0.53
    assert np.nanmean(after) > 0.95


def test_true_displacement_has_no_foldings_and_a_realistic_size(phantom: Path) -> None:
    for folder in _folders(phantom):
        ddf = _load(folder)[-1].astype(np.float64)
        dx, dy = np.diff(ddf, axis=1)[:, :, :-1], np.diff(ddf, axis=2)[:, :-1]
        determinant = (1 + dx[0]) * (1 + dy[1]) - dy[0] * dx[1]
        assert determinant.min() > 0.4 and determinant.max() < 5
        length = np.hypot(*ddf)
        assert 4 < length.max() < 12
        assert length[[0, -1]].max() < 3.5 and np.median(length) < 2  # decays away from the heart


def test_heart_contracts_and_its_wall_thickens(phantom: Path) -> None:
    for folder in _folders(phantom):
        *_, ed_label, es_label, _ = _load(folder)
        ed, es = ed_label[..., 2:4], es_label[..., 2:4]  # mid-ventricular
        cavity, outer = [[(np.isin(x, ks)).sum() for x in (ed, es)] for ks in ((3,), (2, 3))]
        assert 0.2 < cavity[1] / cavity[0] < 0.85, folder.name
        thickness = [np.sqrt(o) - np.sqrt(c) for o, c in zip(outer, cavity, strict=True)]
        assert 1.05 < thickness[1] / thickness[0] < 2.2, folder.name
        assert 0.75 < (es == 2).sum() / (ed == 2).sum() < 1.3, folder.name
        assert (es == 1).sum() < 0.95 * (ed == 1).sum(), folder.name


def test_noise_varies_over_the_image() -> None:
    factor = np.ones((64, 48, 20))
    factor[32:] = 3
    ones = np.ones_like(factor)
    image = acdc_phantom.acquire(ones, ones, factor, np.random.default_rng(0), 0.4)[0].astype(float)
    residual = image - gaussian_filter(image, (4, 4, 0))
    assert residual[40:].std() / residual[:24].std() == pytest.approx(3, rel=0.1)
    air = acdc_phantom.acquire(0 * ones, ones, ones, np.random.default_rng(0), 0.4)[0].astype(float)
    assert air.mean() / air.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.02)  # Rayleigh: Rician at zero


def test_noise_of_a_patient_varies_over_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def even_tissue(points: np.ndarray, *_: object) -> tuple[np.ndarray, np.ndarray]:
        return np.full(points.shape[1:], 0.5), np.zeros(points.shape[1:], np.uint8)

    monkeypatch.setattr(acdc_phantom, "paint", even_tissue)
    make_acdc_phantom(tmp_path, n_train=1, n_test=0, n_slices=6)
    for folder in _folders(tmp_path):
        ed = _load(folder)[0].astype(float)
        residual = ed - gaussian_filter(ed, (3, 3, 0))
        blocks = residual.reshape(20, 8, 18, 8, 6).std((1, 3, 4))  # 384 voxels each: even noise would give 1.1
        assert np.percentile(blocks, 95) > 2 * np.percentile(blocks, 5)


def test_some_slices_have_myocardium_in_one_frame_only() -> None:
    event = {"es_atrium": True, "es_outflow": False, "es_past_apex": True}
    patient = acdc_phantom.draw_patient("NOR", np.random.default_rng(0))._replace(**event)
    points = np.stack(np.meshgrid(np.arange(-40.0, 50), np.arange(-40.0, 40), [0] * 4, indexing="ij"))[:2]
    level = (np.arange(4)[None, None] + 0.5) / 4
    extent, texture = np.array([80.0, 72.0]), np.zeros(points.shape[1:])
    ed, es = (acdc_phantom.paint(points, patient, level, 1.3, extent, texture, es) for es in (False, True))
    assert (ed[1] == 2).any((0, 1)).tolist() == [True] * 4
    assert (es[1] == 2).any((0, 1)).tolist() == [False, True, True, False]
    assert np.array_equal(ed[1][..., 1:3], es[1][..., 1:3])
    wall = ed[1][..., 0] == 2
    assert es[0][..., 0][wall].mean() > ed[0][..., 0][wall].mean() + 0.2  # blood where the wall was


@pytest.mark.parametrize("variable", ["REGISTRATION_BUNDLES_CACHE", "XDG_CACHE_HOME", "HOME", None])
def test_cache_is_filled_once(
    variable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("REGISTRATION_BUNDLES_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    small = functools.partial(make_acdc_phantom, **SMALL)
    monkeypatch.setattr(acdc_phantom, "PHANTOM", acdc_phantom.PHANTOM._replace(make=small))
    argument = None if variable else tmp_path
    with caplog.at_level(logging.WARNING):
        first = acdc_phantom.PHANTOM.folder(argument)
    assert first.parent == tmp_path / (".cache" if variable == "HOME" else "") / "registration-bundles"
    assert first.name.startswith("acdc_phantom_")
    assert "SYNTHETIC" in caplog.text
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert acdc_phantom.PHANTOM.folder(argument) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == times
    assert list(first.parent.iterdir()) == [first]
    newer = acdc_phantom.PHANTOM._replace(version=acdc_phantom.PHANTOM.version + 1)
    assert newer.folder(argument) != first


def test_cache_keeps_what_another_process_made_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = 0

    def overtaken(root: Path, version: int = 1) -> Path:
        nonlocal depth
        depth += 1
        if depth == 1:
            acdc_phantom.PHANTOM.folder(tmp_path)
        return make_acdc_phantom(root, **SMALL)

    monkeypatch.setattr(acdc_phantom, "PHANTOM", acdc_phantom.PHANTOM._replace(make=overtaken))
    folder = acdc_phantom.PHANTOM.folder(tmp_path)
    assert depth == 2
    assert list(folder.parent.iterdir()) == [folder]
    assert len(_folders(folder)) == 3


def test_a_failure_leaves_no_half_made_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(root: Path) -> Path:
        (root / "training").mkdir(parents=True)
        raise OSError("No space left on device")

    monkeypatch.setattr(acdc_phantom, "PHANTOM", acdc_phantom.PHANTOM._replace(make=full_disk))
    with pytest.raises(OSError, match="cannot be made in .*No space left.*REGISTRATION_BUNDLES_CACHE"):
        acdc_phantom.PHANTOM.folder(tmp_path)
    assert list((tmp_path / "registration-bundles").iterdir()) == []


@pytest.mark.parametrize("fault", ["shorter", "other", "missing", "empty"])
def test_a_damaged_cache_says_what_to_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def small(root: Path) -> Path:
        return make_acdc_phantom(root, **SMALL)

    monkeypatch.setattr(acdc_phantom, "PHANTOM", acdc_phantom.PHANTOM._replace(make=small))
    folder = acdc_phantom.PHANTOM.folder(tmp_path)
    image = next(folder.rglob("*_frame01.nii.gz"))
    raw = image.read_bytes()
    image.unlink()
    if fault == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif fault != "missing":
        image.write_bytes(raw[:1000] if fault == "shorter" else raw[:1000] + bytes(len(raw) - 1000))
    name = "SHA256SUMS" if fault == "empty" else image.relative_to(folder)
    message = (
        f"the phantom in the cache {folder} is damaged: {name} missing or changed. Delete .*REGISTRATION_BUNDLES_CACHE"
    )
    with pytest.raises(DatasetLayoutError, match=message):
        acdc_phantom.PHANTOM.folder(tmp_path)
    shutil.rmtree(folder)
    assert acdc_phantom.PHANTOM.folder(tmp_path) == folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_train": 0}, "n_train: expected 1 to 80"),
        ({"n_test": 51}, "n_test: expected 0 to 50"),
        ({"shape": (16, 64)}, "shape: expected two numbers of at least 32"),
        ({"n_slices": 0}, "expected n_slices of 1 or more"),
        ({"seed": -1}, "seed of 0 or more"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_acdc_phantom(tmp_path, **{**SMALL, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_a_filled_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    with pytest.raises(FileExistsError, match="exists already; name an empty folder"):
        make_acdc_phantom(tmp_path, **SMALL)
