# SPDX-License-Identifier: Apache-2.0
"""Image similarities as residual maps, so that any weight map can multiply any of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..checks import known_name, positive
from .adaptive import AdaptiveMultiScaleNCC, MultiScaleNCC
from .gaussian import GaussianLNCC
from .lncc import local_squared_ncc
from .pairs import paired


class SquaredError(nn.Module):
    """Squared error (w - f)^2, averaged over the channels; the mean of the map is the MSE."""

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Args: warped, fixed (B, C, *S). Returns: map (B, 1, *S). Raises: ValueError where the shapes differ."""
        warped, fixed = paired(warped, fixed)
        return (warped - fixed).square().mean(dim=1, keepdim=True)


class AbsoluteError(nn.Module):
    """Absolute error |w - f|, averaged over the channels; the mean of the map is the MAE."""

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Args: warped, fixed (B, C, *S). Returns: map (B, 1, *S). Raises: ValueError where the shapes differ."""
        warped, fixed = paired(warped, fixed)
        return (warped - fixed).abs().mean(dim=1, keepdim=True)


class Tukey(nn.Module):
    """Tukey's biweight: quadratic for small residuals, constant beyond c scales.

    rho(r) = (c s)^2 / 3 * (1 - (1 - min(|r| / (c s), 1)^2)^3), with s = MAD(r) / 0.6745 of each image pair (its
    channels together), not below `scale_floor` and detached: the scale is a property of the noise, not a quantity to
    minimise. The floor is what holds where most of an image is background and the MAD is 0.
    Departure: the customary rho is c^2/6 (…) of r/s; ours is 2 s^2 times that, so that inliers cost r^2 as in
    `SquaredError` and the smoothness weight keeps its meaning.

    Reference: Belagiannis et al., Robust Optimization for Deep Regression, ICCV 2015, Eqs. 3-6; c = 4.6851 (95 %
    efficiency on Gaussian noise) as in the AdaCS paper's table of robust losses.
    """

    def __init__(self, c: float = 4.6851, scale_floor: float = 0.01) -> None:
        """Args: c, cut-off in scales; scale_floor, least scale in intensity units (0.01 is 1 % of [0, 1])."""
        super().__init__()
        self.c = positive("c", c)
        self.scale_floor = positive("scale_floor", scale_floor)

    def scale(self, residual: Tensor) -> Tensor:
        """Robust standard deviation of each residual image (B, C, *S), detached: (B, 1, …, 1)."""
        values = residual.detach().flatten(1)
        deviation = (values - values.median(dim=1, keepdim=True).values).abs().median(dim=1).values
        scale = (deviation / 0.6745).clamp(min=self.scale_floor)
        return scale.view(-1, *(1 for _ in residual.shape[1:]))

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Args: warped, fixed (B, C, *S). Returns: map (B, 1, *S). Raises: ValueError where the shapes differ."""
        warped, fixed = paired(warped, fixed)
        residual = warped - fixed
        cutoff = (self.c * self.scale(residual)).square()
        ratio = (residual.square() / cutoff).clamp(max=1)
        # (1 - (1 - q)^3) / 3 multiplied out: the closed form would cancel for small residuals.
        return (cutoff * ratio * (1 - ratio + ratio.square() / 3)).mean(dim=1, keepdim=True)


class LNCC(nn.Module):
    """Minus the local squared NCC, -cc^2, in [-1, 0]; the mean over the channels.

    Windows reach over the border, where the image counts as 0. See `lncc.local_squared_ncc`.
    """

    def __init__(self, window: int = 9, variance_floor: float = 1e-5) -> None:
        """Args: window, edge in voxels (odd); variance_floor, least sum of squared deviations over the window."""
        super().__init__()
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window: expected an odd number of voxels, at least 3, got {window}; take e.g. 9")
        self.window = int(window)
        self.variance_floor = positive("variance_floor", variance_floor)

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Args: warped, fixed (B, C, *S). Returns: map (B, 1, *S). Raises: ValueError where the shapes differ."""
        warped, fixed = paired(warped, fixed)
        return -local_squared_ncc(warped, fixed, self.window, self.variance_floor).mean(dim=1, keepdim=True)


class NCC(nn.Module):
    """Global normalised cross-correlation, as the map 1 - z_w(x) z_f(x), whose mean is 1 - NCC.

    z = (I - mean) / sqrt(var + eps) of each image and channel; a constant image has z = 0, so its map is 1.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        """Args: eps, added to the variance, in squared intensity."""
        super().__init__()
        self.eps = positive("eps", eps)

    def _standardised(self, image: Tensor) -> Tensor:
        axes = tuple(range(2, image.ndim))
        centred = image - image.mean(dim=axes, keepdim=True)
        return centred * (centred.square().mean(dim=axes, keepdim=True) + self.eps).rsqrt()

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Args: warped, fixed (B, C, *S). Returns: map (B, 1, *S). Raises: ValueError where the shapes differ."""
        warped, fixed = paired(warped, fixed)
        return (1 - self._standardised(warped) * self._standardised(fixed)).mean(dim=1, keepdim=True)


class MI(nn.Module):
    """Global mutual information by Parzen windows, as a map whose mean is -MI.

    map(x) = -sum_ab w_a(I_w(x)) w_b(I_f(x)) log(p_ab / (p_a p_b)), with p_ab = mean_x w_a w_b, p_a, p_b its margins
    and w_a(i) proportional to exp(-(i - c_a)^2 / (2 sigma^2)), normalised over the bins at c_a = a / (bins - 1);
    sigma is half a bin. Intensities are clamped to [0, 1]; the channels of an image share one histogram. Windows,
    smoothing and value are those of `monai.losses.GlobalMutualInformationLoss`. Memory: two (B, C|S|, bins) windows
    and one product of that size.
    """

    def __init__(self, bins: int = 23, eps: float = 1e-7) -> None:
        """Args: bins, of the histogram of each image; eps, added to the probabilities and to their ratio."""
        super().__init__()
        if bins < 2:
            raise ValueError(f"bins: expected at least 2, got {bins}; take e.g. 23")
        self.bins = int(bins)
        self.eps = positive("eps", eps)

    def _windows(self, image: Tensor) -> Tensor:
        """Parzen weights (B, C|S|, bins) of every intensity; they sum to 1 over the bins."""
        centres = torch.linspace(0, 1, self.bins, dtype=image.dtype, device=image.device)
        distance = (image.clamp(0, 1).flatten(1).unsqueeze(-1) - centres) * (self.bins - 1)
        return torch.softmax(-2 * distance.square(), dim=-1)

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Args: warped, fixed (B, C, *S) in [0, 1]. Returns: map (B, 1, *S). Raises: ValueError, shapes differ."""
        warped, fixed = paired(warped, fixed)
        # Autocast would take the matrix products, and with them the probabilities, to half precision.
        with torch.autocast(warped.device.type, enabled=False):
            of_warped, of_fixed = self._windows(warped), self._windows(fixed)
            joint = of_warped.transpose(1, 2) @ of_fixed / of_warped.shape[1]
            margins = of_warped.mean(dim=1).unsqueeze(2) * of_fixed.mean(dim=1).unsqueeze(1)
            log_ratio = torch.log((joint + self.eps) / (margins + self.eps) + self.eps)
            information = ((of_warped @ log_ratio) * of_fixed).sum(dim=-1)
        return -information.view(warped.shape).mean(dim=1, keepdim=True)


SIMILARITIES: dict[str, type[nn.Module]] = {
    "mse": SquaredError,
    "mae": AbsoluteError,
    "tukey": Tukey,
    "lncc": LNCC,
    "ncc": NCC,
    "mi": MI,
    "lncc_gaussian": GaussianLNCC,
    "ncc_adaptive": AdaptiveMultiScaleNCC,
    "ncc_multiscale": MultiScaleNCC,
}


def build_similarity(name: str, **options: Any) -> nn.Module:
    """Build a similarity of `SIMILARITIES` by name.

    Args:
        name: a key of `SIMILARITIES`.
        options: the arguments of its class (`window` of lncc, `bins` of mi …).

    Raises:
        ValueError: an unknown name; the message lists the known ones and the nearest.
    """
    return SIMILARITIES[known_name("similarity", name, SIMILARITIES)](**options)
