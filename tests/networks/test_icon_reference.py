# SPDX-License-Identifier: Apache-2.0
"""tallUNet2 against a plain restatement of the published function: a parameter count cannot see a wrong residual."""

import pytest
import torch
import torch.nn.functional as F

from common.networks.icon import TallUNet2
from tests.networks.test_icon import DEEP, awakened, pair


def padded(x, channels):
    """The published residual's channels: the first ones, or zeros and then all."""
    if x.shape[1] >= channels:
        return x[:, :channels]
    return torch.cat([torch.zeros(len(x), channels - x.shape[1], *x.shape[2:]), x], dim=1)


def published(network, image):
    """tallUNet2 as the published code describes it, layer after layer, with the weights of ours; in eval mode."""
    flat = image.dim() == 4
    conv, transposed = (F.conv2d, F.conv_transpose2d) if flat else (F.conv3d, F.conv_transpose3d)
    pool = F.avg_pool2d if flat else F.avg_pool3d
    weights, x, skips = network.state_dict(), image, []
    for level in range(len(network.down)):
        kernel, bias = weights[f"down.{level}.conv.weight"], weights[f"down.{level}.conv.bias"]
        skips.append(x)
        y = conv(F.leaky_relu(x, 0.01), kernel, bias, stride=2, padding=1)
        x = y + padded(pool(x, 2, ceil_mode=True), len(kernel))
    for level in range(len(network.up)):
        kernel, bias = weights[f"up.{level}.conv.weight"], weights[f"up.{level}.conv.bias"]
        y = transposed(F.leaky_relu(x, 0.01), kernel, bias, stride=2, padding=1)
        mode = "bilinear" if flat else "trilinear"
        y = y + F.interpolate(padded(x, kernel.shape[1]), scale_factor=2, mode=mode, align_corners=False)
        mean, var, gain, shift = (
            weights[f"up.{level}.norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        y, skip = F.batch_norm(y, mean, var, gain, shift, eps=1e-5), skips.pop()
        x = torch.cat([y[tuple(slice(n) for n in (None, None, *skip.shape[2:]))], skip], dim=1)
    unit = conv(x, weights["last.weight"], weights["last.bias"], padding=1) / 10
    return unit * torch.tensor([n - 1.0 for n in image.shape[2:]]).view(1, -1, *[1] * (image.dim() - 2))


EIGHTH = {"down": (2, 2, 4, 8, 32, 64), "up": (2, 4, 8, 16, 32)}  # the published widths / 8
WIDER_UP = {"down": (2, 4, 6), "up": (4, 9)}  # an up block that lacks channels as well


@pytest.mark.parametrize("widths", [EIGHTH, DEEP, WIDER_UP], ids=["eighth", "deep", "wider_up"])
@pytest.mark.parametrize("size", [(64, 32), (37, 51), (32, 32, 32), (19, 33, 21)])
def test_output_is_that_of_the_published_function_with_the_same_weights(size, widths):
    """A count of parameters cannot see a residual on the wrong channels."""
    network, image = awakened(TallUNet2(len(size), **widths), strength=1.0), pair(size)
    with torch.no_grad():
        ours, reference = network(image), published(network, image)
        assert reference.std() > 0.5
        torch.testing.assert_close(ours, reference, atol=1e-5 * float(reference.abs().max()), rtol=0)
