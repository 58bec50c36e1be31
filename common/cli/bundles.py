# SPDX-License-Identifier: Apache-2.0
"""Bundles as the commands see them: where they lie, their JSON, and this package's name inside it."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ..runs.configuration import FILES
from ..runs.options import EVALUATE

PACKAGE = __name__.rpartition(".cli.")[0]  # "common", or "scripts.common" in a packed bundle
REPOSITORY = Path(__file__).resolve().parents[2]


def evaluation_config(bundle: Path) -> ConfigParser:
    """The configuration of a bundle's evaluation, for its options to be set and its parts to be built.

    Args:
        bundle: its folder.

    Returns:
        What its files say.
    """
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in FILES[EVALUATE]])
    return parser


def find_bundles(names: tuple[str, ...] = ()) -> list[Path]:
    """Folders of bundles, given by path or by name; all of the repository where none is given.

    Args:
        names: paths or names.

    Returns:
        Their paths.

    Raises:
        FileNotFoundError: for an unknown one, with the nearest name.
    """
    known = {path.parent.parent.name: path.parent.parent for path in REPOSITORY.glob("bundles/*/configs/metadata.json")}
    found = []
    for name in names:
        path = Path(name)
        if (path / "configs").is_dir():
            found.append(path.resolve())
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


def rename_package(config: Any, package: str, key: str = "") -> Any:
    """Replace this package's name in the two forms that a configuration may hold it in.

    ``"_target_": "PACKAGE.x.Y"``, and the imports ``"$import PACKAGE.x as y"`` and ``"$from PACKAGE.x import y"``.

    Args:
        config: parsed JSON.
        package: the new name, "scripts.common".
        key: under which ``config`` stands.

    Returns:
        The changed JSON.
    """
    if isinstance(config, dict):
        return {name: rename_package(value, package, name) for name, value in config.items()}
    if isinstance(config, list):
        return [rename_package(value, package) for value in config]
    if not isinstance(config, str):
        return config
    name = re.escape(PACKAGE)
    if re.split("#|::", key)[-1] == "_target_":
        return re.sub(rf"^{name}(?=(\.\w+)+$)", package, config)
    imports = rf"^(\$import ){name}(?=(\.\w+)* as \w+$)|^(\$from ){name}(?=(\.\w+)* import \w+( as \w+)?$)"
    return re.sub(imports, lambda found: (found[1] or found[3]) + package, config)
