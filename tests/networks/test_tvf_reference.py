# SPDX-License-Identifier: Apache-2.0
"""TransMorph-TVF and TM-SPR against a plain restatement of the published functions; fields are sampled by SciPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from torch import nn

from common.networks.tvf import PRESETS, TransMorphTVF
from tests.networks.test_transmorph_reference import below, convolved, doubled, encoded, joined


def halved(image):
    """Means of 2^d voxels; the last voxel of an odd axis is alone."""
    for axis in range(2, image.dim()):
        last = image.narrow(axis, image.shape[axis] - 1, image.shape[axis] % 2)
        image = torch.cat([image, last], dim=axis).unflatten(axis, (-1, 2)).mean(axis + 1)
    return image


def pulled(image, field, outside):
    """Channels of (1, C, *S) at x + field(x); outside is SciPy's mode."""
    identity = np.stack(np.meshgrid(*(np.arange(n) for n in image.shape[2:]), indexing="ij"))
    places = identity + field[0].double().numpy()
    channels = [map_coordinates(c, places, order=1, mode=outside) for c in image[0].double().numpy()]
    return torch.from_numpy(np.stack(channels)).float()[None]


def decoded(inputs, weights, own, code):
    """All features of the decoder, from the bottom up."""
    features = encoded(inputs[0], below(weights, "encoder."), own["depths"], own["heads"], own["window"], False, code)
    skips = [x[None] for x in features]
    if "half_skip.conv.weight" in weights:
        pool = F.avg_pool2d if inputs.dim() == 4 else F.avg_pool3d
        skips.insert(0, convolved(pool(inputs, 3, stride=2, padding=1), below(weights, "half_skip."), code))
    outputs = [skips.pop()]
    while skips:
        own_weights = below(weights, f"decoder.{len(outputs) - 1}.")
        outputs.append(joined(doubled(outputs[-1], skips[-1].shape[2:]), skips.pop(), own_weights, code))
    return outputs


def convolution(x, weights, name):
    conv = F.conv2d if x.dim() == 4 else F.conv3d
    return conv(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)


def over_time(weights, shared, pair, own, code):
    """The field after all steps, and the features of each."""
    moving, field, every = pair[:, :1], torch.zeros(1, pair.dim() - 2, *pair.shape[2:]), []
    shared = doubled(shared, pair.shape[2:])
    for step in range(own["time_steps"]):
        theirs = below(weights, f"steps.{step}.")
        seen = torch.cat([pulled(moving, field, "grid-constant"), pair[:, 1:]], dim=1)
        every.append(joined(shared, convolved(seen, below(theirs, "pair."), code), below(theirs, "block."), code))
        flow = convolution(every[-1], theirs, "flow")
        field = field + (
            pulled(flow, flow, "grid-constant") if own.get("self_warped") else pulled(flow, field, "nearest")
        )
    return field, every


def published(network, image, own, code):
    """Displacement and ω of one pair, (1, 2, *S)."""
    weights, size = network.state_dict(), image.shape[2:]
    encoder, fields = own.get("encoder_downsample", 2), own.get("field_downsample", 2)
    outputs = decoded(image if encoder == 1 else halved(image), weights, own, code)
    field, every = over_time(weights, outputs[-1], image if fields == 1 else halved(image), own, code)
    if own.get("diffeomorphic"):
        field = field / 2**7
        for _ in range(7):
            field = field + pulled(field, field, "nearest")
    ddf = field if fields == 1 else 2 * doubled(field, size)
    form = own.get("weight_volume")
    if form is None:
        return ddf, None
    head = below(weights, "weight_head.")
    x = sum(every) if form == "official" else outputs[-2 if fields == 1 else -1]
    for part in ("first", "second"):
        x = convolved(x, below(head, f"{part}."), code)
    x = convolution(x, head, "last")
    if form == "official":
        return ddf, torch.sigmoid(x if fields == 1 else doubled(x, size))
    mode = "bilinear" if x.dim() == 4 else "trilinear"
    omega = F.interpolate(torch.sigmoid(x), scale_factor=4, mode=mode, align_corners=False)
    return ddf, omega[(..., *(slice(n) for n in size))]


CASES = {
    "2d_tvf": ((37, 50), {}),
    "3d_tvf": ((30, 17, 24), {}),
    "2d_large": ((37, 50), {"encoder_downsample": 1, "depths": (2,), "heads": (2,)}),
    "3d_large": ((17, 12, 20), {"encoder_downsample": 1}),
    "2d_full_resolution": ((25, 30), PRESETS["paper"] | {"encoder_downsample": 1, "field_downsample": 1}),
    "2d_paper": ((40, 34), PRESETS["paper"]),
    "3d_paper": ((30, 17, 24), PRESETS["paper"]),
    "2d_official": ((40, 34), PRESETS["official"]),
    "3d_official": ((30, 17, 24), PRESETS["official"]),
    "2d_diffeomorphic": ((40, 34), PRESETS["paper"] | {"diffeomorphic": True}),
    "3d_diffeomorphic": ((30, 17, 24), {"diffeomorphic": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_output_is_that_of_the_published_function_with_the_same_weights(case):
    size, options = CASES[case]
    own = {"depths": (2, 2), "heads": (2, 4), "window": (2, 3, 4)[: len(size)], "time_steps": 3} | options
    torch.manual_seed(0)
    network = TransMorphTVF(len(size), channels=8, head_channels=4, **own).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    for step in network.steps:  # rough fields of many voxels would magnify what float32 rounds
        nn.init.normal_(step.flow.weight, std=0.05)
    image, code = torch.rand(1, 2, *size), 0.3
    with torch.no_grad():
        estimate = network.estimate(image, torch.tensor([[code]]) if "conditional" in own else None)
        ddf, omega = published(network, image, own, code)
    scale = float(ddf.abs().max())
    assert ddf.std() > 0.2
    torch.testing.assert_close(estimate.ddf, ddf, atol=1e-5 * scale, rtol=0)
    assert (estimate.weight_volume is None) == (omega is None)
    if omega is not None:
        assert omega.std() > 0.01
        torch.testing.assert_close(estimate.weight_volume, omega, atol=1e-5, rtol=0)
