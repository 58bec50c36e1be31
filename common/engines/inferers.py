# SPDX-License-Identifier: Apache-2.0
"""Inference: a network over a stack of slices, and the engine that takes an item through it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from monai.engines import IterationEvents
from monai.engines.evaluator import Evaluator
from monai.inferers import Inferer
from monai.utils import ForwardMode
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..networks.contract import condition_tensor, join
from .maps import PixelMaps

logger = logging.getLogger(__name__)


class StackInferer(Inferer):
    """Apply a d-dimensional network, slice by slice where the input has one axis more.

    Args:
        batch_size: slices that the network sees at a time.
        spatial_dims: d, of the network.
    """

    def __init__(self, batch_size: int = 16, spatial_dims: int = 2) -> None:
        super().__init__()
        if int(batch_size) != batch_size or batch_size < 1:
            raise ValueError(f"batch_size: expected a whole number of slices >= 1, got {batch_size!r}.")
        self.batch_size, self.spatial_dims = int(batch_size), int(spatial_dims)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the network.

        Args:
            inputs: (B, C, *S) with d axes S, or (B, C, *S, Z): Z slices, each on its own.
            network: takes (N, C, *S); returns (N, C', *S), or a dictionary of such.
            args: for the network, the same for every chunk of slices.
            kwargs: likewise.

        Returns:
            What the network returns, each tensor (B, C', *S), with slices (B, C', *S, Z).

        Raises:
            ValueError: for another number of axes.
        """
        inputs = inputs.as_subclass(Tensor)  # scripted networks refuse MetaTensor
        axes = inputs.dim() - 2
        if axes == self.spatial_dims:
            return network(inputs, *args, **kwargs)
        if axes != self.spatial_dims + 1 or 0 in inputs.shape:
            raise ValueError(
                f"inputs: expected (B, C, *S) with {self.spatial_dims} axes S, or one more for slices, none of them "
                f"empty, got {tuple(inputs.shape)}; set spatial_dims to that of the network."
            )
        slices = inputs.movedim(-1, 1)
        outputs = [network(chunk, *args, **kwargs) for chunk in slices.flatten(0, 1).split(self.batch_size)]
        return tree_map(lambda output: output.unflatten(0, slices.shape[:2]).movedim(1, -1), join(outputs))


class InferenceEvaluator(Evaluator):
    """Takes the items of a loader, one by one and not collated, through an inferer.

    ``state.output`` holds ``pred`` (C', *S[, Z]) without a batch axis, float32, with ``maps`` also ``window_maps``, a
    dictionary of such by the names of ``engines.maps``, and what postprocessing adds; ``state.batch`` the item.

    Args:
        device: where the network runs.
        val_data_loader: dictionaries with the network's input under ``image``, (C, *S[, Z]).
        network: the network.
        inferer: ``(inputs (1, C, ...), network) -> (1, C', ...)``.
        postprocessing: transform of the item with ``pred``.
        amp: run the network in bfloat16 autocast.
        condition: K numbers that go into every forward of a conditional network; None is its default.
        maps: what is computed once of the registered pair; None for nothing.
        val_handlers: MONAI or Ignite handlers; they see the postprocessed output.
    """

    def __init__(
        self,
        device: str | torch.device,
        val_data_loader: Iterable,
        network: nn.Module,
        inferer: Inferer,
        postprocessing: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        amp: bool = False,
        condition: Sequence[float] | float | None = None,
        maps: PixelMaps | None = None,
        val_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=torch.device(device),
            val_data_loader=val_data_loader,
            mode=ForwardMode.EVAL,
            postprocessing=postprocessing,  # type: ignore[arg-type]  # MONAI asks for less than it declares
            val_handlers=val_handlers,
            decollate=False,
        )
        self.network = network.to(self.state.device)
        self.inferer = inferer
        self.maps = None if maps is None else maps.to(self.state.device)
        self.autocast, self.condition = bool(amp), condition

    def _iteration(self, engine: Any, batch: dict[str, Any]) -> dict[str, Any]:
        inputs = batch["image"][None].to(self.state.device)
        self.network.eval()
        logger.info("Registering a window of %s voxels on %s.", tuple(inputs.shape[2:]), inputs.device)
        with torch.no_grad(), torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.autocast):
            pred = self.inferer(inputs, self._register)[0].float()
            engine.state.output = {"pred": pred}
            if self.maps is not None:
                found = self.inferer(torch.cat([inputs, pred[None]], dim=1), self._map)
                engine.state.output["window_maps"] = {name: values[0].float() for name, values in found.items()}
        engine.fire_event(IterationEvents.MODEL_COMPLETED)  # postprocessing listens to it
        return engine.state.output

    def _register(self, image: Tensor) -> Tensor:
        return self.network(image, None, condition_tensor(self.condition, image))

    def _map(self, registered: Tensor) -> dict[str, Tensor]:
        assert self.maps is not None
        self.maps.eval()
        return self.maps(registered, condition_tensor(self.condition, registered))
