# SPDX-License-Identifier: Apache-2.0
"""The training steps that ``benchmark`` times for GradICON, and for VoxelMorph beside MONAI's."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import VoxelMorph as MonaiVoxelMorph
from monai.networks.nets import VoxelMorphUNet as MonaiVoxelMorphUNet
from torch import Tensor, nn

from ..engines.method import MODEL, Method, Update
from ..engines.trainer import RegistrationTrainer
from ..losses.inverse_consistency import InverseConsistencyPenalty
from ..losses.objective import Objective
from ..losses.similarity import build_similarity
from ..losses.terms import InverseConsistency, Similarity
from ..networks.convolution import cut
from ..networks.icon import TallUNet2, UpBlock
from ..networks.registry import build
from ..spatial.fields import compose
from ..spatial.units import unit_to_voxel
from ..spatial.warp import warp

Run = Callable[[int], Tensor]  # takes this many optimiser steps and returns the loss of the last

# As gradicon_triangles (2D) and gradicon_hippocampus (3D) have them.
WIDTHS: dict[str, Any] = {"down": (2, 16, 32, 64, 64, 64), "up": (16, 32, 32, 64, 64)}
FACTORS = {2: (8, 4, 2, 1), 3: (4, 2, 1, 1)}
WEIGHTS = {"paper_v1": 0.2, "released": 1.5}

PLAIN, PLAIN_LAST = "plain loop, two forwards", "plain loop, two forwards, channels last"
TWO, ONE = "trainer, two forwards", "trainer, one forward"
SAVED = "trainer, two forwards, checkpointing"
RELEASED, ALONE = "trainer, one forward, released", "trainer, one forward, similarity alone"

MONAI, MONAI_LAST, OURS, OURS_HALF = "MONAI", "MONAI, channels last", "ours", "ours, U-Net at half resolution"


def gradicon_runs(shape: Sequence[int], batch_size: int, device: torch.device) -> dict[str, Run]:
    """Steps of one network on one batch, by name: both directions, MSE, ``paper_v1`` where nothing else is said.

    All start from the same weights; the last convolutions are random instead of 0, so that fields are not the
    identity. Hence ``PLAIN``, ``PLAIN_LAST`` and ``TWO`` have the same first loss; the others differ from it in their
    batch statistics or their terms. MSE is the cheapest similarity: with another the penalty's share is smaller.

    Args:
        shape: grid size, two or three axes.
        batch_size: pairs a step.
        device: where to run.

    Returns:
        The runs by name: the plain loops first, then those of the trainer.
    """
    moving, fixed = _images(shape, batch_size, device)
    network = build("icon", len(shape), factors=FACTORS[len(shape)], **WIDTHS)
    for module in network.modules():
        if isinstance(module, TallUNet2):
            nn.init.normal_(module.last.weight, std=0.01)  # type: ignore[arg-type]
    last = torch.channels_last if moving.dim() == 4 else torch.channels_last_3d
    layouts = {PLAIN: torch.contiguous_format, PLAIN_LAST: last}
    objectives: dict[str, Objective] = {
        TWO: _penalised("paper_v1"),
        ONE: _penalised("paper_v1"),
        SAVED: _penalised("paper_v1"),
        RELEASED: _penalised("released"),
        ALONE: _similarity_alone(),
    }
    runs = {name: _plain_run(copy.deepcopy(network), moving, fixed, layout) for name, layout in layouts.items()}
    for name, objective in objectives.items():
        own = copy.deepcopy(network)
        for module in own.modules() if name == SAVED else ():
            if isinstance(module, TallUNet2):
                module.checkpointing = True
        runs[name] = _trainer_run(own, moving, fixed, objective, name not in (TWO, SAVED))
    return runs


def voxelmorph_runs(size: int, batch_size: int, device: torch.device) -> dict[str, Run]:
    """Steps of VoxelMorph in 3D, ours (channels last, as the trainer has it) and MONAI's, by name.

    Same channels and number of parameters (but for the U-Net at half resolution), 7 squarings at half resolution, warp,
    MSE and Adam in all. MONAI's scales fields by 2 where it halves the resolution, which costs the same but makes its
    values no reference.

    Args:
        size: side of the cube, a multiple of 16.
        batch_size: pairs a step.
        device: where to run.

    Returns:
        The runs by name.
    """
    moving, fixed = _images([size] * 3, batch_size, device)
    ours, half = (build("voxelmorph", 3, half_resolution=half).to(device) for half in (False, True))
    unet = MonaiVoxelMorphUNet(3, 2, 32, channels=(16, *[32] * 7), final_conv_channels=(16, 16))
    theirs = MonaiVoxelMorph(unet, integration_steps=7, half_res=True).to(device)
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (ours, theirs)]
    if counts[0] != counts[1]:
        raise RuntimeError(f"VoxelMorph: expected as many parameters in MONAI's as in ours, got {counts[::-1]}.")

    def run_of(network: nn.Module, warped: Callable[[nn.Module], Tensor], layout: torch.memory_format) -> Run:
        network.to(memory_format=layout)  # type: ignore[call-overload]
        return _loop(network, lambda: (warped(network) - fixed).square().mean())

    last = torch.channels_last_3d
    image = torch.cat([moving, fixed], dim=1).contiguous(memory_format=last)
    return {
        MONAI: run_of(copy.deepcopy(theirs), lambda net: net(moving, fixed)[0], torch.contiguous_format),
        MONAI_LAST: run_of(theirs, lambda net: net(moving, fixed)[0], last),
        OURS: run_of(ours, lambda net: warp(moving, net(image)), last),
        OURS_HALF: run_of(half, lambda net: warp(moving, net(image)), last),
    }


def _images(shape: Sequence[int], batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    moving, fixed = torch.rand(2, batch_size, 1, *shape, generator=generator).to(device)
    return moving, fixed


def _loop(network: nn.Module, loss_of: Callable[[], Tensor]) -> Run:
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)

    def run(steps: int) -> Tensor:
        for _ in range(steps):
            loss = loss_of()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return run


def _plain_step(step: TallUNet2, image: Tensor) -> Tensor:
    """A step layer by layer, as one would write it first, with every concatenation formed and kept."""
    x, skips = image, []
    for block in step.down:
        skips.append(x)
        x = block(x)
    for block in step.up:
        assert isinstance(block, UpBlock)
        beside = F.interpolate(x[:, : block.out_channels], scale_factor=2.0, mode=block.mode)
        skip = skips.pop()
        x = cut(block.norm(block.conv(F.leaky_relu(x, 0.01)) + beside), list(skip.shape[2:]))
        x = torch.cat([x, skip], dim=1)
    return unit_to_voxel(step.last(x) / 10.0)


def _plain_run(network: nn.Module, moving: Tensor, fixed: Tensor, layout: torch.memory_format) -> Run:
    """What one would write first: a forward each way, a composition each way, differences, squares."""
    network.to(moving.device).to(memory_format=layout)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, TallUNet2):
            module.forward = functools.partial(_plain_step, module)  # type: ignore[method-assign]

    def one_way(ddf: Tensor, back: Tensor) -> Tensor:
        composed = compose(ddf, back)
        total = composed.new_zeros(())
        for component in range(composed.shape[1]):
            unit = composed[:, component] / (composed.shape[2 + component] - 1)
            for axis in range(1, unit.dim()):
                slope = unit.diff(dim=axis) * (unit.shape[axis] - 1)
                total = total + slope.square().mean() / composed.shape[1]
        return total

    def loss_of() -> Tensor:
        ab = network(torch.cat([moving, fixed], dim=1).contiguous(memory_format=layout))
        ba = network(torch.cat([fixed, moving], dim=1).contiguous(memory_format=layout))
        similarity = (warp(moving, ab) - fixed).square().mean() + (warp(fixed, ba) - moving).square().mean()
        return similarity + WEIGHTS["paper_v1"] * (one_way(ab, ba) + one_way(ba, ab))

    return _loop(network, loss_of)


def _penalised(preset: str) -> Objective:
    penalty = InverseConsistency(InverseConsistencyPenalty("gradicon", preset))
    similarity = Similarity(both_ways=True)
    return Objective({"similarity": (1.0, similarity), "inverse_consistency": (WEIGHTS[preset], penalty)})


def _similarity_alone() -> Objective:
    return Objective({"similarity": (1.0, Similarity(both_ways=True))})


def _trainer_run(
    network: nn.Module,
    moving: Tensor,
    fixed: Tensor,
    objective: Objective,
    batched_directions: bool,
) -> Run:
    method = Method(
        {MODEL: network},
        build_similarity("mse"),
        [Update("displacement", [MODEL], objective, functools.partial(torch.optim.Adam, lr=1e-4))],
        bidirectional=True,
        batched_directions=batched_directions,
    )
    trainer = RegistrationTrainer(moving.device, 1, [{"moving_image": moving, "fixed_image": fixed}], method)

    def run(steps: int) -> Tensor:
        trainer.state.epoch = trainer.state.iteration = 0
        trainer.state.max_epochs = steps  # of one batch each
        trainer.run()
        return trainer.state.output["displacement"]["total"]  # type: ignore[index, call-overload]

    return run
