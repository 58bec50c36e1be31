# SPDX-License-Identifier: Apache-2.0
"""How well two displacements invert one another."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spatial.fields import compose, lengths
from .cases import Cases


class InverseConsistencyMeasures:
    """``inverse_consistency_error`` of evaluations that register both ways.

    The quick variant leaves it out, since validation while training registers one way.
    """

    headlines = ("inverse_consistency_error",)

    def __call__(self, cases: Cases) -> dict[str, Tensor]:
        """Return the column, (B,).

        Raises:
            ValueError: where one direction was registered only.
        """
        if not cases.thorough:
            return {}
        if cases.reverse_ddf is None:
            raise ValueError(
                "inverse_consistency: expected registrations both ways, got one direction; leave the measure out of "
                "'measures', or give the evaluator both_ways=True."
            )
        return {"inverse_consistency_error": inverse_consistency_error(cases.ddf, cases.reverse_ddf)}


def inverse_consistency_error(ddf_ab: Tensor, ddf_ba: Tensor) -> Tensor:
    """Mean over the grid of the Euclidean distance ‖x - Φ_AB(Φ_BA(x))‖.

    Beyond the grid displacements go on with their value at the border. Computed in float32 at least.

    Args:
        ddf_ab: displacement of Φ_AB in voxels, (B, d, *S).
        ddf_ba: displacement of Φ_BA in voxels, on the same grid.

    Returns:
        (B,) in voxels.

    Raises:
        ValueError: if the fields' shapes differ or are not (B, d, *S).
    """
    if ddf_ab.shape != ddf_ba.shape or ddf_ab.dim() not in (4, 5) or ddf_ab.shape[1] != ddf_ab.dim() - 2:
        raise ValueError(
            "ddf_ab and ddf_ba: expected displacements of one shape (B, d, *S) with d axes,"
            f" got {tuple(ddf_ab.shape)} and {tuple(ddf_ba.shape)}; resample one with"
            " common.spatial.integrate.resize_field or move the components to the channel axis."
        )
    dtype = torch.float64 if torch.float64 in (ddf_ab.dtype, ddf_ba.dtype) else torch.float32
    return lengths(compose(ddf_ab.to(dtype), ddf_ba.to(dtype))).flatten(1).mean(dim=1)
