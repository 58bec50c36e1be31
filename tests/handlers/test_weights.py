# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch

from common.handlers.state import load_modules, save_weights
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
