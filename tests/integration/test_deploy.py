# SPDX-License-Identifier: Apache-2.0
"""A MONAI Deploy application with a packed bundle's folder, and with its model.ts alone."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import ScaleIntensityRangePercentiles

from common.cli.bundles import read_json
from common.cli.export import whole_volumes
from tests.integration.conftest import ENVIRONMENT, NAMES, Register
from tests.integration.pairs import Pair, write_pair

pytestmark = pytest.mark.integration
APPLICATION = Path(__file__).with_name("deploy_application.py")


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
@pytest.mark.parametrize("name", NAMES)
def test_a_bundles_folder_registers_as_inferring_does(
    name: str, tried: Callable[[str], str], deploy_python: Path, packs: dict[str, Path], pairs: dict[str, Pair],
    register: Register, tmp_path: Path,
) -> None:  # fmt: skip
    pair = pairs[tried("Deploy, folder")]
    expected = np.asarray(register(packs[name], pair)["warped"].dataobj)
    got = deploy(deploy_python, packs[name], images(pair), nib.load(pair.fixed).affine, tmp_path)
    assert got.dtype == np.float32
    assert got.shape == (1, *expected.shape, 1)[:4]
    assert np.abs(got.reshape(expected.shape) - expected).max() == 0.0


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_a_lone_torchscript_file_returns_the_networks_displacement(
    name: str, tried: Callable[[str], str], deploy_python: Path, packs: dict[str, Path], tmp_path: Path
) -> None:
    tried("Deploy, model.ts")
    config = read_json(packs[name] / "configs" / "inference.json")
    stacked = len(config["spatial_size"]) == 2 and config["spacing"] is not None
    size = (*config["spatial_size"], 5) if stacked else config["spatial_size"]
    window = write_pair(tmp_path, "stack" if stacked else "volume", size)
    image = images(window) / 200
    file = packs[name] / "models" / "model.ts"
    got = deploy(deploy_python, file, image, nib.load(window.fixed).affine, tmp_path)
    network, inputs = torch.jit.load(str(file)).eval(), torch.from_numpy(image)
    if whole_volumes(config):  # of the network's own size: scaled, neither padded nor cropped
        lower, upper = config["percentiles"] or (0, 100)
        inputs = ScaleIntensityRangePercentiles(lower, upper, 0.0, 1.0, clip=True, channel_wise=True)(inputs)
    slices = inputs.movedim(-1, 0) if stacked else inputs[None]
    with torch.no_grad():
        ddf = network(torch.as_tensor(slices))
    expected = ddf.movedim(0, -1) if stacked else ddf[0]
    assert np.abs(got - expected.numpy()).max() == 0.0
    assert np.abs(got).max() > 0.01
