# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import functools
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.ndimage import label as connected

from common.data import hippocampus_phantom
from common.data.hippocampus import load_pairs
from common.data.hippocampus_phantom import make_hippocampus_phantom


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hippocampus_phantom(tmp_path_factory.mktemp("hippocampus"))


def _contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def _volumes(root: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    files = sorted((root / "imagesTr").iterdir())
    return [
        tuple(np.asarray(nib.load(root / part / f.name).dataobj) for part in ("imagesTr", "labelsTr")) for f in files
    ]


def _dice(pair: dict) -> list[float]:
    a, b = pair["moving_label"].numpy(), pair["fixed_label"].numpy()
    return [2 * np.sum((a == k) & (b == k)) / (np.sum(a == k) + np.sum(b == k)) for k in (1, 2)]


def _grid(shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"))


def test_same_seed_writes_the_same_bytes_whatever_the_number_of_subjects(tmp_path: Path) -> None:
    few = _contents(make_hippocampus_phantom(tmp_path / "few", n_train=1, n_validation=1))
    many = _contents(make_hippocampus_phantom(tmp_path / "many", n_train=4, n_validation=1))
    other = _contents(make_hippocampus_phantom(tmp_path / "other", n_train=1, n_validation=1, seed=1))
    assert len(few) == 2 * 3 and len(many) == 5 * 3
    assert few == {name: many[name] for name in few}
    assert few.keys() == other.keys() and not set(few.values()) & set(other.values())


def test_layout_is_that_of_the_release(phantom: Path) -> None:
    training, validation = [1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15], [4, 9, 14, 19]
    names = [f"hippocampus_{number:03d}.nii.gz" for number in sorted(training + validation)]
    assert sorted(p.name for p in phantom.iterdir()) == ["imagesTr", "labelsTr", "noiseTr"]
    for part, dtype in (("imagesTr", np.float32), ("labelsTr", np.uint8), ("noiseTr", np.float32)):
        assert sorted(p.name for p in (phantom / part).iterdir()) == names
        for name in names:
            image = nib.load(phantom / part / name)
            assert image.get_data_dtype() == dtype
            np.testing.assert_array_equal(image.affine, np.c_[np.eye(4, 3), [1, 1, 1, 1]])


def test_shapes_differ_within_those_of_the_data_set(phantom: Path) -> None:
    volumes = _volumes(phantom)
    assert all(image.shape == label.shape for image, label in volumes)
    shapes = np.array([label.shape for _, label in volumes])
    assert (shapes >= [31, 40, 24]).all() and (shapes <= [43, 59, 47]).all()
    assert len(np.unique(shapes, axis=0)) > 12


def test_labels_are_two_connected_parts_the_anterior_in_front(phantom: Path) -> None:
    for _, label in _volumes(phantom):
        assert np.unique(label).tolist() == [0, 1, 2]
        for part in (label > 0, label == 1, label == 2):
            sizes = np.bincount(connected(part)[0].flat)[1:]
            assert sizes.max() > 0.99 * sizes.sum()  # a voxel may touch the rest by an edge only
        front, back = (np.argwhere(label == k).mean(0) for k in (1, 2))
        assert front[1] > back[1] + 10 and front[2] < back[2]  # the long axis descends towards the front
        assert all(700 < np.sum(label == k) < 3500 for k in (1, 2))  # mm³
        section = [np.sum(label[:, round(y)] > 0) for y in (front[1], back[1] - 6)]
        assert section[0] > 1.3 * section[1]  # the head is larger than the tail


def test_labels_meet_at_a_plane_across_the_long_axis() -> None:
    rng = np.random.default_rng(0)
    subject = hippocampus_phantom._draw_subject(rng)
    u = hippocampus_phantom._anatomical(_grid(subject.shape), subject)
    _, label = hippocampus_phantom._paint(u, subject, np.zeros(subject.shape))
    assert u[1][label == 1].min() > hippocampus_phantom.BORDER >= u[1][label == 2].max()


def test_tissue_has_the_contrast_of_t1(phantom: Path) -> None:
    scales = []
    for image, label in _volumes(phantom):
        inside = label > 0
        around = binary_dilation(inside, iterations=6) & ~binary_dilation(inside, iterations=1)
        grey, white, fluid = np.median(image[inside]), np.percentile(image[around], 90), np.percentile(image[around], 2)
        assert fluid < 0.5 * grey < 0.5 * 0.75 * white
        assert image.min() >= 0 and np.isfinite(image).all()
        assert 3 <= np.sum(image > 1.3 * np.percentile(image, 99.9)) <= 6  # a few extreme voxels
        scales.append(white)
    assert max(scales) > 50 * min(scales)


def test_undeformed_dice_is_that_of_the_data_set(phantom: Path) -> None:
    for split, partners in (("train", 1), ("train", 11), ("validation", 1), ("validation", 3)):
        dice = np.array([_dice(pair) for pair in load_pairs(phantom, split, (40, 56, 40), partners)])
        assert 0.5 < dice.mean() < 0.65, (split, partners)
        assert (dice.mean(0) > 0.4).all()


def test_subjects_correspond_by_a_map_without_foldings() -> None:
    for number in range(1, 21):
        subject = hippocampus_phantom._draw_subject(np.random.default_rng((0, number)))
        u = hippocampus_phantom._anatomical(_grid(subject.shape), subject)
        jacobian = np.stack([np.stack(np.gradient(component), -1) for component in u], -2)
        assert np.linalg.det(jacobian).min() > 0.2, number


def test_noise_is_rician() -> None:
    shape = (40, 40, 40)
    air = hippocampus_phantom._acquire(np.zeros(shape), np.random.default_rng(0))[0] / hippocampus_phantom._noise(shape)
    air = air[air < np.percentile(air, 99.9)]  # but for the extreme voxels
    assert air.mean() / air.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.02)  # Rayleigh: Rician at zero


def test_cache_is_filled_once_and_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = functools.partial(make_hippocampus_phantom, n_train=1, n_validation=1)
    monkeypatch.setattr(hippocampus_phantom, "PHANTOM", hippocampus_phantom.PHANTOM._replace(make=small))
    monkeypatch.setenv("REGISTRATION_BUNDLES_CACHE", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        first = hippocampus_phantom.PHANTOM.folder()
    assert first.parent == tmp_path / "registration-bundles" and first.name.startswith("hippocampus_phantom_")
    assert "SYNTHETIC DATA" in caplog.text and "Set dataset_dir to the folder of Task04_Hippocampus" in caplog.text
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert hippocampus_phantom.PHANTOM.folder() == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == times
    assert list(first.parent.iterdir()) == [first]
    newer = hippocampus_phantom.PHANTOM._replace(version=hippocampus_phantom.PHANTOM.version + 1)
    assert newer.folder() != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_train": 800}, "n_train: expected 0 to 799"),
        ({"n_train": -1}, "n_train: expected 0 to 799"),
        ({"n_validation": 201}, "n_validation: expected 0 to 200"),
        ({"n_train": 0, "n_validation": 0}, "at least one subject"),
        ({"seed": -1}, "a seed of 0 or more"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_hippocampus_phantom(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_filled_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labelsTr").mkdir()
    with pytest.raises(FileExistsError, match="labelsTr exists already; name an empty folder"):
        make_hippocampus_phantom(tmp_path, n_train=1)
