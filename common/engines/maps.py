# SPDX-License-Identifier: Apache-2.0
"""Maps that a registration is accompanied by: score or noise, data weight, the displacement's uncertainty."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..losses.objective import Objective
from ..losses.terms import Similarity
from ..spatial.warp import warp
from .method import Method
from .solvers import Solver


class PixelMaps(nn.Module):
    """What a method's estimator and displacement network say of a registered pair, at every voxel.

    ``score``: S in [0, 1], of methods with a score. ``noise_deviation``: σ_I = exp(½ log σ²), of methods with a log
    variance, in the intensities that the network sees, those of images in [0, 1]. ``weight``: the data weight, where
    that of the first update's term "similarity" has ``weight_map(fixed, estimated)``. ``displacement_deviation``: σ_z
    in voxels, of networks that estimate it; after a fit of the weights to the pair, that of the trained weights.

    Args:
        method: whose networks are run; they are not copied.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.network, self.estimator = method.network, method.estimator_network
        self.estimator_input, self.padding = method.estimator_input, method.padding
        self.weight = _data_weight(method)

    def forward(self, registered: Tensor, condition: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the maps of a batch.

        Args:
            registered: cat(moving, fixed, ddf), (B, 2 + d, *S): images in [0, 1], and in voxels what registers them.
            condition: (B, K) that goes into the displacement network; None is its default.

        Returns:
            By name, (B, 1, *S) in float32; ``displacement_deviation`` may have one channel an axis.

        Raises:
            ValueError: where the method has none of them.
        """
        image, ddf = registered[:, :2], registered[:, 2:]
        moving, fixed = image.split(1, dim=1)
        maps: dict[str, Tensor] = {}
        if self.estimator is not None:
            warped = warp(moving, ddf, padding=self.padding)
            estimated = run_estimator(self.estimator, self.estimator_input, fixed, warped).float()
            is_score, values = interpreted(self.estimator, estimated)
            maps["score" if is_score else "noise_deviation"] = values
            if self.weight is not None:
                maps["weight"] = self.weight.weight_map(fixed, estimated)  # type: ignore[operator]
        deviation = _displacement_deviation(self.network, image, condition)
        if deviation is not None:
            maps["displacement_deviation"] = deviation
        if not maps:
            raise ValueError(
                "maps: expected a method with a score or variance network, or a displacement network with a deviation, "
                f"got {type(self.network).__name__} alone. Leave maps false, or run a bundle that has one (adacs_*)."
            )
        return {name: values.float() for name, values in maps.items()}


def pixel_maps(method: Method, wanted: bool) -> PixelMaps | None:
    """The maps of an inference, or None where none are wanted.

    Args:
        method: what registers.
        wanted: the option ``maps``.

    Returns:
        For ``engines.inferers.InferenceEvaluator``.

    Raises:
        ValueError: where maps are wanted and a solver takes the place of the network.
    """
    if not wanted:
        return None
    if isinstance(method.network, Solver):
        raise ValueError(
            f"maps: the solver {method.network.name!r} estimates neither noise nor the displacement's uncertainty, and "
            "no weights are read with it. Leave maps false, or choose an architecture with weights."
        )
    return PixelMaps(method)


def run_estimator(estimator: nn.Module, estimator_input: str, fixed: Tensor, warped: Tensor) -> Tensor:
    """Run a score or variance network.

    Args:
        estimator: (B, C, *S) -> (B, 1, *S).
        estimator_input: what it sees: "fixed", or "fixed_warped", cat(fixed, warped).
        fixed: (B, 1, *S).
        warped: moving on fixed, (B, 1, *S).

    Returns:
        Score or log variance, (B, 1, *S).
    """
    return estimator(fixed if estimator_input == "fixed" else torch.cat([fixed, warped], dim=1))


def interpreted(estimator: nn.Module, estimated: Tensor) -> tuple[bool, Tensor]:
    """What an estimator's output stands for.

    Args:
        estimator: a ``networks.unet.PixelEstimator``; another module is taken for a score's.
        estimated: its output.

    Returns:
        True and the score, or False and the standard deviation of the noise, exp(½ log σ²).
    """
    is_score = bool(getattr(estimator, "sigmoid", True))
    return is_score, estimated if is_score else (0.5 * estimated).exp()


def _data_weight(method: Method) -> nn.Module | None:
    """The module that weighs the first update's similarity, where it can draw its map of two tensors alone."""
    objective = method.updates[0].objective if method.updates else None
    term = dict(objective.terms).get("similarity") if isinstance(objective, Objective) else None
    weight = term.weight if isinstance(term, Similarity) else None
    return weight if hasattr(weight, "weight_map") else None


def _displacement_deviation(network: nn.Module, image: Tensor, condition: Tensor | None) -> Tensor | None:
    # TO BE CONNECTED: return common.networks.uncertainty.displacement_deviation(network, image, condition),
    # (B, 1 or d, *S) in voxels, None for networks without it.
    return None
