# SPDX-License-Identifier: Apache-2.0
"""What may stand in the place of a data weight, to see what a gain is due to."""

from __future__ import annotations

import torch
from torch import Tensor

from .objective import Step

CONTROLS = ("none", "mean", "shuffled", "other")


def controlled(weight: Tensor, step: Step, control: str, option: str) -> Tensor:
    """A data weight, or what a control puts in its place: something that lacks what the weight knows.

    "none" is the weight w. "mean" is its mean over the pixels of each image. "shuffled" has the values of w at random
    pixels of their own image, drawn anew in every step. "other" is the weight of the next pair of the batch, in the
    same direction: not that of this pair. The controls are this project's. Where the step has a ``mask``, everything
    happens inside it, and the weight is 0 outside.

    Args:
        weight: w, (B, 1, *S), without gradient.
        step: of the iteration.
        control: one of ``CONTROLS``.
        option: what an error calls it.

    Returns:
        (B, 1, *S).

    Raises:
        ValueError: for "other" with one pair.
    """
    if control == "mean":
        weight = masked_mean(weight, step.mask).expand_as(weight)
    elif control == "shuffled":
        weight = shuffled(weight, step.mask)
    elif control == "other":
        weight = _next_pairs(weight, step.bidirectional, option)
    return weight if step.mask is None else weight * step.mask


def masked_mean(image: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the pixels of each image.

    Args:
        image: (B, C, *S).
        mask: (B, C, *S), 1 where pixels count and 0 elsewhere; None counts all.

    Returns:
        (B, 1, …, 1); 0 where no pixel counts.
    """
    axes = tuple(range(1, image.dim()))
    if mask is None:
        return image.mean(dim=axes, keepdim=True)
    return (image * mask).sum(dim=axes, keepdim=True) / mask.sum(dim=axes, keepdim=True).clamp(min=1)


def shuffled(image: Tensor, mask: Tensor | None) -> Tensor:
    """The values of each image at random pixels of its own, drawn from torch's random state.

    Args:
        image: (B, C, *S).
        mask: (B, C, *S): values inside it and outside it stay apart; None shuffles all.

    Returns:
        (B, C, *S).
    """
    values = image.flatten(1)
    draw = torch.rand(values.shape, device=values.device)
    outside = torch.zeros_like(draw) if mask is None else (mask == 0).flatten(1).to(draw.dtype)
    # Pixels inside the mask come first in both orders, at random in one, as they lie in the other.
    source, target = (draw + outside).argsort(dim=1), outside.argsort(dim=1, stable=True)
    return torch.empty_like(values).scatter(1, target, values.gather(1, source)).view_as(image)


def _next_pairs(weight: Tensor, bidirectional: bool, option: str) -> Tensor:
    directions = weight.chunk(2) if bidirectional else (weight,)
    if len(directions[0]) < 2:
        raise ValueError(
            f"{option}: 'other' weighs a pair with the weight of another one, and there is only one in this step. "
            "Raise batch_size to 2 or more, or choose another control."
        )
    return torch.cat([direction.roll(1, 0) for direction in directions])
