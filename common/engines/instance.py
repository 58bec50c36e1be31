# SPDX-License-Identifier: Apache-2.0
"""Instance optimisation: a trained network fitted to each pair, and itself again afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checks import known_name
from ..networks.convolution import channels_last
from ..spatial.fields import all_finite, compose
from ..spatial.warp import warp
from .method import Method
from .pairwise import SHORT_LIVED, PairwiseRegistration
from .step import EstimatorView, RegistrationStep, TrainingView

logger = logging.getLogger(__name__)
TARGETS = ("weights", "field")


class InstanceOptimisation(nn.Module):
    """Takes the place of a displacement network and fits its result to the pair at hand.

    "weights": Adam minimises what the training's first update minimises, over all weights of the network, for one pair
    at a time, from the trained weights each time; they are restored afterwards (the published ICON code keeps them, so
    that its results depend on the order of pairs). All updates count as active, so that a weight that waits for the
    update of its estimator is in force; batch statistics stay those of training.
    "field": the network's map id + u is kept and composed with exp(v), v a velocity optimised for the warped pair by
    ``PairwiseRegistration``: (id + u) ∘ exp(v). Weights are not touched.

    Args:
        method: as in training; its displacement network is trained.
        iterations: steps a pair; 0 is the network alone.
        target: "weights" or "field".
        learning_rate: Adam's; for "weights" (GradICON: 2e-5).

    Raises:
        ValueError: for an unknown target, a value out of range, "field" where the method has no ``field_weight``,
            "weights" where there are none to fit.

    Reference:
        Tian et al., GradICON, CVPR 2023 (50 iterations, Adam, in the released code).
    """

    def __init__(
        self, method: Method, iterations: int = 50, target: str = "weights", learning_rate: float = 2e-5
    ) -> None:
        super().__init__()
        known_name("instance_target", target, TARGETS)
        if int(iterations) != iterations or iterations < 0:
            raise ValueError(f"instance_iterations: expected a whole number from 0, got {iterations!r}; 50 is usual.")
        if not learning_rate > 0:
            raise ValueError(f"instance_learning_rate: expected a number above 0, got {learning_rate!r}; e.g. 2e-5.")
        self.method, self.network, self.similarity = method, method.network, method.similarity
        self.objective = method.updates[0].objective if method.updates else None  # modules, to be moved with this one
        self.iterations, self.target, self.learning_rate = int(iterations), target, float(learning_rate)
        estimator = method.estimator_network
        self.estimator = None if estimator is None else EstimatorView(estimator)
        if target == "field" and method.field_weight is None:
            raise ValueError(
                "field_weight: expected a number where instance_target is 'field', got none; give the smoothness "
                "weight that suits the similarity, e.g. 0.025 for mse."
            )
        trained = self.objective is not None and any(True for _ in method.network.parameters())
        if self.iterations and target == "weights" and not trained:
            raise ValueError(
                f"instance_iterations: {type(method.network).__name__} has no weights to fit. Leave it 0, or choose "
                "--instance_target field."
            )
        self.field = PairwiseRegistration(
            method.similarity, method.field_weight or 0.0, levels=(1,), steps=(self.iterations,)
        )

    def forward(self, image: Tensor, fixed: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Register a batch of pairs, each by itself. Works under ``torch.no_grad``; optimises in float32.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1]; or moving alone, (B, 1, *S), when ``fixed`` is given.
            fixed: (B, 1, *S), optional.
            condition: (B, K) that goes into every forward of the network; None where it takes none.

        Returns:
            ddf (B, d, *S) in voxels, without gradient.

        Raises:
            FloatingPointError: if the loss or the displacement of a pair is not finite ("weights").
            RuntimeError: if the loss or the velocity of a pair is not finite ("field").
        """
        image = image if fixed is None else torch.cat([image, fixed], dim=1)
        if not self.iterations:
            return self.network(image, None, condition)
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            if self.target == "weights":
                return self._fit(image, condition)[0]
            with _restored(self.network), torch.no_grad():
                ddf = self.network.eval()(image, None, condition)
            warped = warp(image[:, :1], ddf, padding=self.method.padding)
            return compose(ddf, self.field(torch.cat([warped, image[:, 1:]], dim=1)))

    def both_ways(self, image: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Register a batch of pairs in both directions; a bidirectional fit of the weights gives both maps at once.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: as in ``forward``.

        Returns:
            Displacements of moving onto fixed and of fixed onto moving, (B, d, *S) in voxels each.

        Raises:
            FloatingPointError: as ``forward``.
        """
        if not (self.iterations and self.target == "weights" and self.method.bidirectional):
            return self(image, None, condition), self(image.flip(1), None, condition)
        with torch.autocast(image.device.type, enabled=False):
            ddf, reverse = self._fit(image.float(), condition)
        return ddf, reverse

    def _fit(self, image: Tensor, condition: Tensor | None) -> Tensor:
        """Fit each pair, (B, 2, *S); returns displacements (directions, B, d, *S)."""
        conditions = [None] * len(image) if condition is None else condition.split(1)
        fitted = [self._fitted(pair[None], c) for pair, c in zip(image, conditions, strict=True)]
        return torch.stack(fitted, dim=1)

    def _fitted(self, image: Tensor, condition: Tensor | None) -> Tensor:
        """Fit one pair, (1, 2, *S); returns its displacement, of bidirectional methods those of both directions."""
        batch = {"moving_image": image[:, :1], "fixed_image": image[:, 1:]}
        view = TrainingView(self.network, inverse_by_negation=self.method.inverse_by_negation)

        def step() -> RegistrationStep:
            return RegistrationStep(batch, condition, self.method, view, self.estimator)

        devices = [image.device] if image.device.type == "cuda" else []
        with _restored(self.network), torch.random.fork_rng(devices), torch.enable_grad():
            view.eval().requires_grad_(True)
            weights = list(self.network.parameters())
            optimizer = torch.optim.Adam(weights, lr=self.learning_rate)
            for iteration in tqdm(range(self.iterations), "fitting the weights", **SHORT_LIVED):
                torch.manual_seed(iteration)  # random draws are the same for every pair, whatever came before
                total = self.objective(step())["total"]  # type: ignore[misc]  # __init__ has seen to it
                if not total.isfinite():
                    raise FloatingPointError(
                        f"instance optimisation: the loss became {total.item()} in iteration {iteration}; lower "
                        "instance_learning_rate."
                    )
                total.backward(inputs=weights)  # an estimator's weights gather no gradients
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            ddf = step().estimate.ddf.detach()
            if not all_finite(ddf):  # broken by the last step, after which there is no loss
                raise FloatingPointError(
                    f"instance optimisation: the displacement is not finite after {self.iterations} iterations; lower "
                    "instance_learning_rate."
                )
            return ddf


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
