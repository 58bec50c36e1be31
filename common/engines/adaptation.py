# SPDX-License-Identifier: Apache-2.0
"""What an architecture brings to the training of a method: terms, a condition, stages of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..losses.displacement_uncertainty import DeviationPrior, MeanDeviation, PosteriorDivergence
from ..losses.objective import Objective, Weight
from ..losses.pyramid import CodeWeight, LevelWeight, PyramidSimilarity, with_window
from ..losses.similarity import SquaredError
from ..losses.terms import NoiseError, ScoreWeight, Similarity, Smoothness
from ..networks.affine import AffineVoxelMorph
from ..networks.diffusemorph import DiffuseMorph
from ..networks.lapirn import LEVELS, LapIRN
from ..networks.transmorph import TransMorph
from ..networks.voxelmorph import VoxelMorph, VoxelMorphDiff
from .method import MODEL, Method


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


def with_terms(
    method: Method, terms: Mapping[str, tuple[Weight, nn.Module]], without: frozenset[str] = frozenset()
) -> Method:
    """A method whose first update, that of the displacement network, minimises further terms.

    Args:
        method: whose first update has an ``Objective``.
        terms: (weight, term) by name; a name that the objective has is replaced in its place.
        without: names of terms that are left out.

    Returns:
        A new method of the same networks.
    """
    first, *others = method.updates
    assert isinstance(first.objective, Objective)
    weights, present = first.objective.weights, first.objective.terms
    own = {name: (weights[name], term) for name, term in present.items() if name not in without}
    updated = dataclasses.replace(first, objective=Objective(own | dict(terms)))
    return dataclasses.replace(method, updates=[updated, *others])


# Iterations of LapIRN's levels in the released training scripts, in 2D those of c-LapIRN alone; and those for which the
# coarser levels stay frozen.
LEVEL_ITERATIONS = {2: (20001, 20001, 40001), 3: (30001, 30001, 60001)}


def uniform_code(batch_size: int, device: torch.device, per_direction: bool = False) -> Tensor:
    """One code from U(0, 1) for all pairs of a step, from torch's random state on the CPU.

    Args:
        batch_size: B.
        device: where it is read.
        per_direction: one for each direction of bidirectional methods.

    Returns:
        (B, 1), or with ``per_direction`` (2 B, 1), first those of moving onto fixed.
    """
    return torch.rand(2 if per_direction else 1, 1).to(device).repeat_interleave(batch_size, dim=0)


def lapirn(method: Method) -> Adaptation:
    """LapIRN's training: a similarity pyramid, a smoothness on the level's own grid, one level after the other.

    Local NCCs have windows of 3, 5 and 7 voxels, from the coarsest level to the finest; images go on at their border.
    The smoothness weight is the method's times 20 · code for the conditional form, 2 for the displacement, 7 for the
    diffeomorphic form. With the method's weight of local NCC in ``methods.baselines``, 2 · 1.0, these are the published
    10 · code, 1 and 3.5: published energies are of twice the displacement in voxels, which is four times ours. The
    antifold term has weight 0 in all published scripts, and is left out. A network with ``level_smoothness`` has its
    own weights, four times as large in our units for that reason, and with ``level_learning_rates`` its own rates.

    The levels take their published shares of the training: a quarter, a quarter and a half of its iterations, whatever
    its length; the coarser levels are frozen for the first 3,000 of 80,003 (2D) or 120,003 (3D) iterations, 2,000 in
    the plain form. Departures: optimisers start anew as well where frozen levels are released.

    Args:
        method: of a similarity and the diffusion energy, with AdaCS's score or without.

    Returns:
        The method and its stages.

    Raises:
        ValueError: for any other objective.

    Reference:
        Mok and Chung, LapIRN, MICCAI 2020; Conditional LapIRN, MICCAI 2021; their released code.
    """
    network = method.network
    assert isinstance(network, LapIRN)
    name = "c-LapIRN" if network.conditional else "LapIRN"
    similarity, smoothness, weights = _plain_terms(
        method,
        f"{name} minimises a similarity and the diffusion energy, with AdaCS's score or without, on each of its "
        "levels; what else there is has no published form for several levels",
        "mse, mae, tukey, lncc, global_ncc, mi or AdaCS",
        (NoneType, ScoreWeight),
    )
    similarities = [with_window(method.similarity, 2 * level + 3) for level in range(LEVELS)]
    largest = weights["smoothness"] * (20.0 if network.conditional else 7.0 if network.diffeomorphic else 2.0)
    weight: Weight = CodeWeight(network, largest) if network.conditional else largest
    if network.level_smoothness:
        weight = LevelWeight(network, [4.0 * value for value in network.level_smoothness])
    pyramid = PyramidSimilarity(similarities, similarity.weight)
    adapted = with_terms(method, {"similarity": (weights["similarity"], pyramid), "smoothness": (weight, smoothness)})
    condition = uniform_code if network.conditional else None
    adapted = dataclasses.replace(adapted, similarity=similarities[-1], condition=condition, padding="border")
    return Adaptation(adapted, _level_stages(method, network))


def _plain_terms(
    method: Method, reason: str, choices: str, weightings: tuple[type, ...] = (NoneType,)
) -> tuple[Similarity, Smoothness, dict[str, float]]:
    """The two terms of a method that is a similarity, weighted by one of these kinds, and the smoothness; weights."""
    objective = method.updates[0].objective
    terms = dict(objective.terms) if isinstance(objective, Objective) else {}
    similarity, smoothness = terms.get("similarity"), terms.get("smoothness")
    if isinstance(objective, Objective) and isinstance(similarity, Similarity) and isinstance(smoothness, Smoothness):
        weights = {key: weight for key, weight in objective.weights.items() if not callable(weight)}
        if isinstance(similarity.weight, weightings) and not similarity.both_ways and len(weights) == len(terms) == 2:
            return similarity, smoothness, weights
    listed = [f"{key} ({type(term).__name__})" for key, term in terms.items() if term not in (similarity, smoothness)]
    if not isinstance(smoothness, Smoothness) and smoothness is not None:
        listed.append(f"smoothness ({type(smoothness).__name__})")
    weighted = getattr(similarity, "weight", None)
    listed += [] if weighted is None else [f"the weight {type(weighted).__name__}"]
    raise ValueError(
        f"architecture: {reason}, got {', '.join(listed) or type(objective).__name__}. Choose another objective "
        f"({choices}), or another architecture."
    )


def _level_stages(method: Method, network: LapIRN) -> tuple[Mapping[str, Any], ...]:
    iterations, updates = LEVEL_ITERATIONS[network.spatial_dims], sorted(method.update_names)
    frozen = 3000 if network.conditional else 2000
    stages: list[dict[str, Any]] = []
    for level, length in enumerate(iterations):
        if level:
            below = [f"{MODEL}.levels.{number}" for number in range(level)]
            stages.append({"share": frozen / sum(iterations), "freeze": below})
            length -= frozen
        stages.append({"share": length / sum(iterations)})
        for stage in stages[-2 if level else -1 :]:
            stage |= {"updates": updates, "levels": level + 1}
            stage |= {"learning_rate": network.level_learning_rates[level]} if network.level_learning_rates else {}
    del stages[-1]["share"]
    return tuple(stages)


def _predicting_noise(method: Method) -> Adaptation:
    """L = objective + noise_weight · mean (ε̂ − ε)².

    Published: mean (ε̂ − ε)² + λ (similarity + smoothness), the same up to the factor λ, to which Adam is indifferent;
    so is AdaCS's variant, mean (ε̂ − ε)² + λ (weighted MSE) + γ (smoothness), with γ/λ as weight of the smoothness.
    """
    network = method.network
    assert isinstance(network, DiffuseMorph)
    return Adaptation(with_terms(method, {"noise": (network.noise_weight, NoiseError())}))


def _drawn_from_posterior(method: Method) -> Adaptation:
    """L = mean (I_f − Î_f)² / σ_I² + divergence_weight · divergence, which takes the smoothness's place.

    The method's smoothness weight does not count.
    """
    network = method.network
    assert isinstance(network, VoxelMorphDiff)
    reason = (
        "voxelmorph_diff minimises the squared error over the variance of the images' noise, and the divergence of the "
        "velocity from its prior in the place of the smoothness; what else there is has no place in that likelihood"
    )
    if not isinstance(method.similarity, SquaredError):
        kind = type(method.similarity).__name__
        raise ValueError(f"architecture: {reason}, got the similarity {kind}. Choose objective mse.")
    similarity, _, weights = _plain_terms(method, reason, "mse")
    terms: dict[str, tuple[Weight, nn.Module]] = {
        "similarity": (weights["similarity"] / network.image_sigma**2, similarity),
        "divergence": (network.divergence_weight, PosteriorDivergence(network.prior_weight)),
        "deviation": (0.0, MeanDeviation()),
    }
    return Adaptation(with_terms(method, terms, without=frozenset({"smoothness"})))


def _drawn_displacement(method: Method) -> Adaptation:
    """L = objective of a displacement ẑ ~ N(μ_z, σ_z² I) + uncertainty_weight · mean (σ_z² − log σ_z²).

    Both similarity and smoothness are those of the draw, as printed; networks without σ_z bring nothing.
    """
    network = method.network
    assert isinstance(network, (VoxelMorph, TransMorph))
    if network.deviation is None:
        return Adaptation(method)
    prior = (network.uncertainty_weight, DeviationPrior())
    return Adaptation(with_terms(method, {"deviation_prior": prior, "deviation": (0.0, MeanDeviation())}))


def _affine_first(method: Method) -> Adaptation:
    """The affine network for the first half of a training, VoxelMorph on what it leaves for the second.

    The affine network stays as it is then. The share is this project's: how long the paper trained it is not said.
    """
    updates = sorted(method.update_names)
    return Adaptation(
        method,
        (
            {"updates": updates, "share": 0.5, "levels": 1},
            {"updates": updates, "levels": 2, "freeze": [f"{MODEL}.affine"]},
        ),
    )


# By the network's class, subclasses first: a method to what becomes of it. A function may refuse a method, with the
# reason.
ADAPTATIONS: dict[type[nn.Module], Callable[[Method], Adaptation]] = {
    AffineVoxelMorph: _affine_first,
    DiffuseMorph: _predicting_noise,
    LapIRN: lapirn,
    VoxelMorphDiff: _drawn_from_posterior,
    VoxelMorph: _drawn_displacement,
    TransMorph: _drawn_displacement,
}
