# SPDX-License-Identifier: Apache-2.0
"""Bundles as the commands see them: where they lie, their JSON, and this package's name inside it."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ..runs.configuration import FILES
from ..runs.options import EVALUATE
from ..runs.package import PACKAGE, package_of, read_bundle

REPOSITORY = Path(__file__).resolve().parents[2]


def evaluation_config(bundle: Path) -> ConfigParser:
    """The configuration of a bundle's evaluation, for its options to be set and its parts to be built.

    Args:
        bundle: its folder.

    Returns:
        What its files say.
    """
    return read_bundle(bundle, FILES[EVALUATE])


def find_bundles(names: tuple[str, ...] = (), own_code: bool = False) -> list[Path]:
    """Folders of bundles, given by path or by name; all of the repository where none is given.

    Args:
        names: paths or names.
        own_code: refuse a bundle that carries its code with it, as a packed one does in the repository.

    Returns:
        Their paths.

    Raises:
        FileNotFoundError: for an unknown one, with the nearest name.
        ValueError: for one that carries its code.
    """
    known = {path.parent.parent.name: path.parent.parent for path in REPOSITORY.glob("bundles/*/configs/metadata.json")}
    found = []
    for name in names:
        path = Path(name)
        if (path / "configs").is_dir():
            found.append(path.resolve())
            if own_code and (package := package_of(path)) != PACKAGE:
                raise ValueError(
                    f"bundle: {path} runs the code of '{package}', got the command of '{PACKAGE}'. "
                    f"Run it in that folder: cd {path}; python -m {package} COMMAND ."
                )
        elif name in known:
            found.append(known[name])
        else:
            near = difflib.get_close_matches(path.name, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" Known: {', '.join(sorted(known))}."
            raise FileNotFoundError(f"bundle: expected a folder with configs/ or a name, got '{name}'.{hint}")
    if not names and not known:
        raise FileNotFoundError(f"bundle: {REPOSITORY / 'bundles'} holds none. Pass a bundle's path.")
    return found or [known[name] for name in sorted(known)]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; the error names the file.

    Args:
        path: of the file.

    Returns:
        The object.

    Raises:
        ValueError: where the file holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is no JSON: {error}. Correct it there.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: expected an object {{...}}, got {type(content).__name__}.")
    return content


def configurations(bundle: Path) -> dict[str, dict[str, Any]]:
    """Every JSON of a bundle but its metadata, by file name.

    Args:
        bundle: its folder.

    Returns:
        Parsed JSON by file name.
    """
    paths = sorted((bundle / "configs").glob("*.json"))
    return {path.name: read_json(path) for path in paths if path.name != "metadata.json"}
