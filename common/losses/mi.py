# SPDX-License-Identifier: Apache-2.0
"""Global mutual information by Parzen windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checks import positive
from .pairs import paired


class MI(nn.Module):
    """Global mutual information by Parzen windows, as a map whose mean is -MI.

    map(x) = -sum_ab w_a(I_w(x)) w_b(I_f(x)) log(p_ab / (p_a p_b)), with p_ab = mean_x w_a w_b, p_a, p_b its margins
    and w_a(i) proportional to exp(-(i - c_a)^2 / (2 sigma^2)), normalised over the bins at c_a = a / (bins - 1).
    Intensities are clamped to [0, 1]; the channels of an image share one histogram. By default windows, smoothing and
    value are those of `monai.losses.GlobalMutualInformationLoss`. Memory: two (B, C|S|, bins) windows and one product
    of that size.

    The code published with AdaCS has 32 bins, a sigma of one bin and an eps of 1e-6:
    ``{"mi": {"bins": 32, "sigma": 1.0, "eps": 1e-6}}``. It adds no eps to p_ab: 0.1 % of the value at most.
    """

    def __init__(self, bins: int = 23, sigma: float = 0.5, eps: float = 1e-7) -> None:
        """Choose the histogram.

        Args:
            bins: of each image.
            sigma: width of the Gaussian windows, in distances between the bins' centres.
            eps: added to the probabilities and to their ratio.

        Raises:
            ValueError: for less than 2 bins, or a sigma or eps not above 0.
        """
        super().__init__()
        if bins < 2:
            raise ValueError(f"bins: expected at least 2, got {bins}; take e.g. 23")
        self.bins = int(bins)
        self.sigma, self.eps = positive("sigma", sigma), positive("eps", eps)

    def _windows(self, image: Tensor) -> Tensor:
        """Parzen weights (B, C|S|, bins) of every intensity; they sum to 1 over the bins."""
        centres = torch.linspace(0, 1, self.bins, dtype=image.dtype, device=image.device)
        distance = (image.clamp(0, 1).flatten(1).unsqueeze(-1) - centres) * (self.bins - 1)
        return torch.softmax(-0.5 / self.sigma**2 * distance.square(), dim=-1)

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Compare two images.

        Args:
            warped: (B, C, *S) in [0, 1].
            fixed: the same shape.

        Returns:
            Map (B, 1, *S).

        Raises:
            ValueError: where the shapes differ.
        """
        warped, fixed = paired(warped, fixed)
        # Autocast would take the matrix products, and with them the probabilities, to half precision.
        with torch.autocast(warped.device.type, enabled=False):
            of_warped, of_fixed = self._windows(warped), self._windows(fixed)
            joint = of_warped.transpose(1, 2) @ of_fixed / of_warped.shape[1]
            margins = of_warped.mean(dim=1).unsqueeze(2) * of_fixed.mean(dim=1).unsqueeze(1)
            log_ratio = torch.log((joint + self.eps) / (margins + self.eps) + self.eps)
            information = ((of_warped @ log_ratio) * of_fixed).sum(dim=-1)
        return -information.view(warped.shape).mean(dim=1, keepdim=True)
