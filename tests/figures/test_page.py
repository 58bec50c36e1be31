# SPDX-License-Identifier: Apache-2.0
import base64
import io
import re
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
from matplotlib.figure import Figure

from common.figures import page
from common.figures.page import Verdict


class Reader(HTMLParser):
    """Counts tags, and says what is left open."""

    VOID = ("meta", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def image_of(source):
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))


def test_a_page_is_one_file_that_asks_for_nothing(tmp_path):
    grey = np.linspace(0, 1, 12).reshape(3, 4)
    page.write_page(
        tmp_path / "report.html", "a <b> & c",
        [
            page.verdict_box(Verdict(False, ["folds at <1 %"])),
            page.section("Cases", page.paragraph("x < y"), page.table(["case", "dice"], [["<i>1</i>", "0.5"]])),
            page.grid([page.picture(grey, "one"), page.checkerboard(grey, 1 - grey, "two")]),
            page.details("settings", '{"a": "<script>"}'),
        ],
    )  # fmt: skip
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    reader = Reader(text)
    assert not reader.open and reader.tags.count("img") == 3 and reader.tags.count("script") == 1
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "http" not in text and "@import" not in text
    assert "<title>a &lt;b&gt; &amp; c</title>" in text and "&lt;i&gt;1&lt;/i&gt;" in text and "Look again" in text
    viewports = [a for a in reader.attributes if a.get("name") == "viewport"]
    assert len(viewports) == 1 and "overflow:auto" in text and "max-width:100%" in text
    assert [a["type"] for a in reader.attributes if "type" in a] == ["range"]
    assert all("alt" in a for a, tag in zip(reader.attributes, reader.tags, strict=True) if tag == "img")


def test_what_takes_the_keyboard_says_what_it_is():
    grey = np.zeros((3, 4))
    reader = Reader(page.table(["case", "a & b"], [["1", "2"]]) + page.checkerboard(grey, grey, 'axial, "after"'))
    names = [a["aria-label"] for a in reader.attributes if a.get("tabindex") == "0" or a.get("type") == "range"]
    assert names == ["table: case, a & b", 'squares: axial, "after"']


def test_grey_images_are_shown_with_axis_0_to_the_right_and_cut_at_black_and_white():
    image = np.array([[0.0, 0.5, 1.0], [-1.0, 2.0, np.nan]])
    html = page.picture(image, "text")
    shown = image_of(re.search(r'src="([^"]+)"', html)[1])[..., 0]
    assert shown.shape == (3, 2)
    np.testing.assert_allclose(shown, [[0, 0], [0.5, 1], [1, 0]], atol=0.01)


def test_figures_and_files_are_held_too(tmp_path):
    figure = Figure(figsize=(1, 1))
    data = page.figure_png(figure)
    (tmp_path / "figure.png").write_bytes(data)
    assert page.picture(data, "a") == page.picture(tmp_path / "figure.png", "a")
    assert image_of(re.search(r'src="([^"]+)"', page.picture(data, "a"))[1]).shape[:2] == (110, 110)


def test_a_fine_verdict_says_so():
    assert "Fine" in page.verdict_box(Verdict(True, ["all"])) and "look" not in page.verdict_box(Verdict(True, ["all"]))
