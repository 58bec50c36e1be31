# SPDX-License-Identifier: Apache-2.0
"""How much blood a ventricle ejects, by its labels at both phases and by the registered label."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..spatial.warp import warp
from .cases import Cases

SUMS = "ejection_fraction"
COLUMNS = ("ejection_fraction", "ejection_fraction_registered")


def ejection_fraction(diastole: float, systole: float) -> float:
    """100 (ED - ES) / ED.

    Args:
        diastole: volume at ED.
        systole: at ES, in the same unit.

    Returns:
        Per cent; NaN where there is no volume at ED.
    """
    return 100 * (1 - systole / diastole) if diastole else float("nan")


class EjectionFractionMeasures:
    """Ejection fraction 100 (ED - ES) / ED of a subject in per cent, of pairs of end-diastole (moving) and end-systole.

    Columns of ``subjects.csv``: ``ejection_fraction`` of the labels of both phases, ``ejection_fraction_registered`` of
    ED's label and of the same warped onto ES, ``ejection_fraction_error``: the latter less the former; and
    ``slices_lost``: cases (of a stack, slices) with a cavity at ED and none at ES, as at the base, which moves out of
    its slice; the registered label still has one there. Voxels are counted, a warped mask where it reaches 0.5, so that
    the voxel's size cancels where all cases of a subject have the same. There are no columns of cases.

    Args:
        cavity: value of the ventricle's cavity in the labels.
    """

    headlines = ()

    def __init__(self, cavity: int) -> None:
        self.cavity = int(cavity)

    def __call__(self, cases: Cases) -> dict[str, Tensor]:
        """Leave the counts for ``of_subject``, and return no column.

        Raises:
            ValueError: where the data hold no labels.
        """
        if not cases.thorough:
            return {}
        moving, fixed = cases.of("ejection fraction", "moving_label", "fixed_label")
        diastole, systole = (label == self.cavity for label in (moving, fixed))
        warped = warp(diastole.to(cases.ddf.dtype), cases.ddf) >= 0.5
        counts = [mask.flatten(1).sum(1) for mask in (diastole, systole, warped)]
        lost = (counts[0] > 0) & (counts[1] == 0)
        cases.sums[SUMS] = torch.stack([*counts, lost], dim=1).double()
        return {}

    def of_subject(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Columns of a subject, NaN where ED has no cavity.

        Args:
            sums: by name, each summed over the subject's cases.

        Returns:
            Value by column.
        """
        if SUMS not in sums:
            return {}
        diastole, systole, warped, lost = sums[SUMS].tolist()
        found = [ejection_fraction(diastole, volume) for volume in (systole, warped)]
        columns = dict(zip(COLUMNS, found, strict=True))
        return columns | {"ejection_fraction_error": found[1] - found[0], "slices_lost": lost}
