# SPDX-License-Identifier: Apache-2.0
"""A copy of a bundle that passes every check, for tests to damage."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.cli.bundles import REPOSITORY
from common.cli.json_text import dumps

NAME = "baseline_acdc"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Folder of a bundle without weights: any other would do, this one is 2D and small."""
    folder = tmp_path / NAME
    for part in ("configs", "docs"):
        shutil.copytree(REPOSITORY / "bundles" / NAME / part, folder / part)
    shutil.copy(REPOSITORY / "bundles" / NAME / "LICENSE", folder)
    (folder / "models").mkdir()
    path = folder / "configs" / "metadata.json"
    path.write_text(dumps(json.loads(path.read_text()) | {"weights": [], "eval_metrics": {}}))
    readme = folder / "docs" / "README.md"
    readme.write_text(readme.read_text() + "\nNo weights are shipped.\n")
    return folder


Edit = Callable[[Path, Callable[[dict[str, Any]], Any]], None]


@pytest.fixture
def edit() -> Edit:
    """Change a JSON file in place."""

    def apply(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return apply
