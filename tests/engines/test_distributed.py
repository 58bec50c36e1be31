# SPDX-License-Identifier: Apache-2.0
"""Two processes with batch b train as one process with batch 2b."""

from __future__ import annotations

from pathlib import Path

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
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is tested elsewhere."""
    monkeypatch.setattr("common.handlers.log.training_curves", lambda history, path: None)


def test_two_processes_equal_one_with_the_doubled_batch(tmp_path: Path) -> None:
    train(tmp_path / "one", 4)
    mp.spawn(process, args=(tmp_path,), nprocs=2)
    for name in ("model.pt", "score.pt"):
        one, two = (torch.load(tmp_path / folder / name, weights_only=True) for folder in ("one", "two"))
        for key in one:
            torch.testing.assert_close(two[key], one[key], atol=1e-5, rtol=1e-4)
    histories = [read_history(tmp_path / folder / "history.csv") for folder in ("one", "two")]
    assert len(histories[0]) == 2
    for row, other in zip(*histories, strict=True):
        for term in ("displacement/total", "score/total", "score/mu", "score/momentum"):
            assert float(other[term]) == pytest.approx(float(row[term]), rel=1e-4)
