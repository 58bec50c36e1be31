# SPDX-License-Identifier: Apache-2.0
"""Curves and maps of an uncertainty: what is drawn follows what was given, and bad input is refused."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from common.figures.curves import LINES
from common.figures.uncertainty import (
    displacement_deviation_panel,
    reliability_plot,
    sparsification_plot,
    weight_panel,
)

SHAPE = (40, 27)


def sparsified(power, spread=0.05):
    """Rows of a curve (1 − x)^power, and an oracle below it."""
    return [
        {"fraction": x, "curve": (1 - x) ** power, "curve_sd": spread, "oracle": (1 - x) ** 3, "oracle_sd": 0.0}
        for x in np.arange(20) / 20
    ]


def binned(factor):
    return [{"bin": k, "predicted": 0.01 * 2**k, "observed": 0.01 * 2**k * factor} for k in range(6)]


def has(picture, colour):
    return bool((np.abs(picture[..., :3] - to_rgb(colour)).max(-1) < 0.02).any())


@pytest.fixture
def labels(monkeypatch):
    """Texts of the legends."""
    texts = []
    legend = Axes.legend

    def recorded(axis, *arguments, **options):
        made = legend(axis, *arguments, **options)
        texts.extend(text.get_text() for text in made.get_texts())
        return made

    monkeypatch.setattr(Axes, "legend", recorded)
    return texts


def test_every_method_has_its_line_and_area(tmp_path, labels):
    methods = {f"method {k}": sparsified(0.5 + k / 2) for k in range(3)}
    sparsification_plot(tmp_path / "a.png", methods, {"method 0": 0.25, "method 1": None, "method 2": 0.0123})
    picture = imread(tmp_path / "a.png")
    assert [has(picture, colour) for colour in LINES] == [True, True, True, False]
    names = ["method 0, AUSE 0.25", "method 1", "method 2, AUSE 0.0123"]
    assert labels == [*names, "oracle: largest residual first", "random"]
    sparsification_plot(tmp_path / "b.png", methods, {"method 0": 0.25, "method 1": None, "method 2": 0.0123})
    assert np.array_equal(picture, imread(tmp_path / "b.png"))


def test_the_band_follows_the_spread_and_is_absent_of_one_case(tmp_path):
    pictures = []
    for name, spread in (("wide", 0.2), ("narrow", 0.02), ("none", np.nan)):
        sparsification_plot(tmp_path / f"{name}.png", {"a": sparsified(1, spread)}, {"a": 0.3})
        pictures.append(imread(tmp_path / f"{name}.png")[..., :3])
    tint = 0.85 + 0.15 * np.array(to_rgb(LINES[0]))
    shares = [(np.abs(picture - tint).max(-1) < 0.01).mean() for picture in pictures]
    assert shares[0] > 4 * shares[1] > 0 and shares[2] < 0.02 * shares[1]  # of none, edges of the line


def test_reliability_shows_methods_and_the_diagonal(tmp_path, labels):
    reliability_plot(tmp_path / "a.png", {"good": binned(1.0), "bold": binned(3.0)}, {"good": 0.0, "bold": 2.0})
    assert labels == ["good, ENCE 0", "bold, ENCE 2", "calibrated"]
    assert has(imread(tmp_path / "a.png"), LINES[1])


def test_bins_without_pixels_or_residual_are_left_out(tmp_path, labels):
    rows = binned(1.0)
    rows[0] |= {"observed": 0.0}
    rows[1] |= {"predicted": np.nan, "observed": np.nan}
    reliability_plot(tmp_path / "a.png", {"a": rows}, {"a": 0.1})
    reliability_plot(tmp_path / "b.png", {"a": rows[:2]}, {"a": None})
    assert labels == ["a, ENCE 0.1", "calibrated", "a"]


def example(seed=0):
    generator = np.random.default_rng(seed)
    names = ("moving_image", "fixed_image", "warped_image", "noise_deviation", "weight")
    return {name: generator.random(SHAPE) for name in names} | {"title": f"case {seed}"}


def test_weights_have_a_row_a_case_and_follow_the_maps(tmp_path):
    weight_panel(tmp_path / "one.png", [example()])
    weight_panel(tmp_path / "two.png", [example(), example(1)])
    one, two = imread(tmp_path / "one.png"), imread(tmp_path / "two.png")
    assert two.shape[1] == one.shape[1] and two.shape[0] > 1.3 * one.shape[0]
    for key in ("noise_deviation", "weight", "warped_image"):
        weight_panel(tmp_path / "other.png", [example() | {key: np.eye(*SHAPE)}])
        other = imread(tmp_path / "other.png")
        assert other.shape != one.shape or not np.array_equal(one, other)


def test_deviations_of_all_methods_share_one_scale(tmp_path, monkeypatch):
    ends = []
    imshow = Axes.imshow

    def recorded(axis, array, **options):
        ends.append((options["cmap"], options["vmin"], options["vmax"]))
        return imshow(axis, array, **options)

    monkeypatch.setattr(Axes, "imshow", recorded)
    case = example() | {"deviations": {"ours": np.full(SHAPE, 0.2), "vxm-diff": np.full(SHAPE, 0.7)}}
    displacement_deviation_panel(tmp_path / "a.png", [case])
    assert [end for end in ends if end[0] == "viridis"] == [("viridis", 0, 0.7)] * 2
    assert len([end for end in ends if end[0] == "gray"]) == 2 and len({end for end in ends if end[0] == "gray"}) == 1
    displacement_deviation_panel(tmp_path / "b.png", [case | {"deviations": {"ours": np.zeros(SHAPE)}}])
    assert imread(tmp_path / "b.png").shape[1] < imread(tmp_path / "a.png").shape[1]


def test_bad_input(tmp_path):
    for methods in ({}, {"a": []}):
        with pytest.raises(ValueError, match="expected rows as in sparsification.csv of at least one method"):
            sparsification_plot(tmp_path / "a.png", methods, {})
        with pytest.raises(ValueError, match="expected rows as in reliability.csv of at least one method"):
            reliability_plot(tmp_path / "a.png", methods, {})
    with pytest.raises(ValueError, match="cases: expected at least one"):
        weight_panel(tmp_path / "a.png", [])
    with pytest.raises(ValueError, match=r"case 1 lacks \['weight'\]"):
        weight_panel(tmp_path / "a.png", [example(), {k: v for k, v in example().items() if k != "weight"}])
    with pytest.raises(ValueError, match=r"noise_deviation: must have shape \(40, 27\)"):
        weight_panel(tmp_path / "a.png", [example() | {"noise_deviation": np.zeros((3, 4))}])
    with pytest.raises(ValueError, match="deviations: expected σ_z of at least one method"):
        displacement_deviation_panel(tmp_path / "a.png", [example()])
    assert not any(tmp_path.iterdir())
