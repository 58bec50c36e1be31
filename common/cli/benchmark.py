# SPDX-License-Identifier: Apache-2.0
"""Speed and memory as ratios from one run: against plain loops, the baseline or MONAI."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss
from torch import Tensor

from ..bundle import select_device
from ..checks import is_whole, known_name, whole
from ..engines.cost import allocated_peak
from ..engines.memory import keep_freed_memory
from ..losses.similarity import build_similarity
from . import benchmark_gradicon as gradicon
from . import benchmark_steps as steps_2d
from .benchmark_attention import attention_table
from .benchmark_inference import inference_table

SUITES = ("adacs", "gradicon", "inference", "attention", "all")


def benchmark(
    device: str = "cpu",
    suite: str = "all",
    size: int = 128,
    batch_size: int = 8,
    repeats: int = 5,
    steps: int = 10,
    lncc_size: int = 96,
    compiled: bool = True,
    volume: Sequence[int] = (80, 96, 96),
    cube: int = 64,
    steps_3d: int = 1,
    registered: Sequence[int] = (160, 192, 224),
) -> str:
    """Print Markdown tables of times, memory and ratios; run as ``python -m common benchmark``.

    Variants of a comparison take turns, so that a machine's changing load meets all of them; medians of per-step
    times are compared. Suite "adacs" includes data loading for ours (the loader of the bundles), which is absent in
    the bare loop; suite "gradicon" has batches that are ready in all variants.

    Args:
        device: "cpu" or "cuda".
        suite: "adacs" (training steps, AdaCS, LNCC), "gradicon" (penalty, both directions, VoxelMorph 3D),
            "inference" (one volume, time and peak memory), "attention" (TransMorph's first stage) or "all".
        size: side of the square images.
        batch_size: pairs a step in 2D; in 3D it is 1.
        repeats: rounds; in each, every variant runs ``steps`` steps.
        steps: steps a round in 2D.
        lncc_size: side of the volumes on which LNCC is compared.
        compiled: also time torch.compile, whose first step takes long.
        volume: grid of the 3D GradICON step.
        cube: side of the volumes of the 3D VoxelMorph step, a multiple of 16.
        steps_3d: steps a round in 3D.
        registered: grid of the volume of suite "inference", multiples of 16; "attention" has half of it.

    Returns:
        The tables.

    Raises:
        ValueError: for an unknown suite, a device that is not there, or a size or count that is not as described.
    """
    known_name("suite", suite, SUITES)
    counts = {"batch_size": (batch_size, 1), "repeats": (repeats, 1), "steps": (steps, 1), "steps_3d": (steps_3d, 1)}
    for argument, (value, least) in (counts | {"size": (size, 16), "lncc_size": (lncc_size, 9)}).items():
        whole(argument, value, least)
    if whole("cube", cube, 16) % 16:
        raise ValueError(f"cube: expected a multiple of 16, got {cube!r}.")
    _check_volume("volume", volume, 1)
    _check_volume("registered", registered, 16)
    where = select_device(device)
    if where.type == "cpu":
        keep_freed_memory()  # as a training does
    sections: list[list[str]] = []
    if suite in ("adacs", "all"):
        sections += [_adacs(where, size, batch_size, repeats, steps, compiled), _lncc(lncc_size, repeats, where)]
    if suite in ("gradicon", "all"):
        for shape, count, taken in (([size, size], batch_size, steps), (volume, 1, steps_3d)):
            sections.append(_gradicon(where, shape, count, repeats, taken))
        sections.append(_voxelmorph(where, cube, repeats, steps_3d))
    if suite in ("inference", "all"):
        title = _title(f"VoxelMorph 3D, {'×'.join(map(str, registered))}, inference and warp", where)
        sections.append([title, "", *inference_table(registered, repeats, where)])
    if suite in ("attention", "all"):
        for shape, count in (([size, size], batch_size), ([n // 2 for n in registered], 1)):
            title = _title(f"TransMorph's first attention, {'×'.join(map(str, shape))}, batch {count}", where)
            sections.append([title, "", *attention_table(shape, count, repeats, max(steps_3d, 3), where)])
    return "\n\n".join("\n".join(lines) for lines in sections)


def _check_volume(argument: str, shape: object, factor: int) -> None:
    sizes = list(shape) if isinstance(shape, Sequence) else []
    if len(sizes) != 3 or not all(is_whole(size, 16) and size % factor == 0 for size in sizes):
        wanted = "three whole numbers from 16" + (f", multiples of {factor}" if factor > 1 else "")
        raise ValueError(f"{argument}: expected {wanted}, e.g. (64, 64, 96), got {shape!r}.")


def _title(what: str, device: torch.device) -> str:
    return f"{what}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _adacs(where: torch.device, size: int, batch_size: int, repeats: int, steps: int, compiled: bool) -> list[str]:
    pairs = steps_2d.pairs(size, batch_size * steps)
    variants: dict[str, Callable[[], object]] = {
        "bare loop": steps_2d.bare(pairs, where, batch_size, steps),
        "baseline": steps_2d.ours(pairs, where, batch_size),
        "AdaCS": steps_2d.ours(pairs, where, batch_size, "adacs"),
        "AdaCS, second forward": steps_2d.ours(pairs, where, batch_size, "adacs", second_forward=True),
        "heteroscedastic": steps_2d.ours(pairs, where, batch_size, "hetero"),
        "baseline, amp": steps_2d.ours(pairs, where, batch_size, amp=True),
    }
    if compiled:
        variants["baseline, compile"] = steps_2d.ours(pairs, where, batch_size, compile=True)
    seconds = {name: value / steps for name, value in _medians(variants, repeats, where).items()}
    lines = [_title(f"VoxelMorph 2D, {size}², batch {batch_size}", where), ""]
    lines += ["| variant | ms a step | against | ratio |", "| --- " * 4 + "|"]
    for name in variants:
        reference = {"bare loop": "", "baseline": "bare loop"}.get(name, "baseline")
        ratio = f"{seconds[name] / seconds[reference]:.2f}" if reference else ""
        lines.append(f"| {name} | {1e3 * seconds[name]:.1f} | {reference} | {ratio} |")
    return lines


def _gradicon(where: torch.device, shape: Sequence[int], batch_size: int, repeats: int, steps: int) -> list[str]:
    runs = gradicon.gradicon_runs(shape, batch_size, where)
    seconds, table = _compared(runs, gradicon.PLAIN, repeats, steps, where)
    grid = "×".join(str(size) for size in shape)
    title = f"GradICON {len(shape)}D, {grid}, batch {batch_size}, {len(gradicon.FACTORS[len(shape)])} networks, MSE"
    lines = [_title(title, where), "", *table, ""]
    for name, preset in ((gradicon.ONE, "paper_v1"), (gradicon.RELEASED, "released")):
        share = 1 - seconds[gradicon.ALONE] / seconds[name]
        lines.append(f"Share of the penalty in a step, {preset}: {100 * share:.1f} %")
    return lines


def _voxelmorph(where: torch.device, size: int, repeats: int, steps: int) -> list[str]:
    runs = gradicon.voxelmorph_runs(size, 1, where)
    return [
        _title(f"VoxelMorph 3D, {size}³, batch 1, forward, backward and Adam", where),
        "",
        *_compared(runs, gradicon.MONAI, repeats, steps, where)[1],
    ]


def _compared(
    runs: dict[str, gradicon.Run], reference: str, repeats: int, steps: int, device: torch.device
) -> tuple[dict[str, float], list[str]]:
    """Seconds a step by name, and the table of times, memory and first losses against the reference."""
    memory, losses = {}, {}
    for name, run in runs.items():  # before the others' steps: all begin with the weights they were given
        losses[name] = run(1).item()  # the optimiser's state and the libraries' workspaces come with it
        memory[name] = allocated_peak(functools.partial(run, 1), device)
    turns = {name: functools.partial(run, steps) for name, run in runs.items()}
    seconds = {name: value / steps for name, value in _medians(turns, repeats, device).items()}
    lines = ["| variant | ms a step | ratio | peak MiB of tensors | ratio | first loss |", "| --- " * 6 + "|"]
    for name in runs:
        ratios = [measured[name] / measured[reference] for measured in (seconds, memory)]
        lines.append(
            f"| {name} | {1e3 * seconds[name]:.1f} | {ratios[0]:.2f} | {memory[name] / 2**20:.1f} | {ratios[1]:.2f} "
            f"| {losses[name]:.6f} |"
        )
    return seconds, lines


def _medians(variants: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
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

    def forward_and_backward(name: str) -> Tensor:
        loss = losses[name](warped.clone().requires_grad_())
        loss.backward()
        return loss.detach()

    turns = {name: functools.partial(forward_and_backward, name) for name in losses}
    values = {name: turn().item() for name, turn in turns.items()}
    peaks = {name: allocated_peak(turn, device) for name, turn in turns.items()}
    seconds = _medians(turns, repeats, device)
    lines = [f"LNCC, window 9, {size}³, forward and backward", "", "| | ms | peak MiB of tensors | value |"]
    lines.append("| --- | --- | --- | --- |")
    lines += [f"| {n} | {1e3 * seconds[n]:.1f} | {peaks[n] / 2**20:.1f} | {values[n]:.7f} |" for n in losses]
    ratios = [measured["ours"] / measured["MONAI"] for measured in (seconds, peaks)]
    lines.append(f"| ratio ours / MONAI | {ratios[0]:.2f} | {ratios[1]:.2f} | |")
    return lines
