# SPDX-License-Identifier: Apache-2.0
"""Instance optimisation: a trained network fitted to each pair, and itself again afterwards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checks import known_name
from ..spatial.fields import compose
from ..spatial.warp import PADDINGS, warp
from .pairwise import SHORT_LIVED, PairwiseRegistration
from .step import ESTIMATOR_INPUTS, EstimatorView, RegistrationStep, TrainingView, channels_last

logger = logging.getLogger(__name__)
TARGETS = ("weights", "field")


class InstanceOptimisation(nn.Module):
    """Takes the place of a displacement network and fits its result to the pair at hand.

    "weights": Adam minimises the training objective over all weights, for one pair at a time, from the trained weights
    each time; they are restored afterwards (the published ICON code keeps them, so that its results depend on the order
    of pairs). Batch statistics stay those of training.
    "field": the network's map id + u is kept and composed with exp(v), v a velocity optimised for the warped pair by
    ``PairwiseRegistration``: (id + u) ∘ exp(v). Weights are not touched.

    Args:
        network: trained displacement network.
        objective: step -> {"total": …}, as in training; for "weights".
        similarity: (warped, fixed) -> residual map, as in training.
        field_weight: smoothness weight of the field against the similarity, see ``PairwiseRegistration``; needed for
            "field", since each similarity has its own.
        iterations: steps a pair; 0 is the network alone.
        target: "weights" or "field".
        learning_rate: Adam's; for "weights" (GradICON: 2e-5).
        bidirectional: give the objective both directions of the pair; for "weights".
        estimator: score or variance network that the objective reads; stays as it is.
        estimator_input: as in training, "fixed" or "fixed_warped".
        updates: names of the training's updates, all of which count as active: a weight that waits for the update of
            its estimator is in force.
        padding: as in training, what lies outside the moving image.
        inside_only, inverse_by_negation, foreground: as in training, see ``RegistrationStep``; for "weights".

    Raises:
        ValueError: for an unknown target, a value out of range, or "field" without ``field_weight``.

    Reference: Tian et al., GradICON, CVPR 2023 (50 iterations, Adam, in the released code).
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Callable[[Any], dict[str, Tensor]],
        similarity: nn.Module,
        iterations: int = 50,
        target: str = "weights",
        learning_rate: float = 2e-5,
        bidirectional: bool = False,
        estimator: nn.Module | None = None,
        estimator_input: str = "fixed",
        padding: str = "zeros",
        inside_only: bool = False,
        field_weight: float | None = None,
        updates: Sequence[str] = ("displacement",),
        inverse_by_negation: bool = False,
        foreground: bool = False,
    ) -> None:
        super().__init__()
        known_name("instance_target", target, TARGETS)
        known_name("estimator_input", estimator_input, ESTIMATOR_INPUTS)
        if int(iterations) != iterations or iterations < 0:
            raise ValueError(f"instance_iterations: expected a whole number from 0, got {iterations!r}; 50 is usual.")
        if not learning_rate > 0:
            raise ValueError(f"instance_learning_rate: expected a number above 0, got {learning_rate!r}; e.g. 2e-5.")
        self.network, self.objective, self.similarity = network, objective, similarity
        self.iterations, self.target, self.learning_rate = int(iterations), target, float(learning_rate)
        self.bidirectional, self.estimator_input = bool(bidirectional), estimator_input
        self.padding, self.inside_only = known_name("padding", padding, PADDINGS), bool(inside_only)
        self.estimator = None if estimator is None else EstimatorView(estimator)
        if self.target == "field" and field_weight is None:
            raise ValueError(
                "field_weight: expected a number where instance_target is 'field', got none; give the smoothness "
                "weight that suits the similarity, e.g. 0.025 for mse."
            )
        self.field = PairwiseRegistration(similarity, field_weight or 0.0, levels=(1,), steps=(self.iterations,))
        self.updates = frozenset(updates)
        self.inverse_by_negation, self.foreground = bool(inverse_by_negation), bool(foreground)

    def forward(self, image: Tensor) -> Tensor:
        """Register a batch of pairs, each by itself. Works under ``torch.no_grad``; optimises in float32.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].

        Returns:
            ddf (B, d, *S) in voxels, without gradient.

        Raises:
            FloatingPointError: if the loss or the displacement of a pair is not finite ("weights").
            RuntimeError: if the loss or the velocity of a pair is not finite ("field").
        """
        if not self.iterations:
            return self.network(image)
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            if self.target == "weights":
                return torch.stack([self._fitted(pair[None])[0] for pair in image])
            with _restored(self.network), torch.no_grad():
                ddf = self.network.eval()(image)
            warped = warp(image[:, :1], ddf, padding=self.padding)
            return compose(ddf, self.field(torch.cat([warped, image[:, 1:]], dim=1)))

    def both_ways(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Register a batch of pairs in both directions; a bidirectional fit of the weights gives both maps at once.

        Args, Raises: as ``forward``.

        Returns:
            Displacements of moving onto fixed and of fixed onto moving, (B, d, *S) in voxels each.
        """
        if not (self.iterations and self.target == "weights" and self.bidirectional):
            return self(image), self(image.flip(1))
        with torch.autocast(image.device.type, enabled=False):
            ddf, reverse = torch.stack([self._fitted(pair[None]) for pair in image.float()], dim=1)
        return ddf, reverse

    def _fitted(self, image: Tensor) -> Tensor:
        """Fit one pair, (1, 2, *S); returns its displacement, with ``bidirectional`` those of both directions."""
        if self.bidirectional:
            image = torch.cat([image, image.flip(1)])
        moving, fixed = image[:, :1], image[:, 1:]
        view = TrainingView(self.network, inverse_by_negation=self.bidirectional and self.inverse_by_negation)
        devices = [image.device] if image.device.type == "cuda" else []
        with _restored(self.network), torch.random.fork_rng(devices), torch.enable_grad():
            view.eval().requires_grad_(True)
            optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)
            for iteration in tqdm(range(self.iterations), "fitting the weights", **SHORT_LIVED):
                torch.manual_seed(iteration)  # random draws are the same for every pair, whatever came before
                total = self.objective(self._step(moving, fixed, view))["total"]
                if not total.isfinite():
                    raise FloatingPointError(
                        f"instance optimisation: the loss became {total.item()} in iteration {iteration}; lower "
                        "instance_learning_rate."
                    )
                total.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            ddf = self._step(moving, fixed, view).estimate.ddf.detach()  # type: ignore[attr-defined]
            if not ddf.isfinite().all():  # broken by the last step, after which there is no loss
                raise FloatingPointError(
                    f"instance optimisation: the displacement is not finite after {self.iterations} iterations; lower "
                    "instance_learning_rate."
                )
            return ddf

    def _step(self, moving: Tensor, fixed: Tensor, view: nn.Module) -> RegistrationStep:
        return RegistrationStep(
            moving, fixed, view, self.similarity, self.estimator, self.estimator_input, self.updates,
            frozenset(["displacement"]), self.bidirectional, True, self.padding, self.inside_only,
            self.inverse_by_negation, self.foreground,
        )  # fmt: skip


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Lend copies of the weights; leave them, buffers, modes, requires_grad and gradients as they were, in any case."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    modes = [(module, module.training) for module in network.modules()]
    kept = [(parameter, parameter.data, parameter.requires_grad, parameter.grad) for parameter in network.parameters()]
    for parameter, data, _, _ in kept:
        parameter.data, parameter.grad = channels_last(data.clone()), None
    try:
        yield
    finally:
        for buffer, values in buffers:
            buffer.copy_(values)
        for module, mode in modes:
            module.training = mode
        for parameter, data, needed, gradient in kept:
            parameter.data = data
            parameter.requires_grad_(needed)
            parameter.grad = gradient
