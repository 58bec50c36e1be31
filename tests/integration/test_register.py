# SPDX-License-Identifier: Apache-2.0
"""``register`` with every packed bundle: by the code that the bundle carries, and by the repository's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.cli.register import register as register_here
from tests.integration.conftest import ENVIRONMENT, NAMES, Register, largest_difference
from tests.integration.pairs import Pair

pytestmark = pytest.mark.integration
TOLERANCE = 1e-3  # of the image's largest value


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_a_packed_bundle_registers_files_as_inferring_does(
    name: str, tried: Callable[[str], str], packs: dict[str, Path], pairs: dict[str, Pair], register: Register,
    tmp_path: Path,
) -> None:  # fmt: skip
    pair = pairs[tried("register")]
    expected = register(packs[name], pair)["warped"]
    largest = np.abs(np.asarray(expected.dataobj)).max()
    files = {"moving": str(pair.moving), "fixed": str(pair.fixed), "affine": "none"}
    words = [f"--{option}={value}" for option, value in {**files, "output_dir": str(tmp_path / "own")}.items()]
    command = [sys.executable, "-m", "scripts.common", "register", "--bundle", ".", *words]
    done = subprocess.run(command, cwd=packs[name], env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    register_here(str(tmp_path / "repository"), bundle=str(packs[name]), **files)
    for folder in ("own", "repository"):
        got = nib.load(tmp_path / folder / "warped.nii.gz")
        assert largest_difference(got, expected) < TOLERANCE * largest, folder
