# SPDX-License-Identifier: Apache-2.0
"""What needs CUDA, run on demand with ``-m gpu``: training, bfloat16, compile, NCCL, inference, the benchmark."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from common.cli.benchmark import benchmark
from common.engines.evaluator import RegistrationEvaluator
from common.engines.instance import InstanceOptimisation
from common.engines.method import MODEL, Method, Update
from common.engines.trainer import RegistrationTrainer
from common.handlers.state import TrainingState
from common.losses.objective import Objective
from common.losses.similarity import build_similarity
from common.losses.terms import Similarity, Smoothness
from common.networks.registry import build
from tests.engines.synthetic import SIZES, TINY, loader_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]
SMALL = {"voxelmorph": TINY, "icon": {"factors": (2, 1), "down": (2, 8, 8), "up": (8, 8)}}


def method(dims: int, name: str = "voxelmorph", lr: float = 1e-2) -> Method:
    objective = Objective({"similarity": (1.0, Similarity()), "smoothness": (0.02, Smoothness())})
    update = Update("displacement", [MODEL], objective, partial(torch.optim.Adam, lr=lr))
    network = build(name, dims, seed=0, **SMALL[name])
    return Method({MODEL: network}, build_similarity("mse"), [update], field_weight=0.025)


def trained(
    dims: int, device: str, epochs: int = 1, name: str = "voxelmorph", **options: object
) -> RegistrationTrainer:
    size = SIZES[dims - 2]
    trainer = RegistrationTrainer(device, epochs, loader_of(size), method(dims, name), **options)
    trainer.run()
    return trainer


def total(trainer: RegistrationTrainer) -> float:
    return float(trainer.state.output["displacement"]["total"])


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("dims", [2, 3])
def test_a_training_step_agrees_with_the_cpu(dims: int, name: str) -> None:
    """float32 without TF32 in convolutions; the CPU's rounding is another."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        on_gpu, on_cpu = trained(dims, "cuda", name=name), trained(dims, "cpu", name=name)
    assert total(on_gpu) == pytest.approx(total(on_cpu), rel=1e-3)
    assert next(on_gpu.method.network.parameters()).is_cuda


@pytest.mark.parametrize("dims", [2, 3])
def test_training_lowers_the_loss_in_bfloat16(dims: int) -> None:
    first, last = trained(dims, "cuda", amp=True), trained(dims, "cuda", epochs=20, amp=True)
    assert total(last) < 0.8 * total(first)
    assert all(parameter.dtype == torch.float32 for parameter in last.method.network.parameters())


def test_compiled_training_agrees_with_plain() -> None:
    assert total(trained(2, "cuda", compile=True)) == pytest.approx(total(trained(2, "cuda")), rel=1e-3)


def test_a_resumed_run_continues(tmp_path: Path) -> None:
    trained(2, "cuda", epochs=2, train_handlers=[TrainingState(tmp_path)])
    resumed = trained(2, "cuda", epochs=4, train_handlers=[TrainingState(tmp_path, resume=True)])
    assert total(resumed) == pytest.approx(total(trained(2, "cuda", epochs=4)), rel=1e-3)


def test_one_process_with_nccl_agrees_with_none(tmp_path: Path) -> None:
    plain = total(trained(2, "cuda"))
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert total(trained(2, "cuda")) == pytest.approx(plain, rel=1e-6)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("target", [None, "weights", "field"])
def test_evaluation_agrees_with_the_cpu(dims: int, target: str | None) -> None:
    registration = method(dims)
    torch.nn.init.normal_(registration.network.flow.weight, std=0.05)
    fields = []
    for device in ("cuda", "cpu"):
        own = copy.deepcopy(registration)
        network = own.network if target is None else InstanceOptimisation(own, 2, target, 1e-3)
        evaluator = RegistrationEvaluator(device, loader_of(SIZES[dims - 2]), network)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            evaluator.run()
        fields.append(evaluator.state.output["ddf"].cpu())
    torch.testing.assert_close(*fields, rtol=0, atol=0.05)


def test_the_benchmark_runs() -> None:
    text = benchmark(device="cuda", suite="adacs", size=32, repeats=1, steps=2, lncc_size=16, compiled=False)
    assert "| baseline |" in text and "cuda" in text
