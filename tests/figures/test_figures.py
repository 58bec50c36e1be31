# SPDX-License-Identifier: Apache-2.0
import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from common.figures.curves import training_curves, words
from common.figures.drawing import LABEL_COLOURS, draw_directions, zoom
from common.figures.maps import draw_jacobian
from common.figures.panels import _draw_estimated, registration_panel, score_panel

SHAPE = (40, 28)


def example(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    x, y = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    disc = (np.hypot(x + 0.1 * generator.random(), y) < 0.5).astype(np.int64)
    noise = generator.random((3, *SHAPE)) * 0.2
    ddf = np.stack([2 * np.sin(3 * x), np.cos(2 * y)])
    images = {
        f"{name}_image": 0.6 * disc + part for name, part in zip(("moving", "fixed", "warped"), noise, strict=True)
    }
    labels = {f"{name}_label": disc for name in ("moving", "fixed", "warped")}
    return images | labels | {"ddf": ddf, "score": generator.random(SHAPE), "title": f"case {seed}"}


def draw(path, **changes):
    case = example() | changes
    arguments = {name: case[f"{name}_image"] for name in ("moving", "fixed", "warped")}
    rest = {key: value for key, value in case.items() if not key.endswith("_image")}
    registration_panel(path, **arguments, **rest)
    return imread(path)


def colour_share(picture: np.ndarray, colour: tuple[float, float, float]) -> float:
    return float((np.abs(picture[..., :3] - colour).max(-1) < 0.02).mean())


def test_registration_panel_writes_a_picture_that_follows_its_input(tmp_path):
    first = draw(tmp_path / "a.png")
    assert first.shape[0] > 400 and first.shape[1] > 800
    assert first[..., :3].std() > 0.1
    assert np.array_equal(first, draw(tmp_path / "b.png"))
    for changes in (
        {"score": np.zeros(SHAPE)},
        {"ddf": np.zeros((2, *SHAPE))},
        {"warped_image": example(1)["fixed_image"]},
    ):
        other = draw(tmp_path / "c.png", **changes)
        assert first.shape != other.shape or not np.array_equal(first, other)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.png", "b.png", "c.png"]


def test_registration_panel_needs_images_and_field_only(tmp_path):
    case = example()
    names = ("moving_image", "fixed_image", "warped_image", "ddf")
    registration_panel(tmp_path / "a.png", *(torch.from_numpy(case[name]) for name in names))
    assert (tmp_path / "a.png").stat().st_size > 20_000


def test_foldings_and_only_foldings_are_red(tmp_path):
    determinant = np.full(SHAPE, 1.1)
    red = (0xE0 / 255, 0.0, 0.0)
    assert colour_share(draw(tmp_path / "a.png", jacobian_determinant=determinant), red) == 0.0
    determinant[5:15, 5:15] = -0.2
    folded = draw(tmp_path / "b.png", jacobian_determinant=determinant)
    # 100 of 1120 pixels of one panel of eight, margins apart.
    assert 0.004 < colour_share(folded, red) < 100 / 1120 / 8


def test_every_label_has_a_colour_of_its_own(tmp_path):
    label = np.zeros(SHAPE, int)
    label[4:12, 4:20], label[16:24, 4:20], label[28:36, 4:20] = 1, 2, 600
    picture = draw(tmp_path / "a.png", moving_label=label, warped_label=label, label_names={1: "RV", 2: "myocardium"})
    for value in (1, 2, 600):
        assert colour_share(picture, to_rgb(LABEL_COLOURS[(value - 1) % len(LABEL_COLOURS)])) > 2e-4
    assert colour_share(picture, to_rgb(LABEL_COLOURS[3])) == 0


def test_the_window_and_directions_are_drawn(tmp_path):
    plain = draw(tmp_path / "a.png")
    window = draw(tmp_path / "b.png", window=([5, 4], [30, 20]))
    letters = draw(tmp_path / "c.png", directions=("R", "A"))
    assert plain.shape == letters.shape and not np.array_equal(plain, letters)
    assert window.shape != plain.shape or not np.array_equal(plain, window)
    axis = Figure().subplots()
    draw_directions(axis, ("R", "A"))  # axis 0 to the right, axis 1 downwards
    places = {text.get_text(): text.get_position() for text in axis.texts}
    assert places["R"][0] > 0.9 and places["L"][0] < 0.1 and places["A"][1] < 0.1 and places["P"][1] > 0.9


def test_a_small_window_is_shown_with_its_surroundings(tmp_path):
    part, box = zoom(([10, 8], [15, 13]), SHAPE)
    assert part == (slice(7, 19), slice(5, 17)) and [end.tolist() for end in box] == [[3, 3], [8, 8]]
    assert zoom(([10, 8], [30, 24]), SHAPE)[0] == (slice(0, 40), slice(0, 28))
    near = draw(tmp_path / "a.png", window=([10, 8], [15, 13]))
    assert near.shape != draw(tmp_path / "b.png", window=([10, 8], [30, 24])).shape


def test_the_bar_of_the_determinant_ends_where_the_data_do():
    determinant = np.linspace(0.8, 3.0, SHAPE[0] * SHAPE[1]).reshape(SHAPE)
    norm = draw_jacobian(Figure().subplots(), determinant).norm
    assert norm.vmin == pytest.approx(0.81, abs=0.01) and norm.vmax == pytest.approx(2.99, abs=0.01)
    still = np.ones(SHAPE)
    still[:4, :4] = 1.3
    norm = draw_jacobian(Figure().subplots(), still, ([0, 0], [7, 7])).norm
    assert (norm.vmin, norm.vcenter, norm.vmax) == (0.95, 1.0, 1.3)


def test_columns_are_named_in_words():
    assert words("displacement/similarity") == "similarity (displacement update)"
    assert words("displacement/inverse_consistency") == "inverse consistency (displacement update)"
    assert words("validation/foldings_percent") == "foldings in % (validation)"
    assert words("displacement/learning_rate", brief=True) == "learning rate"


def test_images_are_shown_with_axis_0_to_the_right_and_axis_1_downwards(tmp_path):
    image = np.zeros(SHAPE)
    image[-10:, :7] = 1.0
    zeros = np.zeros((2, *SHAPE))
    registration_panel(tmp_path / "a.png", image, image, image, zeros)
    picture = imread(tmp_path / "a.png")[..., :3]
    # The moving image lies in the upper left sixth; its corners are found by its black, then white, pixels.
    dark = (picture == 0).all(-1)[: picture.shape[0] // 2, : picture.shape[1] // 3]
    rows, columns = np.flatnonzero(dark.mean(1) > 0.3), np.flatnonzero(dark.mean(0) > 0.3)
    columns = columns[: np.flatnonzero(np.diff(columns, append=10**6) > 1)[0] + 1]
    top, bottom, left, right = rows[0] + 5, rows[-1] - 5, columns[0] + 5, columns[-1] - 5
    assert right - left > 1.2 * (bottom - top)
    assert not dark[top, right]
    assert dark[top, left] and dark[bottom, left] and dark[bottom, right]


def test_panels_and_curves_do_without_pyplot(tmp_path, monkeypatch):
    # None makes any import of it fail.
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    draw(tmp_path / "a.png")
    score_panel(tmp_path / "b.png", [example()])
    curves(tmp_path, "c")
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_score_panel_has_a_row_a_case_and_follows_the_score(tmp_path):
    score_panel(tmp_path / "one.png", [example(0)])
    score_panel(tmp_path / "two.png", [example(0), example(1)])
    one, two = imread(tmp_path / "one.png"), imread(tmp_path / "two.png")
    assert two.shape[1] == one.shape[1] and two.shape[0] > 1.3 * one.shape[0]
    score_panel(tmp_path / "other.png", [example(0) | {"score": np.full(SHAPE, 0.5)}])
    assert not np.array_equal(one, imread(tmp_path / "other.png"))
    bare = {key: example()[key] for key in ("moving_image", "fixed_image", "warped_image", "ddf", "score")}
    score_panel(tmp_path / "bare.pdf", [bare])
    assert (tmp_path / "bare.pdf").read_bytes().startswith(b"%PDF")


def test_a_standard_deviation_stands_where_a_score_would(tmp_path):
    """Error over variance: 1 everywhere where σ is the error's root."""
    score, case = example(), {key: value for key, value in example().items() if key != "score"}
    case["noise_deviation"] = np.abs(case["fixed_image"] - case["warped_image"]) + 0.01
    score_panel(tmp_path / "a.png", [case, case])
    score_panel(tmp_path / "b.png", [score, score])
    deviation, scores = imread(tmp_path / "a.png"), imread(tmp_path / "b.png")
    assert deviation.shape == scores.shape and not np.array_equal(deviation, scores)
    axes = Figure().subplots(1, 3)
    error = (case["fixed_image"] - case["warped_image"]) ** 2
    exact = {"error": error, "noise_deviation": np.sqrt(error)}
    pictures = _draw_estimated(axes, exact, "noise_deviation", {"error": error.max(), "noise_deviation": 0.5})
    assert [(picture.norm.vmin, picture.norm.vmax) for picture in pictures[1:]] == [(0, 0.5), (0, 9)]
    assert np.asarray(pictures[2].get_array())[error.T > 0] == pytest.approx(1.0)
    drawn = draw(tmp_path / "c.png", score=None, noise_deviation=case["noise_deviation"])
    assert drawn.shape == draw(tmp_path / "d.png").shape
    with pytest.raises(ValueError, match=r"case 1 .* \['noise_deviation'\] are missing"):
        score_panel(tmp_path / "e.png", [case, score])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"moving_image": np.zeros((1, 1, *SHAPE))}, r"moving: must have shape \(40, 28\).*batch and channel"),
        ({"ddf": np.zeros(SHAPE)}, r"ddf: must have shape \(2, 40, 28\)"),
        ({"score": np.full(SHAPE, np.nan)}, "score: must be finite"),
        ({"fixed_label": np.zeros((4, 4))}, "fixed_label: must have shape"),
        ({"fixed_image": np.zeros((4, *SHAPE))}, "must have shape"),
    ],
)
def test_registration_panel_bad_input(tmp_path, changes, match):
    with pytest.raises(ValueError, match=match):
        draw(tmp_path / "a.png", **changes)
    assert not any(tmp_path.iterdir())


def test_other_bad_input(tmp_path):
    with pytest.raises(ValueError, match="at least one case"):
        score_panel(tmp_path / "a.png", [])
    case = example()
    del case["score"]
    with pytest.raises(ValueError, match=r"case 1 .* \['score'\] are missing"):
        score_panel(tmp_path / "a.png", [example(), case])
    with pytest.raises(ValueError, match="ends in one of .*png"):
        draw(tmp_path / "a.xyz")
    assert not any(tmp_path.iterdir())


HEADER = "epoch,updates,seconds,active,displacement/similarity,displacement/total,score/ucs,score/mu,validation/dice"


def write_history(path, epochs: int = 12, header: str = HEADER, slope: float = 1.0):
    rows = [header]
    for epoch in range(epochs):
        active = "displacement" if epoch < 4 else "score" if epoch < 8 else "displacement+score"
        cells = {"epoch": epoch, "updates": 10 * epoch, "seconds": 5.0 * epoch, "active": active}
        if "displacement" in active:
            cells |= {"displacement/similarity": slope / (1 + epoch), "displacement/total": 1.1 / (1 + epoch)}
        if "score" in active:
            cells |= {"score/ucs": 0.5 - 0.01 * epoch, "score/mu": 0.01 * epoch}
        if epoch % 3 == 0:
            cells["validation/dice"] = 0.5 + 0.01 * epoch
        rows.append(",".join(str(cells.get(name, "")) for name in header.split(",")))
    path.write_text("\n".join(rows) + "\n")
    return path


def curves(tmp_path, name: str, **options) -> np.ndarray:
    training_curves(write_history(tmp_path / f"{name}.csv", **options), tmp_path / f"{name}.png")
    return imread(tmp_path / f"{name}.png")


def test_training_curves_follow_the_history(tmp_path):
    first = curves(tmp_path, "a")
    assert first[..., :3].std() > 0.05
    assert np.array_equal(first, curves(tmp_path, "b"))
    assert not np.array_equal(first, curves(tmp_path, "c", slope=2.0))


def test_columns_that_do_not_exist_are_not_drawn(tmp_path):
    full, few = curves(tmp_path, "a"), curves(tmp_path, "b", header="epoch,displacement/total")
    assert few.shape[1] < full.shape[1]
    other = curves(tmp_path, "c", header="epoch,displacement/total,variance/beta_nll")
    assert np.array_equal(few, other), "a column without values is not drawn either"


def test_warm_up_is_shaded_and_a_run_of_one_update_is_not(tmp_path):
    shaded = curves(tmp_path, "a", header="epoch,active,displacement/total")
    plain = curves(tmp_path, "b", header="epoch,displacement/total")
    alone = curves(tmp_path, "c", header="epoch,active,displacement/total", epochs=4)
    yellow, blue = ((0.75 + 0.25 * np.array(c) / 255) for c in ((0xF0, 0xE4, 0x42), (0x56, 0xB4, 0xE9)))
    for colour in (yellow, blue):
        assert colour_share(shaded, tuple(colour)) > 0.02
        assert colour_share(plain, tuple(colour)) == 0
        assert colour_share(alone, tuple(colour)) == 0


def test_a_history_of_one_epoch_and_a_cut_last_line_are_drawn(tmp_path):
    curves(tmp_path, "a", epochs=1)
    path = write_history(tmp_path / "b.csv")
    path.write_text(path.read_text().rstrip()[:-40])
    training_curves(path, tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 10_000


def test_history_bad_input(tmp_path):
    target = tmp_path / "out.png"
    with pytest.raises(FileNotFoundError, match="nowhere.csv does not exist"):
        training_curves(tmp_path / "nowhere.csv", target)
    history = tmp_path / "history.csv"
    for text, match in (
        ("", "expected a column 'epoch'"),
        ("loss\n1\n", "expected a column 'epoch'"),
        ("epoch,score/ucs\n", "has none. Train for one epoch"),
        ("epoch,score/ucs\n0,\n1,\n", "Was anything trained"),
        ("epoch,seconds\n0,1\n", "Was anything trained"),
        ("epoch,score/ucs\n0,1.0\n1,bad\n", "line 3, column 'score/ucs' .* got 'bad'"),
        ("epoch,score/ucs\n0,1.0\n,0.9\n", "a number for every epoch"),
    ):
        history.write_text(text)
        with pytest.raises(ValueError, match=match):
            training_curves(history, target)
    assert not target.exists()
