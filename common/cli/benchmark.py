# SPDX-License-Identifier: Apache-2.0
"""Speed and memory as ratios from one run: against the bare loop, AdaCS to baseline, LNCC against MONAI."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss
from torch import Tensor

from ..data.pairs import PairDataset, training_loader
from ..engines.trainer import RegistrationTrainer, Update
from ..losses.objectives import DisplacementObjective, ScoreObjective, ScoreWeight
from ..losses.similarity import build_similarity
from ..networks.registry import build
from ..networks.unet import PixelEstimator
from ..spatial.warp import warp


def benchmark(
    device: str = "cpu",
    size: int = 128,
    batch_size: int = 8,
    repeats: int = 5,
    steps: int = 10,
    lncc_size: int = 96,
    compiled: bool = True,
) -> str:
    """Print a Markdown table of times and ratios; run as ``python -m common benchmark``.

    Variants of a comparison take turns, so that a machine's changing load meets all of them; medians of per-step
    times are compared. Data loading is included for ours (the loader of the bundles) and absent in the bare loop.

    Args:
        device: "cpu" or "cuda".
        size: side of the square images.
        batch_size: pairs a step.
        repeats: rounds; in each, every variant runs ``steps`` steps.
        steps: steps a round.
        lncc_size: side of the volumes on which LNCC is compared.
        compiled: also time torch.compile, whose first step takes long.

    Returns:
        The table.
    """
    where = torch.device(device)
    pairs = _pairs(size, batch_size * steps)
    variants: dict[str, Callable[[], None]] = {
        "bare loop": _bare(pairs, where, batch_size, steps),
        "baseline": _ours(pairs, where, batch_size),
        "AdaCS": _ours(pairs, where, batch_size, adacs=True),
        "AdaCS, second forward": _ours(pairs, where, batch_size, adacs=True, second_forward=True),
        "baseline, amp": _ours(pairs, where, batch_size, amp=True),
    }
    if compiled:
        variants["baseline, compile"] = _ours(pairs, where, batch_size, compile=True)
    seconds = {name: value / steps for name, value in _medians(variants, repeats, where).items()}
    lines = [
        f"VoxelMorph 2D, {size}², batch {batch_size}, {where}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}",
        "",
        "| variant | ms a step | against | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for name in variants:
        reference = {"bare loop": "", "baseline": "bare loop"}.get(name, "baseline")
        ratio = f"{seconds[name] / seconds[reference]:.2f}" if reference else ""
        lines.append(f"| {name} | {1e3 * seconds[name]:.1f} | {reference} | {ratio} |")
    return "\n".join([*lines, "", *_lncc(lncc_size, repeats, where)])


def _pairs(size: int, count: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    centre = torch.tensor([size / 2, size / 2])
    images = torch.rand(count, 2, 1, size, size, generator=generator)
    return [{"moving_image": a, "fixed_image": b, "centre": centre} for a, b in images]


def _bare(pairs: list[dict[str, Any]], device: torch.device, batch_size: int, steps: int) -> Callable[[], None]:
    """The same network and loss in the plainest loop, on batches that are ready."""
    network = build("voxelmorph", 2).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    batches = [
        [torch.stack([pair[key] for pair in pairs[i * batch_size : (i + 1) * batch_size]]).to(device) for key in
         ("moving_image", "fixed_image")] for i in range(steps)
    ]  # fmt: skip

    def run() -> None:
        for moving, fixed in batches:
            optimizer.zero_grad(set_to_none=True)
            image = torch.cat([moving, fixed], 1).contiguous(memory_format=torch.channels_last)
            ddf, velocity = network.estimate(image)
            smoothness = (velocity.diff(dim=2).square().mean() + velocity.diff(dim=3).square().mean()) / 2
            loss = (warp(moving, ddf) - fixed).square().mean() + 0.02 * smoothness
            loss.backward()
            optimizer.step()

    return run


def _ours(
    pairs: list[dict[str, Any]],
    device: torch.device,
    batch_size: int,
    adacs: bool = False,
    second_forward: bool = False,
    amp: bool = False,
    compile: bool = False,
) -> Callable[[], None]:
    network, score = build("voxelmorph", 2), PixelEstimator(2)
    weight = ScoreWeight() if adacs else None
    optimizers = [torch.optim.Adam(module.parameters(), 1e-4) for module in (network, score)]
    updates = [Update("displacement", DisplacementObjective(weight=weight), optimizers[0])]
    if adacs:
        updates.append(Update("score", ScoreObjective(), optimizers[1], ["estimator"]))
    dataset = PairDataset(pairs, list(pairs[0]["moving_image"].shape[1:]), jitter=4)
    trainer = RegistrationTrainer(
        device,
        1,
        training_loader(dataset, batch_size, seed=0),
        network,
        updates,
        build_similarity("mse"),
        score if adacs else None,
        second_forward=second_forward,
        amp=amp,
        compile=compile,
    )

    def run() -> None:
        trainer.state.epoch = trainer.state.iteration = 0
        trainer.run()

    return run


def _medians(variants: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(repeats + 1):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_number:  # the first round warms up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def _lncc(size: int, repeats: int, device: torch.device) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    warped, fixed = torch.rand(2, 1, 1, size, size, size, generator=generator).to(device)
    ours, theirs = build_similarity("lncc"), LocalNormalizedCrossCorrelationLoss(spatial_dims=3, kernel_size=9)
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "MONAI": lambda image: theirs(image, fixed),
        "ours": lambda image: ours(image, fixed).mean(),
    }
    values: dict[str, float] = {}
    kept: dict[str, int] = {}

    def runner(name: str) -> Callable[[], None]:
        def run() -> None:
            image = warped.clone().requires_grad_()
            saved: dict[int, int] = {}

            def pack(tensor: Tensor) -> Tensor:
                saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = losses[name](image)
            loss.backward()
            values[name], kept[name] = loss.item(), sum(saved.values())

        return run

    seconds = _medians({name: runner(name) for name in losses}, repeats, device)
    lines = [f"LNCC, window 9, {size}³, forward and backward", "", "| | ms | MiB kept for backward | value |"]
    lines.append("| --- | --- | --- | --- |")
    lines += [f"| {n} | {1e3 * seconds[n]:.1f} | {kept[n] / 2**20:.1f} | {values[n]:.7f} |" for n in losses]
    ratios = [measured["ours"] / measured["MONAI"] for measured in (seconds, kept)]
    lines.append(f"| ratio ours / MONAI | {ratios[0]:.2f} | {ratios[1]:.2f} | |")
    return lines
