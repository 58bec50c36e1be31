# SPDX-License-Identifier: Apache-2.0
import csv
import logging

import pytest
import torch
from ignite.engine import Engine, Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.handlers.log import HISTORY_FILE, TrainingLog, read_history
from tests.handlers.stand_ins import stand_in

# displacement/similarity of each iteration; the score is trained in the second epoch only
VALUES = ((1.0, 3.0), (5.0, 6.0), (2.0, 2.5))


@pytest.fixture
def no_curves(monkeypatch):
    """Drawing is slow, and tests of the numbers do not look at it."""
    monkeypatch.setattr("common.handlers.log.training_curves", lambda history, path: None)


class ResumeAt:
    """Stands for TrainingState: the run continues after this epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def attach(self, engine):
        engine.add_event_handler(Events.STARTED, self._set)

    def _set(self, engine):
        engine.state.epoch, engine.state.iteration = self.epoch, 2 * self.epoch


def run(folder, epochs=3, start=0, validate_every=0, offset=0.0, labels=()):
    def iteration(engine, batch):
        value = torch.tensor(VALUES[engine.state.epoch - 1][batch] + offset)
        engine.state.output = {"displacement": {"total": 2 * value, "similarity": value}}
        if engine.state.epoch == 2:
            engine.optimizer(engine.method.updates[1])
            engine.state.output["score"] = {"total": -value}
        return engine.state.output

    validator = Engine(lambda e, batch: None)
    validator.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda e: e.state.metrics.update({"dice": 0.75} | {f"dice_{label}": 0.5 for label in labels}),
    )
    engine = stand_in(iteration, ("displacement", "score"))
    engine.optimizer(engine.method.updates[0])
    if validate_every:
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=validate_every), lambda e: validator.run([0]))
    log = TrainingLog(folder, validator, progress=False)
    log.attach(engine)
    ResumeAt(start).attach(engine)
    engine.run([0, 1], max_epochs=epochs)
    return log


def rows_of(folder):
    with open(folder / HISTORY_FILE, newline="") as stream:
        return list(csv.DictReader(stream))


def test_history_has_a_row_an_epoch_with_means_of_every_term(no_curves, tmp_path):
    run(tmp_path)
    rows = rows_of(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["updates"] for row in rows] == ["2", "4", "6"]
    assert [float(row["displacement/similarity"]) for row in rows] == [2.0, 5.5, 2.25]
    assert [float(row["displacement/total"]) for row in rows] == [4.0, 11.0, 4.5]
    assert [row["score/total"] for row in rows] == ["", "-5.5", ""]
    assert {row["active"] for row in rows} == {"displacement+score"}
    assert {float(row["displacement/learning_rate"]) for row in rows} == {1e-3}
    # the score's optimiser is built when its update first runs
    assert [row["score/learning_rate"] for row in rows] == ["", "0.001", "0.001"]
    assert all(float(row["seconds"]) >= 0 for row in rows)


def test_validation_stands_in_the_rows_of_its_epochs_only(no_curves, tmp_path):
    run(tmp_path, validate_every=2)
    assert [row["validation/dice"] for row in rows_of(tmp_path)] == ["", "0.75", ""]


@pytest.mark.parametrize("start", [1, 2])
def test_resume_keeps_earlier_rows_and_drops_those_trained_again(no_curves, tmp_path, start):
    run(tmp_path)
    run(tmp_path, start=start, offset=100.0)
    rows = rows_of(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    similarity = [float(row["displacement/similarity"]) for row in rows]
    assert similarity == [m if epoch < start else m + 100.0 for epoch, m in enumerate([2.0, 5.5, 2.25])]


def test_new_run_starts_a_new_history(no_curves, tmp_path):
    run(tmp_path)
    run(tmp_path, epochs=1, offset=100.0)
    assert [float(row["displacement/similarity"]) for row in rows_of(tmp_path)] == [102.0]


def test_tensorboard_holds_the_same_means(no_curves, tmp_path):
    run(tmp_path, validate_every=3)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("displacement/similarity")] == [(1, 2.0), (2, 5.5), (3, 2.25)]
    assert [(e.step, e.value) for e in events.Scalars("validation/dice")] == [(3, 0.75)]


def test_curves_are_drawn_at_the_end(tmp_path):
    run(tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_console_says_every_epoch(no_curves, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(tmp_path, validate_every=3)
    assert "Epoch 2/3" in caplog.text and "displacement/similarity 5.5" in caplog.text
    assert "validation/dice 0.75" in caplog.text


def test_history_that_is_absent_has_no_rows(no_curves, tmp_path):
    assert read_history(tmp_path / "history.csv") == []


def test_terms_are_not_changed_by_summing_them(no_curves, tmp_path):
    value = torch.tensor(1.0)
    engine = Engine(lambda e, batch: {"displacement": {"total": value}})
    engine.active, engine.optimizers = frozenset({"displacement"}), {}
    TrainingLog(tmp_path, progress=False).attach(engine)
    engine.run([0, 1, 2], max_epochs=1)
    assert float(value) == 1.0
    assert float(rows_of(tmp_path)[0]["displacement/total"]) == 1.0


@pytest.mark.parametrize(("count", "listed"), [(3, True), (35, False)])
def test_many_labels_stand_in_the_file_and_not_on_the_screen(tmp_path, no_curves, caplog, count, listed):
    with caplog.at_level(logging.INFO):
        run(tmp_path, epochs=1, validate_every=1, labels=range(count))
    assert "validation/dice 0.75" in caplog.text
    assert ("validation/dice_2 0.5" in caplog.text) is listed
    assert float(rows_of(tmp_path)[0]["validation/dice_2"]) == 0.5
