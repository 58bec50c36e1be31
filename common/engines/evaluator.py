# SPDX-License-Identifier: Apache-2.0
"""Registers the pairs of a loader and leaves fields and warped images to handlers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from monai.engines.evaluator import Evaluator
from monai.utils import ForwardMode
from torch import Tensor, nn

from ..checks import known_name
from ..networks.contract import condition_tensor
from ..spatial.warp import warp
from .instance import InstanceOptimisation
from .method import ESTIMATOR_INPUTS


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
        estimator: the score or variance network, see ``uncertainty``; None where there is none.
        estimator_input: what it sees, as in training: see ``engines.method.Method``.
        weighting: (fixed, log variance) -> weight of the data term, (B, 1, *S) each, which is drawn beside σ.
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
        estimator: nn.Module | None = None,
        estimator_input: str = "fixed",
        weighting: Callable[[Tensor, Tensor], Tensor] | None = None,
        val_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=torch.device(device), val_data_loader=val_data_loader, mode=ForwardMode.EVAL, decollate=False
        )
        self.network = network.to(self.state.device)
        self.autocast, self.both_ways, self.condition = bool(amp), bool(both_ways), condition
        self.estimator = None if estimator is None else estimator.to(self.state.device)
        self.estimator_input = known_name("estimator_input", estimator_input, ESTIMATOR_INPUTS)
        self.weighting = weighting
        if val_handlers:
            self._register_handlers(val_handlers)

    def _iteration(self, engine: Any, batch: dict[str, Any]) -> dict[str, Any]:
        for key, value in batch.items():
            if isinstance(value, Tensor):
                batch[key] = value.to(self.state.device, non_blocking=True)
        moving, fixed = batch["moving_image"], batch["fixed_image"]
        self.network.eval()
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
        """What the method says of its uncertainty; the place where other maps of it join.

        Args:
            image: cat(moving, fixed), (B, 2, *S).
            warped: the moving image, registered, (B, 1, *S).

        Returns:
            (B, 1, *S) by name: of an estimator ``score``; or ``deviation`` σ = exp(s / 2) in intensities, its output s
            being a log variance, and with a ``weighting`` ``weight``. Empty without one.
        """
        maps: dict[str, Tensor] = {}
        if self.estimator is not None:
            images = {"fixed": image[:, 1:], "warped": warped}
            seen = [images[name] for name in self.estimator_input.split("_")]
            estimated = self.estimator.eval()(torch.cat(seen, dim=1)).float()
            if getattr(self.estimator, "sigmoid", True):  # see ``networks.unet.PixelEstimator``
                maps["score"] = estimated
            else:
                maps["deviation"] = (0.5 * estimated).exp()
                maps |= {} if self.weighting is None else {"weight": self.weighting(images["fixed"], estimated)}
        return maps

    def _conditions(self, image: Tensor) -> Tensor | None:
        return condition_tensor(self.condition, image)

    @contextmanager
    def _inference(self, image: Tensor) -> Iterator[None]:
        with torch.no_grad(), torch.autocast(image.device.type, torch.bfloat16, enabled=self.autocast):
            yield
