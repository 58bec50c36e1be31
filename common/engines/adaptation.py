# SPDX-License-Identifier: Apache-2.0
"""What an architecture brings to the training of a method: terms, a condition, stages of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from ..losses.objective import Objective, Weight
from ..losses.terms import NoiseError
from ..networks.diffusemorph import DiffuseMorph
from .method import Method


class Adaptation(NamedTuple):
    """A method as its network trains it.

    Attributes:
        method: with the network's own terms, and the condition that it draws.
        stages: keyword arguments of ``handlers.stages.Stage``, for trainings whose handlers hold no ``Stages``.
    """

    method: Method
    stages: tuple[Mapping[str, Any], ...] = ()


def adapt(method: Method) -> Adaptation:
    """What the method's network brings to its training, and to fits of its weights.

    Args:
        method: any; most networks bring nothing.

    Returns:
        The method to train and the stages that the network prescribes.

    Raises:
        ValueError: where the network cannot be trained by this method.
    """
    for kind, adapted in ADAPTATIONS.items():
        if isinstance(method.network, kind):
            return adapted(method)
    return Adaptation(method)


def with_terms(method: Method, terms: Mapping[str, tuple[Weight, nn.Module]]) -> Method:
    """A method whose first update, that of the displacement network, minimises further terms.

    Args:
        method: whose first update has an ``Objective``.
        terms: (weight, term) by name; a name that the objective has is replaced in its place.

    Returns:
        A new method of the same networks.
    """
    first, *others = method.updates
    assert isinstance(first.objective, Objective)
    own = {name: (first.objective.weights[name], term) for name, term in first.objective.terms.items()}
    updated = dataclasses.replace(first, objective=Objective(own | dict(terms)))
    return dataclasses.replace(method, updates=[updated, *others])


def _predicting_noise(method: Method) -> Adaptation:
    """L = objective + noise_weight · mean (ε̂ − ε)².

    Published: mean (ε̂ − ε)² + λ (similarity + smoothness), the same up to the factor λ, to which Adam is indifferent;
    so is AdaCS's variant, mean (ε̂ − ε)² + λ (weighted MSE) + γ (smoothness), with γ/λ as weight of the smoothness.
    """
    network = method.network
    assert isinstance(network, DiffuseMorph)
    return Adaptation(with_terms(method, {"noise": (network.noise_weight, NoiseError())}))


# By the network's class: a method to what becomes of it. A function may refuse a method, with the reason.
ADAPTATIONS: dict[type[nn.Module], Callable[[Method], Adaptation]] = {DiffuseMorph: _predicting_noise}
