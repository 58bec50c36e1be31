# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine

from common.engines.trainer import RegistrationTrainer
from common.handlers.log import TrainingLog, read_history
from common.handlers.momentum import ScoreMomentum
from common.handlers.saturation import MapStatistics
from common.handlers.score import ScoreScale
from common.handlers.stages import warm_up
from common.handlers.state import TrainingState
from common.losses.score import Momentum, ScoreAlpha
from tests.engines.synthetic import adacs_method, loader_of, networks, score_objective
from tests.handlers.stand_ins import NAMES, run_scored


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("common.handlers.log.training_curves", lambda history, path: None)


def test_alpha_is_twice_the_mean_residual_of_the_last_epoch_of_the_warm_up():
    alpha = ScoreAlpha("auto")
    run_scored([ScoreScale(alpha)], ((0.5, 0.7), (0.01, 0.03), (0.4, 0.4), (0.4, 0.4), (0.9, 0.9)), warm=2)
    assert float(alpha.value) == pytest.approx(2 * 0.02)


def test_scale_is_the_mean_score_that_it_implies():
    """At α = c μ the best constant score, 1 − μ / (2 α), is 1 − 1 / (2 c)."""
    for scale, score in ((2.0, 0.75), (5.0, 0.9)):
        alpha = ScoreAlpha("auto", scale)
        run_scored([ScoreScale(alpha)], ((0.02, 0.04), (0.0, 0.0)))
        assert 1 - 0.03 / (2 * float(alpha.value)) == pytest.approx(score, abs=1e-6)


def test_mean_residual_is_that_inside_the_mask():
    alpha, mask = ScoreAlpha("auto"), torch.zeros(2, 1, 2, 2)
    mask[0, 0, 0, 0], mask[1, 0] = 1, 1
    run_scored([ScoreScale(alpha)], ((0.02,), (0.0,)), mask=mask)
    assert float(alpha.value) == pytest.approx(2 * 0.02)


def test_a_number_stays_as_it_is():
    alpha = ScoreAlpha(0.02)
    run_scored([ScoreScale(alpha)], ((0.5,), (0.5,)), warm=0)
    assert float(alpha.value) == pytest.approx(0.02)


def test_auto_without_a_warm_up_is_refused():
    with pytest.raises(ValueError, match="score_alpha: 'auto' .* begins with displacement and score. Give warmup_ep"):
        run_scored([ScoreScale(ScoreAlpha("auto"))], warm=0)
    engine = Engine(lambda e, b: None)
    engine.method = SimpleNamespace(update_names=frozenset(NAMES))
    with pytest.raises(ValueError, match="score_alpha"):
        ScoreScale(ScoreAlpha("auto")).attach(engine)


def trained(folder, epochs, resume=False):
    """Real AdaCS with a warm-up of 2 epochs each; α and momentum."""
    network, score = networks(2)
    momentum, alpha = Momentum(), ScoreAlpha("auto")
    objective = score_objective(momentum, alpha)
    method = adacs_method(network, score, momentum, lr=1e-2, objective=objective)
    handlers = [
        warm_up(NAMES, 2), ScoreMomentum(momentum), ScoreScale(alpha), MapStatistics(),
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
