# SPDX-License-Identifier: Apache-2.0
"""Label measures at the original size of data whose images are resized for the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..spatial.fields import resized
from .cases import Cases
from .labels import LabelMeasures

PREFIX = "original_"


class OriginalLabelMeasures:
    """``LabelMeasures`` on the labels as they were before resizing, the displacement brought to their grid.

    Columns have the names of ``LabelMeasures`` after ``original_``: ``original_dice``, ``original_hd_before`` …; the
    displacement is resized with each component times the ratio of the sizes (``spatial.fields.resized``), and distances
    are in voxels of the original grid, ``*_mm`` where its spacing is known. Cases may differ in size. In quick
    evaluations nothing is measured.

    Args:
        labels: see ``LabelMeasures``.
        scored: see ``LabelMeasures``.

    Raises:
        ValueError: see ``LabelMeasures``.
    """

    headlines = tuple(PREFIX + name for name in LabelMeasures.headlines)

    def __init__(self, labels: Mapping[str, int], scored: Sequence[str] | None = None) -> None:
        self.measures = LabelMeasures(labels, scored)

    def __call__(self, cases: Cases) -> dict[str, Tensor]:
        """Return the columns, each (B,).

        Raises:
            ValueError: where the data hold no labels of original size.
        """
        if not cases.thorough:
            return {}
        moving, fixed, spacing = cases.of(
            "labels of original size", "moving_label_original", "fixed_label_original", "spacing_original"
        )
        rows = []
        for index in range(len(cases.ddf)):
            labels = {"moving_label": moving[index][None], "fixed_label": fixed[index][None]}
            ddf = resized(cases.ddf[index : index + 1], fixed[index].shape[1:])
            batch = {key: label.to(ddf.device) for key, label in labels.items()}
            own = Cases({**batch, "spacing": spacing[index : index + 1]}, ddf, cases.warped_image[index : index + 1])
            rows.append(self.measures(own))
        names = dict.fromkeys(name for row in rows for name in row if name != "scorable")
        unknown = cases.ddf.new_full((1,), torch.nan)  # columns in mm are those of some cases alone
        return {PREFIX + name: torch.cat([row.get(name, unknown) for row in rows]) for name in names}
