# SPDX-License-Identifier: Apache-2.0
"""Values of options, as the command line delivers them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def numbers(value: str | float | Sequence[float], argument: str) -> list[float]:
    """Numbers from "4,2,1", "[4, 2, 1]", one number, or a sequence.

    Args:
        value: as given.
        argument: what the error calls it.

    Returns:
        The numbers.

    Raises:
        ValueError: for anything else.
    """
    parts = value.strip("[]() ").split(",") if isinstance(value, str) else value
    parts = [parts] if isinstance(parts, (int, float)) else parts
    try:
        return [float(part) for part in parts]
    except (TypeError, ValueError):
        raise ValueError(f"{argument}: expected numbers like 4,2,1, got {value!r}.") from None


def paths(value: str | Sequence[str], argument: str) -> list[str]:
    """Paths from "a.h5,b.nii.gz", or a sequence.

    Args:
        value: as given.
        argument: what the error calls it.

    Returns:
        The paths; a file whose own name holds a comma is taken whole.

    Raises:
        ValueError: for none.
    """
    given = [value] if isinstance(value, str) and ("," not in value or Path(value).exists()) else value
    given = given.split(",") if isinstance(given, str) else [str(path) for path in given]
    found = [path.strip() for path in given if path.strip()]
    if not found:
        raise ValueError(f"{argument}: expected the path of a file, or several with commas between, got {value!r}.")
    return found
