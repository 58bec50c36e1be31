# SPDX-License-Identifier: Apache-2.0
"""A small network that is conditioned on the weight of the log loss and predicts the weights of its smoothness."""

import torch
import torch.nn.functional as F
from torch import nn

from common.engines.adaptation import uniform_code
from common.engines.method import Method, Update
from common.losses.objective import Objective
from common.losses.pyramid import CodeWeight
from common.losses.similarity import SquaredError
from common.losses.spatially_varying import LogLoss, WeightedSmoothness
from common.losses.terms import Similarity
from common.networks.contract import Estimate, pair_image
from tests.engines.synthetic import adam

DEFAULT = 0.125


class Weighing(nn.Module):
    """Fields on the image's grid; ω from half of it. ``seen`` holds the conditions of its forwards."""

    def __init__(self, spatial_dims, width=6, std=0.05):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        self.features = conv(2, width, 3, padding=1)
        self.style = nn.Linear(1, 2 * width)
        self.flow, self.weight = conv(width, spatial_dims, 3, padding=1), conv(width, 1, 3, padding=1)
        nn.init.normal_(self.flow.weight, std=std)
        self.register_buffer("default_condition", torch.tensor([[DEFAULT]]))
        self.seen = []

    def forward(self, image, fixed=None, condition=None):
        return self.estimate(pair_image(image, fixed), condition).ddf

    def estimate(self, image, condition=None):
        condition = self.default_condition.expand(len(image), 1) if condition is None else condition
        if condition.shape != (len(image), 1):
            raise ValueError(f"condition: expected {(len(image), 1)}, got {tuple(condition.shape)}")
        self.seen.append(condition.detach().clone())
        scale, shift = self.style(condition).view(len(image), -1, *[1] * (image.dim() - 2)).chunk(2, dim=1)
        features = F.leaky_relu((1 + scale) * self.features(image) + shift, 0.2)
        pool = F.avg_pool2d if image.dim() == 4 else F.avg_pool3d
        mode = "bilinear" if image.dim() == 4 else "trilinear"
        coarse = self.weight(pool(features, 2, ceil_mode=True))
        weight = F.interpolate(coarse, size=image.shape[2:], mode=mode, align_corners=True).sigmoid().float()
        ddf = self.flow(features).float()
        return Estimate(ddf, ddf, weight)


def weighing_method(network, eta_max=4.0, smoothness=5.0, lr=1e-3, **form):
    """TM-SPR's terms with the squared error."""
    terms = {
        "similarity": (1.0, Similarity()),
        "smoothness": (smoothness, WeightedSmoothness()),
        "log_loss": (CodeWeight(network, eta_max), LogLoss()),
    }
    update = Update("displacement", ["model"], Objective(terms), adam(lr))
    form = {"bidirectional": True, "condition": uniform_code} | form
    return Method({"model": network}, SquaredError(), [update], **form)
