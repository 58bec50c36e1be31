# SPDX-License-Identifier: Apache-2.0
"""One Ignite engine trains every method: an ordered list of updates over shared results of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import EventEnum
from monai.engines import Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..networks.convolution import weights_channels_last
from .method import Method, Update
from .step import EstimatorView, RegistrationStep, TrainingView

IMAGES = ("moving_image", "fixed_image")
OTHERS = ("moving_label", "fixed_label", "moving_mask", "fixed_mask")


class RegistrationEvents(EventEnum):
    """UPDATE_STARTED fires before each update's objective: ``state.update`` names it, ``state.step`` holds the step.

    The networks have run by then: what a handler reads of the step triggers none.
    """

    UPDATE_STARTED = "update_started"


class NonFiniteLoss(RuntimeError):
    """A loss term became NaN or infinite; the last checkpoint on disk is from before."""


def draw_seed(*numbers: int) -> int:
    """A seed for torch that is a function of some numbers, and another one for any others.

    Args:
        numbers: whole, at least 0.

    Returns:
        The seed.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _wrapped(view: nn.Module, device: torch.device) -> nn.Module:
    """For several processes, where there are some; parameters that a step leaves unused are tolerated."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return view
    if not any(parameter.requires_grad for parameter in view.parameters()):
        return view  # all frozen: nothing to average
    if device.type == "cuda":
        view = nn.SyncBatchNorm.convert_sync_batchnorm(view)
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(view, device_ids=devices, find_unused_parameters=True)


def _scaled(batch: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Images averaged over blocks, labels and masks by the nearest voxel, on ``scale`` times the size, rounded up."""
    if scale == 1:
        return batch
    size = [max(2, int(np.ceil(n * scale))) for n in batch["moving_image"].shape[2:]]
    return {
        key: functional.interpolate(value, size=size, mode="area")
        if key in IMAGES
        else functional.interpolate(value.float(), size=size, mode="nearest-exact").to(value.dtype)
        for key, value in batch.items()
    }


class RegistrationTrainer(Trainer):
    """Trains the networks of a method.

    ``state.output`` is ``{update name: {term: detached scalar}}``. ``stages`` (a handler, see ``handlers.stages``)
    chooses which updates run by setting ``active``; by default all do.

    Args:
        device: where to train.
        max_epochs: number of epochs.
        train_data_loader: batches with ``moving_image`` and ``fixed_image``, (B, 1, *S) in [0, 1], and where terms read
            them ``moving_label``, ``fixed_label``, ``moving_mask``, ``fixed_mask``.
        method: its networks stay bare here and in checkpoints.
        amp: bfloat16 autocast of the networks; fields, warps and losses stay float32, no gradient scaling.
        compile: torch.compile the networks.
        seed: of torch's random state, which is set anew in every iteration from (seed, epoch, iteration, rank): random
            draws of objectives and networks differ between processes, and a resumed run repeats them.
        finite_check_interval: iterations between checks for NaN on an accelerator, where each check waits for it; on
            the CPU every iteration is checked.
        loaders: (batch size) -> loader of as many batches, for stages that have their own batch size.
        train_handlers: MONAI or Ignite handlers.

    Raises:
        ValueError: for ``inverse_by_negation`` with a network that has no velocity.
        NonFiniteLoss: (while running) naming the term.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable,
        method: Method,
        amp: bool = False,
        compile: bool = False,
        seed: int = 0,
        finite_check_interval: int = 50,
        loaders: Callable[[int], Iterable] | None = None,
        train_handlers: Sequence[Any] | None = None,
    ) -> None:
        device = torch.device(device)
        self.method, self.loaders, self.seed = method, loaders, int(seed)
        self.finite_check_interval = 1 if device.type == "cpu" else finite_check_interval
        self.active, self.image_scale = method.update_names, 1.0
        self.learning_rate: float | None = None
        self.stages: Any = None
        self.optimizers: dict[str, Optimizer] = {}
        self._views = self._built_views(device, amp, compile)
        self._wrap(device)
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

    def _built_views(self, device: torch.device, amp: bool, compile: bool) -> list[nn.Module]:
        """The networks as DDP and compile see them, on the device and in the fastest layout."""
        method = self.method
        views: list[nn.Module] = [TrainingView(method.network, amp, method.inverse_by_negation)]
        if method.estimator_network is not None:
            views.append(EstimatorView(method.estimator_network, amp))
        for part in (method.similarity, *(update.objective for update in method.updates)):
            if isinstance(part, nn.Module):
                part.to(device)
        for view in views:
            view.to(device)
            weights_channels_last(view)
            if compile:
                view.compile()
        return views

    def _wrap(self, device: torch.device) -> None:
        self._displacement, self._estimator, *_ = [*(_wrapped(view, device) for view in self._views), None]

    def optimizer(self, update: Update) -> Optimizer:
        """The optimiser of an update, over what it trains and no stage has frozen; built when it is first asked for.

        Args:
            update: of the method.

        Returns:
            Its optimiser.
        """
        if update.name not in self.optimizers:
            modules = [self.method.modules[name] for name in update.trains]
            parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
            self.optimizers[update.name] = update.optimizer(parameters)
            for group in self.optimizers[update.name].param_groups if self.learning_rate is not None else ():
                group["lr"] = self.learning_rate
        return self.optimizers[update.name]

    def freeze(self, names: Sequence[str]) -> None:
        """Keep parameters as they are, and no others; optimisers are built anew.

        Args:
            names: of modules or their parts, "model_score", "model.step.first".
        """
        for name, module in self.method.modules.items():
            for key, parameter in module.named_parameters():
                path = f"{name}.{key}"
                parameter.requires_grad_(not any(path.startswith(f"{frozen}.") for frozen in names))
                parameter.grad = None
        self.optimizers = {}
        self._wrap(self.state.device)

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        keys = [key for key in (*IMAGES, *OTHERS) if key in batch]
        moved = {key: batch[key].to(self.state.device, non_blocking=True) for key in keys}
        return _scaled(moved, self.image_scale)

    def _step(self, batch: dict[str, Any], running: Sequence[Update]) -> RegistrationStep:
        images = self._on_device(batch)
        condition = self.method.condition
        return RegistrationStep(
            images,
            None if condition is None else condition(len(images["moving_image"]), self.state.device),
            self.method,
            self._displacement,
            self._estimator,
            self.active,
            frozenset(name for update in running for name in update.gradients),
        )

    def _iteration(self, engine: Any, batch: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
        for view in (self._displacement, self._estimator):
            if view is not None:
                view.train()  # a validation may have left it in eval mode
        torch.manual_seed(draw_seed(self.seed, self.state.epoch, self.state.iteration, self.state.rank))
        running = [update for update in self.method.updates if update.name in self.active]
        step = self.state.step = self._step(batch, running)
        output: dict[str, dict[str, Tensor]] = {}
        for position, update in enumerate(running):
            optimizer = self.optimizer(update)
            step.run_networks()
            self.state.update = update.name
            self.fire_event(RegistrationEvents.UPDATE_STARTED)
            terms = update.objective(step)
            self._check_finite(update.name, terms)
            terms["total"].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            output[update.name] = {term: value.detach() for term, value in terms.items()}
            if self.method.second_forward and position + 1 < len(running):
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
