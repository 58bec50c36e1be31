# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of TransMorph's windowed attention: as it is here, and as one would first write it."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.cost import peak_memory
from ..networks.attention import WindowAttention
from ..networks.transmorph import SIZES, WINDOWS

PLAIN, OURS = "plain", "ours"


class PlainAttention(nn.Module):
    """What one would write first: pad, roll, cut, look the bias up, build the mask, softmax, and all that back.

    Args:
        attention: the module whose weights are taken, one with ``sees_padding``.
    """

    def __init__(self, attention: WindowAttention) -> None:
        super().__init__()
        self.attention = attention
        steps = torch.stack(torch.meshgrid([torch.arange(n) for n in attention.window], indexing="ij")).flatten(1)
        index = torch.zeros(1, dtype=torch.long)
        for place, extent in zip(steps, attention.window, strict=True):
            index = index * (2 * extent - 1) + place[:, None] - place[None] + extent - 1
        self.register_buffer("index", index)

    def forward(self, x: Tensor, grid: list[int]) -> Tensor:
        ours = self.attention
        window, axes = ours.window, list(range(1, len(grid) + 1))
        padded = [-(-size // extent) * extent for size, extent in zip(grid, window, strict=True)]
        shift = [extent // 2 if ours.shifted else 0 for extent in window]
        padding = [entry for size, full in zip(grid[::-1], padded[::-1], strict=True) for entry in (0, full - size)]
        x = F.pad(x.unflatten(1, grid), [0, 0, *padding])
        if ours.shifted:
            x = torch.roll(x, [-n for n in shift], axes)
        windows = _cut(x, window)
        x = self._attended(windows, self._mask(padded, shift, x.device) if ours.shifted else None)
        cuts = [entry for full, extent in zip(padded, window, strict=True) for entry in (full // extent, extent)]
        d = len(grid)
        x = x.view(-1, *cuts[::2], *window, x.shape[-1])
        x = x.permute(0, *(1 + i + d * j for i in range(d) for j in (0, 1)), 2 * d + 1).reshape(
            -1, *padded, x.shape[-1]
        )
        if ours.shifted:
            x = torch.roll(x, shift, axes)
        return x[(slice(None), *(slice(size) for size in grid))].flatten(1, -2)

    def _mask(self, padded: list[int], shift: list[int], device: torch.device) -> Tensor:
        region = torch.zeros(1, *padded, 1, device=device)
        parts = [
            [slice(0, -n), slice(-n, -s), slice(-s, None)] for n, s in zip(self.attention.window, shift, strict=True)
        ]
        for number, places in enumerate(product(*parts)):
            region[(slice(None), *places)] = number
        region = _cut(region, self.attention.window)[..., 0]
        different = region[:, None] != region[:, :, None]
        return torch.zeros_like(different, dtype=torch.float32).masked_fill(different, -100.0)

    def _attended(self, x: Tensor, mask: Tensor | None) -> Tensor:
        ours, (count, tokens, channels) = self.attention, x.shape
        qkv = ours.qkv(x).view(count, tokens, 3, ours.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (qkv[0] * ours.scale) @ qkv[1].transpose(-2, -1)
        bias = ours.bias[self.index.flatten()].view(tokens, tokens, -1)  # type: ignore[operator]
        scores = scores + bias.permute(2, 0, 1).contiguous()
        if mask is not None:
            scores = (scores.view(-1, len(mask), *scores.shape[1:]) + mask[:, None]).view(scores.shape)
        mixed = scores.softmax(dim=-1) @ qkv[2]
        return ours.projection(mixed.transpose(1, 2).reshape(count, tokens, channels))


def _cut(x: Tensor, window: Sequence[int]) -> Tensor:
    """(B, *grid, C) as windows (B W, N, C)."""
    d = len(window)
    cuts = [entry for size, extent in zip(x.shape[1:-1], window, strict=True) for entry in (size // extent, extent)]
    x = x.reshape(len(x), *cuts, x.shape[-1])
    x = x.permute(0, *range(1, 2 * d, 2), *range(2, 2 * d + 1, 2), 2 * d + 1)
    return x.flatten(d + 1, 2 * d).flatten(0, d)


class Block(nn.Module):
    """x + attention(norm(x)), once with windows in place and once with shifted ones, of TransMorph's first stage.

    Args:
        variant: ``PLAIN`` or ``OURS``.
        spatial_dims: 2 or 3.
    """

    def __init__(self, variant: str, spatial_dims: int) -> None:
        super().__init__()
        channels, _, heads = SIZES["base"]
        attentions = [
            WindowAttention(channels, heads[0], WINDOWS[spatial_dims], shift, True) for shift in (False, True)
        ]
        self.attentions = nn.ModuleList([PlainAttention(a) for a in attentions] if variant == PLAIN else attentions)
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in attentions])

    def forward(self, x: Tensor, grid: list[int]) -> Tensor:
        for attention, norm in zip(self.attentions, self.norms, strict=True):
            x = x + attention(norm(x), grid)
        return x


def measure(variant: str, shape: Sequence[int], batch: int, steps: int, device: str, threads: int) -> list[float]:
    """Seconds of a forward and backward pass, bytes that it added at its peak, and the mean output.

    To be called in a fresh process.

    Args:
        variant: ``PLAIN`` or ``OURS``.
        shape: of the image; a token is 4 voxels wide.
        batch: images.
        steps: passes, of which the first is not timed; the median counts.
        device: where to run.
        threads: of the CPU.

    Returns:
        The three numbers.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    where, grid = torch.device(device), [-(-size // 4) for size in shape]
    block = Block(variant, len(shape)).to(where)
    x = torch.randn(batch, int(torch.tensor(grid).prod()), SIZES["base"][0]).to(where).requires_grad_()
    before, seconds, mean = peak_memory(where) or 0, [], 0.0
    for _ in range(steps + 1):
        started = time.perf_counter()
        y = block(x, grid)
        y.backward(y.detach())
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        seconds.append(time.perf_counter() - started)
        mean = y.abs().mean().item()
        block.zero_grad()
    return [statistics.median(seconds[1:]), max((peak_memory(where) or 0) - before, 1.0), mean]


def attention_table(shape: Sequence[int], batch: int, repeats: int, steps: int, device: torch.device) -> list[str]:
    """Rows of Markdown: seconds and peak memory of both variants, each run in a process of its own, in turns.

    Args:
        shape: of the image.
        batch: images.
        repeats: rounds; the median counts.
        steps: timed passes a round.
        device: where to run.

    Returns:
        The rows.
    """
    rounds: dict[str, list[list[float]]] = {PLAIN: [], OURS: []}
    for _ in range(repeats):
        for variant, measured in rounds.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                threads = torch.get_num_threads()
                measured.append(pool.submit(measure, variant, shape, batch, steps, str(device), threads).result())
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in rounds.items()}
    lines = ["| variant | ms, forward and backward | ratio | peak MiB | ratio | mean |", "| --- " * 6 + "|"]
    for name, (seconds, peak, mean) in medians.items():
        ratios = [medians[name][i] / medians[PLAIN][i] for i in (0, 1)]
        lines.append(
            f"| {name} | {1e3 * seconds:.1f} | {ratios[0]:.2f} | {peak / 2**20:.1f} | {ratios[1]:.2f} | {mean:.6f} |"
        )
    return lines
