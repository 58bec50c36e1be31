# SPDX-License-Identifier: Apache-2.0
"""The name that this package has in a bundle's JSON: ``common`` in the repository, ``scripts.common`` in a zip."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

PACKAGE = __name__.rpartition(".runs.")[0]
REPOSITORY_PACKAGE, PACKED_PACKAGE = "common", "scripts.common"
NAMES = (PACKED_PACKAGE, REPOSITORY_PACKAGE)
IMPORT = re.compile(r"^\$(?:import|from) (.+)\.bundle ", re.MULTILINE)


def rename_package(config: Any, package: str, names: Iterable[str] = (PACKAGE,), key: str = "") -> Any:
    """Replace this package's name in the two forms that a configuration may hold it in.

    ``"_target_": "PACKAGE.x.Y"``, and the imports ``"$import PACKAGE.x as y"`` and ``"$from PACKAGE.x import y"``.

    Args:
        config: parsed JSON.
        package: the new name, "scripts.common".
        names: that are replaced.
        key: under which ``config`` stands.

    Returns:
        The changed JSON.
    """
    if isinstance(config, dict):
        return {name: rename_package(value, package, names, name) for name, value in config.items()}
    if isinstance(config, list):
        return [rename_package(value, package, names) for value in config]
    if not isinstance(config, str):
        return config
    old = "|".join(map(re.escape, names))
    if re.split("#|::", key)[-1] == "_target_":
        return re.sub(rf"^({old})(?=(\.\w+)+$)", package, config)
    imports = rf"^(\$import )({old})(?=(\.\w+)* as \w+$)|^(\$from )({old})(?=(\.\w+)* import \w+( as \w+)?$)"
    return re.sub(imports, lambda found: (found[1] or found[4]) + package, config)


def package_of(bundle: Path) -> str:
    """Package that a bundle's inference.json imports.

    Args:
        bundle: its folder.

    Returns:
        "common", or "scripts.common" for a packed one; this package's own name where no file says it.
    """
    file = bundle / "configs" / "inference.json"
    config = ConfigParser.load_config_file(str(file)) if file.is_file() else {}
    found = IMPORT.search("\n".join(map(str, config.get("imports", ()))))
    return found[1] if found else PACKAGE


def read_bundle(bundle: Path, files: Iterable[str]) -> ConfigParser:
    """Configurations of a bundle, of the repository or packed, to run with the code that is running.

    Args:
        bundle: its folder.
        files: names in its folder ``configs``, later ones win.

    Returns:
        The parser, ``bundle_root`` set to the folder.
    """
    parser = read_files(bundle / "configs" / name for name in files)
    parser["bundle_root"] = str(bundle.resolve())
    return parser


def read_files(files: Iterable[Path]) -> ConfigParser:
    """Configurations that name the code that is running, whatever they name.

    Args:
        files: JSON, later ones win.

    Returns:
        The parser.
    """
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    parser.config = rename_package(parser.config, PACKAGE, NAMES)
    return parser
