# SPDX-License-Identifier: Apache-2.0
"""Values of options, as the command line delivers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..checks import check_writable

# Before a path: the inverse of the transform in it.
INVERSE = "inverse:"


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
        The paths; a file whose own name holds commas is taken whole, alone and among others.

    Raises:
        ValueError: for none.
    """
    found = _split(value) if isinstance(value, str) else [str(path) for path in value]
    found = [path.strip() for path in found if path.strip()]
    if not found:
        raise ValueError(f"{argument}: expected the path of a file, or several with commas between, got {value!r}.")
    return found


def check_file(path: str | Path, argument: str, suffixes: tuple[str, ...], reads: Mapping[str, str | None]) -> None:
    """Refuse a single output file before the work, where it could not be written or would replace what is read.

    Args:
        path: of the file.
        argument: what errors call it.
        suffixes: one of which its name must have.
        reads: files that are read, by the option that names them; None where there is none.

    Raises:
        ValueError: for another suffix, a folder that cannot be written to, or a file that is read.
    """
    target = Path(path)
    if not target.name.endswith(suffixes) or target.is_dir():
        raise ValueError(f"{argument}: expected a file whose name ends in one of {', '.join(suffixes)}, got {path}.")
    check_writable(target.absolute().parent, argument)
    for option, read in reads.items():
        if read is not None and target.resolve() == Path(read).resolve():
            raise ValueError(
                f"{argument}: expected another file than those of the command, got {path}, which is that of {option}. "
                "Nothing was changed. Choose another name."
            )


def _split(text: str) -> list[str]:
    """At the commas, but for those of which the longest piece before is a file, with or without "inverse:"."""
    pieces, found = text.split(","), list[str]()
    while pieces:
        counts = range(len(pieces), 1, -1)
        wholes = ((count, ",".join(pieces[:count])) for count in counts)
        taken = next((n for n, whole in wholes if Path(whole.strip().removeprefix(INVERSE)).is_file()), 1)
        found.append(",".join(pieces[:taken]))
        del pieces[:taken]
    return found
