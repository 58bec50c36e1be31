# SPDX-License-Identifier: Apache-2.0
"""Figures of an evaluation: which case is shown, with labels or without, with an estimator or without."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from common.engines.evaluator import RegistrationEvaluator
from common.engines.maps import PixelMaps
from common.handlers import figures
from common.handlers.evaluation import evaluation_handlers, validation_handlers
from common.io.results import read_metrics
from common.metrics.folding import FieldMeasures
from common.metrics.image import ImageMeasures
from common.metrics.labels import LabelMeasures
from common.metrics.uncertainty import UncertaintyMeasures
from tests.engines.synthetic import estimating_method
from tests.handlers.synthetic import LABELS, registered_pairs

IMAGES = ("moving_image", "fixed_image", "subject", "case")


class Known(nn.Module):
    """A network that knows the fields of its pairs, and counts its calls."""

    def __init__(self, batch, ddf):
        super().__init__()
        self.fields = list(zip(batch["moving_image"], ddf, strict=True))
        self.calls = 0

    def forward(self, image, fixed=None, condition=None):
        self.calls += 1
        return torch.stack([next(u for m, u in self.fields if torch.equal(m, pair[:1])) for pair in image])


def evaluated(dims, tmp_path, measures, keys=None, estimator=None, handlers=None, estimator_input="fixed", weight=None):
    batch, output = registered_pairs(dims)
    pairs = [{key: batch[key][n] for key in keys or batch} for n in range(3)]
    network = Known(batch, output["ddf"])
    handlers = handlers or evaluation_handlers(measures, tmp_path, {})[:-1]  # without the report, which draws more
    maps = None if estimator is None else PixelMaps(estimating_method(network, estimator, estimator_input, weight))
    loader = DataLoader(pairs, batch_size=2)
    engine = RegistrationEvaluator("cpu", loader, network, maps=maps, val_handlers=handlers)
    engine.run()
    return engine, handlers


@pytest.fixture
def drawn(monkeypatch):
    """What the panels were asked to draw, by the name of the file."""
    calls = {}
    monkeypatch.setattr(figures, "registration_panel", lambda path, **case: calls.update({path.name: case}))
    monkeypatch.setattr(figures, "score_panel", lambda path, cases, names: calls.update({path.name: cases}))
    monkeypatch.setattr(figures, "weight_panel", lambda path, cases: calls.update({path.name: cases}))
    return calls


@pytest.mark.parametrize("dims", ["2d", "3d"])
def test_files_are_written_with_labels_and_score(dims, tmp_path):
    d = int(dims[0])
    estimator = nn.Sequential((nn.Conv2d if d == 2 else nn.Conv3d)(1, 1, 1), nn.Sigmoid())
    evaluated(dims, tmp_path, [LabelMeasures(LABELS), FieldMeasures()], estimator=estimator)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"metrics.csv", "subjects.csv", "summary.json", "registration.png", "scores.png"}


@pytest.mark.parametrize("dims", ["2d", "3d"])
def test_images_alone_give_a_figure(dims, tmp_path):
    engine, _ = evaluated(dims, tmp_path, [ImageMeasures()], IMAGES)
    assert (tmp_path / "registration.png").stat().st_size > 20_000 and not (tmp_path / "scores.png").exists()
    assert engine.network.calls == 3  # two batches, and the case shown


def test_the_case_shown_is_the_median(tmp_path, drawn):
    """Dice falls from case to case, the last has none of its scored labels' mean; the difference of images grows."""
    batch, _ = registered_pairs("2d")
    _, handlers = evaluated("2d", tmp_path, [LabelMeasures(LABELS, ["rv"]), ImageMeasures()])
    dice = [row["dice"] for row in handlers[1].rows]
    assert sorted(dice, reverse=True) == dice
    shown = drawn["registration.png"]
    assert shown["title"] == f"b  Dice {handlers[1].rows[1]['dice_before']:.3f} → {dice[1]:.3f}"
    assert (shown["moving"] == batch["moving_image"][1, 0].numpy()).all() and shown["score"] is None
    assert shown["label_names"] == {2: "myocardium", 3: "lv", 1: "rv"} and set(shown["warped_label"].flat) == {
        0,
        1,
        2,
        3,
    }
    _, handlers = evaluated("2d", tmp_path / "images", [ImageMeasures()], IMAGES)
    shown, row = drawn["registration.png"], handlers[1].rows[1]
    assert shown["title"] == f"b  MSE {row['mse_before']:.3g} → {row['mse']:.3g}"
    assert shown["fixed_label"] is None and shown["label_names"] == {}


def test_images_rank_where_no_case_is_scorable(tmp_path, drawn):
    evaluated("2d", tmp_path, [LabelMeasures({"none": 9}), ImageMeasures()])
    assert drawn["registration.png"]["title"].startswith("b  MSE")


def test_no_measure_that_ranks_is_said(tmp_path, drawn, caplog):
    evaluated("2d", tmp_path, [FieldMeasures()])
    assert not drawn and "No figure is drawn: no case has one of dice, dice_vessels, mse" in caplog.text


@pytest.mark.parametrize("estimator_input", ["fixed", "fixed_warped"])
def test_scores_show_good_middling_and_bad_cases(tmp_path, drawn, estimator_input):
    seen = []

    class Estimator(nn.Module):
        def forward(self, image):
            seen.append(image.shape[1])
            return torch.full_like(image[:, :1], 0.5)

    evaluated("2d", tmp_path, [ImageMeasures()], IMAGES, Estimator(), estimator_input=estimator_input)
    assert [case["title"][0] for case in drawn["scores.png"]] == ["a", "b", "c"]
    assert set(seen) == {1 if estimator_input == "fixed" else 2}
    assert all((case["score"] == 0.5).all() for case in drawn["scores.png"])


def test_of_a_log_variance_the_standard_deviation_is_shown(tmp_path, drawn):
    class Estimator(nn.Module):
        sigmoid = False

        def forward(self, image):
            return torch.full_like(image[:, :1], -4.0)

    evaluated("2d", tmp_path, [ImageMeasures()], IMAGES, Estimator(), estimator_input="fixed_warped")
    assert set(drawn) == {"registration.png", "deviations.png"} and drawn["registration.png"]["score"] is None
    for case in (drawn["registration.png"], *drawn["deviations.png"]):
        assert np.allclose(case["noise_deviation"], np.exp(-2.0))


class LogVariance(nn.Module):
    """A log variance that follows the fixed image, and counts its calls."""

    sigmoid = False

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, image):
        self.calls += 1
        return image[:, :1] - 4.0


@pytest.mark.parametrize("dims", ["2d", "3d"])
def test_curves_of_a_measured_uncertainty_are_written_and_drawn(dims, tmp_path):
    estimator = LogVariance()
    measures = [ImageMeasures(), UncertaintyMeasures()]
    _, handlers = evaluated(dims, tmp_path, measures, estimator=estimator)
    written = {path.name for path in tmp_path.iterdir()}
    assert {
        "deviations.png",
        "sparsification.csv",
        "sparsification.png",
        "reliability.csv",
        "reliability.png",
    } < written
    assert estimator.calls == 2 + 3  # the batches, and the cases shown
    rows = read_metrics(tmp_path / "sparsification.csv", ())
    assert rows == handlers[1].tables["sparsification"] and len(rows) == 100
    area = np.mean([row["ause"] for row in handlers[1].rows])
    assert np.mean([row["curve"] - row["oracle"] for row in rows]) == pytest.approx(area, abs=0.01)
    assert [set(row) for row in read_metrics(tmp_path / "reliability.csv", ())] == [
        {"bin", "predicted", "observed"}
    ] * 10


def test_an_estimator_is_not_run_for_measures_that_do_not_ask(tmp_path, drawn):
    estimator = LogVariance()
    _, handlers = evaluated("2d", tmp_path, [ImageMeasures()], IMAGES, estimator)
    assert estimator.calls == 3 and handlers[1].tables == {}  # the cases shown


def test_the_data_terms_weight_is_drawn_beside_the_deviation(tmp_path, drawn):
    class Product(nn.Module):
        def weight_map(self, fixed, estimated):
            return fixed * estimated

    evaluated("2d", tmp_path, [ImageMeasures()], IMAGES, LogVariance(), weight=Product())
    for case in drawn["weights.png"]:
        assert np.allclose(case["weight"], case["fixed_image"] * (case["fixed_image"] - 4.0))
    assert len(drawn["weights.png"]) == len(drawn["deviations.png"]) == 3


def test_validation_is_quick_and_writes_nothing(tmp_path):
    handlers = validation_handlers([LabelMeasures(LABELS), FieldMeasures()])
    engine, _ = evaluated("2d", tmp_path, [], handlers=handlers)
    names = {"dice", "dice_myocardium", "dice_lv", "dice_rv", "foldings_percent"}
    assert set(engine.state.metrics) == names and not any(tmp_path.iterdir())
