# SPDX-License-Identifier: Apache-2.0
"""What the papers compare with: one displacement network and one objective, chosen by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..checks import known_name
from ..engines.method import MODEL, Method, Update
from ..losses.objective import Objective
from ..losses.similarity import build_similarity
from ..losses.terms import DATA_WEIGHTS, SMOOTHNESS, Similarity, Smoothness

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
MULTIPLIER = 2.0  # on the smoothness weight, as VoxelMorph's code has it: the down-sampling of its velocity


def plain(
    network: nn.Module,
    optimizer: OptimizerFactory,
    similarity: Any,
    smoothness_weight: float,
    data_weight: nn.Module | None = None,
    smoothness: nn.Module | None = None,
    **form: Any,
) -> Method:
    """mean_x[ w(x) · ρ(I_f, I_m ∘ (id + u)) ] + 2 λ · smoothness(v).

    Args:
        network: displacement network.
        optimizer: parameters -> optimiser.
        similarity: name or sum, see ``losses.similarity.build_similarity``.
        smoothness_weight: λ.
        data_weight: w, see ``losses.terms``; None is 1.
        smoothness: None is the diffusion energy.
        form: further arguments of ``Method``.

    Raises:
        ValueError: for a negative λ, or an unknown similarity.

    Reference: Balakrishnan et al., VoxelMorph, IEEE TMI 2019; Zhang et al., AdaCS, ECCV 2024, Sec. 4 (baselines).
    """
    if not smoothness_weight >= 0:
        raise ValueError(f"smoothness_weight: expected at least 0, got {smoothness_weight!r}.")
    objective = Objective(
        {
            "similarity": (1.0, Similarity(data_weight)),
            "smoothness": (MULTIPLIER * smoothness_weight, Smoothness() if smoothness is None else smoothness),
        }
    )
    update = Update("displacement", [MODEL], objective, optimizer)
    return Method({MODEL: network}, build_similarity(similarity), [update], **form)


def adaframe(
    network: nn.Module, optimizer: OptimizerFactory, similarity: Any, smoothness_weight: float, **form: Any
) -> Method:
    """``plain`` with AdaFrame's data weight (see ``losses.weighting.adaframe_weight``)."""
    weight = DATA_WEIGHTS["adaframe"]()
    return plain(network, optimizer, similarity, smoothness_weight, data_weight=weight, **form)


def adareg(
    network: nn.Module, optimizer: OptimizerFactory, similarity: Any, smoothness_weight: float, **form: Any
) -> Method:
    """``plain`` with AdaReg's adaptive smoothness (see ``losses.weighting.AdaRegSmoothness``)."""
    smoothness = SMOOTHNESS["adareg"]()
    return plain(network, optimizer, similarity, smoothness_weight, smoothness=smoothness, **form)


BUILDERS: dict[str, Callable[..., Method]] = {"adaframe": adaframe, "adareg": adareg}
NAMED_OTHERWISE = {"pairwise": "--architecture pairwise", "elastix": "--architecture elastix"}


def build(
    objective: str,
    objectives: Mapping[str, Mapping[str, Any]],
    network: nn.Module,
    optimizer: OptimizerFactory,
    **form: Any,
) -> Method:
    """The method of a baseline.

    Args:
        objective: key of ``objectives``, and of ``BUILDERS`` where the method is more than a similarity.
        objectives: arguments of the builder by objective: ``similarity``, ``smoothness_weight``, and ``field_weight``
            where the field of a pair is to be optimised.
        network: displacement network.
        optimizer: parameters -> optimiser.
        form: further arguments of ``Method``.

    Raises:
        ValueError: for an unknown objective, or an entry without what its builder needs, or with something else.
    """
    if objective in NAMED_OTHERWISE and objective not in objectives:
        raise ValueError(
            f"objective: expected one of {', '.join(objectives)}, got '{objective}', which is no objective but what "
            f"registers. Run the evaluating command with {NAMED_OTHERWISE[objective]}."
        )
    parameters = objectives[known_name("objective", objective, objectives)]
    builder = BUILDERS.get(objective, plain)
    known = [*inspect.signature(plain).parameters, *(entry.name for entry in dataclasses.fields(Method))]
    for key in parameters:
        known_name(f"objectives: the entry '{objective}'", key, known)
    try:
        inspect.signature(builder).bind(network, optimizer, **parameters)
    except TypeError as error:
        raise ValueError(f"objectives: the entry '{objective}' does not fit: {error}.") from error
    return builder(network, optimizer, **parameters, **form)
