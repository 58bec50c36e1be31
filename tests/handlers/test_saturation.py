# SPDX-License-Identifier: Apache-2.0
import logging
from types import SimpleNamespace

import pytest
import torch

from common.engines.trainer import RegistrationEvents
from common.handlers.log import TrainingLog, read_history
from common.handlers.saturation import MapStatistics
from tests.handlers.stand_ins import run_scored, stand_in


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("common.handlers.log.training_curves", lambda history, path: None)


def test_statistics_are_those_of_all_pixels_of_the_epoch(tmp_path):
    generator = torch.Generator().manual_seed(0)
    scores = [[torch.rand(2, 1, 2, 2, generator=generator) for _ in range(3)] for _ in range(3)]
    run_scored([MapStatistics(), TrainingLog(tmp_path, progress=False)], ((0.0,) * 3,) * 3, scores)
    rows = read_history(tmp_path / "history.csv")
    assert rows[0]["score/mean"] == ""  # the displacement's warm-up
    for row, epoch in zip(rows[1:], scores[1:], strict=True):
        values = torch.stack(epoch)
        expected = {
            "mean": values.mean(),
            "deviation": values.std(correction=0),
            "min": values.min(),
            "max": values.max(),
        }
        for name, value in expected.items():
            assert float(row[f"score/{name}"]) == pytest.approx(float(value), abs=1e-6)


def test_deviation_keeps_its_digits_close_to_one():
    scores = [[torch.tensor([0.9999, 0.9998]).view(2, 1, 1, 1).expand(2, 1, 2, 2)]] * 2
    engine = run_scored([MapStatistics()], ((0.0,),) * 2, scores)
    assert engine.state.metrics["score/deviation"] == pytest.approx(5e-5, rel=1e-2)


def saturation(least, warm=1, epochs=5):
    scores = [[torch.full((2, 1, 2, 2), 0.995)] * 2 for _ in range(epochs)]
    for epoch in scores:
        epoch[1] = epoch[1].clone()
        epoch[1][0, 0, 0, 0] = least
    run_scored([MapStatistics()], ((0.0,) * 2,) * epochs, scores, warm)


def test_saturation_is_said_once_and_only_in_the_joint_phase(caplog):
    with caplog.at_level(logging.WARNING):
        saturation(0.991)
    messages = [record.getMessage() for record in caplog.records if "SATURATED" in record.getMessage()]
    assert len(messages) == 1 and "epoch 3" in messages[0]
    assert all(remedy in messages[0] for remedy in ("smaller --score_alpha", "auto", "--score_momentum official"))


@pytest.mark.parametrize(("largest", "said"), [(0.05, 1), (0.2, 0)])
def test_a_score_that_vanishes_is_said_once(caplog, largest, said):
    scores = [[torch.full((2, 1, 2, 2), 0.001)] * 2 for _ in range(5)]
    for epoch in scores:
        epoch[1] = epoch[1].clone()
        epoch[1][0, 0, 0, 0] = largest
    with caplog.at_level(logging.WARNING):
        run_scored([MapStatistics()], ((0.0,) * 2,) * 5, scores, 1)
    messages = [record.getMessage() for record in caplog.records if "SCORE" in record.getMessage()]
    assert len(messages) == said and all("VANISHED" in text and "larger --score_alpha" in text for text in messages)


@pytest.mark.parametrize(("least", "epochs"), [(0.98, 5), (0.991, 2)], ids=["one pixel below", "warm-up alone"])
def test_other_scores_are_not_warned_of(caplog, least, epochs):
    with caplog.at_level(logging.WARNING):
        saturation(least, epochs=epochs)
    assert "SATURATED" not in caplog.text


def weights(least, epochs=3):
    """Run a training of the displacement alone, ω 0.995 but for one voxel of each epoch."""

    def iteration(engine, batch):
        volume = torch.full((2, 1, 2, 2), 0.995)
        volume[batch, 0, 1, 0] = least
        engine.state.step = SimpleNamespace(estimate=SimpleNamespace(weight_volume=volume))
        engine.state.update = "displacement"
        engine.fire_event(RegistrationEvents.UPDATE_STARTED)
        engine.state.output = {}
        return {}

    engine = stand_in(iteration, ("displacement",))
    engine.register_events(*RegistrationEvents)
    MapStatistics("weight_volume").attach(engine)
    engine.run([0, 1], max_epochs=epochs)
    return engine.state.metrics


def test_a_saturated_weight_of_the_smoothness_is_said_once(caplog):
    with caplog.at_level(logging.WARNING):
        values = weights(0.992)
    (message,) = [record.getMessage() for record in caplog.records if "SATURATED" in record.getMessage()]
    assert "WEIGHT OF THE SMOOTHNESS" in message and "epoch 1" in message
    assert "smaller --eta_max or a larger --smoothness_weight" in message
    assert values["weight_volume/min"] == pytest.approx(0.992) and values["weight_volume/max"] == pytest.approx(0.995)
    assert values["weight_volume/mean"] == pytest.approx((7 * 0.995 + 0.992) / 8)


def test_a_weight_with_one_voxel_below_is_not_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        assert weights(0.2)["weight_volume/min"] == pytest.approx(0.2)
    assert "SATURATED" not in caplog.text


def test_a_network_without_a_weight_says_what_to_take():
    engine = SimpleNamespace(state=SimpleNamespace(update="displacement"))
    engine.state.step = SimpleNamespace(estimate=SimpleNamespace(weight_volume=None))
    with pytest.raises(ValueError, match="Take tmspr, or give voxelmorph or transmorph weight_volume true"):
        MapStatistics("weight_volume")._add(engine)


def test_an_unknown_map_names_the_nearest():
    with pytest.raises(ValueError, match="map: .*weight_volume"):
        MapStatistics("weight_volumes")
