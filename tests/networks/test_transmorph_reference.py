# SPDX-License-Identifier: Apache-2.0
"""TransMorph against a plain restatement of the published function: loops over windows, heads and pairs of tokens."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.networks.transmorph import TransMorph


def bias_of(table, window, head):
    """Row of the bias table for every pair of tokens of a window, looked up one by one."""
    tokens = list(itertools.product(*(range(extent) for extent in window)))
    bias = torch.empty(len(tokens), len(tokens))
    for i, query in enumerate(tokens):
        for j, key in enumerate(tokens):
            row = 0
            for a, b, extent in zip(query, key, window, strict=True):
                row = row * (2 * extent - 1) + a - b + extent - 1
            bias[i, j] = table[row, head]
    return bias


def regions_of(padded, window, shift):
    """Number of the region that each place of the rolled grid belongs to."""
    regions = torch.zeros(padded)
    if any(shift):
        parts = [
            [slice(0, -w), slice(-w, -s) if s else slice(-w, None), slice(-s, None) if s else slice(0, 0)]
            for w, s in zip(window, shift, strict=True)
        ]
        for number, places in enumerate(itertools.product(*parts)):
            regions[places] = number
    return regions


def windowed_attention(x, weights, heads, window, shift, sees_padding):
    """x, (*grid, C), of one image: pad, roll, attend window by window and head by head, roll back, cut."""
    grid, channels = x.shape[:-1], x.shape[-1]
    padded = [-(-size // extent) * extent for size, extent in zip(grid, window, strict=True)]
    full, real = torch.zeros(*padded, channels), torch.zeros(padded, dtype=torch.bool)
    inside = tuple(slice(0, size) for size in grid)
    full[inside], real[inside] = x, True
    axes = list(range(len(grid)))
    full, real = (torch.roll(y, [-s for s in shift], axes) for y in (full, real))
    regions, out = regions_of(padded, window, shift), torch.zeros_like(full)
    biases = [bias_of(weights["bias"], window, head) for head in range(heads)]
    size = channels // heads
    for corner in itertools.product(*(range(0, p, w) for p, w in zip(padded, window, strict=True))):
        place = tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))
        tokens, region, known = full[place].reshape(-1, channels), regions[place].flatten(), real[place].flatten()
        query, key, value = (tokens @ weights["qkv.weight"].t()).split(channels, dim=1)
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = query[:, part] @ key[:, part].t() / size**0.5 + biases[head]
            scores = scores - 1e9 * (region[:, None] != region[None, :])
            if not sees_padding:
                scores = scores - 1e9 * ~known[None, :]
            mixed.append(scores.softmax(dim=1) @ value[:, part])
        attended = torch.cat(mixed, dim=1) @ weights["projection.weight"].t() + weights["projection.bias"]
        out[place] = attended.reshape(*window, channels)
    return torch.roll(out, list(shift), axes)[inside]


def below(weights, prefix):
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def styled(x, weights, name, code, axis):
    """(1 + γ) x + β, where a layer of this name makes them of a code: a number."""
    if f"{name}.style.weight" not in weights:
        return x
    latent = torch.tensor([code])
    for layer in range(4):
        latent = F.leaky_relu(linear(latent, weights, f"mapping.layers.{layer}"), 0.2)
    shape = [-1 if place == axis % x.dim() else 1 for place in range(x.dim())]
    gamma, beta = linear(latent, weights, f"{name}.style").view(2, -1)
    return (1 + gamma.view(shape)) * x + beta.view(shape)


def normed(x, weights, name, code=None):
    x = F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])
    return styled(x, weights, name, code, -1)


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].t() + weights[f"{name}.bias"]


def block(x, weights, heads, window, shift, sees_padding, code=None):
    attention = below(weights, "attention.")
    x = x + windowed_attention(normed(x, weights, "norm1", code), attention, heads, window, shift, sees_padding)
    return x + linear(F.gelu(linear(normed(x, weights, "norm2", code), weights, "mlp.0")), weights, "mlp.2")


ORDER = {2: ["00", "10", "01", "11"], 3: ["000", "100", "010", "001", "110", "011", "101", "111"]}


def merged(x, weights, code=None):
    """Every second token from each of the 2^d first ones, one behind the other on the channels."""
    grid = x.shape[:-1]
    full = torch.zeros(*(size + size % 2 for size in grid), x.shape[-1])
    full[tuple(slice(0, size) for size in grid)] = x
    parts = [full[tuple(slice(int(first), None, 2) for first in firsts)] for firsts in ORDER[len(grid)]]
    return normed(torch.cat(parts, dim=-1), weights, "norm", code) @ weights["reduction.weight"].t()


def encoded(image, weights, depths, heads, window, sees_padding, code=None):
    """Features of one image (2, *S), a stage after the other, (C, *grid)."""
    dims = image.dim() - 1
    full = torch.zeros(2, *(-(-size // 4) * 4 for size in image.shape[1:]))
    full[(slice(None), *(slice(0, size) for size in image.shape[1:]))] = image
    conv = F.conv2d if dims == 2 else F.conv3d
    x = conv(full[None], weights["embedding.weight"], weights["embedding.bias"], stride=4)[0].movedim(0, -1)
    x, features = normed(x, weights, "norm"), []
    for stage, depth in enumerate(depths):
        for number in range(depth):
            shift = [extent // 2 if number % 2 else 0 for extent in window]
            own = below(weights, f"stages.{stage}.{number}.")
            x = block(x, own, heads[stage], window, shift, sees_padding, code)
        features.append(normed(x, weights, f"norms.{stage}").movedim(-1, 0))
        if stage + 1 < len(depths):
            x = merged(x, below(weights, f"merging.{stage}."), code)
    return features


def convolved(x, weights, code=None):
    conv = F.conv2d if x.dim() == 4 else F.conv3d
    x, axes = conv(x, weights["conv.weight"], padding=1), list(range(2, x.dim()))
    mean, variance = x.mean(axes, keepdim=True), x.var(axes, keepdim=True, correction=0)
    return F.leaky_relu(styled((x - mean) / (variance + 1e-5).sqrt(), weights, "norm", code, 1), 0.01)


def doubled(x, size):
    mode = "bilinear" if x.dim() == 4 else "trilinear"
    return F.interpolate(x, scale_factor=2, mode=mode, align_corners=False)[(..., *(slice(n) for n in size))]


def joined(x, skip, weights, code=None):
    """A block of the decoder behind its up-sampling."""
    x = torch.cat([x, skip], dim=1)
    for part in ("first", "second"):
        x = convolved(x, below(weights, f"{part}."), code)
    return x


def published(network, image, depths, heads, window, sees_padding):
    """Displacement of one pair, (1, 2, *S), layer after layer with the weights of ours."""
    weights, flat = network.state_dict(), image.dim() == 4
    half = (F.avg_pool2d if flat else F.avg_pool3d)(image, 3, stride=2, padding=1)
    skips = [convolved(image, below(weights, "full_skip.")), convolved(half, below(weights, "half_skip."))]
    skips += [x[None] for x in encoded(image[0], below(weights, "encoder."), depths, heads, window, sees_padding)]
    x = skips.pop()
    for level in range(len(skips)):
        skip = skips.pop()
        x = joined(doubled(x, skip.shape[2:]), skip, below(weights, f"decoder.{level}."))
    return (F.conv2d if flat else F.conv3d)(x, weights["flow.weight"], weights["flow.bias"], padding=1)


CASES = {  # image size, window, depths, heads: windows that divide the grids; those that do not; those that are larger
    "2d_whole": ((64, 32), (2, 2), (2, 2, 2, 2), (2, 1, 4, 2)),
    "2d_padded": ((33, 38), (4, 3), (2, 2, 3), (2, 2, 4)),
    "2d_large_window": ((32, 24), (8, 8), (2, 2, 2, 2), (2, 2, 4, 4)),
    "3d_whole": ((32, 24, 16), (2, 3, 2), (2,), (2,)),
    "3d_padded": ((27, 18, 32), (2, 3, 4), (2, 2, 2), (2, 2, 4)),
}


@pytest.mark.parametrize("sees_padding", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_output_is_that_of_the_published_function_with_the_same_weights(case, sees_padding):
    size, window, depths, heads = CASES[case]
    torch.manual_seed(0)
    network = TransMorph(len(size), "tiny", window, 8, depths, heads, head_channels=4, sees_padding=sees_padding)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    image = torch.rand(1, 2, *size)
    with torch.no_grad():
        ours = network.eval()(image)
        reference = published(network, image, depths, heads, window, sees_padding)
    chunked = network(image).detach()  # with gradient, the CPU's other way of computing it
    scale = float(reference.abs().max())
    assert reference.std() > 0.3
    torch.testing.assert_close(ours, reference, atol=1e-5 * scale, rtol=0)
    torch.testing.assert_close(chunked, reference, atol=1e-5 * scale, rtol=0)
