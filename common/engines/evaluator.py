# SPDX-License-Identifier: Apache-2.0
"""Registers the pairs of a loader and leaves fields and warped images to handlers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from monai.engines.evaluator import Evaluator
from monai.utils import ForwardMode
from torch import Tensor, nn

from ..networks.contract import condition_tensor
from ..spatial.warp import warp
from .instance import InstanceOptimisation
from .maps import PixelMaps


class RegistrationEvaluator(Evaluator):
    """Runs a registration over a loader.

    ``state.output`` holds ``ddf`` (B, d, *S) in voxels, ``warped_image`` (B, 1, *S), ``seconds`` for the batch,
    ``estimate`` (a function that returns ``uncertainty`` of the batch), and ``reverse_ddf`` with ``both_ways``;
    ``state.batch`` the loader's items, its tensors on the device.

    Args:
        device: where to register.
        val_data_loader: batches with ``moving_image`` and ``fixed_image``, (B, 1, *S) in [0, 1].
        network: (cat(moving, fixed), None, condition) -> ddf: a displacement network, a solver, or one that is fitted
            to each pair.
        amp: run the network in bfloat16 autocast.
        both_ways: also register fixed onto moving, for the inverse consistency (not counted in ``seconds``, unless
            one fit gives both directions).
        condition: K numbers that go into every forward of a conditional network; None is its default.
        maps: what the method says of its uncertainty, see ``uncertainty``; None where it says nothing.
        val_handlers: MONAI or Ignite handlers.
    """

    def __init__(
        self,
        device: str | torch.device,
        val_data_loader: Iterable,
        network: nn.Module,
        amp: bool = False,
        both_ways: bool = False,
        condition: Sequence[float] | float | None = None,
        maps: PixelMaps | None = None,
        val_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=torch.device(device), val_data_loader=val_data_loader, mode=ForwardMode.EVAL, decollate=False
        )
        self.network = network.to(self.state.device)
        self.autocast, self.both_ways, self.condition = bool(amp), bool(both_ways), condition
        self.maps = None if maps is None else maps.to(self.state.device)
        if val_handlers:
            self._register_handlers(val_handlers)

    def _iteration(self, engine: Any, batch: dict[str, Any]) -> dict[str, Any]:
        for key, value in batch.items():
            if isinstance(value, Tensor):
                batch[key] = value.to(self.state.device, non_blocking=True)
        moving, fixed = batch["moving_image"], batch["fixed_image"]
        image = torch.cat([moving, fixed], dim=1)
        started = time.perf_counter()
        if self.both_ways and isinstance(self.network, InstanceOptimisation):
            with self._inference(image):
                ddf, reverse = self.network.both_ways(image, self._conditions(image))
        else:
            ddf, reverse = self.register(image), None
        ddf = ddf.float()
        if moving.device.type == "cuda":
            torch.cuda.synchronize(moving.device)
        warped = warp(moving, ddf)
        output = {"ddf": ddf, "warped_image": warped, "seconds": time.perf_counter() - started}
        output["estimate"] = partial(self.uncertainty, image, warped)
        if self.both_ways:
            reverse = self.register(image.flip(1)) if reverse is None else reverse
            output["reverse_ddf"] = reverse.float()
        return output

    def register(self, image: Tensor) -> Tensor:
        """Register a batch under the engine's condition.

        Args:
            image: cat(moving, fixed), (B, 2, *S).

        Returns:
            Displacements in voxels, (B, d, *S).
        """
        with self._inference(image):
            return self.network(image, None, self._conditions(image))

    @torch.no_grad()
    def uncertainty(self, image: Tensor, warped: Tensor) -> dict[str, Tensor]:
        """What the method says of its uncertainty.

        Args:
            image: cat(moving, fixed), (B, 2, *S).
            warped: the moving image, registered, (B, 1, *S).

        Returns:
            As ``engines.maps.PixelMaps.of_warped``; empty without ``maps``.
        """
        return {} if self.maps is None else self.maps.eval().of_warped(image, warped, self._conditions(image))

    def _conditions(self, image: Tensor) -> Tensor | None:
        return condition_tensor(self.condition, image)

    @contextmanager
    def _inference(self, image: Tensor) -> Iterator[None]:
        self.network.eval()  # whoever registers: in training some networks draw
        with torch.no_grad(), torch.autocast(image.device.type, torch.bfloat16, enabled=self.autocast):
            yield
