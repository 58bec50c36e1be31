# SPDX-License-Identifier: Apache-2.0
import functools

import pytest
import torch
from torch import nn

from common.networks import attention
from common.networks.attention import WindowAttention, cut_windows
from common.networks.swin import DropPath
from common.networks.transmorph import TransMorph
from common.spatial.fields import compose

TINY = {"size": "tiny", "channels": 8, "depths": (2, 2), "heads": (2, 4), "head_channels": 4}
CPU = torch.device("cpu")


def pair(size, batch=1):
    return torch.rand(batch, 2, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("dims", "size", "count"),
    [
        (2, "base", 31_013_570),
        (3, "base", 46_771_251),
        (3, "small", 11_757_195),
        (3, "tiny", 244_527),
        (3, "large", 108_343_907),
    ],
)
def test_number_of_parameters_is_the_published_one(dims, size, count):
    with torch.device("meta"):
        network = TransMorph(dims, size)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("size", [(5, 7), (33, 1), (9, 6, 13), (1, 1, 3)])
def test_images_smaller_than_a_window_are_registered(size):
    network = TransMorph(len(size), **TINY)
    ddf = network(pair(size))
    ddf.square().sum().backward()
    assert ddf.shape == (1, len(size), *size) and ddf.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_smoothness_acts_on_the_displacement_and_the_way_back_is_its_negative():
    network = TransMorph(2, **TINY).eval()
    nn.init.normal_(network.flow.weight)
    with torch.no_grad():
        estimate, both = network.estimate(pair((16, 24))), network.estimate_and_inverse(pair((16, 24)))
    assert torch.equal(estimate.velocity, estimate.ddf) and estimate.ddf.std() > 0.1
    assert torch.equal(both.ddf, torch.cat([estimate.ddf, -estimate.ddf]))
    assert torch.equal(both.velocity, estimate.ddf)


def test_integrated_output_has_an_inverse():
    network = TransMorph(2, **TINY, integration_steps=7).eval()
    nn.init.constant_(network.flow.bias, 1.5)
    with torch.no_grad():
        estimate, both = network.estimate(pair((16, 24))), network.estimate_and_inverse(pair((16, 24)))
    forward, backward = both.ddf.chunk(2)
    assert forward.abs().max() > 1 and torch.equal(forward, estimate.ddf)
    torch.testing.assert_close(compose(forward, backward), torch.zeros_like(forward), atol=1e-3, rtol=0)


WINDOWS = {  # grid, window
    "whole": ([8, 12], [4, 4]),
    "padded": ([9, 6], [4, 4]),
    "short_axis": ([3, 10], [4, 4]),
    "3d": ([5, 4, 3], [2, 3, 4]),
}
each_grid = pytest.mark.parametrize(("grid", "window"), WINDOWS.values(), ids=WINDOWS)
each_shift = pytest.mark.parametrize("shifted", [False, True])
each_padding = pytest.mark.parametrize("sees_padding", [False, True])


@each_grid
@each_shift
@each_padding
def test_every_token_lies_in_one_window_and_is_found_again(grid, window, shifted, sees_padding):
    windows, count = cut_windows(grid, window, shifted, sees_padding, CPU), torch.tensor(grid).prod().item()
    flat = windows.rows.flatten()
    assert torch.equal(flat[flat < count].sort().values, torch.arange(count))
    assert torch.equal(flat[windows.places], torch.arange(count))
    assert windows.padded == bool((flat == count).any()) and sum(windows.counts) == len(windows.rows)


@each_grid
@each_shift
def test_tokens_see_neighbours_within_a_window_and_neither_padding_nor_what_wraps_around(grid, window, shifted):
    """Closed form: a token sees another where, along every axis, shifted windows of the endless line hold both."""
    windows, count = cut_windows(grid, window, shifted, False, CPU), torch.tensor(grid).prod().item()
    places = torch.stack(torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij"), -1).view(-1, len(grid))
    shift = torch.tensor([extent // 2 if shifted else 0 for extent in window])
    number = (places - shift).div(torch.tensor(window), rounding_mode="floor")
    expected = (number[:, None] == number[None]).all(-1)
    kinds = torch.repeat_interleave(torch.arange(len(windows.counts)), torch.tensor(windows.counts))
    seen = torch.zeros(count + 1, count + 1, dtype=torch.bool)
    for rows, kind in zip(windows.rows, kinds, strict=True):
        seen[rows[:, None], rows[None]] |= windows.masks[kind] == 0
    assert torch.equal(seen[:count, :count], expected) and not seen[:count, count].any()


def attending(grid, window, shifted, sees_padding):
    torch.manual_seed(0)
    module = WindowAttention(8, 2, tuple(window), shifted, sees_padding).double()
    nn.init.normal_(module.bias)
    count = int(torch.tensor(grid).prod())
    return module, torch.randn(2, count, 8, dtype=torch.float64, requires_grad=True)


@each_grid
@each_shift
@each_padding
def test_chunks_give_what_fused_attention_gives(grid, window, shifted, sees_padding, monkeypatch):
    module, x = attending(grid, window, shifted, sees_padding)
    monkeypatch.setattr(attention, "CHUNK", 3 * 2 * 16**2)  # three windows at a time
    outputs = []
    for attend in (attention._ChunkedAttention.apply, attention._fused_attention):
        monkeypatch.setattr(attention._ChunkedAttention, "apply", attend)
        y = module(x, grid)
        outputs.append((y, *torch.autograd.grad(y.sin().sum(), (x, *module.parameters()))))
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@each_shift
def test_gradient_of_the_chunks(shifted):
    module, x = attending([3, 2], [2, 2], shifted, False)
    assert torch.autograd.gradcheck(lambda y, bias: module(y, [3, 2]), (x, module.bias))


def test_no_large_attention_weights_are_kept_for_the_backward_pass():
    module, kept = WindowAttention(8, 2, (8, 8)), []
    x = torch.rand(1, 1024, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        module(x, [32, 32])
    assert max(kept) < 1024 * 64 * 2 / 4  # tokens, keys, heads


def test_windows_are_described_once_for_every_step(monkeypatch):
    calls = []
    counted = functools.lru_cache(lambda *given: calls.append(given) or cut_windows(*map_lists(given)))
    monkeypatch.setattr(attention, "_kept_windows", counted)
    network = TransMorph(2, **TINY)
    for _ in range(3):
        network(pair((32, 48)))
    assert len(calls) == 4  # two stages, shifted and not


def map_lists(given):
    return [list(entry) if isinstance(entry, tuple) else entry for entry in given]


def test_training_after_inference_mode():
    network = TransMorph(2, **TINY)
    with torch.inference_mode():
        network(pair((36, 28)))
    network(pair((36, 28))).sum().backward()


def test_paths_are_dropped_in_training_alone_and_keep_the_mean():
    drop, x = DropPath(0.25), torch.ones(4000, 3, 2)
    torch.manual_seed(0)
    y = drop.train()(x)
    assert torch.equal(y, y[:, :1, :1].expand_as(y)) and y.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert abs(float(y.mean()) - 1) < 0.03
    assert torch.equal(drop.eval()(x), x)


def test_paths_are_dropped_more_often_the_deeper_the_block():
    network = TransMorph(2)
    rates = [module.rate for module in network.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.3 * block / 9 for block in range(10)], abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": "huge"}, "size: expected one of .*got 'huge'"),
        ({"window": (8,)}, r"window: expected 2 numbers from 1, one an axis, got \[8\]"),
        ({"window": (8, 0)}, r"window: expected 2 numbers from 1"),
        ({"channels": 7}, "channels, depths, heads: expected an even number"),
        ({"depths": (2, 2)}, "as many heads as depths.*2, 2.*4, 4, 8, 8"),
        ({"heads": (5, 5, 5, 5)}, "heads: expected numbers that divide the channels 96 of their stage, got 5"),
    ],
)
def test_wrong_constants_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TransMorph(2, **wrong)
