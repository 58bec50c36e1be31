# SPDX-License-Identifier: Apache-2.0
"""Local squared normalised cross-correlation with a rectangular window, and its gradient in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..checks import positive
from .pairs import paired


def _box_sum_along(image: Tensor, window: int, axis: int) -> Tensor:
    """Sum over `window` neighbours along one axis, zeros outside.

    Sums of 2, 4, 8 … neighbours come from one another and the bits of the window's length say which of them to add:
    9 neighbours cost four vectorised additions.
    """
    length = image.shape[axis]
    shape = list(image.shape)
    shape[axis] = length + window - 1
    half = window // 2
    partial = image.new_empty(shape)
    partial.narrow(axis, 0, half).zero_()
    partial.narrow(axis, half, length).copy_(image)
    partial.narrow(axis, half + length, half).zero_()
    # The window is odd: its lowest bit is always set.
    total, offset, width = partial.narrow(axis, 0, length), 1, 1
    while 2 * width <= window:
        rest = partial.shape[axis] - width
        partial = partial.narrow(axis, 0, rest) + partial.narrow(axis, width, rest)
        width *= 2
        if window & width:
            total = total + partial.narrow(axis, offset, length)
            offset += width
    return total


def box_sum(image: Tensor, window: int) -> Tensor:
    """Sum over a cubic window around every voxel, zeros outside the image.

    Args:
        image: (B, C, *S).
        window: edge of the window in voxels, odd.

    Returns:
        (B, C, *S), of the type of `image`.
    """
    for axis in range(2, image.ndim):
        image = _box_sum_along(image, window, axis)
    return image


class _LocalSquaredNCC(torch.autograd.Function):
    """cc^2 with its backward pass.

    With s the box sum, N the voxels of the window, cross = s(fg) - s(f)s(g)/N, var_f = s(ff) - s(f)^2/N and
    cc^2 = cross^2 / (var_f var_g), the derivatives a = d cc^2/d cross = 2 cross/(var_f var_g) and
    b_f = d cc^2/d var_f = -cc^2/var_f (0 where the floor holds) give, for an incoming gradient h,

        dL/df = g s(ha) + 2 f s(h b_f) - s(h c_f),   c_f = (a s(g) + 2 b_f s(f)) / N,

    since the box sum is its own adjoint. So three maps are kept for each image that needs a gradient, and the
    backward pass takes three box sums, where differentiating through the forward pass keeps some twenty maps.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, window: int, variance_floor: float) -> Tensor:
        # The variance is a difference of large, nearly equal sums: in float32 its error in flat regions exceeds the
        # floor (2e-4 on 9^3 voxels of intensity 1) and would come out as spurious correlation. MPS has no float64.
        exact = first.dtype if first.device.type == "mps" else torch.float64
        f, g = first.to(exact), second.to(exact)
        count = window ** (first.ndim - 2)
        sum_f, sum_g = box_sum(f, window), box_sum(g, window)
        var_f = box_sum(f * f, window).addcmul_(sum_f, sum_f, value=-1 / count)
        var_g = box_sum(g * g, window).addcmul_(sum_g, sum_g, value=-1 / count)
        cross = box_sum(f * g, window).addcmul_(sum_f, sum_g, value=-1 / count)
        del f, g
        textured_f, textured_g = var_f > variance_floor, var_g > variance_floor
        var_f.clamp_(min=variance_floor)
        var_g.clamp_(min=variance_floor)
        slope = cross / (var_f * var_g)
        squared = cross.mul_(slope)
        slope.mul_(2)

        kept = [slope.to(first.dtype)]
        images = ((textured_f, var_f, sum_f, sum_g), (textured_g, var_g, sum_g, sum_f))
        for needed, (textured, variance, own, other) in zip(ctx.needs_input_grad[:2], images, strict=True):
            if needed:
                curve = variance.reciprocal_().mul_(squared).mul_(textured).neg_()
                offset = (slope * other).addcmul_(curve, own, value=2).div_(count)
                kept += [curve.to(first.dtype), offset.to(first.dtype)]
        ctx.save_for_backward(first, second, *kept)
        ctx.window = window
        return squared.to(first.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        first, second, slope, *kept = ctx.saved_tensors
        shared = box_sum(upstream * slope, ctx.window)
        gradients: list[Tensor | None] = []
        for needed, own, other in zip(ctx.needs_input_grad[:2], (first, second), (second, first), strict=True):
            if not needed:
                gradients.append(None)
                continue
            curve, offset, *kept = kept
            gradient = shared * other
            gradient.addcmul_(box_sum(upstream * curve, ctx.window), own, value=2)
            gradients.append(gradient.sub_(box_sum(upstream * offset, ctx.window)))
        return gradients[0], gradients[1], None, None


def local_squared_ncc(first: Tensor, second: Tensor, window: int = 9, variance_floor: float = 1e-5) -> Tensor:
    """Squared normalised cross-correlation in a cubic window around every voxel, in [0, 1].

    cc^2 = cross^2 / (max(var_f, floor) max(var_g, floor)), the window's missing voxels counting as zeros. The same
    definition as `monai.losses.LocalNormalizedCrossCorrelationLoss(kernel_type="rectangular")`; departure: the sums
    are accumulated in float64, so that flat regions give 0 instead of rounding noise. Differentiable once.

    Args:
        first: (B, C, *S), float32 or float64; each channel is correlated by itself.
        second: of the same shape and type.
        window: edge of the window in voxels, odd.
        variance_floor: least sum of squared deviations over the window; below it the image counts as flat.

    Returns:
        (B, C, *S).

    Reference:
        Avants et al., Medical Image Analysis 2008 (cross-correlation); Balakrishnan et al., VoxelMorph,
        IEEE TMI 2019, Eq. 7.
    """
    return _LocalSquaredNCC.apply(first, second, window, variance_floor)


class LNCC(nn.Module):
    """Minus the local squared NCC, -cc^2, in [-1, 0]; the mean over the channels.

    Windows reach over the border, where the image counts as 0. See `local_squared_ncc`.
    """

    def __init__(self, window: int = 9, variance_floor: float = 1e-5) -> None:
        """Choose the window.

        Args:
            window: its edge in voxels, odd.
            variance_floor: least sum of squared deviations over the window.

        Raises:
            ValueError: for an even window or one below 3, or a floor not above 0.
        """
        super().__init__()
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window: expected an odd number of voxels, at least 3, got {window}; take e.g. 9")
        self.window = int(window)
        self.variance_floor = positive("variance_floor", variance_floor)

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Compare two images.

        Args:
            warped: (B, C, *S).
            fixed: the same shape.

        Returns:
            Map (B, 1, *S).

        Raises:
            ValueError: where the shapes differ.
        """
        warped, fixed = paired(warped, fixed)
        return -local_squared_ncc(warped, fixed, self.window, self.variance_floor).mean(dim=1, keepdim=True)
