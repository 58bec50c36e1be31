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
from ..losses.likelihood import MeanLogVariance, NegativeLogLikelihood
from ..losses.objective import Objective
from ..losses.score import MeanResidual
from ..losses.terms import DATA_WEIGHTS, SMOOTHNESS, Similarity, Smoothness
from ..networks.registry import build_estimator

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
VARIANCE = "model_variance"  # the variance network's name among the modules
MULTIPLIER = 2.0  # on the smoothness weight, as VoxelMorph's code has it: the down-sampling of its velocity


def _doubled(smoothness_weight: float) -> float:
    if not smoothness_weight >= 0:
        raise ValueError(f"smoothness_weight: expected at least 0, got {smoothness_weight!r}.")
    return MULTIPLIER * smoothness_weight


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
    objective = Objective(
        {
            "similarity": (1.0, Similarity(data_weight)),
            "smoothness": (_doubled(smoothness_weight), Smoothness() if smoothness is None else smoothness),
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


def nll(
    network: nn.Module,
    similarity: nn.Module,
    optimizer: OptimizerFactory,
    smoothness_weight: float,
    spatial_dims: int,
    seed: int | None = None,
    beta: float = 0.0,
    **form: Any,
) -> Method:
    """mean_x[ ⌊σ^(2β)⌋ · ( (I_f − Î_f)² / σ² + log σ² ) ] + 2 λ · smoothness(v), with log σ² = h(I_f, Î_f).

    The variance network h is a ``PixelEstimator``. One optimiser minimises the one loss over both networks. The
    gradient reaches the displacement through Î_f in the residual and, as the papers print no stop there, through Î_f as
    an input of h. Terms and published factors: ``losses.likelihood``.

    The smoothness weight that the papers used is not known. The squared error of a pixel counts 1/σ² times, which for
    σ² near the mean residual, some thousandths, is some hundred times what ``plain`` gives it.

    Args:
        network: displacement network.
        similarity: the squared error; any other has no variance.
        optimizer: parameters of both networks -> optimiser.
        smoothness_weight: λ.
        spatial_dims: 2 or 3.
        seed: of the variance network's initial weights; None draws them from torch's random state.
        beta: β.
        form: further arguments of ``Method``.

    Returns:
        The method, with the variance network as "model_variance".

    Raises:
        ValueError: for another similarity, a negative λ, or a β out of range.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, Sec. 5 (baselines); Kendall and Gal, NeurIPS 2017.
    """
    objective = Objective(
        {
            "nll": (1.0, NegativeLogLikelihood(beta, similarity=similarity)),
            "smoothness": (_doubled(smoothness_weight), Smoothness()),
            "similarity": (0.0, MeanResidual()),
            "log_variance": (0.0, MeanLogVariance()),
        }
    )
    variance = build_estimator(spatial_dims, seed, in_channels=2, activation="log_variance")
    update = Update("displacement", [MODEL, VARIANCE], objective, optimizer)
    return Method(
        {MODEL: network, VARIANCE: variance},
        similarity,
        [update],
        estimator=VARIANCE,
        estimator_input="fixed_warped",
        through_estimator=True,
        **form,
    )


def beta_nll(
    network: nn.Module,
    similarity: nn.Module,
    optimizer: OptimizerFactory,
    smoothness_weight: float,
    spatial_dims: int,
    seed: int | None = None,
    beta: float = 0.5,
    **form: Any,
) -> Method:
    """``nll`` with β = 0.5: a pixel counts 1/σ times instead of 1/σ².

    Args:
        network: displacement network.
        similarity: the squared error.
        optimizer: parameters of both networks -> optimiser.
        smoothness_weight: λ.
        spatial_dims: 2 or 3.
        seed: of the variance network's initial weights.
        beta: β, from 0 (``nll``) to 1 (every pixel counts alike).
        form: further arguments of ``Method``.

    Returns:
        The method.

    Reference:
        Seitzer et al., On the Pitfalls of Heteroscedastic Uncertainty Estimation, ICLR 2022.
    """
    return nll(network, similarity, optimizer, smoothness_weight, spatial_dims, seed, beta, **form)


BUILDERS: dict[str, Callable[..., Method]] = {"adaframe": adaframe, "adareg": adareg, "nll": nll, "beta_nll": beta_nll}


def build(
    objective: str,
    parameters: Mapping[str, Any],
    network: nn.Module,
    similarity: nn.Module,
    optimizer: OptimizerFactory,
    spatial_dims: int,
    seed: int | None = None,
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
        spatial_dims: 2 or 3, for the networks that a builder brings.
        seed: of their initial weights.
        form: further arguments of ``Method``.

    Returns:
        The method.

    Raises:
        ValueError: for an entry without what its builder needs, or with something else.
    """
    own = {key: value for key, value in parameters.items() if key != "similarity"}
    builder = BUILDERS.get(objective, plain)
    taken = inspect.signature(builder).parameters
    brought = {key: value for key, value in (("spatial_dims", spatial_dims), ("seed", seed)) if key in taken}
    arguments = {*inspect.signature(plain).parameters, *taken} - set(brought)
    known = {*arguments, *(entry.name for entry in dataclasses.fields(Method))}
    for key in own:
        known_name(f"objectives#{objective}", key, sorted(known))
    try:
        return builder(network, similarity, optimizer, **own, **brought, **form)
    except TypeError as error:
        raise ValueError(f"objectives#{objective}: {error}.") from error
