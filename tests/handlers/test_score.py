# SPDX-License-Identifier: Apache-2.0
import logging
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine

from common.engines.trainer import RegistrationEvents, RegistrationTrainer
from common.handlers.log import TrainingLog, read_history
from common.handlers.momentum import ScoreMomentum
from common.handlers.score import ScoreScale, ScoreStatistics
from common.handlers.stages import warm_up
from common.handlers.state import TrainingState
from common.losses.score import Momentum, ScoreAlpha
from tests.engines.synthetic import adacs_method, loader_of, networks, score_objective
from tests.handlers.stand_ins import stand_in

NAMES = ("displacement", "score")


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("common.handlers.log.training_curves", lambda history, path: None)


def run(handlers, residuals=((0.0,),), scores=None, warm=1, mask=None, start=0):
    """Run an engine whose iterations have these mean residuals and scores, epoch by epoch."""
    scores = [[torch.full((2, 1, 2, 2), 0.5)] * len(epoch) for epoch in residuals] if scores is None else scores

    def iteration(engine, batch):
        epoch = engine.state.epoch - 1
        residual = torch.tensor([0.5, 1.5]).view(2, 1, 1, 1).expand(2, 1, 2, 2) * residuals[epoch][batch]
        engine.state.step = SimpleNamespace(residual=residual, estimated=scores[epoch][batch], mask=mask)
        for update in NAMES:
            if update in engine.active:
                engine.state.update = update
                engine.fire_event(RegistrationEvents.UPDATE_STARTED)
        engine.state.output = {}
        return {}

    engine = stand_in(iteration, NAMES)
    engine.method.update_names = frozenset(NAMES)
    engine.register_events(*RegistrationEvents)
    for handler in (warm_up(NAMES, warm), *handlers):
        handler.attach(engine)
    engine.run(list(range(len(residuals[0]))), max_epochs=len(residuals))
    return engine


def test_alpha_is_twice_the_mean_residual_of_the_last_epoch_of_the_warm_up():
    alpha = ScoreAlpha("auto")
    run([ScoreScale(alpha)], ((0.5, 0.7), (0.01, 0.03), (0.4, 0.4), (0.4, 0.4), (0.9, 0.9)), warm=2)
    assert float(alpha.value) == pytest.approx(2 * 0.02)


def test_scale_is_the_mean_score_that_it_implies():
    """At α = c μ the best constant score, 1 − μ / (2 α), is 1 − 1 / (2 c)."""
    for scale, score in ((2.0, 0.75), (5.0, 0.9)):
        alpha = ScoreAlpha("auto", scale)
        run([ScoreScale(alpha)], ((0.02, 0.04), (0.0, 0.0)))
        assert 1 - 0.03 / (2 * float(alpha.value)) == pytest.approx(score, abs=1e-6)


def test_mean_residual_is_that_inside_the_mask():
    alpha, mask = ScoreAlpha("auto"), torch.zeros(2, 1, 2, 2)
    mask[0, 0, 0, 0], mask[1, 0] = 1, 1
    run([ScoreScale(alpha)], ((0.02,), (0.0,)), mask=mask)
    assert float(alpha.value) == pytest.approx(2 * 0.02)


def test_a_number_stays_as_it_is():
    alpha = ScoreAlpha(0.02)
    run([ScoreScale(alpha)], ((0.5,), (0.5,)), warm=0)
    assert float(alpha.value) == pytest.approx(0.02)


def test_auto_without_a_warm_up_is_refused():
    with pytest.raises(ValueError, match="score_alpha: 'auto' .* begins with displacement and score. Give warmup_ep"):
        run([ScoreScale(ScoreAlpha("auto"))], warm=0)
    engine = Engine(lambda e, b: None)
    engine.method = SimpleNamespace(update_names=frozenset(NAMES))
    with pytest.raises(ValueError, match="score_alpha"):
        ScoreScale(ScoreAlpha("auto")).attach(engine)


def test_statistics_are_those_of_all_pixels_of_the_epoch(tmp_path):
    generator = torch.Generator().manual_seed(0)
    scores = [[torch.rand(2, 1, 2, 2, generator=generator) for _ in range(3)] for _ in range(3)]
    run([ScoreStatistics(), TrainingLog(tmp_path, progress=False)], ((0.0,) * 3,) * 3, scores)
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
    engine = run([ScoreStatistics()], ((0.0,),) * 2, scores)
    assert engine.state.metrics["score/deviation"] == pytest.approx(5e-5, rel=1e-2)


def saturation(least, warm=1, epochs=5):
    scores = [[torch.full((2, 1, 2, 2), 0.995)] * 2 for _ in range(epochs)]
    for epoch in scores:
        epoch[1] = epoch[1].clone()
        epoch[1][0, 0, 0, 0] = least
    run([ScoreStatistics()], ((0.0,) * 2,) * epochs, scores, warm)


def test_saturation_is_said_once_and_only_in_the_joint_phase(caplog):
    with caplog.at_level(logging.WARNING):
        saturation(0.991)
    messages = [record.getMessage() for record in caplog.records if "SATURATED" in record.getMessage()]
    assert len(messages) == 1 and "epoch 3" in messages[0]
    assert all(remedy in messages[0] for remedy in ("smaller --score_alpha", "auto", "--score_momentum official"))


@pytest.mark.parametrize(("least", "epochs"), [(0.98, 5), (0.991, 2)], ids=["one pixel below", "warm-up alone"])
def test_other_scores_are_not_warned_of(caplog, least, epochs):
    with caplog.at_level(logging.WARNING):
        saturation(least, epochs=epochs)
    assert "SATURATED" not in caplog.text


def trained(folder, epochs, resume=False):
    """Real AdaCS with a warm-up of 2 epochs each; α and momentum."""
    network, score = networks(2)
    momentum, alpha = Momentum(), ScoreAlpha("auto")
    objective = score_objective(momentum, alpha)
    method = adacs_method(network, score, momentum, lr=1e-2, objective=objective)
    handlers = [
        warm_up(NAMES, 2), ScoreMomentum(momentum), ScoreScale(alpha), ScoreStatistics(),
        TrainingLog(folder, progress=False), TrainingState(folder, resume),
    ]  # fmt: skip
    RegistrationTrainer("cpu", epochs, loader_of((24, 32)), method, train_handlers=handlers).run()
    return float(alpha.value), read_history(folder / "history.csv")


@pytest.mark.parametrize("stopped", [1, 2, 3, 5])
def test_a_resumed_training_has_the_same_alpha_and_log(tmp_path, stopped):
    alpha, rows = trained(tmp_path / "once", 6)
    trained(tmp_path / "parts", stopped)
    resumed, others = trained(tmp_path / "parts", 6, resume=True)
    assert resumed == alpha > 0
    assert alpha == pytest.approx(2 * float(rows[1]["displacement/similarity"]), rel=1e-5)
    columns = [name for name in rows[0] if name != "seconds"]
    assert [[row[name] for name in columns] for row in rows] == [[row[name] for name in columns] for row in others]
    assert float(rows[4]["score/reg"]) > 0 and len({row["epoch"] for row in rows}) == 6
