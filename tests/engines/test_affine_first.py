# SPDX-License-Identifier: Apache-2.0
"""The affine network is trained first, then VoxelMorph on what it leaves."""

import pytest
import torch
from ignite.engine import Events

from common.data.pairs import PairDataset
from common.networks.registry import build
from common.spatial.warp import warp
from common.workflow import Options, trainer
from tests.engines.synthetic import SIZES, TINY, adam, blob, displacement_objective, method_of


@pytest.mark.parametrize("size", SIZES)
def test_affine_network_aligns_first_and_stays_while_voxelmorph_is_trained(tmp_path, size):
    """Ten iterations each; the blobs lie two voxels apart."""
    network = build("affine_voxelmorph", len(size), seed=0, widths=(2, 4, 8), hidden=8, **TINY)
    pairs = [pair | {"centre": torch.tensor([(n - 1) / 2 for n in size])} for pair in blob(size, 2.0, 4)]
    method = method_of(network, displacement_objective(), adam(3e-3))
    engine = trainer(method, PairDataset(pairs, size), 5, Options(tmp_path, batch_size=1))
    states = [{key: value.clone() for key, value in network.state_dict().items()}]

    def keep(engine):
        states.append({key: value.clone() for key, value in network.state_dict().items()})

    engine.add_event_handler(Events.ITERATION_COMPLETED, keep)
    engine.run()

    def moved(start, stop):
        before, after = states[start], states[stop]
        return {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])}

    assert len(states) == 21 and [moved(0, 10), moved(10, 20)] == [{"affine"}, {"deformable"}]
    images = torch.stack([torch.cat([pair["moving_image"], pair["fixed_image"]]) for pair in pairs])
    with torch.no_grad():
        network.eval()
        errors = [(moving - images[:, 1:]).square().mean() for moving in (
            images[:, :1], warp(images[:, :1], network.affine(images), padding="border"),
            warp(images[:, :1], network(images), padding="border"))]  # fmt: skip
    assert errors[1] < 0.8 * errors[0] and errors[2] < errors[1]
