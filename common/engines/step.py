# SPDX-License-Identifier: Apache-2.0
"""What one iteration computes, each thing once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.contract import join
from ..networks.convolution import channels_last
from ..spatial.warp import samples_inside, warp
from .method import MODEL, Method

PAIR_KEYS = {  # what a registration of fixed onto moving reads in the other's place
    "moving_image": "fixed_image", "fixed_image": "moving_image", "moving_label": "fixed_label",
    "fixed_label": "moving_label", "moving_mask": "fixed_mask", "fixed_mask": "moving_mask",
}  # fmt: skip


class TrainingView(nn.Module):
    """A displacement network whose ``forward`` returns its named tuple, for DDP and compile to wrap.

    Args:
        network: has ``estimate(image, condition)``.
        amp: run the network in bfloat16 autocast on the input's device type.
        inverse_by_negation: return the map of the negated velocity as well, see ``VoxelMorph.estimate_and_inverse``.

    Raises:
        ValueError: for a network that cannot negate its velocity.
    """

    def __init__(self, network: nn.Module, amp: bool = False, inverse_by_negation: bool = False) -> None:
        super().__init__()
        if inverse_by_negation and not hasattr(network, "estimate_and_inverse"):
            raise ValueError(
                f"inverse_by_negation: expected a network that integrates a velocity (voxelmorph), got "
                f"{type(network).__name__}; leave it false, and bidirectional runs the network a second time."
            )
        self.network = network
        self.amp, self.inverse_by_negation = amp, inverse_by_negation

    def forward(self, image: Tensor, condition: Tensor | None = None) -> Any:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.amp):
            image = channels_last(image)
            if self.inverse_by_negation:
                return self.network.estimate_and_inverse(image, condition)  # type: ignore[operator]
            return self.network.estimate(image, condition)  # type: ignore[operator]


class EstimatorView(nn.Module):
    """A score or variance network under autocast.

    Args:
        network: (B, C, *S) -> (B, 1, *S).
        amp: run it in bfloat16 autocast.
    """

    def __init__(self, network: nn.Module, amp: bool = False) -> None:
        super().__init__()
        self.network = network
        self.amp = amp

    def forward(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.amp):
            return self.network(channels_last(image))


def both_directions(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Every pair of a batch twice: cat(A, B) as moving, cat(B, A) as fixed, their labels and masks likewise.

    Args:
        batch: tensors of a batch by key.

    Returns:
        Twice as many samples by key.
    """
    return {key: torch.cat([batch[key], batch[PAIR_KEYS[key]]]) for key in PAIR_KEYS if key in batch}


class RegistrationStep:
    """Results of one iteration, shared by its updates; each is computed when it is first asked for.

    Args:
        batch: ``moving_image`` and ``fixed_image``, (B, 1, *S) in [0, 1], and where the loader delivers them
            ``moving_label``, ``fixed_label``, ``moving_mask``, ``fixed_mask``. Of bidirectional methods the pairs one
            way.
        condition: (B, K) that goes into every forward of the network, of bidirectional methods also (2 B, K), a row a
            direction; None where it takes none.
        method: what is compared, and how.
        displacement: (cat(moving, fixed), condition) -> named tuple of ``networks.contract``.
        estimator: image -> score or log variance; None where the method has none.
        active: names of the updates that run in this iteration; by default all.
        differentiable: names of the modules that some active update differentiates.

    Attributes:
        condition: a row for each of the registered pairs, with both directions 2 B of them.
        mask: with ``foreground`` 1 where the moving or the fixed image is not 0, (B, 1, *S); else None.
    """

    def __init__(
        self,
        batch: Mapping[str, Any],
        condition: Tensor | None,
        method: Method,
        displacement: Callable[..., Any],
        estimator: Callable[[Tensor], Tensor] | None = None,
        active: frozenset[str] | None = None,
        differentiable: frozenset[str] = frozenset((MODEL,)),
    ) -> None:
        self.method, self.active = method, method.update_names if active is None else active
        self.bidirectional = method.bidirectional
        self.batch = both_directions(batch) if self.bidirectional else batch
        self.moving, self.fixed = self.batch["moving_image"], self.batch["fixed_image"]
        self.condition = condition
        if condition is not None and len(condition) < len(self.moving):
            self.condition = torch.cat([condition, condition])
        self.mask = ((self.moving != 0) | (self.fixed != 0)).to(self.moving.dtype) if method.foreground else None
        self._displacement, self._estimator, self._differentiable = displacement, estimator, differentiable
        self._estimate: Any = None
        self._estimated: Tensor | None = None
        self._warped: Tensor | None = None
        self._residual: Tensor | None = None

    def run_networks(self) -> None:
        """Run the displacement network, and the estimator where one of its updates is active."""
        _ = self.estimate
        trains = [update.trains for update in self.method.updates if update.name in self.active]
        if any(self.method.estimator in names for names in trains):
            _ = self.estimated

    def _gradients(self, *modules: str | None) -> torch.set_grad_enabled:
        """Whoever asks first, under no_grad or not: what an update differentiates carries its graph."""
        return torch.set_grad_enabled(not self._differentiable.isdisjoint(modules))

    @property
    def estimate(self) -> Any:
        """The displacement network's named tuple."""
        if self._estimate is None:
            with self._gradients(MODEL):
                image = torch.cat([self.moving, self.fixed], dim=1)
                if self.bidirectional and self.method.inverse_by_negation:
                    forth = None if self.condition is None else self.condition.chunk(2)[0]
                    self._estimate = self._displacement(image.chunk(2)[0], forth)
                    return self._estimate
                parts = 1 if self.method.batched_directions or not self.bidirectional else 2
                conditions = [None] * parts if self.condition is None else self.condition.chunk(parts)
                halves = zip(image.chunk(parts), conditions, strict=True)
                self._estimate = join([self._displacement(*half) for half in halves])
        return self._estimate

    @property
    def both_ways(self) -> tuple[Tensor, Tensor]:
        """Displacements A -> B and B -> A of every pair, (B, d, *S) each.

        Raises:
            ValueError: where the step registers one way only.
        """
        if not self.bidirectional:
            raise ValueError(
                "bidirectional must be true: this objective compares the maps A -> B and B -> A of a pair."
            )
        forward, backward = self.estimate.ddf.chunk(2)
        return forward, backward

    @property
    def warped(self) -> Tensor:
        """Moving image on the fixed one, (B, 1, *S)."""
        if self._warped is None:
            with self._gradients(MODEL):
                self._warped = warp(self.moving, self.estimate.ddf, padding=self.method.padding)
        return self._warped

    @property
    def residual(self) -> Tensor:
        """Similarity's residual map, (B, 1, *S)."""
        if self._residual is None:
            with self._gradients(MODEL):
                warped, fixed = self.warped, self.fixed
                if self.mask is not None:
                    warped, fixed = warped * self.mask, fixed * self.mask
                self._residual = self.method.similarity(warped, fixed)
                if self.method.inside_only:
                    valid = samples_inside(self.estimate.ddf.detach())
                    share = valid.mean(dim=tuple(range(1, valid.dim())), keepdim=True)
                    self._residual = self._residual * (valid / share.clamp(min=1e-6))
        return self._residual

    @property
    def estimated(self) -> Tensor:
        """Score or log variance, (B, 1, *S), not masked.

        Raises:
            ValueError: where the method has no estimator.
        """
        if self._estimated is None:
            if self._estimator is None:
                raise ValueError("estimator: this objective needs a score or variance network, the method has none.")
            through = self.method.through_estimator
            with self._gradients(self.method.estimator, MODEL if through else None):
                warped = None
                if self.method.estimates_from_warped:
                    warped = self.warped if through else self.warped.detach()
                self._estimated = self._estimator(self.method.estimator_image(self.fixed, warped))
        return self._estimated

    @property
    def moving_label(self) -> Tensor:
        """Label map of the moving image, (B, 1, *S).

        Raises:
            ValueError: where the batch has none.
        """
        return self._label("moving_label")

    @property
    def fixed_label(self) -> Tensor:
        """Label map of the fixed image, (B, 1, *S).

        Raises:
            ValueError: where the batch has none.
        """
        return self._label("fixed_label")

    def _label(self, key: str) -> Tensor:
        if key not in self.batch:
            raise ValueError(
                f"{key}: an objective compares labels, but the batch has none, only {sorted(self.batch)}. Give the "
                "training data with_labels, or leave the term out."
            )
        return self.batch[key]

    def forget_displacement(self) -> None:
        """Have the displacement computed anew: an update has changed its network."""
        self._estimate = self._warped = self._residual = None
        if self.method.estimates_from_warped:
            self._estimated = None
