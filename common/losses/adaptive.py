# SPDX-License-Identifier: Apache-2.0
"""Global NCC on several scales: their average, and GradICON's self-adaptive combination of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checks import known_name, positive
from .gaussian import gaussian_filter
from .pairs import paired

COARSEST = 4  # Q of the paper
SMALLEST_AXIS = 4
VARIANCE_EPS = 1e-8
PRESETS = ("paper", "official")


def _pyramid(image: Tensor, sigma: float) -> list[Tensor]:
    """The image, it blurred, and that at 1/2, 1/4 and 1/8 as far as every axis keeps `SMALLEST_AXIS` voxels."""
    pool = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[image.ndim - 2]
    levels = [image, gaussian_filter(image, sigma)]
    for level in range(2, COARSEST + 1):
        if min(levels[-1].shape[2:]) // 2 < SMALLEST_AXIS:
            break
        blurred = levels[-1] if level == 2 else gaussian_filter(levels[-1], sigma)
        levels.append(pool(blurred, 2))
    return levels


def _distance(warped: Tensor, fixed: Tensor) -> Tensor:
    """1 - NCC of each pair, (B,): the mean over the channels; 1 where an image is constant."""
    axes = tuple(range(2, warped.ndim))
    w = warped - warped.mean(dim=axes, keepdim=True)
    f = fixed - fixed.mean(dim=axes, keepdim=True)
    # Two roots, not that of the product, which could underflow.
    scale = (w.square().mean(dim=axes) + VARIANCE_EPS).rsqrt() * (f.square().mean(dim=axes) + VARIANCE_EPS).rsqrt()
    return 1 - ((w * f).mean(dim=axes) * scale).mean(dim=1)


def scale_distances(warped: Tensor, fixed: Tensor, sigma: float = 2.0) -> Tensor:
    """1 - NCC on every scale, from the finest to the coarsest.

    Scales: full resolution, full resolution blurred, 1/2, 1/4, 1/8. Each of the three is the scale before it, blurred
    (as full resolution is once) and averaged over blocks of 2 voxels an axis; one that would have an axis shorter than
    4 voxels is left out with those after it.
    Departure: the published code averages first and blurs afterwards, under zeros beyond the border; blurring first
    aliases less, and our windows count only the voxels inside.

    Args:
        warped: (B, C, *S), one to three axes.
        fixed: (B, C, *S), one to three axes.
        sigma: standard deviation of the blur in voxels of the scale blurred.

    Returns:
        (Q + 1, B), row i = scale i, in [0, 2]; Q = 4 where every axis has at least 32 voxels.

    Raises:
        ValueError: where the shapes differ.
    """
    warped, fixed = paired(warped, fixed)
    levels = zip(_pyramid(warped, sigma), _pyramid(fixed, sigma), strict=True)
    return torch.stack([_distance(w, f) for w, f in levels])


def _per_pair(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1 for _ in like.shape[1:]))


class MultiScaleNCC(nn.Module):
    """The plain average over the scales of 1 - NCC (`scale_distances`), one value a pair.

    A pair has one value, not a map: weighting it by a map multiplies it by the map's mean.

    Reference:
        Tian et al., GradICON, CVPR 2023, Sec. 6.2 ("multi_avg").
    """

    def __init__(self, sigma: float = 2.0) -> None:
        """Choose the blur.

        Args:
            sigma: its standard deviation in voxels of each scale.

        Raises:
            ValueError: where it is not above 0.
        """
        super().__init__()
        self.sigma = positive("sigma", sigma)

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Compare two images.

        Args:
            warped: (B, C, *S).
            fixed: the same shape.

        Returns:
            One value a pair, (B, 1, 1, …), d + 2 axes.

        Raises:
            ValueError: where the shapes differ.
        """
        return _per_pair(scale_distances(warped, fixed, self.sigma).mean(dim=0), warped)


class AdaptiveMultiScaleNCC(nn.Module):
    """Self-adaptive similarity: coarse scales while they disagree, finer ones as they come to agree.

    With D_i = 1 - NCC on scale i (`scale_distances`), g_0 = D_0 and g_i = gamma_i D_i + (1 - gamma_i) g_(i-1), the
    value of a pair is g_Q. gamma_i, without gradient, is clamp(D_i / h_i, 0, 1), with h_i = 1 (Eq. 7) or, greedy,
    h_i = alpha / beta^(Q - i) (Eq. 8; "official": one power more, 5 - i where Q = 4). The same for each pair of a
    batch alone. A pair has one value, not a map: weighting it by a map multiplies it by the map's mean.
    Departure: Eq. 7 has no clamp; without it scales that are anti-correlated (D > 1) would give all finer ones
    negative weight.

    Reference:
        Tian et al., GradICON, CVPR 2023, Eqs. 7-8 (alpha 0.1, beta 1.3).
    """

    def __init__(
        self,
        greedy: bool = False,
        alpha: float = 0.1,
        beta: float = 1.3,
        preset: str = "paper",
        sigma: float = 2.0,
    ) -> None:
        """Choose the thresholds.

        Args:
            greedy: thresholds of Eq. 8 instead of Eq. 7.
            alpha: threshold of the coarsest scale, for Eq. 8.
            beta: ratio of the thresholds of neighbouring scales, for Eq. 8.
            preset: "paper" or "official", which counts one power more.
            sigma: of the blur in voxels of each scale.

        Raises:
            ValueError: for an unknown preset, alpha or sigma not above 0, or beta not above 1.
        """
        super().__init__()
        if not beta > 1:
            raise ValueError(f"beta: expected a number above 1, got {beta!r}; finer scales have lower thresholds")
        self.greedy = bool(greedy)
        self.alpha, self.beta = positive("alpha", alpha), float(beta)
        self.preset = known_name("preset", preset, PRESETS)
        self.sigma = positive("sigma", sigma)

    def weights(self, distances: Tensor) -> Tensor:
        """The weight of every scale's term, gamma_i prod_(k > i) (1 - gamma_k), without gradient.

        Args:
            distances: (Q + 1, B), as `scale_distances` returns them.

        Returns:
            (Q + 1, B) in [0, 1], summing to 1 over the scales.
        """
        gamma = distances.detach()
        if self.greedy:
            exponent = torch.arange(len(gamma) - 1, -1, -1, device=gamma.device, dtype=gamma.dtype)
            exponent = exponent + (1 if self.preset == "official" else 0)
            gamma = gamma * (self.beta**exponent / self.alpha).view(-1, 1)
        gamma = gamma.clamp(0, 1)
        # The recursion ends at the finest scale, which takes all that is left.
        gamma = torch.cat([torch.ones_like(gamma[:1]), gamma[1:]])
        left = torch.cat([(1 - gamma[1:]).flip(0).cumprod(0).flip(0), torch.ones_like(gamma[:1])])
        return gamma * left

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Compare two images.

        Args:
            warped: (B, C, *S).
            fixed: the same shape.

        Returns:
            One value a pair, (B, 1, 1, …), d + 2 axes.

        Raises:
            ValueError: where the shapes differ.
        """
        distances = scale_distances(warped, fixed, self.sigma)
        return _per_pair((self.weights(distances) * distances).sum(dim=0), warped)
