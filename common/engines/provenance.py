# SPDX-License-Identifier: Apache-2.0
"""Where a result comes from: versions, settings, and the SHA-256 of the files that were read."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..io.results import versions
from ..runs.record import commit, sha256


def provenance(inputs: Mapping[str, Any], settings: Mapping[str, Any], weights: Sequence[str] = ()) -> dict[str, Any]:
    """A record of a registration.

    Args:
        inputs: by option: paths, or what was given in memory.
        settings: options.
        weights: files of weights.

    Returns:
        "inputs" and "weights" with their SHA-256, "settings", "versions", "commit" of a clone, "date" (UTC).
    """
    return {
        "inputs": described(inputs),
        "settings": dict(settings),
        "weights": {path: sha256(path) for path in weights},
        "versions": versions(),
        "commit": commit(Path(__file__).resolve().parents[2]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def described(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, in the form of a record.

    Args:
        inputs: by option: paths, or what was given in memory; None is left out.

    Returns:
        By option: path and SHA-256 of a file, else a text.
    """
    return {name: _described(given) for name, given in inputs.items() if given is not None}


def _described(given: Any) -> Any:
    if not isinstance(given, (str, Path)):
        return f"in memory ({type(given).__name__})"
    path = Path(given)
    return {"path": str(path.absolute()), "sha256": sha256(path)} if path.is_file() else str(given)
