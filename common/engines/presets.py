# SPDX-License-Identifier: Apache-2.0
"""How the solver "pairwise" goes about a pair of unknown kind: its levels in mm, similarity and smoothness weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..checks import at_least, is_whole, known_name, positive
from ..losses.similarity import build_similarity
from .pairwise import PairwiseRegistration

FINEST_MM = 1.0
# The finest level of the accurate preset has at least this many voxels along the longest axis, and not more in all.
LEAST_VOXELS, MOST_VOXELS = 32, 8_000_000
# The coarsest level has at most this many along the longest axis, so that one step reaches far.
COARSEST_VOXELS = 64
# Smoothness weight of each similarity alone, and the similarity's own options.
WEIGHTS = {"mse": 0.05, "mae": 0.2, "lncc": 0.3, "global_ncc": 0.2, "mi": 0.5, "mind": 0.08}
# Before coarsening, in voxels of the level: without it noise remains in small structures, more blurs folds of brains.
SMOOTHING = 0.25
SIMILARITY_OPTIONS: dict[str, dict[str, Any]] = {"lncc": {"window": 7}}


# Levels in order: times coarser than the finest that the images allow, and steps. A level that is not finer than the
# one before begins a second velocity. Larger images get further levels before them, with the first number of steps.
PRESETS = {"fast": ((4, 60), (2, 30), (2, 30)), "accurate": ((4, 60), (2, 60), (2, 60), (1, 40))}


class Plan(NamedTuple):
    """What the solver is built from.

    levels_mm: voxel sizes; coarse to fine, once for each velocity.
    steps: of each.
    """

    levels_mm: tuple[float, ...]
    steps: tuple[int, ...]


def finest_level(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Voxel size of the accurate preset's last level: 1 mm, halved for small objects and doubled for large images.

    It depends on the extent of the images in mm, and on their voxels only where there are too many.

    Args:
        shape: voxels an axis.
        spacing: mm an axis.

    Returns:
        In mm.
    """
    extents = [n * mm for n, mm in zip(shape, spacing, strict=True)]
    level = FINEST_MM
    while max(extents) / level < LEAST_VOXELS:
        level /= 2
    while math.prod(extent / max(level, mm) for extent, mm in zip(extents, spacing, strict=True)) > MOST_VOXELS:
        level *= 2
    return level


def plan(
    shape: Sequence[int], spacing: Sequence[float], preset: str = "accurate", levels_mm: Sequence[float] | None = None,
    steps: Sequence[int] | int | None = None,
) -> Plan:  # fmt: skip
    """Levels and steps for images of a size.

    Args:
        shape: voxels an axis of the fixed image.
        spacing: mm an axis.
        preset: "fast" leaves out the finest level of "accurate".
        levels_mm: voxel sizes in mm, coarse to fine, in place of the preset's; voxels larger than a level stay. One
            that is not finer than the one before, as the second 2 of 4,2,2,1, begins a further velocity.
        steps: of each level, or one number for all, in place of the preset's; 0 for none.

    Returns:
        The plan.

    Raises:
        ValueError: for an unknown preset, levels that do not end with the finest, or another number of steps than of
            levels.
    """
    chosen = PRESETS[known_name("preset", preset, PRESETS)]
    if levels_mm is None:
        finest, longest = finest_level(shape, spacing), max(n * mm for n, mm in zip(shape, spacing, strict=True))
        levels = [finest * factor for factor, _ in chosen]
        while longest / levels[0] > COARSEST_VOXELS:
            levels.insert(0, 2 * levels[0])
        usual = [count for _, count in chosen]
        usual[:0] = [usual[0]] * (len(levels) - len(usual))
    else:
        levels = [positive("levels_mm", level) for level in levels_mm]
        if not levels or levels[-1] > min(levels):
            raise ValueError(f"levels_mm: expected voxel sizes in mm from coarse to fine, as 4,2,1, got {levels_mm!r}.")
        usual = [chosen[0][1]] * (len(levels) - 1) + [chosen[-1][1]]
    if steps is None:
        counts = usual
    else:
        given = [steps] * len(levels) if isinstance(steps, (int, float)) else list(steps)
        counts = [int(count) for count in given] if all(map(is_whole, given)) else []
    if len(counts) != len(levels):
        raise ValueError(
            f"steps: expected a whole number from 0 for each of the {len(levels)} levels {levels} mm, got {steps!r}; "
            "or give one number for all."
        )
    return Plan(tuple(levels), tuple(counts))


def similarity_terms(text: str) -> dict[str, float]:
    """Read "lncc", "lncc+mind" or "lncc+0.5*mind".

    Args:
        text: similarities and their factors.

    Returns:
        Factor by name.

    Raises:
        ValueError: for another form, an unknown name, or a factor that is not above 0.
    """
    terms: dict[str, float] = {}
    for part in str(text).replace(" ", "").split("+"):
        factor, star, name = part.rpartition("*")
        try:
            weight = float(factor) if star else 1.0
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise ValueError(f"similarity: expected a sum like 'lncc+0.5*mind', got {text!r}.")
        terms[known_name("similarity", name, WEIGHTS)] = weight
    return terms


def build_pairwise(
    plan: Plan, spacing: Sequence[float], similarity: str = "lncc", smoothness_weight: float | None = None
) -> PairwiseRegistration:
    """The solver for images of a spacing.

    Args:
        plan: its levels and steps.
        spacing: of the images' voxels, mm an axis.
        similarity: one or a sum, see ``similarity_terms``.
        smoothness_weight: of the velocity's diffusion in mm; None takes the sum of ``WEIGHTS``, each times its factor.

    Returns:
        The solver.

    Raises:
        ValueError: as ``similarity_terms``, or for a weight below 0.
    """
    terms = similarity_terms(similarity)
    module = build_similarity({name: {"weight": w, **SIMILARITY_OPTIONS.get(name, {})} for name, w in terms.items()})
    usual = sum(WEIGHTS[name] * weight for name, weight in terms.items())
    return PairwiseRegistration(
        module,
        usual if smoothness_weight is None else at_least("smoothness_weight", smoothness_weight),
        levels=plan.levels_mm,
        steps=plan.steps,
        smoothing=SMOOTHING,
        spacing=spacing,
        annealed=True,
    )
