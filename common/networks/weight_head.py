# SPDX-License-Identifier: Apache-2.0
"""The weight volume ω of TM-SPR: how much each voxel's smoothness counts."""

from typing import Optional

import torch
from torch import Tensor, nn

from .convolution import convolution, convolve
from .decoder import NormalisedConv, enlarged


class WeightHead(nn.Module):
    """ω in (0, 1) from features of a network: three 3^d convolutions, a sigmoid, and linear up-sampling.

    ω is not clamped here: its loss and the weighted smoothness take it from [ε, 1] (Eq. 4). Behind the first two
    convolutions are instance norm and LeakyReLU(0.01), conditional where the network is (released code; the paper says
    neither that nor the widths).

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the features.
        width: of the first two convolutions.
        factor: between the grid of the features and that of ω.
        conditional: as ``decoder.NormalisedConv``.
        sigmoid_last: up-sample before the sigmoid (released code), not behind it (paper).

    Reference:
        Chen et al., Spatially-varying Regularization with Conditional Transformer, 2023, Sec. 3, Fig. 5.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        width: int,
        factor: int,
        conditional: Optional[str] = None,
        sigmoid_last: bool = False,
    ) -> None:
        super().__init__()
        self.factor, self.sigmoid_last = factor, sigmoid_last
        self.first = NormalisedConv(spatial_dims, in_channels, width, conditional)
        self.second = NormalisedConv(spatial_dims, width, width, conditional)
        self.last = convolution(spatial_dims, width, 1)

    def forward(self, features: Tensor, code: Tensor, size: list[int]) -> Tensor:
        """Estimate ω.

        Args:
            features: (B, in_channels, *T).
            code: (B, 1).
            size: S of the result, at most ``factor`` T.

        Returns:
            (B, 1, *S), float32.
        """
        x = self.second(self.first(features, code), code)
        x = convolve(x, self.last.weight, self.last.bias).float()
        if self.sigmoid_last:
            return torch.sigmoid(enlarged(x, self.factor, size))
        return enlarged(torch.sigmoid(x), self.factor, size)
