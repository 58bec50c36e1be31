# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of registering one volume: VoxelMorph here beside MONAI's, each run in a process of its own."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from monai.networks.nets import VoxelMorph as MonaiVoxelMorph
from monai.networks.nets import VoxelMorphUNet as MonaiVoxelMorphUNet
from torch import Tensor

from ..engines.cost import peak_memory
from ..networks.registry import build
from ..spatial.warp import warp

MONAI, OURS, OURS_HALF = "MONAI", "ours", "ours, U-Net at half resolution"
PRECISIONS = ("float32", "bfloat16")


def inference_table(shape: Sequence[int], repeats: int, device: torch.device) -> list[str]:
    """Rows of Markdown: warped image and displacement of one pair, seconds and peak memory against MONAI's.

    Variants take turns. Peak memory is what a run adds to the process: of the resident set on the CPU, of the
    allocator on CUDA; the median of the rounds counts for both.

    Args:
        shape: grid of the volume, multiples of 16.
        repeats: rounds, each with a process of its own for every variant.
        device: where to run.

    Returns:
        The rows.
    """
    precisions = [precision for precision in PRECISIONS if precision == "float32" or fast_bfloat16(device)]
    lines = ["| precision | variant | s | ratio | peak MiB | ratio |", "| --- " * 6 + "|"]
    for precision in precisions:
        rounds: dict[str, list[tuple[float, float]]] = {MONAI: [], OURS: [], OURS_HALF: []}
        for _ in range(repeats):
            for variant, measured in rounds.items():
                measured.append(_in_a_process(variant, precision, shape, device))
        seconds, peaks = (
            {name: statistics.median(row[i] for row in rows) for name, rows in rounds.items()} for i in (0, 1)
        )
        for name in rounds:
            lines.append(
                f"| {precision} | {name} | {seconds[name]:.2f} | {seconds[name] / seconds[MONAI]:.2f} "
                f"| {peaks[name] / 2**20:.0f} | {peaks[name] / peaks[MONAI]:.2f} |"
            )
    if "bfloat16" not in precisions:
        lines += ["", "bfloat16: not measured, this processor has no instructions for it."]
    return lines


def fast_bfloat16(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 run on hardware: without, one of these volumes takes many minutes.

    Args:
        device: where to run.

    Returns:
        True or False.
    """
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def measure(variant: str, precision: str, shape: Sequence[int], device: str, threads: int) -> tuple[float, float]:
    """Seconds of a second run, and bytes that both added at their peak; to be called in a fresh process.

    Args:
        variant: ``MONAI``, ``OURS`` or ``OURS_HALF``.
        precision: one of ``PRECISIONS``.
        shape: grid of the volume.
        device: where to run.
        threads: of the CPU.

    Returns:
        Seconds and bytes.
    """
    torch.set_num_threads(threads)
    where = torch.device(device)
    register = _register_of(variant, shape, where)
    before = peak_memory(where) or 0
    seconds = 0.0
    with torch.no_grad(), torch.autocast(where.type, torch.bfloat16, enabled=precision == "bfloat16"):
        for _ in range(2):
            started = time.perf_counter()
            register()
            if where.type == "cuda":
                torch.cuda.synchronize(where)
            seconds = time.perf_counter() - started
    return seconds, max((peak_memory(where) or 0) - before, 1.0)  # of a tiny volume the peak can be that of the imports


def _in_a_process(variant: str, precision: str, shape: Sequence[int], device: torch.device) -> tuple[float, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, variant, precision, shape, str(device), torch.get_num_threads()).result()


def _register_of(variant: str, shape: Sequence[int], device: torch.device) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    moving, fixed = torch.rand(2, 1, 1, *shape, generator=generator).to(device)
    if variant == MONAI:
        unet = MonaiVoxelMorphUNet(3, 2, 32, channels=(16, *[32] * 7), final_conv_channels=(16, 16))
        theirs = MonaiVoxelMorph(unet, integration_steps=7, half_res=True).to(device).eval()
        return lambda: theirs(moving, fixed)[0]
    ours = build("voxelmorph", 3, half_resolution=variant == OURS_HALF).to(device).eval()
    return lambda: warp(moving, ours(moving, fixed))
