# SPDX-License-Identifier: Apache-2.0
"""What registers, by name: the published networks, and the solvers that need no weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..checks import known_name
from ..networks import registry
from .elastix import Elastix
from .pairwise import PairwiseRegistration
from .solvers import Identity, Solver

SOLVERS: dict[str, type[Solver]] = {solver.name: solver for solver in (PairwiseRegistration, Elastix, Identity)}


def build(
    name: str,
    spatial_dims: int,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int | None = None,
    similarity: nn.Module | None = None,
    smoothness_weight: float | None = None,
) -> nn.Module:
    """Build a displacement network, or a solver that stands where one does.

    Args:
        name: a key of ``networks.registry.ARCHITECTURES`` or of ``SOLVERS``: "pairwise" (``PairwiseRegistration``),
            "elastix" (``Elastix``), "identity" (no displacement).
        spatial_dims: 2 or 3; solvers take either.
        parameters: further arguments of each builder, by its name; those of ``name`` are used.
        seed: of a network's initial weights, and of the samples that elastix draws.
        similarity: the method's, for the solvers that minimise one.
        smoothness_weight: for "pairwise", of its velocity against that similarity: the objective's ``field_weight``.

    Returns:
        A module whose ``forward(image, fixed=None, condition=None)`` returns the ddf, (B, d, *S) in voxels.

    Raises:
        ValueError: for an unknown name or parameter, with the nearest known one; for a solver that lacks a similarity
            or its weight, or cannot minimise that similarity.
        ImportError: for "elastix" where it is not installed, with the command that installs it.
    """
    known = [*registry.ARCHITECTURES, *SOLVERS]
    known_name("architecture", name, known)
    for key in parameters or {}:
        known_name("architectures", key, known)
    own = dict((parameters or {}).get(name) or {})
    if name not in SOLVERS:
        return registry.build(name, spatial_dims, seed=seed, **own)
    return _build_solver(name, own, similarity=similarity, smoothness_weight=smoothness_weight, seed=seed)


def _build_solver(name: str, own: dict[str, Any], **shared: Any) -> Solver:
    """A solver with its own parameters, and those of the shared arguments that it has."""
    arguments = inspect.signature(SOLVERS[name]).parameters.values()
    accepted = [argument.name for argument in arguments if argument.kind is argument.POSITIONAL_OR_KEYWORD]
    for key in own:
        if not accepted:
            raise ValueError(f"architectures: {name} has no parameters, got {key!r}; leave it out.")
        known_name(f"architectures#{name}", key, accepted)
    given = {key: value for key, value in shared.items() if key in accepted and value is not None} | own
    for key in ("similarity", "smoothness_weight"):
        if key in accepted and key not in given:
            raise ValueError(
                f"{key}: the solver {name!r} needs the method's, got None; give e.g. similarity=build_similarity('mse')"
                ", smoothness_weight=0.025, as the objectives of a bundle's train.json do."
            )
    return SOLVERS[name](**given)
