# SPDX-License-Identifier: Apache-2.0
"""Figures over the weight of the log loss: what is drawn follows what was given, and bad input is refused."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from common.figures.eta_curves import eta_curves
from common.figures.weight_volumes import weight_volume_panel

SHAPE = (30, 21)


def case(weight, seed=0):
    generator = np.random.default_rng(seed)
    images = {name: generator.random(SHAPE) for name in ("moving_image", "fixed_image", "warped_image")}
    return images | {"weight_volume": np.full(SHAPE, weight), "ddf": generator.normal(size=(2, *SHAPE))}


@pytest.fixture
def shown(monkeypatch):
    """(title, array, scale) of every picture, and (x, y) of every line."""
    pictures, lines, imshow, plot = [], [], Axes.imshow, Axes.plot

    def recorded(axis, array, **options):
        picture = imshow(axis, array, **options)
        pictures.append((np.asarray(array).T, options.get("cmap"), picture.get_clim()))
        return picture

    def drawn(axis, x, y, **options):
        lines.append((list(x), np.asarray(y)))
        return plot(axis, x, y, **options)

    monkeypatch.setattr(Axes, "imshow", recorded)
    monkeypatch.setattr(Axes, "plot", drawn)
    return pictures, lines


def test_every_eta_has_its_column_and_all_weights_one_scale(tmp_path, shown):
    cases = {f"η = {k}": case(0.2 + 0.3 * k, k) for k in range(3)}
    weight_volume_panel(tmp_path / "a.png", cases)
    weights = [(array, limits) for array, colours, limits in shown[0] if colours == "viridis"]
    assert [float(array.mean()) for array, _ in weights] == pytest.approx([0.2, 0.5, 0.8])
    assert all(limits == (0, 1) for _, limits in weights)
    grey = [array for array, colours, _ in shown[0] if colours == "gray"]
    assert len(grey) == 5 and all(array.shape == SHAPE for array in grey)
    assert np.array_equal(grey[0], cases["η = 0"]["moving_image"])
    assert np.array_equal(grey[-1], cases["η = 2"]["warped_image"])
    assert imread(tmp_path / "a.png").std() > 0.05


def test_curves_hold_the_values_break_where_there_are_none_and_mark_the_best(tmp_path, shown):
    etas = [0.0, 0.5, 1.0, 2.0]
    means = {"Dice": [0.7, 0.75, None, 0.72], "%NDV": [0.4, 0.2, 0.1, 0.0], "SDlogJ": [0.3, 0.2, 0.15, 0.1]}
    eta_curves(tmp_path / "marked.png", etas, means, best=0.5)
    assert [x for x, _ in shown[1]] == [etas] * 3
    assert np.isnan(shown[1][0][1][2]) and shown[1][1][1].tolist() == means["%NDV"]
    eta_curves(tmp_path / "plain.png", etas, means)
    marked, plain = (imread(tmp_path / f"{name}.png") for name in ("marked", "plain"))
    assert marked.shape == plain.shape and (marked != plain).any()


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="cases: expected at least one registration"):
        weight_volume_panel(tmp_path / "a.png", {})
    with pytest.raises(ValueError, match=r"case 'η = 1' lacks \['weight_volume'\]"):
        weight_volume_panel(tmp_path / "a.png", {"η = 1": {k: v for k, v in case(1).items() if k != "weight_volume"}})
    with pytest.raises(ValueError, match="weight_volume: must have shape"):
        weight_volume_panel(tmp_path / "a.png", {"η = 1": case(1) | {"weight_volume": np.ones((3, 4))}})
    with pytest.raises(ValueError, match="ddf: must be finite"):
        weight_volume_panel(tmp_path / "a.png", {"η = 1": case(1) | {"ddf": np.full((2, *SHAPE), np.nan)}})
    for etas, means in (([], {"Dice": []}), ([0, 1], {}), ([0, 1], {"Dice": [0.5]})):
        with pytest.raises(ValueError, match="means: expected at least one measure with"):
            eta_curves(tmp_path / "a.png", etas, means)
    assert not list(tmp_path.iterdir())
