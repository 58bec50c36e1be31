# SPDX-License-Identifier: Apache-2.0
"""Attention within windows of a grid, with a learned bias for each relative position. TorchScript-compatible."""

from functools import lru_cache
from typing import Any, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK = 2**17  # attention weights that a step of ``_ChunkedAttention`` holds; they stay in a processor's cache


class Windows(NamedTuple):
    """How a grid of L tokens is cut into W windows of N tokens. Windows with the same mask lie side by side.

    Attributes:
        rows: tokens of each window, (W, N), as indices of the flattened grid; L stands for padding.
        places: where each token lies in the flattened ``rows``, (L,).
        relative: row of the bias table for each pair of tokens of a window, (N N,).
        masks: 0 where a query (first axis) sees a key, -inf elsewhere, (kinds of windows, N, N).
        counts: number of windows of each kind.
        padded: whether there is any padding.
    """

    rows: Tensor
    places: Tensor
    relative: Tensor
    masks: Tensor
    counts: list[int]
    padded: bool


def _cut(x: Tensor, extents: list[int]) -> Tensor:
    """Cut a grid into windows of these extents, which divide it: (windows, tokens)."""
    shape: list[int] = []
    for axis in range(len(extents)):
        shape += [x.shape[axis] // extents[axis], extents[axis]]
    axes = [2 * axis for axis in range(len(extents))] + [2 * axis + 1 for axis in range(len(extents))]
    tokens = 1
    for extent in extents:
        tokens *= extent
    return x.reshape(shape).permute(axes).reshape(-1, tokens)


def cut_windows(grid: list[int], window: list[int], shifted: bool, sees_padding: bool, device: torch.device) -> Windows:
    """Cut a grid into windows, shifted by half a window or not.

    An axis that is no multiple of the window is padded at its end. Shifted windows wrap around; the parts that met by
    wrapping do not see each other. Along an axis shorter than the window, the one window is cut to the axis, which
    gives what masked padding would.

    Args:
        grid: tokens along each axis.
        window: tokens of a window along each axis.
        shifted: shift by half a window.
        sees_padding: tokens see those of the padding, and windows are not cut to short axes; see ``WindowAttention``.
        device: of the tensors.

    Returns:
        The windows.
    """
    index, region = torch.zeros([], dtype=torch.long), torch.zeros([], dtype=torch.long)
    kind, real = torch.zeros([], dtype=torch.long), torch.ones([], dtype=torch.bool)
    relative = torch.zeros(1, 1, dtype=torch.long)
    extents: list[int] = []
    for size, wide in zip(grid, window):
        extent = wide if sees_padding else min(wide, size)
        padded = (size + extent - 1) // extent * extent
        shift = wide // 2 if shifted else 0
        place = torch.arange(padded)
        origin = (place + shift) % padded if extent == wide else place
        # Where masks differ: in the last window, and in the one before where a shift moves padding there.
        apart = torch.where(_cut(origin >= size, [extent]).any(1), 1, 0)
        apart[-1] = 2 if shift > 0 or padded > size else 0
        index = index.unsqueeze(-1) * size + origin
        region = 2 * region.unsqueeze(-1) + (origin < shift).long()
        kind = 3 * kind.unsqueeze(-1) + apart
        real = real.unsqueeze(-1) & (origin < size)
        step = torch.arange(extent)
        between = step[:, None] - step[None, :] + (wide - 1)
        relative = relative[:, None, :, None] * (2 * wide - 1) + between[None, :, None, :]
        relative = relative.flatten(0, 1).flatten(1, 2)
        extents.append(extent)
    return _sorted_by_kind(index, region, kind, real, relative, extents, grid, sees_padding, device)


def _sorted_by_kind(
    index: Tensor,
    region: Tensor,
    kind: Tensor,
    real: Tensor,
    relative: Tensor,
    extents: list[int],
    grid: list[int],
    sees_padding: bool,
    device: torch.device,
) -> Windows:
    kind, order = torch.sort(kind.flatten(), stable=True)
    tokens = 1
    for size in grid:
        tokens *= size
    real, region = _cut(real, extents)[order], _cut(region, extents)[order]
    rows = torch.where(real, _cut(index, extents)[order], tokens)
    seen = region[:, :, None] == region[:, None, :]
    if not sees_padding:  # padding sees itself: a query that saw nothing would become NaN
        seen = seen & (real[:, None, :] | ~real[:, :, None])
    masks: list[Tensor] = []
    counts: list[int] = []
    for number in range(int(kind[-1]) + 1):
        count = int((kind == number).sum())
        if count:
            masks.append(torch.zeros(seen.shape[1:]).masked_fill(~seen[sum(counts)], float("-inf")))
            counts.append(count)
    places = torch.argsort(rows.flatten())[:tokens]
    return Windows(
        rows.to(device),
        places.to(device),
        relative.flatten().to(device),
        torch.stack(masks).to(device),
        counts,
        not bool(real.all()),
    )


@torch.compiler.disable
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _kept_windows(
    grid: tuple[int, ...], window: tuple[int, ...], shifted: bool, sees_padding: bool, device: torch.device
) -> Windows:
    return cut_windows(list(grid), list(window), shifted, sees_padding, device)


class _ChunkedAttention(torch.autograd.Function):
    """Attention on the CPU, some windows at a time.

    Weights are kept for the backward pass where they take no more than queries, keys and values do, else computed anew.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, windows: Windows, scale: float) -> Tensor:
        heads, tokens, width = bias.shape[1], bias.shape[2], qkv.shape[2] // 3
        flat = qkv.reshape(-1, 3 * width)
        out, every = flat.new_empty(len(flat), width), len(qkv) * len(windows.rows)
        parts = flat.new_empty(3, every, heads, tokens, width // heads)
        kept = flat.new_empty(every, heads, tokens, tokens) if heads * tokens <= 3 * width else None
        for rows, kind, some in _chunks(windows, len(qkv), qkv.shape[1], heads):
            parts[:, some] = _by_head(flat, rows, 3, heads)
            query, key, value = parts[:, some].flatten(1, 2)
            weights = _weights(query.mul_(scale), key, bias[kind], None if kept is None else kept[some])
            mixed = torch.bmm(weights.flatten(0, 1), value).unflatten(0, (-1, heads))
            out.index_copy_(0, rows.flatten(), mixed.transpose(1, 2).reshape(rows.numel(), -1))
        ctx.save_for_backward(parts, bias, kept)
        ctx.shape, ctx.windows, ctx.scale = qkv.shape, windows, scale
        return out.view(*qkv.shape[:2], width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        parts, bias, kept = ctx.saved_tensors
        heads, slopes = bias.shape[1], slope.reshape(-1, slope.shape[-1])
        of_qkv = slopes.new_empty(len(slopes), ctx.shape[-1])
        of_bias = torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32))
        for rows, kind, some in _chunks(ctx.windows, ctx.shape[0], ctx.shape[1], heads):
            query, key, value = parts[:, some].flatten(1, 2)
            above = _by_head(slopes, rows, 1, heads).flatten(0, 2)
            weights = _weights(query, key, bias[kind], None) if kept is None else kept[some]
            down = torch.bmm(above, value.transpose(1, 2)).view_as(weights)
            torch._softmax_backward_data(down, weights, -1, down.dtype, grad_input=down)
            of_bias[kind] += down.sum(0, dtype=of_bias.dtype)
            below = down.flatten(0, 1)
            of_parts = [
                torch.bmm(below, key).mul_(ctx.scale),
                torch.bmm(below.transpose(1, 2), query),
                torch.bmm(weights.flatten(0, 1).transpose(1, 2), above),
            ]
            gathered = torch.stack([part.unflatten(0, (-1, heads)).transpose(1, 2) for part in of_parts], dim=2)
            of_qkv.index_copy_(0, rows.flatten(), gathered.view(rows.numel(), -1))
        return of_qkv.view(ctx.shape), of_bias.to(bias.dtype), None, None


def _chunks(windows: Windows, images: int, length: int, heads: int) -> list[tuple[Tensor, int, slice]]:
    """Rows of the flattened batch, some windows of one kind at a time; their kind; which of all windows they are."""
    tokens = windows.rows.shape[1]
    several = max(1, CHUNK // (heads * tokens * tokens))
    chunks: list[tuple[Tensor, int, slice]] = []
    first = 0
    for kind, rows in enumerate(windows.rows.split(windows.counts)):
        every = (rows + length * torch.arange(images)[:, None, None]).flatten(0, 1)
        for some in every.split(several):
            chunks.append((some, kind, slice(first, first + len(some))))
            first += len(some)
    return chunks


def _by_head(flat: Tensor, rows: Tensor, parts: int, heads: int) -> Tensor:
    """Tokens (R, parts heads C) of some windows as (parts, windows, heads, N, C)."""
    taken = flat.index_select(0, rows.flatten()).view(len(rows), rows.shape[1], parts, heads, -1)
    return taken.permute(2, 0, 3, 1, 4)


def _weights(query: Tensor, key: Tensor, bias: Tensor, out: Optional[Tensor]) -> Tensor:
    """Attention weights, (windows, heads, N, N), in ``out`` where it is given."""
    if out is None:
        scores = torch.bmm(query, key.transpose(1, 2)).unflatten(0, (-1, len(bias)))
    else:
        scores = out
        torch.bmm(query, key.transpose(1, 2), out=out.flatten(0, 1))
    scores.add_(bias)
    return torch.softmax(scores, -1, out=scores)


def _fused_attention(qkv: Tensor, bias: Tensor, windows: Windows, scale: float) -> Tensor:
    """Attention by torch's fused kernels, one call for each kind of windows."""
    batch, heads, tokens = qkv.shape[0], bias.shape[1], bias.shape[2]
    mixed: list[Tensor] = []
    first = 0
    for kind in range(len(windows.counts)):
        count = windows.counts[kind]
        rows = windows.rows[first : first + count].flatten()
        parts = qkv.index_select(1, rows).view(batch * count, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=bias[kind : kind + 1], scale=scale)
        mixed.append(x.transpose(1, 2).reshape(batch, count * tokens, -1))
        first += count
    return torch.cat(mixed, dim=1).index_select(1, windows.places)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows of a grid of tokens.

    weights = softmax(q k^T / sqrt(channels of a head) + bias of the relative position), within a window and a region.
    Time and memory are saved in four ways: windows are described once for each grid and kept; those with the same mask
    share one bias, so that no mask is formed for every window; torch's fused attention, or on the CPU in training a
    computation by chunks, keeps no large attention weights for the backward pass; and tokens are gathered there, not
    rolled, padded and cut beforehand.

    Shape: (B, L, C) -> (B, L, C).

    Args:
        channels: C.
        heads: number of heads; it divides ``channels``.
        window: tokens of a window along each axis.
        shifted: shift windows by half their extent.
        sees_padding: tokens see those of the padding, whose keys and values are zero, and share their attention with
            them. The published code does so; False masks them.

    Raises:
        ValueError: for heads that do not divide the channels.

    Reference:
        Liu et al., Swin Transformer, ICCV 2021.
    """

    def __init__(
        self, channels: int, heads: int, window: tuple[int, ...], shifted: bool = False, sees_padding: bool = False
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"heads: expected numbers that divide the channels {channels} of their stage, got {heads}."
            )
        self.heads, self.window, self.shifted, self.sees_padding = heads, list(window), shifted, sees_padding
        self.scale = (channels // heads) ** -0.5
        positions = 1
        for extent in window:
            positions *= 2 * extent - 1
        self.bias = nn.Parameter(torch.empty(positions, heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.projection = nn.Linear(channels, channels)

    def forward(self, x: Tensor, grid: list[int]) -> Tensor:
        if torch.jit.is_scripting():
            windows = cut_windows(grid, self.window, self.shifted, self.sees_padding, x.device)
        else:
            windows = _kept_windows(tuple(grid), tuple(self.window), self.shifted, self.sees_padding, x.device)
        qkv = self.qkv(x)
        tokens = windows.rows.shape[1]
        bias = self.bias.t().index_select(1, windows.relative).view(1, self.heads, tokens, tokens)
        bias = (bias + windows.masks[:, None]).to(qkv.dtype)
        length = qkv.shape[1]
        if windows.padded:
            qkv = F.pad(qkv, [0, 0, 0, 1])
        if torch.jit.is_scripting():
            mixed = _fused_attention(qkv, bias, windows, self.scale)
        else:
            chunked = qkv.device.type == "cpu" and qkv.requires_grad and not torch.compiler.is_compiling()
            attend = _ChunkedAttention.apply if chunked else _fused_attention
            mixed = attend(qkv, bias, windows, self.scale)
        return self.projection(mixed[:, :length])
