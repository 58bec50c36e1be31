# SPDX-License-Identifier: Apache-2.0
"""Maps that a registration is accompanied by: score or noise, data weight, the displacement's uncertainty."""

from __future__ import annotations

from torch import Tensor, nn

from ..losses.objective import Objective
from ..losses.terms import Similarity
from ..networks.uncertainty import displacement_deviation
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

    Attributes:
        network: displacement network.
        estimator: score or variance network, or None.
        weight: module with ``weight_map``, or None.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.network, self.estimator = method.network, method.estimator_network
        self.padding, self._estimator_image = method.padding, method.estimator_image
        self.weight = _data_weight(method)

    @property
    def any(self) -> bool:
        """Whether the method has any of the maps."""
        return self.estimator is not None or self._draws

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
            "maps: expected a method with a score or variance network, or a displacement network with a deviation, "
            f"got {type(method.network).__name__} alone. Leave maps false, or run a bundle that has one (adacs_*, "
            "hetero_*)."
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


def _data_weight(method: Method) -> nn.Module | None:
    """The module that weighs the first update's similarity, where it can draw its map of two tensors alone."""
    objective = method.updates[0].objective if method.updates else None
    term = dict(objective.terms).get("similarity") if isinstance(objective, Objective) else None
    weight = term.weight if isinstance(term, Similarity) else None
    return weight if hasattr(weight, "weight_map") else None
