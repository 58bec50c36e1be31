# SPDX-License-Identifier: Apache-2.0
"""Maps beside a registration: score or noise, weights of data and smoothness, the displacement's uncertainty."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..losses.objective import Objective
from ..losses.pyramid import CodeWeight
from ..losses.spatially_varying import LogLoss
from ..losses.terms import Similarity
from ..networks.uncertainty import displacement_deviation, resized_map
from ..spatial.warp import warp
from .method import Method
from .solvers import Solver


class PixelMaps(nn.Module):
    """What a method's estimator and displacement network say of a registered pair, at every voxel.

    ``score``: S in [0, 1], of methods with a score. ``noise_deviation``: σ_I = exp(½ log σ²), of methods with a log
    variance, in the intensities that the network sees, those of images in [0, 1]. ``weight``: the data weight, where
    that of the first update's term "similarity" has ``weight_map(fixed, estimated)``. ``weight_volume``: the weight ω
    of the smoothness in [0, 1], of methods whose first update has a ``LogLoss``. ``displacement_deviation``: σ_z in
    voxels, of networks that estimate it. The last two are those of the trained weights, after a fit to the pair too.

    Args:
        method: whose networks are run; they are not copied.

    Attributes:
        network: displacement network.
        estimator: score or variance network, or None.
        weight: module with ``weight_map``, or None.
        weighs_smoothness: whether the method has a map ``weight_volume``.
        eta_max: weight of the log loss that condition 1 stands for; None where no condition sets it.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.network, self.estimator = method.network, method.estimator_network
        self.padding, self._estimator_image = method.padding, method.estimator_image
        self.weight = _data_weight(method)
        self.weighs_smoothness, self.eta_max = _log_loss(method)

    @property
    def any(self) -> bool:
        """Whether the method has any of the maps."""
        return self.estimator is not None or self.weighs_smoothness or self._draws

    @property
    def _draws(self) -> bool:
        """Whether the network estimates a variance of what it draws, see ``networks.uncertainty``."""
        return getattr(self.network, "deviation", None) is not None

    def forward(self, registered: Tensor, condition: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the maps of a batch.

        Args:
            registered: cat(moving, fixed, ddf), (B, 2 + d, *S): images in [0, 1], and in voxels what registers them.
            condition: as ``of_warped``.

        Returns:
            As ``of_warped``.
        """
        image, ddf = registered[:, :2], registered[:, 2:]
        return self.of_warped(image, warp(image[:, :1], ddf, padding=self.padding), condition)

    def of_warped(self, image: Tensor, warped: Tensor, condition: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the maps of a batch whose moving images have been warped.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            warped: the moving image, registered, (B, 1, *S).
            condition: (B, K) that goes into the displacement network; None is its default.

        Returns:
            By name, (B, 1, *S) in float32; empty where the method has none.
        """
        fixed, maps = image[:, 1:], {}
        if self.estimator is not None:
            estimated = self.estimator(self._estimator_image(fixed, warped)).float()
            if getattr(self.estimator, "sigmoid", True):  # else log σ², see ``networks.unet.PixelEstimator``
                maps["score"] = estimated
            else:
                maps["noise_deviation"] = (0.5 * estimated).exp()
            if self.weight is not None:
                maps["weight"] = self.weight.weight_map(fixed, estimated)  # type: ignore[operator]
        if self.weighs_smoothness:
            volume = _weight_volume(self.network, image, condition)
            maps |= {} if volume is None else {"weight_volume": volume}
        if self._draws:
            deviation = displacement_deviation(self.network, image, condition)
            assert deviation is not None
            maps["displacement_deviation"] = deviation
        return {name: values.float() for name, values in maps.items()}


def pixel_maps(method: Method, wanted: bool) -> PixelMaps | None:
    """The maps of an inference, or None where none are wanted.

    Args:
        method: what registers.
        wanted: the option ``maps``.

    Returns:
        For ``engines.inferers.InferenceEvaluator``.

    Raises:
        ValueError: where maps are wanted, and the method has none or a solver takes the place of its network.
    """
    if not wanted:
        return None
    if isinstance(method.network, Solver):
        raise ValueError(
            f"maps: the solver {method.network.name!r} estimates neither noise nor the displacement's uncertainty, and "
            "no weights are read with it. Leave maps false, or choose an architecture with weights."
        )
    maps = PixelMaps(method)
    if not maps.any:
        raise ValueError(
            "maps: expected a method with a score or variance network, or a displacement network with a deviation or a "
            f"weight volume, got {type(method.network).__name__} alone. Leave maps false, or run a bundle that has one "
            "(adacs_*, hetero_*, tmspr_*)."
        )
    return maps


def evaluated_maps(method: Method) -> PixelMaps | None:
    """The maps that an evaluation measures and draws.

    Args:
        method: what is evaluated.

    Returns:
        The maps; None of a solver, beside which no weights are read, and of a method that has none.
    """
    maps = PixelMaps(method)
    return maps if maps.any and not isinstance(method.network, Solver) else None


def _objective(method: Method) -> Objective | None:
    objective = method.updates[0].objective if method.updates else None
    return objective if isinstance(objective, Objective) else None


def _log_loss(method: Method) -> tuple[bool, float | None]:
    """Whether the first update has a log loss, and its largest weight where a condition sets it."""
    objective = _objective(method)
    for name, term in {} if objective is None else dict(objective.terms).items():
        if isinstance(term, LogLoss):
            weight = objective.weights[name]  # type: ignore[union-attr]  # there are terms
            return True, weight.largest if isinstance(weight, CodeWeight) else None
    return False, None


@torch.no_grad()
def _weight_volume(network: nn.Module, image: Tensor, condition: Tensor | None) -> Tensor | None:
    """ω on the grid of the image; None where the network predicts none, or is a solver."""
    estimate = None if isinstance(network, Solver) else network.estimate(image, condition)  # type: ignore[operator]
    volume = getattr(estimate, "weight_volume", None)
    return None if volume is None else resized_map(volume.float(), list(image.shape[2:]))


def _data_weight(method: Method) -> nn.Module | None:
    """The module that weighs the first update's similarity, where it can draw its map of two tensors alone."""
    objective = _objective(method)
    term = None if objective is None else dict(objective.terms).get("similarity")
    weight = term.weight if isinstance(term, Similarity) else None
    return weight if hasattr(weight, "weight_map") else None
