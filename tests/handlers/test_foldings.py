# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from torch import nn

from common.data.pairs import PairDataset
from common.handlers.foldings import QUARTER, FoldingSchedule, schedule
from common.handlers.log import HISTORY_FILE, read_history
from common.metrics.folding import fold_count
from common.networks.contract import Estimate
from common.workflow import Options, trainer
from tests.engines.synthetic import SIZES, blob, displacement_objective, gradicon_objective, method_of


class Folding(nn.Module):
    """Folds in the first direction of a pair at every second voxel, or nowhere."""

    def __init__(self, folds):
        super().__init__()
        self.amplitude = nn.Parameter(torch.tensor(3.0 if folds else 0.0))

    def estimate(self, image, condition=None):
        ddf = torch.zeros(len(image), image.dim() - 2, *image.shape[2:])
        ddf[: len(image) // 2, :, ::2] = 1.0
        return Estimate(self.amplitude * ddf, ddf)


def training(folder, size, folds=True, epochs=2, resume=False, weight=10.0, **options):
    """Two iterations an epoch."""
    pairs = [pair | {"centre": torch.tensor([(n - 1) / 2 for n in size])} for pair in blob(size, 1.5, 4)]
    method = method_of(Folding(folds), gradicon_objective(weight), bidirectional=True)
    handlers = [FoldingSchedule(**options)]
    options = Options(folder, batch_size=2, resume=resume)
    return trainer(method, PairDataset(pairs, size), epochs, options, train_handlers=handlers)


def weight_of(engine):
    return float(engine.method.updates[0].objective.weights["inverse_consistency"].value)


@pytest.mark.parametrize("size", SIZES)
def test_weight_grows_after_each_iteration_that_folds_and_with_the_grid(tmp_path, size):
    voxels = torch.tensor(size).prod().item()
    engine = training(tmp_path, size, increment=float(QUARTER) / voxels, threshold=25.0)
    seen = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(weight_of(e)))
    engine.run()
    assert seen == [11.0, 12.0, 13.0, 14.0]
    assert [float(row["inverse_consistency/weight"]) for row in read_history(tmp_path / HISTORY_FILE)] == [12.0, 14.0]


@pytest.mark.parametrize(("folds", "factor"), [(False, 0.0), (True, 1.01)])
def test_weight_stays_where_foldings_do_not_exceed_the_threshold(tmp_path, folds, factor):
    size = SIZES[0]
    ddf = Folding(folds).estimate(torch.zeros(2, 2, *size)).ddf
    count = float(fold_count(ddf[:1]))
    assert (count > 0) == folds
    threshold = factor * count * QUARTER / (size[0] * size[1])
    engine = training(tmp_path, size, folds, threshold=threshold)
    engine.run()
    assert weight_of(engine) == 10.0


def test_the_weight_is_in_force_and_resumed(tmp_path):
    engine = training(tmp_path, SIZES[0], epochs=1)
    engine.run()
    grown, totals = weight_of(engine), engine.state.output["displacement"]
    again = training(tmp_path, SIZES[0], epochs=1, resume=True)
    again.state.device, objective = torch.device("cpu"), again.method.updates[0].objective
    stored = torch.load(tmp_path / "last.pt", weights_only=True)["objectives"]["displacement"]
    objective.load_state_dict(stored)
    assert grown > 10.0 and weight_of(again) == pytest.approx(grown)
    step = SimpleNamespace(fixed=torch.zeros(1))
    assert float(objective.weights["inverse_consistency"](step)) == pytest.approx(grown)
    before = grown - (grown - 10.0) / 2  # of the last iteration
    expected = totals["similarity"] + before * totals["inverse_consistency"]
    torch.testing.assert_close(totals["total"], expected, atol=1e-4, rtol=1e-5)


def test_an_objectives_entry_makes_the_handler():
    handler = schedule({"kind": "icon", "schedule": {"increment": 0.5, "threshold": 3}})
    assert (handler.increment, handler.threshold) == (0.5, 3.0)
    with pytest.raises(ValueError, match="schedule: expected one of .*got 'treshold'. Did you mean 'threshold'"):
        schedule({"schedule": {"treshold": 3}})
    with pytest.raises(ValueError, match="schedule: expected its arguments, got True; e.g. --objectives#icon#schedule"):
        schedule({"schedule": True})


@pytest.mark.parametrize("name", ["increment", "threshold"])
def test_numbers_below_0_are_refused(name):
    with pytest.raises(ValueError, match=f"schedule: expected an {name} of at least 0, got -1"):
        FoldingSchedule(**{name: -1})


def test_terms_that_are_not_there_or_have_weights_of_their_own_are_refused():
    engine = SimpleNamespace(method=method_of(Folding(True), displacement_objective()))
    with pytest.raises(ValueError, match="term: expected one of similarity, smoothness, got 'inverse_consistency'"):
        FoldingSchedule().attach(engine)
    objective = gradicon_objective()
    objective.buffered("inverse_consistency")
    with pytest.raises(ValueError, match="term: expected a number as weight of 'inverse_consistency', got Buffered"):
        objective.buffered("inverse_consistency")
