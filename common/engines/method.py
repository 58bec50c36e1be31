# SPDX-License-Identifier: Apache-2.0
"""What distinguishes a method: its networks, what each update minimises, and what is compared with what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checks import known_name, switch
from ..spatial.warp import PADDINGS

MODEL = "model"  # the displacement network's name among the modules, and that of its file of weights
ESTIMATOR_INPUTS = ("fixed", "fixed_warped", "warped_fixed")


@dataclass
class Update:
    """One optimiser step within an iteration.

    Attributes:
        name: what stages, logs and data weights call it.
        trains: names of the modules whose parameters it changes.
        objective: step -> {"total": scalar to minimise, term: value, ...}, see ``losses.objective.Objective``.
        optimizer: parameters -> optimiser; built when a stage first runs the update. Its gradients are cleared after
            its step, not before: what another update left in them counts (only objectives that say so leave any).
        differentiates: names of the modules that the objective's gradient flows into; by default those it trains.
    """

    name: str
    trains: Sequence[str]
    objective: Callable[[Any], dict[str, Tensor]]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    differentiates: Sequence[str] | None = None

    @property
    def gradients(self) -> frozenset[str]:
        """Names of the modules that the objective's gradient flows into."""
        return frozenset(self.trains if self.differentiates is None else self.differentiates)


@dataclass
class Method:
    """A registration method, as training, evaluation, instance optimisation and inference share it.

    Attributes:
        modules: networks by the name of their file of weights: "model" is the displacement network; other names begin
            with "model_", which platforms that load the first file of a folder need.
        similarity: (warped, fixed) -> residual map.
        updates: run in this order in every iteration; the first one trains the displacement network.
        estimator: name of the module that maps pixels to a score or variance; None where the method has none.
        estimator_input: "fixed"; "fixed_warped", cat(fixed, warped); or "warped_fixed" (published code of the
            heteroscedastic paper).
        through_estimator: where the estimator sees the warped image, what differentiates the displacement network does
            so through that image as well (likelihoods, see ``methods.baselines.nll``); by default it is detached.
        bidirectional: also register fixed onto moving, in the same batch; both directions count one half.
        batched_directions: with ``bidirectional``, register both directions in one forward; False runs two of half the
            batch, one after the other (batch statistics are then those of one direction).
        inverse_by_negation: with ``bidirectional``, the way back is exp(-v) of the one forward; False runs the
            network on the swapped images as well.
        foreground: compare only where one of the two images is not 0 (the published AdaCS code).
        padding: what lies outside the moving image: "zeros" (VoxelMorph) or "border" (ICON), see ``warp``.
        inside_only: the residual counts only where the sample lies inside the moving image; the mean over a pair is
            then that over these voxels (the ICON code's knees).
        second_forward: recompute the displacement after it was updated (AdaCS's Algorithm 1, line 17); by default one
            forward serves all updates of an iteration.
        condition: (batch size, device) -> (B, K), what a conditional network is given in a step of training, or
            (2 B, K), another for the way back of ``bidirectional``; None where the network takes none.
        field_weight: smoothness weight where the field of a pair is optimised, see ``engines.pairwise``; each
            similarity has its own.

    Raises:
        ValueError: for modules without "model", or with names that are none; updates or an estimator that name a module
            that is not there; updates of one name, or a first one that does not train "model"; an unknown
            ``estimator_input`` or ``padding``; switches that exclude each other.
    """

    modules: Mapping[str, nn.Module]
    similarity: nn.Module
    updates: Sequence[Update]
    estimator: str | None = None
    estimator_input: str = "fixed"
    through_estimator: bool = False
    bidirectional: bool = False
    batched_directions: bool = True
    inverse_by_negation: bool = False
    foreground: bool = False
    padding: str = "zeros"
    inside_only: bool = False
    second_forward: bool = False
    condition: Callable[[int, torch.device], Tensor] | None = None
    field_weight: float | None = None

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            if entry.type == "bool":
                setattr(self, entry.name, switch(getattr(self, entry.name), entry.name))
        known_name("estimator_input", self.estimator_input, ESTIMATOR_INPUTS)
        known_name("padding", self.padding, PADDINGS)
        self._check_modules()
        if sum(MODEL in update.gradients for update in self.updates) > 1 and not self.second_forward:
            raise ValueError(
                "second_forward must be true where more than one update differentiates the displacement network: the "
                "first update changes the weights that the shared forward was computed with."
            )
        if self.inverse_by_negation and not self.bidirectional:
            raise ValueError("inverse_by_negation: bidirectional must be true with it, there is no way back otherwise.")
        if self.through_estimator and not self.estimates_from_warped:
            raise ValueError("through_estimator: estimator_input must be 'fixed_warped' with it, got 'fixed'.")

    def _check_modules(self) -> None:
        wrong = [name for name in self.modules if name != MODEL and not name.startswith(f"{MODEL}_")]
        if MODEL not in self.modules or wrong:
            raise ValueError(
                f"modules: expected '{MODEL}' and names that begin with '{MODEL}_', got {list(self.modules)}."
            )
        named = {name for update in self.updates for name in (*update.trains, *update.gradients)}
        named |= set() if self.estimator is None else {self.estimator}
        if not named <= set(self.modules):
            raise ValueError(
                f"updates, estimator: expected names among the modules {list(self.modules)}, got "
                f"{sorted(named - set(self.modules))}."
            )
        if len(self.update_names) < len(self.updates) or any(MODEL not in u.trains for u in self.updates[:1]):
            raise ValueError(
                f"updates: expected different names, and a first one that trains '{MODEL}', got "
                f"{[(update.name, list(update.trains)) for update in self.updates]}."
            )

    @property
    def network(self) -> nn.Module:
        """The displacement network."""
        return self.modules[MODEL]

    @property
    def estimator_network(self) -> nn.Module | None:
        """The score or variance network."""
        return None if self.estimator is None else self.modules[self.estimator]

    @property
    def estimates_from_warped(self) -> bool:
        """Whether the estimator sees the warped image."""
        return self.estimator_input != "fixed"

    def estimator_image(self, fixed: Tensor, warped: Tensor | None) -> Tensor:
        """What the estimator sees.

        Args:
            fixed: (B, 1, *S).
            warped: (B, 1, *S); not read where the estimator sees the fixed image alone.

        Returns:
            (B, 1 or 2, *S).
        """
        if not self.estimates_from_warped:
            return fixed
        assert warped is not None
        return torch.cat([fixed, warped] if self.estimator_input == "fixed_warped" else [warped, fixed], dim=1)

    @property
    def update_names(self) -> frozenset[str]:
        """Of all updates."""
        return frozenset(update.name for update in self.updates)
