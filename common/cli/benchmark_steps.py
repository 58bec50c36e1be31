# SPDX-License-Identifier: Apache-2.0
"""Training steps in 2D for the benchmark: a bare loop, and the project's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..data.pairs import PairDataset, training_loader
from ..engines.method import MODEL, Method, Update
from ..engines.trainer import RegistrationTrainer
from ..losses.heteroscedastic import MeanWeight, SnrWeight
from ..losses.likelihood import NegativeLogLikelihood
from ..losses.objective import Objective
from ..losses.score import Distrust, ScoredResidual, ScoreSmoothness, ScoreWeight
from ..losses.similarity import build_similarity
from ..losses.terms import Similarity, Smoothness
from ..networks.registry import build
from ..networks.unet import PixelEstimator
from ..spatial.warp import warp


def pairs(size: int, count: int) -> list[dict[str, Any]]:
    """Random pairs of square images, as a data set holds them.

    Args:
        size: side of the images.
        count: number of pairs.

    Returns:
        A dictionary a pair.
    """
    generator = torch.Generator().manual_seed(0)
    centre = torch.tensor([size / 2, size / 2])
    images = torch.rand(count, 2, 1, size, size, generator=generator)
    return [{"moving_image": a, "fixed_image": b, "centre": centre} for a, b in images]


def bare(data: list[dict[str, Any]], device: torch.device, batch_size: int, steps: int) -> Callable[[], None]:
    """The baseline's network and loss in the plainest loop, on batches that are ready.

    Args:
        data: see ``pairs``.
        device: where to train.
        batch_size: pairs a step.
        steps: number of batches.

    Returns:
        What runs all steps.
    """
    network = build("voxelmorph", 2).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    batches = [
        [torch.stack([pair[key] for pair in data[i * batch_size : (i + 1) * batch_size]]).to(device) for key in
         ("moving_image", "fixed_image")] for i in range(steps)
    ]  # fmt: skip

    def run() -> None:
        for moving, fixed in batches:
            optimizer.zero_grad(set_to_none=True)
            image = torch.cat([moving, fixed], 1).contiguous(memory_format=torch.channels_last)
            estimate = network.estimate(image)
            velocity = estimate.velocity
            smoothness = (velocity.diff(dim=2).square().mean() + velocity.diff(dim=3).square().mean()) / 2
            loss = (warp(moving, estimate.ddf) - fixed).square().mean() + 0.02 * smoothness
            loss.backward()
            optimizer.step()

    return run


def ours(
    data: list[dict[str, Any]],
    device: torch.device,
    batch_size: int,
    weighted: str = "",
    second_forward: bool = False,
    amp: bool = False,
    compile: bool = False,
) -> Callable[[], None]:
    """The project's training of an epoch.

    Args:
        data: see ``pairs``.
        device: where to train.
        batch_size: pairs a step.
        weighted: "" for the baseline, "adacs" or "hetero".
        second_forward: as ``Method``.
        amp: bfloat16 autocast.
        compile: torch.compile.

    Returns:
        What runs an epoch.
    """
    adam = functools.partial(torch.optim.Adam, lr=1e-4)
    modules: dict[str, nn.Module] = {MODEL: build("voxelmorph", 2)}
    weight, estimator, update, seen = _estimated(adam)[weighted] if weighted else (None, None, None, "fixed")
    terms = {"similarity": (1.0, Similarity(weight)), "smoothness": (0.02, Smoothness())}
    updates = [Update("displacement", [MODEL], Objective(terms), adam)]
    if estimator is not None and update is not None:
        modules[update.trains[0]] = estimator
        updates.append(update)
    method = Method(
        modules,
        build_similarity("mse"),
        updates,
        estimator=None if update is None else update.trains[0],
        estimator_input=seen,
        second_forward=second_forward,
    )
    dataset = PairDataset(data, list(data[0]["moving_image"].shape[1:]), jitter=4)
    loader = training_loader(dataset, batch_size, seed=0)
    trainer = RegistrationTrainer(device, 1, loader, method, amp=amp, compile=compile)

    def run() -> None:
        trainer.state.epoch = trainer.state.iteration = 0
        trainer.run()

    return run


def _estimated(adam: Callable[..., Any]) -> dict[str, tuple[nn.Module, nn.Module, Update, str]]:
    """By method its data weight, the network behind it, the update that trains this, and what it sees."""
    score_terms = {"ucs": (1.0, ScoredResidual()), "reg": (0.02, Distrust()), "smooth": (1.5, ScoreSmoothness())}
    weight = SnrWeight()
    variance_terms: dict[str, tuple[float, nn.Module]] = {
        "nll": (1.0, NegativeLogLikelihood(0.5, detached=True)), "weight": (0.0, MeanWeight(weight)),
    }  # fmt: skip
    return {
        "adacs": (
            ScoreWeight(), PixelEstimator(2), Update("score", ["model_score"], Objective(score_terms), adam), "fixed",
        ),
        "hetero": (
            weight, PixelEstimator(2, 2, "log_variance"),
            Update("variance", ["model_variance"], Objective(variance_terms), adam), "fixed_warped",
        ),
    }  # fmt: skip
