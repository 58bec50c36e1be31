# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments: names, switches, positive numbers, folders to write to. Imports nothing of ours."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable
from numbers import Real
from pathlib import Path

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def known_name(argument: str, name: object, known: Iterable[str]) -> str:
    """The name, where it is known.

    Args:
        argument: what the error calls it.
        name: what was given.
        known: all that there are, in the order to list them.

    Returns:
        ``name``.

    Raises:
        ValueError: for any other name, with the known ones and the nearest.
    """
    names = list(known)
    if isinstance(name, str) and name in names:
        return name
    near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"{argument}: expected one of {', '.join(names)}, got {name!r}.{hint}")


def positive(argument: str, value: float) -> float:
    """The value as float.

    Args:
        argument: what the error calls it.
        value: the number.

    Returns:
        The number.

    Raises:
        ValueError: where it is not above 0, infinite, or no number.
    """
    number = _number(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{argument}: expected a number above 0, got {value!r}")
    return number


def at_least(argument: str, value: float, least: float = 0.0) -> float:
    """The value as float.

    Args:
        argument: what the error calls it.
        value: the number.
        least: the smallest that may be given.

    Returns:
        The number.

    Raises:
        ValueError: where it is smaller, infinite, or no number.
    """
    number = _number(value)
    if not least <= number < math.inf:
        raise ValueError(f"{argument}: expected a number from {least:g}, got {value!r}.")
    return number


def whole(argument: str, value: float, least: int = 0) -> int:
    """The value as int.

    Args:
        argument: what the error calls it.
        value: the number.
        least: the smallest that may be given.

    Returns:
        The number.

    Raises:
        ValueError: where it is smaller, or no whole number.
    """
    if not is_whole(value, least):
        raise ValueError(f"{argument}: expected a whole number from {least}, got {value!r}.")
    return int(value)


def is_whole(value: object, least: int = 0) -> bool:
    """Whether a value is a whole number, of any type of number, and not a switch.

    Args:
        value: anything.
        least: the smallest that may be given.

    Returns:
        True or False.
    """
    return (
        isinstance(value, Real) and not isinstance(value, bool) and float(value).is_integer() and float(value) >= least
    )


def switch(value: object, argument: str) -> bool:
    """Read a switch as a person means it: the command line delivers ``--amp false`` as text.

    Args:
        value: bool, 0, 1, or one of true/false, yes/no, on/off in any case.
        argument: what the error calls it.

    Returns:
        True or False.

    Raises:
        ValueError: for anything else.
    """
    text = str(value).strip().lower()
    if text not in TRUE + FALSE:
        raise ValueError(f"{argument}: expected true or false, got {value!r}.")
    return text in TRUE


def check_writable(folder: Path, argument: str = "output_dir") -> None:
    """Refuse a folder in which nothing can be written, or that could not be made.

    Args:
        folder: need not exist.
        argument: what the error calls it.

    Raises:
        ValueError: for such a folder.
    """
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(
            f"{argument}: expected a folder that can be written to, {above} is "
            f"{'one that cannot' if above.is_dir() else 'a file'}. Choose another place."
        )


def _number(value: object) -> float:
    """The value as float, NaN where it is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
