# SPDX-License-Identifier: Apache-2.0
"""The model zoo's own ``ci/verify_bundle.py`` on every packed bundle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.cli.metadata_schema import SCHEMA
from tests.integration.conftest import ENVIRONMENT, NAMES

pytestmark = pytest.mark.integration
ZOO = "https://github.com/Project-MONAI/model-zoo"
# A clone or mirror of it, where the network does not reach the repository.
LOCAL = "REGISTRATION_BUNDLES_MODEL_ZOO"


@pytest.fixture(scope="module")
def zoo(cache: Path) -> Path:
    """A clone of the model zoo."""
    folder = cache / "model-zoo"
    if not (folder / "ci" / "verify_bundle.py").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        command = ["git", "clone", "--quiet", "--depth", "1", os.environ.get(LOCAL, ZOO), str(folder)]
        environment = {**ENVIRONMENT, "GIT_TERMINAL_PROMPT": "0"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
        if done.returncode:
            pytest.skip(f"no model zoo at {command[-2]} (set {LOCAL} to a clone): {done.stderr.strip()[-200:]}")
    return folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_the_model_zoo_takes_every_pack(
    name: str, tried: Callable[[str], str], packs: dict[str, Path], zoo: Path, tmp_path: Path
) -> None:
    tried("zoo")
    shutil.copytree(packs[name], tmp_path / name)
    (tmp_path / "model_info.json").write_text("{}")
    (tmp_path / name / "eval").mkdir()
    # The zoo downloads MONAI's schema to this file first; ours states the same rules.
    (tmp_path / name / "eval" / "schema.json").write_text(json.dumps(SCHEMA))
    command = [sys.executable, "ci/verify_bundle.py", "-b", name, "-p", str(tmp_path), "-m", "full"]
    done = subprocess.run(command, cwd=zoo, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Provided TorchScript module is verified correctly." in done.stdout
