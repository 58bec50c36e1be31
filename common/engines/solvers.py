# SPDX-License-Identifier: Apache-2.0
"""Solvers: registrations without weights, which stand where a displacement network does."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn


class Solver(nn.Module):
    """The part that solvers share: a network's ``forward``, on any device, without gradient.

    A solver has no parameters. It is evaluated and it registers, but it cannot be trained, exported or packed.
    """

    name: str  # by which ``architectures.build`` knows it

    def register(self, image: Tensor) -> Tensor:
        """Register a batch of pairs, each by itself.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].

        Returns:
            ddf, (B, d, *S) in voxels of the fixed image, without gradient.
        """
        raise NotImplementedError

    def forward(self, image: Tensor, fixed: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Register a batch of pairs, as networks do.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1]; the moving images, (B, 1, *S), where ``fixed`` is given.
            fixed: (B, 1, *S).
            condition: refused.

        Returns:
            ddf, (B, d, *S) in voxels of the fixed image, without gradient.

        Raises:
            ValueError: if a shape is not as above, or a condition is given.
        """
        if condition is not None:
            raise ValueError(
                f"condition: the solver {self.name!r} takes none, got {condition!r}; leave it out, or choose an "
                "architecture that takes one."
            )
        image = image.as_subclass(Tensor) if fixed is None else torch.cat([image, fixed], dim=1).as_subclass(Tensor)
        return self.register(image)

    def estimate(self, image: Tensor, condition: Tensor | None = None) -> NoReturn:
        """Refused: what training reads from a network, a solver has not.

        Args:
            image: cat(moving, fixed).
            condition: as a network takes it.

        Raises:
            ValueError: always, naming the command that evaluates.
        """
        refuse_solver(self, "training")
        raise AssertionError("a solver refuses itself")


class Identity(Solver):
    """Moves nothing: the solver "identity", the state before registration."""

    name = "identity"

    def register(self, image: Tensor) -> Tensor:
        """Return no displacement.

        Args:
            image: cat(moving, fixed), (B, 2, *S).

        Returns:
            Zeros, (B, d, *S) in float32.

        Raises:
            ValueError: if the shape is not as above.
        """
        check_pair(image)
        return image.new_zeros(len(image), image.dim() - 2, *image.shape[2:], dtype=torch.float32)


def is_solver(module: Any) -> bool:
    """Whether a module is a solver, which has no weights to train, load or export.

    Args:
        module: a network or a solver.

    Returns:
        True or False.
    """
    return isinstance(module, Solver)


def refuse_solver(network: nn.Module, what: str) -> None:
    """Refuse a solver where weights are needed.

    Args:
        network: what was built.
        what: what was to be done with it, e.g. "training".

    Raises:
        ValueError: for a solver, with the command that evaluates it.
    """
    if not isinstance(network, Solver):
        return
    raise ValueError(
        f"architecture: {what} needs a network with weights, and {network.name!r} is a solver, which has none; "
        "evaluate it, or register two files with it: python -m monai.bundle run evaluating --config_file "
        f"\"['<bundle>/configs/train.json','<bundle>/configs/evaluate.json']\" --architecture {network.name}, or "
        f"run inferring --config_file <bundle>/configs/inference.json --architecture {network.name}."
    )


def check_pair(image: Tensor) -> None:
    """Check a solver's input.

    Args:
        image: to be cat(moving, fixed), (B, 2, *S).

    Raises:
        ValueError: for another shape.
    """
    if image.dim() not in (4, 5) or image.shape[1] != 2 or 0 in image.shape[2:]:
        raise ValueError(
            f"image: expected cat(moving, fixed) on channels, (B, 2, H, W[, D]), got {tuple(image.shape)}; "
            "use torch.cat([moving, fixed], dim=1) of two one-channel images on one grid."
        )
