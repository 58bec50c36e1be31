# SPDX-License-Identifier: Apache-2.0
"""Box plots, a measure over a column, and the panel of several methods."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from common.figures import boxes, comparison, heat_map
from common.figures.boxes import box_plots, dependence_plot, group_means, structure_boxes
from common.figures.comparison import comparison_panel
from common.figures.drawing import LABEL_COLOURS
from common.figures.heat_map import heat_maps

NAN = float("nan")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures instead of files."""
    figures: list[Figure] = []
    for module in (boxes, comparison):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def test_a_box_spans_the_quartiles_of_the_scored_cases(drawn: list[Figure]) -> None:
    values = np.random.default_rng(0).normal(size=41)
    box_plots({"dice": {"a": [*values, NAN], "lost": [NAN]}, "hd_mm": {"a": values + 3}}, "none.png")
    first, second = drawn[0].axes
    assert [label.get_text() for label in first.get_xticklabels()] == ["a\n(41)", "lost\n(0)"]
    assert (first.get_title(), second.get_title()) == ("dice", "hd mm")
    box = first.patches[0].get_path().vertices[:, 1]
    assert (box.min(), box.max()) == pytest.approx(tuple(np.percentile(values, [25, 75])))


def test_structures_have_a_box_of_every_method_side_by_side(drawn: list[Figure]) -> None:
    values = np.random.default_rng(0).normal(size=21)
    cases = {"a": [*values, NAN], "b": values + 3, "lost": [NAN]}
    structure_boxes({"brain_stem": cases, "csf": {**cases, "a": values - 1}}, "none.png")
    (axis,) = drawn[0].axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["brain stem", "csf"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b", "lost"]
    paths = [patch.get_path().vertices for patch in axis.patches]  # by method, then by structure
    first, second = (paths[index][:, 1] for index in (0, 1))
    assert (first.min(), first.max()) == pytest.approx(tuple(np.percentile(values, [25, 75])))
    assert (second.min(), second.max()) == pytest.approx(tuple(np.percentile(values - 1, [25, 75])))
    centres = [path[:, 0].min() + np.ptp(path[:, 0]) / 2 for path in paths]
    assert centres == pytest.approx([-0.8 / 3, 1 - 0.8 / 3, 0, 1, 0.8 / 3, 1 + 0.8 / 3])


def test_means_of_groups_are_those_of_neighbouring_values() -> None:
    x, y = np.array([5.0, 1.0, 2.0, 6.0]), np.array([50.0, 10.0, 20.0, 60.0])
    assert group_means(x, y, 2) == ([1.5, 5.5], [15.0, 55.0])
    assert group_means(x, y, 99) == group_means(x, y, 2)
    assert group_means(x[:1], y[:1], 5) == ([5.0], [50.0])


def test_a_line_of_means_runs_through_the_cases_with_both_values(drawn: list[Figure]) -> None:
    x = [*np.arange(10.0), NAN]
    dependence_plot(x, {"a": 2 * np.array(x), "b": [NAN] * 11}, "none.png", "thickness_lv", "dice", groups=2)
    axis = drawn[0].axes[0]
    assert axis.get_xlabel() == "thickness lv, voxels" and axis.get_ylabel() == "dice"
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert lines["a"] == [[2.0, 4.0], [7.0, 14.0]] and lines["b"] == []
    with pytest.raises(ValueError, match="expected cases that have both 'thickness_lv' and 'dice', got none"):
        dependence_plot([NAN], {"a": [1.0]}, "none.png", "thickness_lv", "dice")


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="measures: expected at least one"):
        box_plots({}, "none.png")
    with pytest.raises(ValueError, match="structures: expected at least one"):
        structure_boxes({}, "none.png")
    with pytest.raises(ValueError, match="methods: expected at least one"):
        comparison_panel("none.png", np.zeros((4, 4)), np.zeros((4, 4)), {})


def parts(shape: tuple[int, int] = (24, 18)) -> dict[str, np.ndarray]:
    image = np.random.default_rng(1).random(shape)
    label = np.zeros(shape, dtype=int)
    label[6:14, 5:12] = 1
    return {"warped": image, "ddf": np.zeros((2, *shape)), "warped_label": label}


def test_the_panel_has_a_row_a_method_and_shared_scales(drawn: list[Figure]) -> None:
    one, fixed = parts(), np.ones((24, 18))
    methods = {"identity": one, "perfect": one | {"warped": fixed}}
    comparison_panel("none.png", one["warped"], fixed, methods, one["warped_label"], one["warped_label"], title="c")
    axes = drawn[0].axes
    assert len(axes) == 4 * 4
    titles = [axis.get_title() for axis in axes]
    assert f"|fixed − moving|, mean {(1 - one['warped']).mean():.3g}" in titles
    assert f"|fixed − warped|, mean {(1 - one['warped']).mean():.3g}" in titles
    assert "|fixed − warped|, mean 0" in titles
    differences = [axis.images[0] for axis in axes if axis.get_title().startswith("|fixed")]
    assert len({picture.get_clim() for picture in differences}) == 1 and len(differences) == 3
    assert [axis.get_ylabel() for axis in axes[:12:4]] == ["undeformed", "identity", "perfect"]


def test_the_panel_is_written_with_the_fixed_labels_filled(tmp_path: Path) -> None:
    one = parts()
    one["warped_label"] = one["warped_label"] * 0
    comparison_panel(tmp_path / "a.png", one["warped"], np.zeros((24, 18)), {"m": one}, None, parts()["warped_label"])
    picture = imread(tmp_path / "a.png")[..., :3]
    mixed = np.array(to_rgb(LABEL_COLOURS[0])) * comparison.FILLED
    assert (np.abs(picture - mixed).max(-1) < 0.02).mean() > 0.005  # over black
    comparison_panel(
        tmp_path / "b.png", one["warped"], np.zeros((24, 18)), {"m": {k: one[k] for k in ("warped", "ddf")}}
    )
    assert (np.abs(imread(tmp_path / "b.png")[..., :3] - mixed).max(-1) < 0.02).mean() == 0
    with pytest.raises(ValueError, match="m: warped: must have shape"):
        comparison_panel(tmp_path / "c.png", np.zeros((4, 4)), np.zeros((4, 4)), {"m": one})


def test_heat_maps_have_a_cell_a_point_and_its_value(drawn: list[Figure], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heat_map, "save_figure", lambda figure, path: drawn.append(figure))
    values = np.array([[0.5, 0.75, NAN], [0.25, 0.125, 1.0]])
    heat_maps({"Dice": values, "HD": 10 * values}, "none.png", ("alpha", [1, 2]), ("beta", ["a", "b", "c"]))
    first, second = drawn[0].axes
    assert (first.get_title(), first.get_xlabel(), first.get_ylabel()) == ("Dice", "beta", "alpha")
    assert [label.get_text() for label in first.get_xticklabels()] == ["a", "b", "c"]
    assert {text.get_position(): text.get_text() for text in first.texts} == {
        (0, 0): "0.5", (1, 0): "0.75", (0, 1): "0.25", (1, 1): "0.125", (2, 1): "1",
    }  # fmt: skip
    assert np.array_equal(second.images[0].get_array().filled(NAN), 10 * values, equal_nan=True)
    with pytest.raises(ValueError, match="maps: expected at least one of shape"):
        heat_maps({"Dice": values}, "none.png", ("alpha", [1]), ("beta", [1, 2, 3]))
