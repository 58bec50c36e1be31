# SPDX-License-Identifier: Apache-2.0
"""Curves of several runs: every run is drawn, and only what the histories hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from common.figures.convergence import convergence_curves
from common.figures.curves import LINES


def history(path: Path, epochs: int, rate: float, validation: bool = True, sign: int = 1) -> Path:
    lines = ["epoch,updates,seconds,active,displacement/similarity,validation/dice,validation/foldings_percent"]
    for epoch in range(1, epochs + 1):
        cells = f"{0.9 - rate**epoch},{epoch / 10}" if validation and epoch % 2 == 0 else ","
        lines.append(f"{epoch},{8 * epoch},1.5,displacement,{sign * rate**epoch},{cells}")
    path.write_text("\n".join(lines) + "\n")
    return path


def drawn(path: Path, histories: dict[str, Path]) -> np.ndarray:
    convergence_curves({name: [file] for name, file in histories.items()}, path)
    return imread(path)[..., :3]


def has(picture: np.ndarray, colour: str) -> bool:
    return bool((np.abs(picture - to_rgb(colour)).max(-1) < 0.02).any())


def test_every_run_has_its_line(tmp_path: Path) -> None:
    files = {f"run {i}": history(tmp_path / f"{i}.csv", 8 + 4 * i, 0.9 - 0.1 * i) for i in range(4)}
    picture = drawn(tmp_path / "four.png", files)
    assert [has(picture, colour) for colour in LINES] == [True] * 4
    assert np.array_equal(picture, drawn(tmp_path / "again.png", files))
    files.pop("run 3")
    assert [has(drawn(tmp_path / "three.png", files), colour) for colour in LINES] == [True] * 3 + [False]


def test_seeds_of_a_run_share_its_colour(tmp_path: Path) -> None:
    one, other = history(tmp_path / "0.csv", 8, 0.9), history(tmp_path / "1.csv", 8, 0.7)
    convergence_curves({"run": [one, other]}, tmp_path / "both.png")
    both, alone = imread(tmp_path / "both.png")[..., :3], drawn(tmp_path / "one.png", {"run": one})
    assert [has(both, colour) for colour in LINES[:2]] == [True, False]
    first = [(np.abs(picture - to_rgb(LINES[0])).max(-1) < 0.02).sum() for picture in (both, alone)]
    assert first[0] > 1.3 * first[1]


def test_runs_without_validation_have_one_axes(tmp_path: Path) -> None:
    full = drawn(tmp_path / "a.png", {"a": history(tmp_path / "a.csv", 6, 0.8)})
    bare = history(tmp_path / "b.csv", 1, 0.8, validation=False)
    few = drawn(tmp_path / "b.png", {"b": bare})
    assert 2.5 * few.shape[1] < full.shape[1]
    # one run with validation is enough for its axes
    assert drawn(tmp_path / "c.png", {"a": tmp_path / "a.csv", "b": bare}).shape == full.shape


def test_a_similarity_that_is_not_positive_is_drawn(tmp_path: Path) -> None:
    assert has(drawn(tmp_path / "a.png", {"a": history(tmp_path / "a.csv", 6, 0.8, sign=-1)}), LINES[0])


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.csv does not exist"):
        convergence_curves({"a": [tmp_path / "nowhere.csv"]}, tmp_path / "a.png")
    (tmp_path / "other.csv").write_text("epoch,score/ucs\n1,0.5\n")
    for histories in ({}, {"a": tmp_path / "other.csv"}):
        with pytest.raises(ValueError, match="Was anything trained"):
            convergence_curves({name: [file] for name, file in histories.items()}, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
