# SPDX-License-Identifier: Apache-2.0
import csv

import pytest
import torch

from common.cli.scales import FILES_WRITTEN, FORMS, _Recorded, scales
from common.figures.scale_weights import SCALES, scale_weights
from common.losses.adaptive import AdaptiveMultiScaleNCC, scale_distances

TINY = {"spatial_size": [40, 44], "count": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scales")
    return folder, scales("gradicon_triangles", str(folder), iterations=25, **TINY)


def test_focus_moves_from_the_coarsest_scale_to_finer_ones_as_the_paper_shows(drawn):
    folder, table = drawn
    with (folder / "scales.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 25 * len(FORMS) and (folder / "scales.png").stat().st_size > 5_000
    for title in FORMS:
        own = [row for row in rows if row["form"] == title]
        assert [int(row["iteration"]) for row in own] == list(range(1, 26))
        weights = torch.tensor([[float(row[scale]) for scale in SCALES] for row in own])
        torch.testing.assert_close(weights.sum(1), torch.ones(25), atol=1e-4, rtol=0)
        assert weights[0].argmax() == len(SCALES) - 1
        assert weights[-1, -1] < 0.8 * weights[0, -1] or title != "Eq. 7"
        before, after = (float(cell) for cell in table.split(f"| {title} | ")[1].split(" | ")[:2])
        assert after < before
    greedy = [float(row[SCALES[-1]]) for row in rows if row["form"] != "Eq. 7"]
    plain = [float(row[SCALES[-1]]) for row in rows if row["form"] == "Eq. 7"]
    assert all(one >= other for one, other in zip(greedy[:1], plain[:1], strict=True))


def test_what_is_recorded_are_the_weights_of_the_similarity():
    warped, fixed = torch.rand(2, 2, 1, 40, 44, generator=torch.Generator().manual_seed(0))
    recorded, plain = _Recorded(True), AdaptiveMultiScaleNCC(greedy=True)
    torch.testing.assert_close(recorded(warped, fixed), plain(warped, fixed), atol=0, rtol=0)
    expected = plain.weights(scale_distances(warped, fixed)).mean(1)
    assert recorded.history == [pytest.approx(expected.tolist())]


def test_figures_are_not_overwritten(drawn):
    with pytest.raises(ValueError, match="a folder without scales.png or scales.csv, got .* with scales.png"):
        scales("gradicon_triangles", str(drawn[0]), iterations=1, **TINY)
    assert sorted(path.name for path in drawn[0].iterdir()) == sorted(FILES_WRITTEN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": 0}, "iterations: expected a whole number from 1, got 0"),
        ({"iterations": "many"}, "iterations: expected a whole number from 1, got 'many'"),
        ({"case": "first"}, "case: expected a whole number from 0"),
        ({"case": 2}, "case: expected a number from 0 to 1"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        scales("gradicon_triangles", str(tmp_path / "none"), **(TINY | change))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("weights", [{}, {"a": [1.0, 0.0]}, {"a": [[0.1] * 6]}])
def test_weights_that_are_no_rows_of_scales_are_refused(tmp_path, weights):
    with pytest.raises(ValueError, match="weights: expected a row an iteration of up to 5 weights"):
        scale_weights(tmp_path / "a.png", weights)
