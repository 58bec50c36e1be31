# SPDX-License-Identifier: Apache-2.0
"""One Ignite engine trains every method: an ordered list of updates over shared results of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import EventEnum
from monai.engines import Trainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..checks import known_name
from ..spatial.warp import PADDINGS
from .step import ESTIMATOR_INPUTS, EstimatorView, RegistrationStep, TrainingView, channels_last


class RegistrationEvents(EventEnum):
    """UPDATE_STARTED fires before each update's objective: ``state.update`` names it, ``state.step`` holds the step."""

    UPDATE_STARTED = "update_started"


class NonFiniteLoss(RuntimeError):
    """A loss term became NaN or infinite; the last checkpoint on disk is from before."""


@dataclass
class Update:
    """One optimiser step within an iteration.

    Attributes:
        name: what schedules, logs and other objectives call it.
        objective: step -> {"total": scalar to minimise, term: value, ...}.
        optimizer: owns the parameters that this update changes. Its gradients are cleared after its step, not before:
            what another update left in them counts (only objectives that say so leave any).
        differentiates: networks ("displacement", "estimator") that the objective's gradient flows into.
    """

    name: str
    objective: Callable[[Any], dict[str, Tensor]]
    optimizer: Optimizer
    differentiates: Sequence[str] = ("displacement",)


def draw_seed(*numbers: int) -> int:
    """A seed for torch that is a function of these numbers (>= 0), and another one for any others."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _prepared(view: nn.Module, device: torch.device, compile: bool) -> nn.Module:
    """Move to the device, channels last (faster convolutions), wrap for several processes, compile where asked."""
    view = view.to(device)
    for parameter in view.parameters():
        parameter.data = channels_last(parameter.data)
    distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if distributed:
        if device.type == "cuda":
            view = nn.SyncBatchNorm.convert_sync_batchnorm(view)
        view = DistributedDataParallel(view, device_ids=[device.index] if device.type == "cuda" else None)
    if compile:
        view.compile()
    return view


class RegistrationTrainer(Trainer):
    """Trains a displacement network, with or without a pixel-wise estimator beside it.

    ``state.output`` is ``{update name: {term: detached scalar}}``. Handlers choose which updates run by setting
    ``active`` (all, unless a schedule says otherwise).

    Args:
        device: where to train.
        max_epochs: number of epochs.
        train_data_loader: batches with ``moving_image`` and ``fixed_image``, (B, 1, *S) in [0, 1].
        network: displacement network with ``estimate``; stays bare here and in checkpoints.
        updates: run in this order in every iteration.
        similarity: (warped, fixed) -> residual map.
        estimator: score or variance network.
        estimator_input: "fixed" or "fixed_warped".
        bidirectional: also register fixed onto moving, in the same batch; both directions count one half.
        batched_directions: with ``bidirectional``, register both directions in one forward; False runs two of half the
            batch, one after the other (batch statistics are then those of one direction).
        inverse_by_negation: with ``bidirectional``, the way back is exp(-v) of the one forward; False runs the
            network on the swapped images as well.
        foreground: compare only where one of the two images is not 0, see ``RegistrationStep``.
        padding: what lies outside the moving image: "zeros" (VoxelMorph) or "border" (ICON), see ``warp``.
        inside_only: see ``RegistrationStep``.
        second_forward: recompute the displacement after it was updated (AdaCS's Algorithm 1, line 17); by default one
            forward serves all updates of an iteration.
        amp: bfloat16 autocast of the networks; fields, warps and losses stay float32, no gradient scaling.
        compile: torch.compile the networks.
        seed: of torch's random state, which is set anew in every iteration from (seed, epoch, iteration, rank): random
            draws of objectives and networks differ between processes, and a resumed run repeats them.
        finite_check_interval: iterations between checks for NaN on an accelerator, where each check waits for it; on
            the CPU every iteration is checked.
        train_handlers: MONAI or Ignite handlers.

    Raises:
        ValueError: for an unknown estimator input or padding, a leaking update without its own forward, or
            ``inverse_by_negation`` without ``bidirectional`` or with a network that has no velocity.
        NonFiniteLoss: (while running) naming the term.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable,
        network: nn.Module,
        updates: Sequence[Update],
        similarity: nn.Module,
        estimator: nn.Module | None = None,
        estimator_input: str = "fixed",
        bidirectional: bool = False,
        batched_directions: bool = True,
        padding: str = "zeros",
        inside_only: bool = False,
        second_forward: bool = False,
        amp: bool = False,
        compile: bool = False,
        seed: int = 0,
        inverse_by_negation: bool = False,
        foreground: bool = False,
        finite_check_interval: int = 50,
        train_handlers: Sequence[Any] | None = None,
    ) -> None:
        known_name("estimator_input", estimator_input, ESTIMATOR_INPUTS)
        if sum("displacement" in update.differentiates for update in updates) > 1 and not second_forward:
            raise ValueError(
                "second_forward must be true where more than one update differentiates the displacement network: the "
                "first update changes the weights that the shared forward was computed with."
            )
        if inverse_by_negation and not bidirectional:
            raise ValueError("inverse_by_negation: bidirectional must be true with it, there is no way back otherwise.")
        device = torch.device(device)
        self.network, self.estimator, self.updates = network, estimator, list(updates)
        self.similarity = similarity.to(device)
        self.estimator_input = estimator_input
        self.bidirectional, self.batched_directions = bidirectional, batched_directions
        self.padding, self.inside_only = known_name("padding", padding, PADDINGS), inside_only
        self.inverse_by_negation, self.foreground = inverse_by_negation, foreground
        self.second_forward, self.seed = second_forward, int(seed)
        self.finite_check_interval = 1 if device.type == "cpu" else finite_check_interval
        self.active = frozenset(update.name for update in self.updates)
        self._displacement = _prepared(TrainingView(network, amp, inverse_by_negation), device, compile)
        self._estimator = None if estimator is None else _prepared(EstimatorView(estimator, amp), device, compile)
        for update in self.updates:
            if isinstance(update.objective, nn.Module):
                update.objective.to(device)
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            non_blocking=True,
            event_names=[RegistrationEvents],
            handlers=None,
            decollate=False,
        )
        if train_handlers:
            self._register_handlers(train_handlers)

    def _images(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        moving, fixed = (batch[key].to(self.state.device, non_blocking=True) for key in ("moving_image", "fixed_image"))
        if self.bidirectional:
            moving, fixed = torch.cat([moving, fixed]), torch.cat([fixed, moving])
        return moving, fixed

    def _iteration(self, engine: Any, batch: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        for view in (self._displacement, self._estimator):
            if view is not None:
                view.train()  # a validation may have left it in eval mode
        torch.manual_seed(draw_seed(self.seed, self.state.epoch, self.state.iteration, self.state.rank))
        moving, fixed = self._images(batch)
        running = [update for update in self.updates if update.name in self.active]
        step = RegistrationStep(
            moving,
            fixed,
            self._displacement,
            self.similarity,
            self._estimator,
            self.estimator_input,
            self.active,
            frozenset(name for update in running for name in update.differentiates),
            self.bidirectional,
            self.batched_directions,
            self.padding,
            self.inside_only,
            self.inverse_by_negation,
            self.foreground,
        )
        self.state.step = step
        output: dict[str, dict[str, Tensor]] = {}
        for position, update in enumerate(running):
            self.state.update = update.name
            self.fire_event(RegistrationEvents.UPDATE_STARTED)
            terms = update.objective(step)
            self._check_finite(update.name, terms)
            terms["total"].backward()
            update.optimizer.step()
            update.optimizer.zero_grad(set_to_none=True)
            output[update.name] = {term: value.detach() for term, value in terms.items()}
            if self.second_forward and position + 1 < len(running):
                step.forget_displacement()
        self.state.step = None
        return output

    def _check_finite(self, update: str, terms: dict[str, Tensor]) -> None:
        if self.state.iteration % self.finite_check_interval and self.finite_check_interval > 1:
            return
        if torch.isfinite(terms["total"]):
            return
        bad = [name for name, value in terms.items() if name != "total" and not torch.isfinite(value)] or ["total"]
        raise NonFiniteLoss(
            f"update '{update}': the loss term {', '.join(bad)} became {terms[bad[0]].item()} in epoch "
            f"{self.state.epoch}, iteration {self.state.iteration}. The run stops before this update; the checkpoint "
            "of the last complete epoch is kept. Lower learning_rate or check the images, then restart "
            "with --resume true."
        )
