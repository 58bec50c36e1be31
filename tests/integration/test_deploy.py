# SPDX-License-Identifier: Apache-2.0
"""A MONAI Deploy application with a packed bundle's folder, and with its model.ts alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import ScaleIntensityRangePercentiles

from tests.integration.conftest import ENVIRONMENT, Register
from tests.integration.pairs import Pair

pytestmark = pytest.mark.integration
APPLICATION = Path(__file__).with_name("deploy_application.py")
CASES = [("baseline_acdc", "stack"), ("baseline_hippocampus", "volume"), ("gradicon_triangles", "plane")]


def images(pair: Pair) -> np.ndarray:
    """Moving and fixed as channels, (2, *S)."""
    return np.stack([np.asarray(nib.load(path).dataobj, dtype=np.float32) for path in (pair.moving, pair.fixed)])


def deploy(python: Path, bundle: Path, image: np.ndarray, affine: np.ndarray, folder: Path) -> np.ndarray:
    """What the application returns."""
    np.savez(folder / "input.npz", image=image, affine=affine)
    command = [str(python), str(APPLICATION), str(bundle), str(folder / "input.npz"), str(folder / "pred.npy")]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert (folder / "pred.npy").is_file(), done.stdout + done.stderr
    return np.load(folder / "pred.npy")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_bundles_folder_registers_as_inferring_does(
    name: str, kind: str, deploy_python: Path, packs: dict[str, Path], pairs: dict[str, Pair], register: Register,
    tmp_path: Path,
) -> None:  # fmt: skip
    pair = pairs[kind]
    expected = np.asarray(register(packs[name], pair)["warped"].dataobj)
    got = deploy(deploy_python, packs[name], images(pair), nib.load(pair.fixed).affine, tmp_path)
    assert got.dtype == np.float32
    assert got.shape == (1, *expected.shape, 1)[:4]
    assert np.abs(got.reshape(expected.shape) - expected).max() == 0.0


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_lone_torchscript_file_returns_the_networks_displacement(
    name: str, kind: str, deploy_python: Path, packs: dict[str, Path], pairs: dict[str, Pair], tmp_path: Path
) -> None:
    file = packs[name] / "models" / "model.ts"
    image = images(pairs[kind]) / 200
    got = deploy(deploy_python, file, image, nib.load(pairs[kind].fixed).affine, tmp_path)
    network = torch.jit.load(str(file)).eval()
    inputs = torch.from_numpy(image)
    if kind == "volume":  # of the network's own size: scaled, neither padded nor cropped
        inputs = ScaleIntensityRangePercentiles(1, 99, 0.0, 1.0, clip=True, channel_wise=True)(inputs)
    slices = inputs.movedim(-1, 0) if kind == "stack" else inputs[None]
    with torch.no_grad():
        ddf = network(torch.as_tensor(slices))
    expected = ddf.movedim(0, -1) if kind == "stack" else ddf[0]
    assert np.abs(got - expected.numpy()).max() == 0.0
    assert np.abs(got).max() > 0.1
