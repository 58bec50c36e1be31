# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from common.data.speckle import attenuation, log_compressed, moved, scattering, sector, speckle

SHAPES = pytest.mark.parametrize("shape", [(200, 160), (48, 40, 56)])


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(np.vdot(first, second)) / (np.linalg.norm(first) * np.linalg.norm(second)))


@SHAPES
def test_the_envelope_has_the_rayleigh_distribution(shape: tuple[int, ...]) -> None:
    envelope = speckle(shape, np.random.default_rng(0), 1.0, 2.0)
    assert np.mean(envelope**2) == pytest.approx(1, rel=1e-12)
    assert envelope.mean() == pytest.approx(np.sqrt(np.pi) / 2, rel=0.02)
    assert np.mean(envelope > 1) == pytest.approx(np.exp(-1), rel=0.04)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_cells_are_narrow_along_the_beam(axis: int) -> None:
    """A Gaussian of width σ gives the field an autocorrelation exp(-t²/4σ²)."""
    field = scattering((64, 60, 68), np.random.default_rng(0), 1.0, 2.5, axis)
    for other in range(3):
        width = 1.0 if other == axis % 3 else 2.5
        assert _correlation(field, np.roll(field, 2, other)) == pytest.approx(np.exp(-1 / width**2), abs=0.04)


@SHAPES
def test_speckle_moves_with_the_tissue_and_loses_its_likeness(shape: tuple[int, ...]) -> None:
    field, rng = scattering(shape, np.random.default_rng(0), 1.5, 2.5), np.random.default_rng(1)
    step = np.zeros((len(shape), *shape))
    step[0] = 3
    assert np.allclose(moved(field, step, rng, 1.0, 1.5, 2.5), np.roll(field, -3, 0), atol=1e-9)
    half = np.full_like(step, 0.5)
    kept = moved(field, half, rng, 0.8, 1.5, 2.5)
    assert np.mean(np.abs(kept) ** 2) == pytest.approx(1, abs=0.1)  # no power is lost between voxels
    assert _correlation(kept, moved(field, half, rng, 1.0, 1.5, 2.5)) == pytest.approx(0.8, abs=0.05)
    with pytest.raises(ValueError, match="correlation: expected 0 to 1, got 1.2"):
        moved(field, half, rng, 1.2, 1.5, 2.5)


def test_the_sector_opens_from_its_apex() -> None:
    points = np.indices((41, 31, 60)) - np.array([20, 15, 0])[:, None, None, None]
    inside = sector(points, np.radians([45.1, 26.6]), 10, 50)
    assert not inside[20, 15, :10].any() and inside[20, 15, 10:51].all() and not inside[20, 15, 51:].any()
    assert inside[:, 15, 20].tolist() == [True] * 41 and inside[20, :, 20].nonzero()[0].tolist() == [*range(5, 26)]
    flat = sector(points[1:, 0], [np.radians(26.6)], 10, 50)
    assert np.array_equal(flat, sector(points[:, 20:21], np.radians([45.1, 26.6]), 10, 50)[0])
    assert np.array_equal(np.swapaxes(flat, 0, 1), sector(np.swapaxes(points[1:, 0], 1, 2)[::-1],
                                                         [np.radians(26.6)], 10, 50, axis=0))  # fmt: skip


def test_amplitudes_halve_and_are_shown_in_decibels() -> None:
    assert np.allclose(attenuation(np.array([0.0, 30.0, 60.0]), 30.0), [1, 0.5, 0.25])
    assert np.allclose(log_compressed(np.array([10.0, 1.0, 0.1, 0.01, 1e-3, 0]), 60), [1, 1, 2 / 3, 1 / 3, 0, 0])
