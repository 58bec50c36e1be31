# SPDX-License-Identifier: Apache-2.0
"""What an update minimises: a weighted sum of named terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..checks import known_name

Weight = float | Callable[[Any], Tensor]


class Step(Protocol):
    """What terms read of an iteration: images, labels and fields, each computed once and only where it is asked for.

    ``common.engines.step.RegistrationStep`` is the implementation.
    """

    moving: Tensor  # (B, 1, *S) in [0, 1]
    fixed: Tensor
    active: frozenset[str]  # names of the updates that run in this iteration
    mask: Tensor | None  # (B, 1, *S), 0 where nothing is compared; None is 1 everywhere
    condition: Tensor | None  # (B, K) of the networks that take one
    bidirectional: bool

    @property
    def moving_label(self) -> Tensor:
        """Label map of the moving image, (B, 1, *S)."""

    @property
    def fixed_label(self) -> Tensor:
        """Label map of the fixed image, (B, 1, *S)."""

    @property
    def estimate(self) -> Any:
        """What the displacement network returns, see ``networks.contract.Estimate``."""

    @property
    def warped(self) -> Tensor:
        """Moving image on the fixed one, (B, 1, *S)."""

    @property
    def residual(self) -> Tensor:
        """Similarity's residual map, (B, 1, *S)."""

    @property
    def both_ways(self) -> tuple[Tensor, Tensor]:
        """Displacements A -> B and B -> A of every pair, (B, d, *S) each."""

    @property
    def estimated(self) -> Tensor:
        """Output of the pixel-wise estimator (score or log variance), (B, 1, *S)."""


class BufferedWeight(nn.Module):
    """A weight that a handler changes in the course of a training, and that is saved with it.

    Args:
        value: at the start.
    """

    value: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(float(value)))

    def forward(self, step: Step) -> Tensor:
        return self.value.to(step.fixed.device, copy=True)  # a copy: the handler changes the buffer in place


class Objective(nn.Module):
    """Σ weight · term.

    Args:
        terms: (weight, term) by name. A term is a module, step -> scalar. A weight is a number, or step -> scalar (a
            regularisation drawn at random, say). A term of weight 0 is computed without gradient, for the log alone.
            A term that is None is left out.

    Raises:
        ValueError: for no term that counts, a weight that is no number from 0, or a term named "total".
    """

    def __init__(self, terms: Mapping[str, tuple[Weight, nn.Module | None]]) -> None:
        super().__init__()
        present = {name: (weight, term) for name, (weight, term) in terms.items() if term is not None}
        self.weights: dict[str, Weight] = {}
        for name, (weight, _) in present.items():
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not callable(weight) and not (number and 0 <= weight < math.inf):
                raise ValueError(f"terms: expected a number of at least 0 as weight of '{name}', got {weight!r}.")
            self.weights[name] = weight if callable(weight) else float(weight)
        if "total" in present or all(weight == 0 for weight in self.weights.values()):
            raise ValueError(
                f"terms: expected names other than 'total' and a weight that is not 0, got {list(self.weights)}."
            )
        self.terms = nn.ModuleDict({name: term for name, (_, term) in present.items()})
        # Buffers of weights are saved and moved with the objective.
        self.weight_modules = nn.ModuleDict({n: w for n, w in self.weights.items() if isinstance(w, nn.Module)})

    def buffered(self, name: str) -> BufferedWeight:
        """Have the weight of a term be one that a handler can change.

        Args:
            name: of a term whose weight is a number.

        Returns:
            The weight.

        Raises:
            ValueError: for an unknown term, or a weight that is none.
        """
        weight = self.weights[known_name("term", name, self.weights)]
        if callable(weight):
            raise ValueError(
                f"term: expected a number as weight of '{name}', got {type(weight).__name__}, which says by itself "
                "what it is in each step; leave the schedule out."
            )
        self.weights[name] = self.weight_modules[name] = held = BufferedWeight(weight)
        return held

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Compute all terms of a step.

        Args:
            step: of the iteration.

        Returns:
            "total", the scalar to minimise, and every term by name, before its weight.
        """
        values: dict[str, Tensor] = {}
        total: Tensor | None = None
        for name, term in self.terms.items():
            weight = self.weights[name]
            if not callable(weight) and weight == 0:
                with torch.no_grad():
                    values[name] = term(step)
                continue
            values[name] = term(step)
            share = values[name] if weight == 1 else (weight(step) if callable(weight) else weight) * values[name]
            total = share if total is None else total + share
        assert total is not None  # __init__ has seen to it
        return {"total": total} | values
