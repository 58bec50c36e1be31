# SPDX-License-Identifier: Apache-2.0
"""Overlap of the warped moving labels with the fixed ones: weak supervision by segmentations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..spatial.warp import warp
from .objective import Step

TOGETHER = 4  # masks that are warped at a time


class LabelOverlap(nn.Module):
    """1 − soft Dice of the warped moving labels and the fixed ones, the mean over labels and pairs.

    Dice = 2 Σ m f / Σ (m² + f²), m the label's mask warped linearly, 0 outside the image. A label that neither image of
    a pair holds counts as found (a published variant gives it the loss 1, without gradient).

    Masks are made and warped a few at a time, and again in the backward pass, which keeps none of them: memory does not
    grow with the number of labels.

    Args:
        labels: values to compare, one mask each.

    Raises:
        ValueError: for no label.

    Reference:
        Balakrishnan et al., VoxelMorph, IEEE TMI 2019, Sec. III-D (weak supervision by segmentations).
    """

    def __init__(self, labels: Sequence[int]) -> None:
        super().__init__()
        if not labels:
            raise ValueError("labels: expected at least one value, got none.")
        self.labels = [int(label) for label in labels]

    def forward(self, step: Step) -> Tensor:
        ddf, losses = step.estimate.ddf, []
        for first in range(0, len(self.labels), TOGETHER):
            compare = partial(_losses, step.moving_label, step.fixed_label, self.labels[first : first + TOGETHER])
            losses.append(checkpoint(compare, ddf, use_reentrant=False, preserve_rng_state=False))
        return torch.cat(losses, dim=1).mean()


class DiceLoss(nn.Module):
    """``LabelOverlap`` of all classes of a one-hot label map, its background included.

    Args:
        classes: number of label values: 0, the background, to classes − 1.

    Raises:
        ValueError: for less than two classes.

    Reference:
        Chen et al., TransMorph, Medical Image Analysis 2022, and its released code (36 classes of OASIS).
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        if isinstance(classes, bool) or int(classes) != classes or classes < 2:
            raise ValueError(
                f"classes: expected a whole number of at least 2, the labels and the background, got {classes!r}."
            )
        self.overlap = LabelOverlap(range(int(classes)))

    def forward(self, step: Step) -> Tensor:
        moving, fixed = step.moving_label, step.fixed_label
        if moving.shape != fixed.shape:
            raise ValueError(
                f"moving_label, fixed_label: expected one grid for both, got {tuple(moving.shape)} and "
                f"{tuple(fixed.shape)}; bring them to the images' grid."
            )
        classes = len(self.overlap.labels)
        for name, label in (("moving_label", moving), ("fixed_label", fixed)):
            wrong = (label < 0) | (label >= classes) | (label != label.round())
            if bool(wrong.any()):
                found = torch.unique(label[wrong])[:5].tolist()
                raise ValueError(
                    f"{name}: expected the values 0 to {classes - 1} of {classes} classes, got {found}; set classes to "
                    "the largest label + 1, or number the labels of both images alike."
                )
        return self.overlap(step)


def _losses(moving: Tensor, fixed: Tensor, labels: Sequence[int], ddf: Tensor) -> Tensor:
    """Of each pair and label, (B, labels)."""
    values = torch.tensor(labels, device=ddf.device).view(1, -1, *[1] * (moving.dim() - 2))
    moving_mask, fixed_mask = ((image == values).to(ddf.dtype) for image in (moving, fixed))
    warped = warp(moving_mask, ddf)
    overlap = (warped * fixed_mask).flatten(2).sum(2)
    size = warped.square().flatten(2).sum(2) + fixed_mask.square().flatten(2).sum(2)
    return 1 - (2 * overlap + 1e-5) / (size + 1e-5)
