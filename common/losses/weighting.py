# SPDX-License-Identifier: Apache-2.0
"""Weights computed from the residual in closed form: AdaReg (smoothness term) and AdaFrame (data term)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .smoothness import Diffusion

ADAREG_FORMS = ("paper", "official")


def _checked_residual(residual_abs: Tensor) -> Tensor:
    if residual_abs.ndim < 3 or residual_abs.shape[1] != 1:
        raise ValueError(
            f"residual_abs: expected (B, 1, *S), got {tuple(residual_abs.shape)}; "
            "average the channels, e.g. with similarity.AbsoluteError"
        )
    residual = residual_abs.detach()
    return residual if residual.dtype == torch.float64 else residual.float()


def _checked_form(name: str, form: str) -> str:
    if form not in ADAREG_FORMS:
        raise ValueError(f"{name}: expected one of {', '.join(ADAREG_FORMS)}, got {form!r}")
    return form


def _per_image_mean(image: Tensor) -> Tensor:
    return image.mean(dim=tuple(range(1, image.ndim)), keepdim=True)


def resample_weight(weight: Tensor, size: Sequence[int]) -> Tensor:
    """Bring a weight map to another grid over the same field of view, e.g. that of a half-resolution velocity.

    Cell averages where no axis grows, so that no voxel is left out; else linear interpolation (align_corners=True).
    The result stays within the range of `weight`.

    Args:
        weight: (B, 1, *S).
        size: the wanted S.

    Returns:
        (B, 1, *size).

    Raises:
        ValueError: `size` has another number of axes.
    """
    size = tuple(size)
    if len(size) != weight.ndim - 2:
        raise ValueError(f"size: expected {weight.ndim - 2} axes as in weight {tuple(weight.shape)}, got {size}")
    if size == tuple(weight.shape[2:]):
        return weight
    if all(new <= old for new, old in zip(size, weight.shape[2:], strict=True)):
        return functional.interpolate(weight, size=size, mode="area")
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return functional.interpolate(weight, size=size, mode=mode, align_corners=True)


def adareg_weight(residual_abs: Tensor, c: float = 50.0, form: str = "paper") -> Tensor:
    """AdaReg's smoothness weight, from alpha(x) = exp(-c rho(x) / sigma_bar): smooth where the images already agree.

    rho = |I_f - I_w| and sigma_bar is its mean over the image (the formula as printed in the AdaCS paper has the sum
    in the denominator: a misprint). An image without residual has alpha = 1.

    Args:
        residual_abs: (B, 1, *S), |residual|, any unit; detached here.
        c: steepness.
        form: "paper" returns alpha^2, the factor on |grad u|^2 in |alpha grad u|^2; "official" returns alpha, which
            the published code multiplies with the field itself before differencing, |grad(alpha u)|^2.

    Returns:
        (B, 1, *S) in [0, 1].

    Raises:
        ValueError: another number of channels than 1, or an unknown form.

    Reference:
        Wong and Soatto, CVPR 2019 (bilateral cyclic constraint and adaptive regularization); constants of the
        AdaCS paper, "Adaptive weighting schemes".
    """
    _checked_form("form", form)
    residual = _checked_residual(residual_abs)
    mean = _per_image_mean(residual).clamp(min=torch.finfo(residual.dtype).tiny)
    power = 2 if form == "paper" else 1
    return torch.exp(-power * c * residual / mean)


def adaframe_weight(residual_abs: Tensor, a0: float = 0.1, b0: float = 10.0, eps: float = 1e-8) -> Tensor:
    """AdaFrame's data weight: the larger the residual beside the others of its image, the lower.

    alpha = 1 - 1 / (1 + exp(-(a rho - b))) = sigmoid(b - a rho), with rho = (delta - mu) / sqrt(var + eps) the
    standardised delta = |I_f - I_w|, a = a0 / (mu + eps) and b = b0 (1 - cos(pi mu)). While the images disagree (mu
    large) b is large and every weight near 1; as they come to agree b falls to 0 and the sigmoid sharpens.
    Departure: the AdaCS paper prints exp(-1 / (a rho - b)); that reciprocal has a pole at a rho = b and rises with
    the residual on both sides of it, against the method's purpose, so it is taken for a misprint.

    Args:
        residual_abs: (B, 1, *S), |residual| of images in [0, 1]; detached here.
        a0: steepness at mean residual 1.
        b0: offset, at its largest 2 b0.
        eps: keeps a and rho finite where the residual vanishes or is constant.

    Returns:
        (B, 1, *S) in [0, 1].

    Raises:
        ValueError: another number of channels than 1.

    Reference:
        Wong et al., An Adaptive Framework for Learning Unsupervised Depth Completion, IEEE RA-L 2021;
        constants of the AdaCS paper, "Adaptive weighting schemes".
    """
    residual = _checked_residual(residual_abs)
    mean = _per_image_mean(residual)
    centred = residual - mean
    standardised = centred * (_per_image_mean(centred.square()) + eps).rsqrt()
    return torch.sigmoid(b0 * (1 - torch.cos(torch.pi * mean)) - a0 / (mean + eps) * standardised)


class AdaRegSmoothness(nn.Module):
    """Diffusion energy weighted by AdaReg: |alpha grad u|^2 ("paper") or |grad(alpha u)|^2 ("official").

    See `adareg_weight` for alpha and the two presets. Where the field has another grid than the residual
    (half-resolution velocity), the weight is brought to the field's.
    """

    def __init__(self, c: float = 50.0, preset: str = "paper") -> None:
        """Choose the weight.

        Args:
            c: steepness.
            preset: "paper" or "official".

        Raises:
            ValueError: for an unknown preset.
        """
        super().__init__()
        self.c = float(c)
        self.preset = _checked_form("preset", preset)
        self.diffusion = Diffusion()

    def forward(self, field: Tensor, residual_abs: Tensor) -> Tensor:
        """Return the energy, a scalar.

        Args:
            field: (B, C, *S), displacement or velocity in voxels.
            residual_abs: (B, 1, *S'), |residual| on the image's grid.

        Returns:
            A scalar.
        """
        weight = resample_weight(adareg_weight(residual_abs, self.c, self.preset), field.shape[2:])
        if self.preset == "official":
            return self.diffusion(weight * field)
        return self.diffusion(field, weight)
