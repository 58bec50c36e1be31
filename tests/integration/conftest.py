# SPDX-License-Identifier: Apache-2.0
"""Environments, packed bundles and pairs of images, made once a session: ``python -m pytest -m integration``.

At the end a table says what each bundle did on each platform.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from common.cli.bundles import find_bundles, read_json
from common.cli.pack import pack
from common.cli.torchscript import build_network
from tests.integration.environments import environment
from tests.integration.pairs import KINDS, Pair, kind_of, write_pair

# A folder that outlives the session: the two environments take 5 GB and some minutes.
CACHE = "REGISTRATION_BUNDLES_INTEGRATION"
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "", "MPLBACKEND": "Agg"}
NAMES = [bundle.name for bundle in find_bundles()]
PLATFORMS = ("MONAI Label", "Deploy, folder", "Deploy, model.ts", "register", "zoo")
PLATFORM, BUNDLE = "platform", "bundle"  # names of what a test records for the table


@pytest.fixture(scope="session")
def cache(pytestconfig: pytest.Config) -> Path:
    """Folder of the environments."""
    given = os.environ.get(CACHE)
    return Path(given) if given else Path(pytestconfig.cache.mkdir("integration"))  # type: ignore[union-attr]


@pytest.fixture(scope="session")
def label_python(cache: Path) -> Path:
    """Python of MONAI Label's environment."""
    return environment("label", cache) / "python"


@pytest.fixture(scope="session")
def deploy_python(cache: Path) -> Path:
    """Python of MONAI Deploy's environment."""
    return environment("deploy", cache) / "python"


@pytest.fixture(scope="session")
def packs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every bundle, packed and unpacked, by name; one without weights gets random ones."""
    dist, folder, copies = (tmp_path_factory.mktemp(name) for name in ("dist", "packs", "bundles"))
    for bundle in find_bundles():
        copy = copies / bundle.name
        shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("runs"))
        if not has_weights(bundle.name):
            (copy / "models").mkdir(exist_ok=True)
            torch.save(build_network(copy).state_dict(), copy / "models" / "model.pt")
    pack(*map(str, copies.iterdir()), output=str(dist), smoke=False)
    for path in dist.glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
    return {path.name: path for path in sorted(folder.iterdir())}


def has_weights(name: str) -> bool:
    """Whether a bundle of the repository ships weights."""
    return any((bundle / "models" / "model.pt").is_file() for bundle in find_bundles((name,)))


@pytest.fixture
def tried(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[[str], str]:
    """Note the platform of a test for the table; gives the kind of pair that the test's bundle takes."""

    def note(platform: str) -> str:
        name = request.getfixturevalue("name")
        record_property(PLATFORM, platform)
        record_property(BUNDLE, name)
        return kind_of(read_json(find_bundles((name,))[0] / "configs" / "inference.json"))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the table bundle by platform."""
    cells: dict[str, dict[str, str]] = {}
    for outcome, said in (("skipped", "–"), ("passed", "yes"), ("failed", "**no**")):
        for report in terminalreporter.stats.get(outcome, ()):
            noted = dict(getattr(report, "user_properties", ()))
            if noted.keys() >= {BUNDLE, PLATFORM}:
                cells.setdefault(noted[BUNDLE], {})[noted[PLATFORM]] = said
    if cells:
        terminalreporter.section("bundles and platforms")
        for row in (("bundle", "weights", *PLATFORMS), ("---",) * (2 + len(PLATFORMS))):
            terminalreporter.write_line(f"| {' | '.join(row)} |")
        for name in sorted(cells):
            own = [cells[name].get(platform, "") for platform in PLATFORMS]
            weights = "shipped" if has_weights(name) else "random"
            terminalreporter.write_line(f"| {' | '.join((f'`{name}`', weights, *own))} |")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Pairs of images by kind, all in one folder, MONAI Label's studies."""
    folder = tmp_path_factory.mktemp("studies")
    return {kind: write_pair(folder, kind) for kind in KINDS}


Register = Callable[[Path, Pair, Path | str], dict[str, nib.Nifti1Image]]


@pytest.fixture(scope="session")
def register(tmp_path_factory: pytest.TempPathFactory) -> Register:
    """``inferring`` of a packed bundle on a pair: its images by file name; each run once."""
    results: dict[tuple[Path, Pair], dict[str, nib.Nifti1Image]] = {}

    def run(bundle: Path, pair: Pair, python: Path | str = sys.executable) -> dict[str, nib.Nifti1Image]:
        if (bundle, pair) not in results:
            output = tmp_path_factory.mktemp("registered")
            command = [str(python), "-m", "monai.bundle", "run", "inferring"]
            command += ["--config_file", "configs/inference.json", "--device", "cpu", "--output_dir", str(output)]
            command += ["--moving", str(pair.moving), "--fixed", str(pair.fixed)]
            command += ["--moving_label", str(pair.moving_label)]
            done = subprocess.run(command, cwd=bundle, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
            results[bundle, pair] = {path.name.split(".")[0]: nib.load(path) for path in output.glob("*.nii.gz")}
        return results[bundle, pair]

    return run


def largest_difference(got: nib.Nifti1Image, expected: nib.Nifti1Image) -> float:
    """Largest difference of two images' values, which lie on one grid."""
    arrays = [np.squeeze(np.asarray(image.dataobj, dtype=np.float64)) for image in (got, expected)]
    assert arrays[0].shape == arrays[1].shape
    np.testing.assert_allclose(got.affine, expected.affine, atol=1e-3)
    return float(np.abs(arrays[0] - arrays[1]).max())
