# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch

from common.handlers.state import load_modules, load_weights, save_weights
from common.networks.unet import PixelEstimator
from common.networks.voxelmorph import VoxelMorph
from tests.engines.synthetic import TINY


def test_weights_to_start_from_bring_those_beside_them_where_there_are_some(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    modules = {"model": VoxelMorph(2, **TINY), "model_score": PixelEstimator(2, 1, **TINY)}
    for name, module in modules.items():
        save_weights(module, tmp_path / f"{name}.pt")
    for name in ("model", "model_score"):
        fresh = {"model": VoxelMorph(2, **TINY), "model_score": PixelEstimator(2, 1, **TINY)}
        load_modules(fresh, tmp_path / "model.pt", "initial_weights", to_start_from=True)
        same = [
            all(torch.equal(p, q) for p, q in zip(fresh[key].parameters(), modules[key].parameters(), strict=True))
            for key in modules
        ]
        assert same == [True, name == "model"]
        (tmp_path / "model_score.pt").unlink(missing_ok=True)
    assert caplog.text.count("no model_score.pt beside model.pt; this network starts untrained") == 1
    with pytest.raises(FileNotFoundError, match="ckpt_path: .*model_score.pt, there is none"):
        load_modules(modules, tmp_path / "model.pt")


def test_missing_weights_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="ckpt_path: expected a file of weights at .*model.pt.*Train"):
        load_weights(VoxelMorph(2, **TINY), tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="initial_weights: expected a file .*--initial_weights OUTPUT_DIR"):
        load_weights(VoxelMorph(2, **TINY), tmp_path / "model.pt", "initial_weights")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: VoxelMorph(3, **TINY), "other shapes .*expected .*got"),
        (lambda: VoxelMorph(2, encoder=(4, 4), decoder=(4, 4, 4)), "unexpected .'unet.down.1"),
        (lambda: PixelEstimator(2, 2, **TINY), "missing .'flow.bias'"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, other, message):
    save_weights(other(), tmp_path / "model.pt")
    network = VoxelMorph(2, **TINY)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=f"checkpoint of another network than VoxelMorph: .*{message}"):
        load_weights(network, tmp_path / "model.pt")
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "model.pt").write_text("not weights")
    with pytest.raises(ValueError, match="no file of torch weights"):
        load_weights(VoxelMorph(2, **TINY), tmp_path / "model.pt")
