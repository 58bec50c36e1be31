# SPDX-License-Identifier: Apache-2.0
"""Overlap of two masks, from counts of voxels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Overlap(NamedTuple):
    """Voxels of a predicted mask P and a reference R: |P ∩ R|, |P| and |R|, each (B,) int64.

    Counts add up: the sums over the slices of a volume are the volume's.
    """

    shared: Tensor
    predicted: Tensor
    reference: Tensor

    def dice(self) -> Tensor:
        """Dice coefficient 2 |P ∩ R| / (|P| + |R|), (B,) float32; NaN where the reference is empty.

        Returns:
            (B,).

        Reference:
            Dice, Ecology 1945.
        """
        return self._known(2.0 * self.shared / (self.predicted + self.reference))

    def jaccard(self) -> Tensor:
        """Jaccard index |P ∩ R| / |P ∪ R|, (B,) float32; NaN where the reference is empty.

        Returns:
            (B,).

        Reference:
            Jaccard, New Phytologist 1912.
        """
        return self._known(self.shared / (self.predicted + self.reference - self.shared))

    def _known(self, values: Tensor) -> Tensor:
        return torch.where(self.reference > 0, values, torch.nan)


def count_overlap(predicted: Tensor, reference: Tensor) -> Overlap:
    """Count the voxels of two masks and of what they share.

    Args:
        predicted: warped mask, (B, 1, *S) bool.
        reference: fixed mask, (B, 1, *S) bool.

    Returns:
        Three counts, each (B,) int64.

    Raises:
        ValueError: if the shapes differ or are not (B, 1, *S).
        TypeError: if a mask is not bool.
    """
    if predicted.shape != reference.shape or predicted.dim() not in (4, 5) or predicted.shape[1] != 1:
        raise ValueError(
            "predicted and reference: expected masks of one shape (B, 1, H, W[, D]),"
            f" got {tuple(predicted.shape)} and {tuple(reference.shape)}; pass one label at a time."
        )
    for name, mask in (("predicted", predicted), ("reference", reference)):
        if mask.dtype != torch.bool:
            raise TypeError(
                f"{name}: expected a mask of bool, got {mask.dtype}; compare a label map with the label (label == 2),"
                " or a warped mask with a threshold (mask >= 0.5)."
            )
    return Overlap(*(mask.flatten(1).sum(1) for mask in (predicted & reference, predicted, reference)))
