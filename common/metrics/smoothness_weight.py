# SPDX-License-Identifier: Apache-2.0
"""How much TM-SPR's weight of the smoothness leaves of it, in the image and in each structure."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .cases import Cases
from .folding import masked_mean


class SmoothnessWeightMeasures:
    """``weight``: mean of the weight ω of the smoothness over the image, and ``weight_NAME`` over each structure.

    The quick variant has no columns, nor have methods without ω (solvers and networks without a head for it).

    Args:
        labels: name → value of the structures in ``fixed_label``; None has the whole image alone.
    """

    headlines = ("weight",)

    def __init__(self, labels: Mapping[str, int] | None = None) -> None:
        self.labels = dict(labels or {})

    def __call__(self, cases: Cases) -> dict[str, Tensor]:
        """Return the columns, each (B,), NaN where a case lacks the structure.

        Raises:
            ValueError: where the data hold no label and structures are asked for.
        """
        if not cases.thorough or "weight_volume" not in cases.uncertainty:
            return {}
        volume = cases.uncertainty["weight_volume"][:, 0]
        columns = {"weight": volume.flatten(1).mean(1)}
        if self.labels:
            (label,) = cases.of("weight of the smoothness", "fixed_label")
            for name, value in self.labels.items():
                columns[f"weight_{name}"] = masked_mean(volume, (label[:, 0] == value).to(torch.bool))
        return columns
