# SPDX-License-Identifier: Apache-2.0
"""DiffuseMorph against a plain restatement of the published functions, with the weights of ours."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.networks.diffusemorph import DiffuseMorph

NARROW = {
    2: {"channels": 8, "groups": 4, "field_encoder": (4, 6, 8, 8, 10), "field_decoder": (10, 8, 6, 6, 4)},
    3: {"channels": 4, "groups": 2, "field_encoder": (4, 6, 6, 8, 8), "field_decoder": (8, 8, 6, 4, 6)},
}
SIZES = [(32, 48), (16, 32, 16)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


def network_of(dims, **options):
    """Weights far from those of the start: gains and biases that are not 1 and 0."""
    torch.manual_seed(0)
    network = DiffuseMorph(dims, **NARROW[dims], **options).eval()
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.3)
        elif name.startswith("field"):
            nn.init.normal_(parameter, std=0.2)
    return network


class Published:
    """The layers of the released code, in the order in which it runs them."""

    def __init__(self, network, part, groups):
        self.weights = {k.removeprefix(f"{part}."): v for k, v in network.state_dict().items() if k.startswith(part)}
        self.flat, self.groups = network.spatial_dims == 2, groups

    def conv(self, name, x, stride=1):
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return (F.conv2d if self.flat else F.conv3d)(x, weight, bias, stride, padding=weight.shape[-1] // 2)

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name, x):
        grouped = x.reshape(len(x), self.groups, -1)
        centred = grouped - grouped.mean(2, keepdim=True)
        unit = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)
        gain, shift = (self.weights[f"{name}.{key}"].view(1, -1, *[1] * (x.dim() - 2)) for key in ("weight", "bias"))
        return gain * unit + shift


class PublishedNoise(Published):
    """The diffusion network."""

    def __call__(self, x, step):
        channels = len(self.weights["stem.weight"])
        frequency = torch.tensor([10000 ** (-2 * k / channels) for k in range(channels // 2)])
        angle = step[:, None] * frequency
        time = self.linear("time.widen", torch.cat([torch.sin(angle), torch.cos(angle)], dim=1))
        time = self.linear("time.narrow", time * torch.sigmoid(time))
        levels = 1 + len({name.split(".")[1] for name in self.weights if name.startswith("down")})
        x = self.conv("stem", x)
        kept = [x]
        for level in range(levels):
            if level:
                x = self.conv(f"down.{level - 1}.conv", x, stride=2)
                kept.append(x)
            x = self.block(f"down.{level - 1}.block" if level else "first", x, time)
            kept.append(x)
        x = self.block("middle2", self.attend(self.block("middle1", x, time)), time)
        for level in range(levels):
            name = f"up.{level - 1}" if level else "bottom"
            if level:
                for axis in range(2, x.dim()):
                    x = x.repeat_interleave(2, dim=axis)
                x = self.conv(f"{name}.conv", x)
            for block in ("block1", "block2"):
                x = self.block(f"{name}.{block}", torch.cat([x, kept.pop()], dim=1), time)
        x = self.norm("norm", x)
        return self.conv("last", x * torch.sigmoid(x))

    def block(self, name, x, time):
        y = self.norm(f"{name}.norm1", x)
        y = self.conv(f"{name}.conv1", y * torch.sigmoid(y))
        added = self.linear(f"{name}.time", time * torch.sigmoid(time))
        y = self.norm(f"{name}.norm2", y + added.view(*added.shape, *[1] * (x.dim() - 2)))
        y = self.conv(f"{name}.conv2", y * torch.sigmoid(y))
        return y + (self.conv(f"{name}.shortcut", x) if f"{name}.shortcut.weight" in self.weights else x)

    def attend(self, x):
        channels = x.shape[1]
        query, key, value = self.conv("attention.qkv", self.norm("attention.norm", x)).flatten(2).split(channels, 1)
        if self.flat:  # every position looks at every other one
            weight = torch.einsum("bcn,bcm->bnm", query, key).div(math.sqrt(channels)).softmax(dim=2)
            seen = torch.einsum("bnm,bcm->bcn", weight, value)
        else:  # four heads, each a matrix of key by value channels
            parts = []
            for q, k, v in zip(*(part.split(channels // 4, 1) for part in (query, key, value)), strict=True):
                table = torch.einsum("bkn,bvn->bkv", k.softmax(dim=2), v)
                parts.append(torch.einsum("bkv,bkn->bvn", table, q))
            seen = torch.cat(parts, dim=1)
        return self.conv("attention.out", seen.reshape(x.shape)) + x


class PublishedField(Published):
    """The field network: stages, transposed convolutions and skips."""

    def __call__(self, x):
        kept = []
        for level in range(5):
            x = self.stage(f"down.{level}", x, stride=2 if level else 1)
            kept.append(x)
        kept.pop()
        for name in ("up.0", "up.1", "up.2", "full"):
            if name == "full":
                x = self.stage("keep", x)
            transposed = F.conv_transpose2d if self.flat else F.conv_transpose3d
            weight, bias = self.weights[f"{name}.conv.weight"], self.weights[f"{name}.conv.bias"]
            x = transposed(x, weight, bias, stride=2, padding=1, output_padding=1)
            x = self.stage(f"{name}.stage", torch.cat([kept.pop(), x], dim=1))
        return self.conv("last", x)

    def stage(self, name, x, stride=1):
        for number in range(2 if self.flat else 1):
            x = F.leaky_relu(self.conv(f"{name}.{number}.conv", x, 1 if number else stride), 0.2)
        return x


def published_of(network):
    return PublishedNoise(network, "diffusion", NARROW[network.spatial_dims]["groups"]), PublishedField(
        network, "field", None
    )


@each_size
def test_predicted_noise_is_that_of_the_published_function_with_the_same_weights(size):
    network, image = network_of(len(size)), torch.randn(2, 3, *size)
    step = torch.tensor([7, 1400])
    with torch.no_grad():
        ours, reference = network.diffusion(image, step), published_of(network)[0](image, step)
    assert reference.std() > 0.3
    assert (ours[0] - ours[1]).std() > 0.1
    torch.testing.assert_close(ours, reference, atol=1e-5 * float(reference.abs().max()), rtol=0)


@each_size
@pytest.mark.parametrize("intensity_range", ["symmetric", "unit"])
def test_displacement_is_that_of_the_published_registration_with_the_same_weights(size, intensity_range):
    network, image = network_of(len(size), intensity_range=intensity_range), torch.rand(2, 2, *size)
    noise, field = published_of(network)
    seen = 2 * image - 1 if intensity_range == "symmetric" else image
    moving, fixed = seen[:, :1], seen[:, 1:]
    with torch.no_grad():
        predicted = noise(torch.cat([moving, fixed, fixed], dim=1), torch.zeros(2))
        for eta in (1.0, 0.3):
            reference = field(torch.cat([moving, eta * predicted], dim=1))
            ours = network(image, condition=torch.full((2, 1), eta))
            assert reference.std() > 0.1
            torch.testing.assert_close(ours, reference, atol=1e-5 * float(reference.abs().max()), rtol=0)
