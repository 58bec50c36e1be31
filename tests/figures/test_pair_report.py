# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from common.figures.page import Verdict
from common.figures.pair_report import Registered, pair_report, planes
from tests.figures.test_page import Reader

ROWS = [["Dice", "0.5", "0.8"]]


def registered(shape, stack=False):
    rng = np.random.default_rng(0)
    image = rng.random(shape)
    ddf = rng.normal(0, 0.4, (len(shape), *shape))
    spacing = (1.0, 1.5, 3.0)[: len(shape)]
    return Registered(image, np.roll(image, 1, 0), image, ddf, 1 + 0.3 * rng.standard_normal(shape), spacing, stack)


@pytest.mark.parametrize(
    ("shape", "stack", "names"),
    [
        ((24, 20), False, ["Image"]),
        ((24, 20, 9), True, ["Slice 3 of 9", "Slice 5 of 9", "Slice 7 of 9"]),
        ((24, 20, 16), False, ["Axial", "Coronal", "Sagittal"]),
    ],
    ids=["2d", "stack", "3d"],
)
def test_each_plane_has_boards_before_and_after_and_maps(tmp_path, shape, stack, names):
    path = tmp_path / "report.html"
    pair_report(path, "A to B", Verdict(True, ["all"]), registered(shape, stack), ROWS, {"weights": "abc"})
    text = path.read_text(encoding="utf-8")
    reader = Reader(text)
    assert not reader.open
    for name in names:
        assert f"<h2>{name}</h2>" in text
    assert text.count('class="board"') == 2 * len(names) == reader.tags.count("input")
    assert reader.tags.count("img") == 5 * len(names) + 1
    assert "Jacobian determinant from" in text and "<td>Dice</td>" in text and "&quot;weights&quot;" in text


def test_planes_of_a_volume_go_through_its_middle_and_keep_its_proportions(tmp_path):
    (axial, coronal, sagittal) = planes((24, 20, 16), False)
    assert axial.where == (slice(None), slice(None), 8) and coronal.where == (slice(None), 10, slice(None))
    assert sagittal.where[0] == 12
    pair_report(tmp_path / "r.html", "t", Verdict(True, []), registered((24, 20, 16)), ROWS, {})
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert text.count("aspect-ratio:24/30") == text.count("aspect-ratio:24/48") == text.count("aspect-ratio:30/48") == 4


def test_a_short_stack_shows_what_it_has():
    assert [plane.where[2] for plane in planes((9, 9, 1), True)] == [0]
    assert [plane.where[2] for plane in planes((9, 9, 2), True)] == [0, 1]


def test_shapes_must_agree(tmp_path):
    wrong = registered((24, 20))._replace(determinant=np.ones((20, 24)))
    with pytest.raises(ValueError, match=r"determinant: expected the shape \(24, 20\)"):
        pair_report(tmp_path / "r.html", "t", Verdict(True, []), wrong, ROWS, {})
