# SPDX-License-Identifier: Apache-2.0
"""Two processes with batch b train as one process with batch 2b."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Events
from torch import Tensor, nn

from common.data.pairs import PairDataset, training_loader
from common.engines.distributed import all_mean
from common.engines.method import Method
from common.engines.trainer import RegistrationTrainer
from common.handlers.log import TrainingLog, read_history
from common.handlers.momentum import ScoreMomentum
from common.handlers.saturation import MapStatistics
from common.handlers.score import ScoreScale
from common.handlers.stages import Stages, warm_up
from common.handlers.state import TrainingState
from common.losses.score import Momentum, ScoreAlpha
from common.losses.similarity import SquaredError
from common.methods.baselines import nll
from common.networks.contract import Estimate
from common.networks.unet import PixelEstimator
from common.networks.voxelmorph import VoxelMorph
from tests.engines.synthetic import adacs_method, adam, gradicon_objective, method_of, score_objective

TINY = {"encoder": (4,), "decoder": (4, 4)}
SIZE = (16, 24)


def trainer(method: Method, epochs: int, batch_size: int, handlers: list[Any], seed: int = 0) -> RegistrationTrainer:
    """Of eight pairs of noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 2, 1, *SIZE, generator=generator)
    pairs = [{"moving_image": a, "fixed_image": b, "centre": torch.tensor([8.0, 12.0])} for a, b in images]
    loader = training_loader(PairDataset(pairs, SIZE), batch_size, seed=3)
    return RegistrationTrainer("cpu", epochs, loader, method, seed=seed, train_handlers=handlers)


def train(folder: Path, batch_size: int) -> None:
    """AdaCS's three stages, an epoch each, with α from the residual; checkpoints and history to ``folder``."""
    torch.manual_seed(0)
    network, score, momentum, alpha = VoxelMorph(2, **TINY), PixelEstimator(2, **TINY), Momentum(), ScoreAlpha("auto")
    nn.init.normal_(network.flow.weight, std=0.1)
    handlers = [
        warm_up(["displacement", "score"], 1), ScoreMomentum(momentum), ScoreScale(alpha), MapStatistics(),
        TrainingLog(folder, progress=False), TrainingState(folder),
    ]  # fmt: skip
    method = adacs_method(network, score, momentum, objective=score_objective(momentum, alpha))
    trainer(method, 3, batch_size, handlers).run()


def train_jointly(folder: Path, batch_size: int) -> None:
    """The displacement and the variance network by one likelihood, whose gradient passes from one to the other."""
    torch.manual_seed(0)
    network = VoxelMorph(2, **TINY)
    nn.init.normal_(network.flow.weight, std=0.1)
    method = nll(network, SquaredError(), adam(1e-3), 0.1, spatial_dims=2, seed=0)
    trainer(method, 2, batch_size, [TrainingState(folder)]).run()


class Branched(nn.Module):
    """Two displacements and a log variance, of which a stage may use some: the second adds to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.variance = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))
        self.both = False

    def estimate(self, image: Tensor, condition: Tensor | None = None) -> Estimate:
        ddf = self.first(image)
        if self.both:
            ddf = ddf + self.second(image)
        return Estimate(ddf, ddf, log_variance=self.variance(image))


def train_in_stages(folder: Path, batch_size: int) -> None:
    """A part that no stage uses, one that a stage leaves out, and one that it freezes."""
    torch.manual_seed(0)
    network = Branched()
    update = {"updates": ["displacement"]}
    course = [{**update, "iterations": 1}, {**update, "iterations": 1, "freeze": ["model.first"]}, update]
    engine = trainer(method_of(network), 2, batch_size, [Stages(course), TrainingState(folder)])

    def grow(e: Any) -> None:
        network.both = e.state.iteration > 1

    engine.add_event_handler(Events.ITERATION_STARTED, grow)
    engine.run()


def train_both_ways(folder: Path, batch_size: int) -> None:
    """One direction after the other."""
    torch.manual_seed(0)
    network = VoxelMorph(2, **TINY)
    nn.init.normal_(network.flow.weight, std=0.1)
    method = method_of(network, gradicon_objective(), bidirectional=True, batched_directions=False)
    trainer(method, 1, batch_size, [TrainingState(folder)]).run()


COURSES = {"adacs": train, "jointly": train_jointly, "stages": train_in_stages, "both_ways": train_both_ways}


def process(rank: int, folder: Path) -> None:
    """One of two processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    assert float(all_mean(torch.tensor(float(rank)))) == 0.5
    for name, course in COURSES.items():
        course(folder / name / "two", 2)
    (folder / f"{rank}.json").write_text(json.dumps(drawn(folder / "drawn", 2)))
    dist.barrier()
    dist.destroy_process_group()


class Drawing(torch.nn.Module):
    """An objective that draws points as GradICON's released preset does, and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[float] = []

    def forward(self, step: Any) -> dict[str, torch.Tensor]:
        self.draws.append(float(torch.randn(3).sum()))
        return {"total": step.residual.mean()}


def drawn(folder: Path, epochs: int, resume: bool = False, seed: int = 3) -> list[float]:
    """What the objective of a run draws in this process, an entry an iteration."""
    torch.manual_seed(0)
    objective = Drawing()
    method = method_of(VoxelMorph(2, **TINY), objective, adam(1e-3))
    trainer(method, epochs, 2, [TrainingState(folder, resume=resume)], seed).run()
    return objective.draws


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote: ``<course>/two``, and ``<rank>.json`` of ``drawn``."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(process, args=(folder,), nprocs=2)
    return folder


def test_two_processes_draw_different_points(two_processes: Path) -> None:
    first, second = (json.loads((two_processes / f"{rank}.json").read_text()) for rank in range(2))
    assert len(first) == len(second) == 4 and len({*first, *second}) == 8


def test_draws_are_a_function_of_seed_epoch_and_iteration_and_a_resumed_run_repeats_them(tmp_path: Path) -> None:
    whole = drawn(tmp_path / "whole", 3)
    assert len(set(whole)) == 12 and drawn(tmp_path / "other", 1, seed=4) != whole[:4]
    first = drawn(tmp_path / "parts", 1)
    torch.rand(17)  # what else was drawn has no influence
    assert first + drawn(tmp_path / "parts", 3, resume=True) == whole


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is tested elsewhere."""
    monkeypatch.setattr("common.handlers.log.training_curves", lambda history, path: None)


def assert_same_weights(one: Path, two: Path) -> None:
    for path in one.glob("*.pt"):
        if path.name.startswith("model"):
            weights = [torch.load(folder / path.name, weights_only=True) for folder in (one, two)]
            for key in weights[0]:
                torch.testing.assert_close(weights[1][key], weights[0][key], atol=1e-5, rtol=1e-4)


def test_two_processes_equal_one_with_the_doubled_batch(two_processes: Path) -> None:
    folder = two_processes / "adacs"
    train(folder / "one", 4)
    assert {path.name for path in (folder / "two").glob("model*")} == {"model.pt", "model_score.pt"}
    assert_same_weights(folder / "one", folder / "two")
    histories = [read_history(folder / part / "history.csv") for part in ("one", "two")]
    assert len(histories[0]) == 3
    terms = (
        "displacement/total",
        "score/total",
        "score/mu",
        "score/momentum",
        "score/alpha",
        "score/mean",
        "score/deviation",
    )
    for row, other in zip(*histories, strict=True):
        for term in (*terms, "score/min", "score/max"):
            assert bool(other[term]) == bool(row[term])
            if row[term]:
                assert float(other[term]) == pytest.approx(float(row[term]), rel=1e-4)


def test_networks_of_one_loss_are_trained_alike_in_every_process(two_processes: Path) -> None:
    folder = two_processes / "jointly"
    train_jointly(folder / "one", 4)
    assert {path.name for path in (folder / "two").glob("model*")} == {"model.pt", "model_variance.pt"}
    assert_same_weights(folder / "one", folder / "two")


def test_parts_that_a_stage_leaves_unused_or_freezes_stop_no_process(two_processes: Path) -> None:
    folder = two_processes / "stages"
    train_in_stages(folder / "one", 4)
    assert_same_weights(folder / "one", folder / "two")


def test_directions_one_after_the_other_are_two_forwards_in_every_process(two_processes: Path) -> None:
    folder = two_processes / "both_ways"
    train_both_ways(folder / "one", 4)
    assert_same_weights(folder / "one", folder / "two")
