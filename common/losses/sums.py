# SPDX-License-Identifier: Apache-2.0
"""Weighted sums of similarities."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class SimilaritySum(nn.Module):
    """sum_i w_i S_i(warped, fixed): a residual map like those it adds up.

    Similarities that give one value a pair (B, 1, 1, …) count at every voxel, so that the mean of the sum is the
    weighted sum of the means.
    """

    def __init__(self, similarities: Sequence[nn.Module], weights: Sequence[float]) -> None:
        """Take the similarities and their weights.

        Args:
            similarities: (warped, fixed) -> map, at least one.
            weights: a number above 0 for each.

        Raises:
            ValueError: where there are none, not as many weights, or a weight is not a number above 0.
        """
        super().__init__()
        if not similarities or len(weights) != len(similarities):
            raise ValueError(
                f"similarities, weights: expected one weight for each of at least one similarity, got "
                f"{len(similarities)} and {len(weights)}; give e.g. [SquaredError(), LNCC()] and [1.0, 0.03]."
            )
        for weight in weights:
            if not 0 < weight < math.inf:
                raise ValueError(f"weights: expected numbers above 0, got {weight!r}; leave out what shall not count.")
        self.similarities = nn.ModuleList(similarities)
        self.weights = tuple(float(weight) for weight in weights)

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Compare two images.

        Args:
            warped: (B, C, *S).
            fixed: the same shape.

        Returns:
            Map (B, 1, *S); (B, 1, 1, …) where every similarity gives one value a pair.

        Raises:
            ValueError: where the shapes differ.
        """
        terms = [w * similarity(warped, fixed) for w, similarity in zip(self.weights, self.similarities, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def extra_repr(self) -> str:
        """The weights, beside the similarities that ``repr`` lists.

        Returns:
            Text.
        """
        return f"weights={self.weights}"
