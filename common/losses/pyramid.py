# SPDX-License-Identifier: Apache-2.0
"""What a network of several levels minimises: similarities at several resolutions, a smoothness that its code sets."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..spatial.pyramid import halved, warp_onto
from .lncc import LNCC
from .objective import Step


def with_window(similarity: nn.Module, window: int) -> nn.Module:
    """A similarity whose local NCCs, where it is one or a sum with some, have another window.

    Args:
        similarity: (warped, fixed) -> residual map.
        window: edge in voxels, odd.

    Returns:
        A copy.
    """
    similarity = copy.deepcopy(similarity)
    for part in similarity.modules():
        if isinstance(part, LNCC):
            part.window = window
    return similarity


class PyramidSimilarity(nn.Module):
    """Σ_k 2^-k · mean_x ρ_k, the level's images against each other, then averaged by 2, by 4, down to the coarsest.

    Of a network that runs L levels, the L-th one's displacement samples the whole moving image on that level's grid;
    the fixed image is averaged down to it. What is compared on the grid of level l is compared by the l-th similarity,
    so that each of the pyramid's grids has its own window. At the finest level the first summand is the step's
    residual, which a data weight multiplies; the coarser ones stay as they are.

    Args:
        similarities: (warped, fixed) -> residual map, from the coarsest level to the finest, whose is the method's.
        weight: module step -> detached data weight, (B, 1, *S), or None for 1; None is 1 throughout.

    Reference:
        Mok and Chung, LapIRN, MICCAI 2020 (the similarity pyramid); Zhang et al., AdaCS, ECCV 2024, Eq. 2 (the weight;
        how it enters several levels is not published).
    """

    def __init__(self, similarities: Sequence[nn.Module], weight: nn.Module | None = None) -> None:
        super().__init__()
        self.similarities, self.weight = nn.ModuleList(similarities), weight

    def forward(self, step: Step) -> Tensor:
        fields = [*step.estimate.coarser, step.estimate.ddf]
        level = [field.shape[2:] for field in fields].index(step.estimate.velocity.shape[2:])
        weight = None if self.weight is None else self.weight(step)
        if level + 1 == len(self.similarities):
            warped, fixed = _masked(step.warped, step.fixed, step.mask)
            total = (step.residual if weight is None else weight * step.residual).mean()
        elif weight is None:
            warped, fixed = self._on_level(step, fields[level], level)
            total = self.similarities[level](warped, fixed).mean()
        else:
            raise ValueError(
                f"similarity: a score weighs the finest level, and {level + 1} of {len(self.similarities)} levels run. "
                "Start from weights of a training that reached the last one (--initial_weights)."
            )
        for halvings in range(1, level + 1):
            warped, fixed = halved(warped), halved(fixed)
            total = total + self.similarities[level - halvings](warped, fixed).mean() / 2**halvings
        return total

    def _on_level(self, step: Step, field: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The warped and the fixed image on a coarser level's grid."""
        moving, fixed = step.moving, step.fixed
        for _ in range(len(self.similarities) - 1 - level):
            moving, fixed = halved(moving), halved(fixed)
        mask = None if step.mask is None else ((moving != 0) | (fixed != 0)).to(fixed.dtype)
        return _masked(warp_onto(step.moving, field), fixed, mask)


def _masked(warped: Tensor, fixed: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return (warped, fixed) if mask is None else (warped * mask, fixed * mask)


class LevelWeight:
    """The weight of a term for each number of levels that a network runs.

    Args:
        network: has ``running``, that number.
        weights: of one level, of two, …

    Reference:
        Tian et al., GradICON, CVPR 2023, Table 4.
    """

    def __init__(self, network: Any, weights: Sequence[float]) -> None:
        self.network, self.weights = network, [float(weight) for weight in weights]

    def __call__(self, step: Step) -> Tensor:
        """The weight of a step.

        Args:
            step: of the iteration.

        Returns:
            A scalar.
        """
        return step.fixed.new_tensor(self.weights[self.network.running - 1])


class CodeWeight:
    """largest · code: the weight of a term that the network's condition, a share in [0, 1], sets.

    Args:
        network: whose ``default_condition`` stands in where a step has no condition.
        largest: weight of code 1.

    Reference:
        Mok and Chung, Conditional LapIRN, MICCAI 2021 (λ); Chen et al., TM-SPR, arXiv 2023, Sec. 3 (η).
    """

    def __init__(self, network: Any, largest: float) -> None:
        self.network, self.largest = network, float(largest)

    def __call__(self, step: Step) -> Tensor:
        """The weight of a step.

        Args:
            step: of the iteration; its condition is (B, 1), of which the mean counts.

        Returns:
            A scalar.

        Raises:
            ValueError: for a step without a condition, where the network has no default either.
        """
        code = getattr(self.network, "default_condition", None) if step.condition is None else step.condition
        if code is None:
            raise ValueError(
                f"condition: expected one, or a network that stores a default, got none and "
                f"{type(self.network).__name__}; give the run one, or choose a conditional architecture."
            )
        return self.largest * code.mean()
