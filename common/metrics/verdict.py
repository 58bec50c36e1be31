# SPDX-License-Identifier: Apache-2.0
"""Whether a registration should be looked at again, in sentences. The bounds are this project's, rules of thumb."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

FOLDINGS_PERCENT = 0.5
INVERSE_ERROR_VOXELS = 0.5
SHRUNK, GROWN = 0.2, 5.0  # local change of volume
SHARE = 0.02  # of the voxels that may change by more than that


def doubts(values: Mapping[str, Any]) -> list[str]:
    """What speaks against a registration.

    Args:
        values: what there is of ``foldings_percent``; ``mse`` and ``mse_before``, or ``similarity`` and
            ``similarity_before`` (less is better); ``dice``, ``dice_before``; ``strong_change``, the share of voxels
            whose volume shrinks below a fifth or grows above fivefold; ``inverse_error``, its mean in voxels. None and
            NaN count as absent.

    Returns:
        Sentences; none where nothing does.
    """
    found = []
    known = {name: float(value) for name, value in values.items() if _is_number(value)}
    if known.get("foldings_percent", 0) > FOLDINGS_PERCENT:
        found.append(
            f"The map folds at {known['foldings_percent']:.2g} % of the voxels, more than {FOLDINGS_PERCENT} %."
        )
    for name, text in (("mse", "mean squared difference of the images"), ("similarity", "dissimilarity of the images")):
        before, after = (known.get(key, math.nan) for key in (f"{name}_before", name))
        if after >= before:
            found.append(f"The {text} did not fall: {before:.3g} before, {after:.3g} after.")
    if known.get("dice", math.nan) < known.get("dice_before", math.nan):
        found.append(f"The labels fit worse than before: Dice {known['dice_before']:.3f} to {known['dice']:.3f}.")
    if known.get("strong_change", 0) > SHARE:
        found.append(
            f"{100 * known['strong_change']:.2g} % of the voxels shrink below a fifth of their volume or grow above "
            "fivefold."
        )
    if known.get("inverse_error", 0) > INVERSE_ERROR_VOXELS:
        found.append(f"There and back again misses by {known['inverse_error']:.2g} voxels on average.")
    return found


def looked_at(values: Mapping[str, Any]) -> list[str]:
    """What was looked at where nothing speaks against a registration.

    Args:
        values: as ``doubts``.

    Returns:
        Sentences.
    """
    texts = {
        "foldings_percent": "foldings {:.2g} %",
        "mse": "mean squared difference {:.3g}",
        "similarity": "dissimilarity {:.3g}",
        "dice": "Dice {:.3f}",
        "inverse_error": "inverse error {:.2g} voxels",
    }
    found = []
    for name, text in texts.items():
        value, before = values.get(name), values.get(f"{name}_before")
        if value is not None and _is_number(value):
            then = f", before {before:.3g}" if _is_number(before) else ""
            found.append(text.format(value) + then)
    return [f"Looked at: {'; '.join(found)}."] if found else ["Nothing was measured that could speak against it."]


def doubtful(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The cases of an evaluation that should be looked at, and why.

    Args:
        rows: of ``metrics.csv``.

    Returns:
        Sentences by case, for those that have some.
    """
    found = {str(row["case"]): doubts(row) for row in rows}
    return {case: sentences for case, sentences in found.items() if sentences}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
