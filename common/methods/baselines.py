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
from ..losses.terms import DATA_WEIGHTS, SMOOTHNESS, Similarity, Smoothness

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
MULTIPLIER = 2.0  # on the smoothness weight, as VoxelMorph's code has it: the down-sampling of its velocity


def plain(
    network: nn.Module,
    similarity: nn.Module,
    optimizer: OptimizerFactory,
    smoothness_weight: float,
    data_weight: nn.Module | None = None,
    smoothness: nn.Module | None = None,
    **form: Any,
) -> Method:
    """mean_x[ w(x) · ρ(I_f, I_m ∘ (id + u)) ] + 2 λ · smoothness(v).

    Args:
        network: displacement network.
        similarity: ρ, (warped, fixed) -> residual map.
        optimizer: parameters -> optimiser.
        smoothness_weight: λ.
        data_weight: w, see ``losses.terms``; None is 1.
        smoothness: None is the diffusion energy.
        form: further arguments of ``Method``.

    Returns:
        The method.

    Raises:
        ValueError: for a negative λ.

    Reference:
        Balakrishnan et al., VoxelMorph, IEEE TMI 2019; Zhang et al., AdaCS, ECCV 2024, Sec. 4 (baselines).
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
    return Method({MODEL: network}, similarity, [update], **form)


def adaframe(
    network: nn.Module, similarity: nn.Module, optimizer: OptimizerFactory, smoothness_weight: float, **form: Any
) -> Method:
    """``plain`` with AdaFrame's data weight, see ``losses.weighting.adaframe_weight``.

    Args:
        network: displacement network.
        similarity: ρ, (warped, fixed) -> residual map.
        optimizer: parameters -> optimiser.
        smoothness_weight: λ.
        form: further arguments of ``Method``.

    Returns:
        The method.
    """
    weight = DATA_WEIGHTS["adaframe"]()
    return plain(network, similarity, optimizer, smoothness_weight, data_weight=weight, **form)


def adareg(
    network: nn.Module, similarity: nn.Module, optimizer: OptimizerFactory, smoothness_weight: float, **form: Any
) -> Method:
    """``plain`` with AdaReg's adaptive smoothness, see ``losses.weighting.AdaRegSmoothness``.

    Args:
        network: displacement network.
        similarity: ρ, (warped, fixed) -> residual map.
        optimizer: parameters -> optimiser.
        smoothness_weight: λ.
        form: further arguments of ``Method``.

    Returns:
        The method.
    """
    smoothness = SMOOTHNESS["adareg"]()
    return plain(network, similarity, optimizer, smoothness_weight, smoothness=smoothness, **form)


BUILDERS: dict[str, Callable[..., Method]] = {"adaframe": adaframe, "adareg": adareg}


def build(
    objective: str,
    parameters: Mapping[str, Any],
    network: nn.Module,
    similarity: nn.Module,
    optimizer: OptimizerFactory,
    **form: Any,
) -> Method:
    """The method of a baseline.

    Args:
        objective: key of ``BUILDERS`` where the method is more than a similarity and smoothness; else any name.
        parameters: of the builder: ``smoothness_weight``, and ``field_weight`` where the field of a pair is to be
            optimised; ``similarity`` is what the argument of that name was built from.
        network: displacement network.
        similarity: (warped, fixed) -> residual map.
        optimizer: parameters -> optimiser.
        form: further arguments of ``Method``.

    Returns:
        The method.

    Raises:
        ValueError: for an entry without what its builder needs, or with something else.
    """
    own = {key: value for key, value in parameters.items() if key != "similarity"}
    builder = BUILDERS.get(objective, plain)
    arguments = {*inspect.signature(plain).parameters, *inspect.signature(builder).parameters}
    known = {*arguments, *(entry.name for entry in dataclasses.fields(Method))}
    for key in own:
        known_name(f"objectives#{objective}", key, sorted(known))
    try:
        return builder(network, similarity, optimizer, **own, **form)
    except TypeError as error:
        raise ValueError(f"objectives#{objective}: {error}.") from error
