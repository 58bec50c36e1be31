# SPDX-License-Identifier: Apache-2.0
"""LapIRN against a plain restatement of the published functions, in their coordinates and their order of channels."""

import pytest
import torch
import torch.nn.functional as F

from common.networks.lapirn import LapIRN

FORMS = {
    "conditional": {"conditional": True},
    "displacement": {},
    "diffeomorphic": {"diffeomorphic": True},
}


class Published:
    """The published levels with the weights of ours: flows in [-1, 1], channel 0 along the last axis."""

    def __init__(self, network):
        self.weights, self.dims = network.state_dict(), network.spatial_dims
        self.conditional, self.diffeomorphic = network.conditional, network.diffeomorphic
        self.conv = (F.conv2d, F.conv3d)[self.dims - 2]
        self.pool = (F.avg_pool2d, F.avg_pool3d)[self.dims - 2]

    def halve(self, image):
        return self.pool(image, kernel_size=3, stride=2, padding=1, count_include_pad=False)

    def sample(self, image, flow):
        size = [len(image), 1, *flow.shape[2:]]
        identity = F.affine_grid(
            torch.eye(self.dims, self.dims + 1).expand(len(image), -1, -1), size, align_corners=True
        )
        grid = identity + flow.movedim(1, -1)
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)

    def up(self, flow):
        return F.interpolate(flow, scale_factor=2, mode="bilinear" if self.dims == 2 else "trilinear")

    def displacement(self, flow):
        if self.diffeomorphic:
            flow = flow / 2**7
            for _ in range(7):
                flow = flow + self.sample(flow, flow)
        return flow

    def convolved(self, x, name, **options):
        return self.conv(x, self.weights[name + ".weight"], padding=1, **options)

    def normed(self, x, name, latent):
        if not self.conditional:
            return x
        style = latent @ self.weights[name + ".style.weight"].T + self.weights[name + ".style.bias"]
        gamma, beta = style.reshape(len(x), 2, -1, *[1] * self.dims).unbind(1)
        return (1 + gamma) * F.instance_norm(x) + beta

    def block(self, x, name, code):
        latent = code
        for layer in range(4 if self.conditional else 0):
            key = f"{name}.mapping.layers.{layer}"
            latent = F.leaky_relu(latent @ self.weights[key + ".weight"].T + self.weights[key + ".bias"], 0.2)
        y = self.convolved(F.leaky_relu(self.normed(x, name + ".norm.0", latent), 0.2), name + ".first")
        return x + self.convolved(F.leaky_relu(self.normed(y, name + ".norm.1", latent), 0.2), name + ".second")

    def level(self, number, inputs, embedding, code):
        name = f"levels.{number}"
        if number:  # ours takes the flow's channels in the other order
            inputs = torch.cat([inputs[:, :2], inputs[:, 2:].flip(1)], dim=1)
        features = F.leaky_relu(self.convolved(inputs, f"{name}.encoder.0"), 0.2)
        features = self.convolved(features, f"{name}.encoder.1")
        y = self.convolved(features, f"{name}.down", stride=2)
        if number:
            y = y + embedding
        for index in range(5):
            y = F.leaky_relu(self.block(y, f"{name}.blocks.{index}", code), 0.2)
        up = (F.conv_transpose2d, F.conv_transpose3d)[self.dims - 2]
        y = up(y, self.weights[f"{name}.up.weight"], stride=2)
        flow = F.leaky_relu(self.convolved(torch.cat([y, features], dim=1), f"{name}.head.0"), 0.2)
        return 0.4 * F.softsign(self.convolved(flow, f"{name}.head.1")).flip(1), y

    def fields(self, moving, fixed, code):
        """Displacements of the three levels."""
        half = [self.halve(image) for image in (moving, fixed)]
        quarter = [self.halve(image) for image in half]
        flow, embedding = self.level(0, torch.cat(quarter, dim=1), None, code)
        found = [self.displacement(flow)]
        for number, (m, f) in enumerate((half, (moving, fixed)), start=1):
            coarse = self.up(flow)
            inputs = torch.cat([self.sample(m, self.up(found[-1])), f, coarse], dim=1)
            own, embedding = self.level(number, inputs, embedding, code)
            flow = coarse + own
            found.append(self.displacement(flow))
        return found


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("size", [(32, 48), (16, 24, 32)])
def test_fields_of_all_levels_are_those_of_the_published_functions(size, form):
    """Sizes as published, multiples of 8; each level where it is the last that runs, too."""
    torch.manual_seed(0)
    network, image = LapIRN(len(size), 3, **FORMS[form]).eval(), torch.rand(2, 2, *size)
    code = torch.tensor([[0.3], [0.8]])
    with torch.no_grad():
        expected = Published(network).fields(image[:, :1], image[:, 1:], code)
        for number, published in enumerate(expected, start=1):
            network.run_levels(number)
            estimate = network.estimate(image, code if network.conditional else None)
            ours = [*estimate.coarser, estimate.ddf][number - 1]
            half_extent = torch.tensor([(n - 1) / 2 for n in ours.shape[2:]]).view(1, -1, *[1] * len(size))
            assert ours.abs().max() > 0.02
            torch.testing.assert_close(ours / half_extent, published.flip(1), atol=1e-5, rtol=0)
