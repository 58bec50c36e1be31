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

from common.data.pairs import PairDataset, training_loader
from common.engines.distributed import all_mean
from common.engines.trainer import RegistrationTrainer, Update
from common.handlers.log import TrainingLog, read_history
from common.handlers.momentum import ScoreMomentum
from common.handlers.state import TrainingState
from common.losses.objectives import DisplacementObjective, ScoreObjective, ScoreWeight
from common.losses.similarity import SquaredError
from common.networks.unet import PixelEstimator
from common.networks.voxelmorph import VoxelMorph

TINY = {"encoder": (4,), "decoder": (4, 4)}
SIZE = (16, 24)


def train(folder: Path, batch_size: int) -> None:
    """Two epochs of AdaCS's joint phase on noise, checkpoints and history to ``folder``."""
    torch.manual_seed(0)
    images = torch.rand(8, 2, 1, *SIZE)
    pairs = [{"moving_image": a, "fixed_image": b, "centre": torch.tensor([8.0, 12.0])} for a, b in images]
    network, score, objective = VoxelMorph(2, **TINY), PixelEstimator(2, **TINY), ScoreObjective()
    torch.nn.init.normal_(network.flow.weight, std=0.1)
    weighted = DisplacementObjective(weight=ScoreWeight())
    updates = [
        Update("displacement", weighted, torch.optim.Adam(network.parameters(), 1e-3)),
        Update("score", objective, torch.optim.Adam(score.parameters(), 1e-3), ("estimator",)),
    ]
    handlers = [
        ScoreMomentum(objective),
        TrainingLog(folder, progress=False),
        TrainingState(folder, {"model": network, "score": score}),
    ]
    loader = training_loader(PairDataset(pairs, SIZE), batch_size, seed=3)
    RegistrationTrainer(
        "cpu", 2, loader, network, updates, SquaredError(), estimator=score, train_handlers=handlers
    ).run()


def process(rank: int, folder: Path) -> None:
    """One of two processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    assert float(all_mean(torch.tensor(float(rank)))) == 0.5
    train(folder / "two", 2)
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
    images = torch.rand(8, 2, 1, *SIZE)
    pairs = [{"moving_image": a, "fixed_image": b, "centre": torch.tensor([8.0, 12.0])} for a, b in images]
    network, objective = VoxelMorph(2, **TINY), Drawing()
    update = Update("displacement", objective, torch.optim.Adam(network.parameters(), 1e-3))
    state = TrainingState(folder, {"model": network}, resume=resume)
    loader = training_loader(PairDataset(pairs, SIZE), 2, seed=3)
    RegistrationTrainer(
        "cpu", epochs, loader, network, [update], SquaredError(), seed=seed, train_handlers=[state]
    ).run()
    return objective.draws


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote: ``two`` of ``train``, and ``<rank>.json`` of ``drawn``."""
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


def test_two_processes_equal_one_with_the_doubled_batch(two_processes: Path) -> None:
    tmp_path = two_processes
    train(tmp_path / "one", 4)
    for name in ("model.pt", "score.pt"):
        one, two = (torch.load(tmp_path / folder / name, weights_only=True) for folder in ("one", "two"))
        for key in one:
            torch.testing.assert_close(two[key], one[key], atol=1e-5, rtol=1e-4)
    histories = [read_history(tmp_path / folder / "history.csv") for folder in ("one", "two")]
    assert len(histories[0]) == 2
    for row, other in zip(*histories, strict=True):
        for term in ("displacement/total", "score/total", "score/mu", "score/momentum"):
            assert float(other[term]) == pytest.approx(float(row[term]), rel=1e-4)
