# SPDX-License-Identifier: Apache-2.0
"""Small networks, blobs that move, and the plainest trainer: what several suites of engines share."""

import torch
from ignite.engine import Events
from torch.utils.data import DataLoader

from common.engines.trainer import RegistrationTrainer, Update
from common.losses.objectives import DisplacementObjective
from common.losses.similarity import SquaredError
from common.networks.unet import PixelEstimator
from common.networks.voxelmorph import VoxelMorph
from common.spatial.warp import identity_grid

SIZES = [(24, 32), (12, 16, 10)]
TINY = {"encoder": (6,), "decoder": (6, 6)}


def blob(size, shift, batch):
    """Gaussian blobs; the fixed ones lie ``shift`` voxels further along the first axis."""
    grid = identity_grid(list(size), torch.device("cpu"))
    width = max(size) / 6

    def at(offset, seed):
        centre = torch.tensor([n / 2 for n in size]) + torch.rand(len(size), generator=seed) - 0.5
        centre[0] += offset
        distance = (grid - centre.view([-1] + [1] * len(size))).square().sum(0)
        return torch.exp(-distance / (2 * width**2))[None]

    pairs = []
    for number in range(batch):
        seeds = [torch.Generator().manual_seed(number) for _ in range(2)]
        pairs.append({"moving_image": at(0.0, seeds[0]), "fixed_image": at(shift, seeds[1])})
    return pairs


def networks(dims, in_channels=1, seed=0):
    torch.manual_seed(seed)
    return VoxelMorph(dims, **TINY), PixelEstimator(dims, in_channels, **TINY)


def baseline(network, loader, lr=1e-2, weight=0.01, max_epochs=1, **options):
    update = Update("displacement", DisplacementObjective(weight), torch.optim.Adam(network.parameters(), lr=lr))
    return RegistrationTrainer("cpu", max_epochs, loader, network, [update], SquaredError(), **options)


def record_similarity(trainer, losses):
    def record(engine):
        losses.append(float(engine.state.output["displacement"]["similarity"]))

    trainer.add_event_handler(Events.EPOCH_COMPLETED, record)


def loader_of(size, batch_size=2, pairs=4, shift=2.0):
    return DataLoader(blob(size, shift, pairs), batch_size=batch_size)
