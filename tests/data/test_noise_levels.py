# SPDX-License-Identifier: Apache-2.0
"""The noise level that phantoms write: what many draws of the noise have, and how loaders deliver it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from common.data import camus_phantom, echo3d_phantom, hippocampus_phantom, scanner
from common.data.pairs import PairDataset
from common.data.scanner import acquire, magnitude, rician_deviation
from common.data.speckle import carried, log_compressed, moved, scattering, shown_deviation

DATASETS = [importlib.import_module(f"common.data.{name}") for name in ("acdc", "camus", "echo3d", "hippocampus")]
every_phantom = pytest.mark.parametrize("data", DATASETS, ids=lambda module: module.__name__.rpartition(".")[2])
DRAWS = 250


def deviation(draw: Callable[[np.random.Generator], np.ndarray]) -> np.ndarray:
    return np.stack([draw(np.random.default_rng(seed)) for seed in range(DRAWS)]).astype(np.float64).std(0)


def agrees(level: np.ndarray, found: np.ndarray) -> None:
    """No bias; single voxels as far apart as the standard deviation of so few draws is uncertain."""
    ratio = found / level
    assert np.median(ratio) == pytest.approx(1, abs=0.02)
    assert np.percentile(np.abs(ratio - 1), 95) < 3.2 / np.sqrt(2 * DRAWS)


@pytest.mark.parametrize("shape", [(31, 22), (13, 11, 9)])
def test_rician_deviation_is_that_of_magnitudes(shape: tuple[int, ...]) -> None:
    signal = np.abs(np.random.default_rng(0).normal(0, 0.3, shape))
    sigma = np.geomspace(0.02, 0.3, shape[0]).reshape(-1, *[1] * (len(shape) - 1)) * np.ones(shape)
    agrees(rician_deviation(signal, sigma), deviation(lambda rng: magnitude(signal, sigma, rng)))
    still = np.array([0.0, 5.0, 300.0])
    expected = [0.3 * np.sqrt(2 - np.pi / 2), 0.3, 0.3]  # Rayleigh, Gaussian
    np.testing.assert_allclose(rician_deviation(still, 0.3), expected, rtol=1e-3)


def test_level_of_mr_holds_shading_and_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanner, "smooth_texture", lambda shape, *_: np.zeros(shape))
    signal = np.random.default_rng(0).uniform(0, 1, (24, 20, 3))
    coil = np.linspace(0.7, 1.4, 20)[None, :, None] * np.ones_like(signal)
    factor = np.geomspace(0.1, 3, 24)[:, None, None] * np.ones_like(signal)
    agrees(acquire(signal, coil, factor, np.random.default_rng(0), 1.0)[1],
           deviation(lambda rng: acquire(signal, coil, factor, rng, 1.0)[0]))  # fmt: skip


def test_level_of_volumes_is_in_their_own_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hippocampus_phantom, "smooth_texture", lambda shape, *_: np.zeros(shape))
    signal = np.random.default_rng(0).uniform(0.1, 0.9, (17, 14, 12))
    first = hippocampus_phantom._acquire(signal, np.random.default_rng(0))[1]
    draws = []
    for seed in range(DRAWS):
        image, level = hippocampus_phantom._acquire(signal, np.random.default_rng(seed))
        image = np.where(image > 17 * level.max(), np.nan, image)  # the four voxels brighter than all tissue
        draws.append(image / level.max() * first.max())
    agrees(first, np.nanstd(draws, axis=0))
    assert first.max() / first.min() > 8


@pytest.mark.parametrize("shape", [(21, 17), (9, 8, 11)])
@pytest.mark.parametrize("decibels", [45.0, 60.0])
def test_deviation_on_the_screen_is_that_of_speckle(shape: tuple[int, ...], decibels: float) -> None:
    rng = np.random.default_rng(1)
    steady, spread = 10 ** rng.uniform(-2, -0.3, shape), 10 ** rng.uniform(-2, -0.5, shape)

    def draw(rng: np.random.Generator) -> np.ndarray:
        noise = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)
        return log_compressed(np.abs(steady + spread * noise), decibels)

    level = shown_deviation(steady, spread, decibels)
    ratio = deviation(draw) / level
    assert np.median(ratio) == pytest.approx(1, abs=0.02) and np.percentile(np.abs(ratio - 1), 90) < 0.15


def test_deviation_on_the_screen_has_its_limits() -> None:
    rayleigh = 10 / np.log(10) * np.pi / np.sqrt(6)  # dB: of the logarithm of an exponential distribution
    bright, quiet = shown_deviation(np.array([0.0, 0.1]), np.array([0.03, 0.002]), 80.0)
    assert bright * 80 == pytest.approx(rayleigh, rel=0.02)
    assert quiet * 80 == pytest.approx(20 / np.log(10) * 0.002 / 0.1 / np.sqrt(2), rel=0.01)
    assert not shown_deviation(np.array([0.0, 9.0]), np.array([0.0, 0.01]), 45.0).any()  # black, white


def test_level_of_a_view_is_that_of_its_frames() -> None:
    shape, rng = (44, 50), np.random.default_rng(0)
    spacing = np.array(camus_phantom.SPACING) * 4.2
    points = np.indices(shape) * spacing[:, None, None]
    points[0] -= points[0].max() / 2
    heart, probe = camus_phantom._draw_heart("2CH", rng), camus_phantom._draw_probe(points, "Good", rng)
    signal, _ = camus_phantom._echogenicity(points, heart, np.zeros(shape))
    field, still = scattering(shape, rng, 0.5, 0.6), np.zeros((2, *shape))
    level = camus_phantom._noise(signal, carried(field, still), probe)

    def draw(rng: np.random.Generator) -> np.ndarray:
        return camus_phantom._frame(signal, moved(field, still, rng, probe.correlation, 0.5, 0.6), probe, rng)

    seen = level > 4  # grey levels: above what rounding adds
    found = deviation(draw)
    assert not found[~probe.inside].any() and seen.sum() > 0.4 * probe.inside.sum()
    agrees(level[seen], found[seen])


def test_level_of_a_3d_scan_is_that_of_its_frames() -> None:
    shape, rng = (15, 14, 17), np.random.default_rng(0)
    heart = echo3d_phantom._draw(rng, shape)
    spacing = echo3d_phantom.FIELD / shape
    points = (np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2) * spacing[:, None, None, None]
    amplitude, depth, inside = echo3d_phantom._beam(echo3d_phantom._paint(points, heart)[0], points, heart)
    field, still = scattering(shape, rng, 0.5, 0.5), np.zeros((3, *shape))
    likeness = np.clip(1 - depth / 130, 0.1, 0.99)
    level = echo3d_phantom._noise(amplitude, carried(field, still), likeness, inside)

    def draw(rng: np.random.Generator) -> np.ndarray:
        shown = moved(field, still, rng, likeness, 0.5, 0.5)
        return 255 * log_compressed(amplitude * np.abs(shown), echo3d_phantom.DECIBELS) * inside

    seen = level > 2
    assert seen.sum() > 0.8 * inside.sum()
    agrees(level[seen], deviation(draw)[seen])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {data.__name__: tmp_path_factory.mktemp("phantom") / "data" for data in DATASETS}
    for data in DATASETS:
        data.PHANTOM.make(made[data.__name__], **data.PHANTOM.small)
    return made


@every_phantom
def test_level_varies_eightfold_over_every_image(data: ModuleType, folders: dict[str, Path]) -> None:
    pairs = data.load_pairs(folders[data.__name__], "train")
    assert all(pair["noise_level"].shape == pair["fixed_image"].shape for pair in pairs)
    for pair in pairs:
        level = pair["noise_level"][pair["noise_level"] > 0].numpy()
        assert np.percentile(level, 99) > 8 * np.percentile(level, 1)


@every_phantom
def test_level_is_that_of_the_image_in_the_network(data: ModuleType, folders: dict[str, Path]) -> None:
    """Cropped with the image, divided by its range; in evaluation alone, and only where there is one."""
    pairs = data.load_pairs(folders[data.__name__], "validation")
    size = [n // 2 + 3 for n in pairs[0]["fixed_image"].shape[1:]]
    dataset = PairDataset(pairs, size, with_labels=True)
    item, start = dataset[0], dataset[0]["crop_start"].tolist()
    box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    image, level = (pairs[0][key][0][box] for key in ("fixed_image", "noise_level"))
    torch.testing.assert_close(item["noise_level"][0], level / (image.max() - image.min()))
    assert item["noise_level"].shape == (1, *size) and "noise_level" not in dataset[(0, 7)]
    without: list[dict[str, Any]] = [{k: v for k, v in pair.items() if k != "noise_level"} for pair in pairs]
    assert "noise_level" not in PairDataset(without, size)[0]


def test_level_of_another_field_of_view_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    echo3d, root = DATASETS[2], tmp_path / "data"
    source = sorted(folders[echo3d.__name__].iterdir())[0]
    (root / source.name).mkdir(parents=True)
    for path in source.glob("*.nii.gz"):
        image = nibabel.load(path)
        values = np.asarray(image.dataobj)
        cut = values[:-5] if path.name == "ES_noise.nii.gz" else values
        nibabel.save(nibabel.Nifti1Image(cut, image.affine), root / source.name / path.name)
    with pytest.raises(ValueError, match=r"expected the grid of its image.*ES_noise\.nii\.gz"):
        echo3d.load_pairs(root, "all")
