# SPDX-License-Identifier: Apache-2.0
"""What one iteration computes, each thing once and only if somebody asks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..networks.contract import join
from ..spatial.warp import samples_inside, warp

ESTIMATOR_INPUTS = ("fixed", "fixed_warped")
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(tensor: Tensor) -> Tensor:
    """The layout that convolutions are fastest in, for tensors of 4 or 5 axes; others as they are."""
    layout = CHANNELS_LAST.get(tensor.dim())
    return tensor if layout is None else tensor.contiguous(memory_format=layout)


class TrainingView(nn.Module):
    """A displacement network whose ``forward`` returns its named tuple, for DDP and compile to wrap.

    Args:
        network: has ``estimate(image)``.
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

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.amp):
            estimate = self.network.estimate_and_inverse if self.inverse_by_negation else self.network.estimate
            return estimate(channels_last(image))  # type: ignore[operator]


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


class RegistrationStep:
    """Lazily computed results of one iteration, shared by its updates.

    Args:
        moving, fixed: (B, 1, *S) in [0, 1].
        displacement: cat(moving, fixed) -> named tuple with ``ddf`` and ``velocity``.
        similarity: (warped, fixed) -> residual map.
        estimator: image -> score or log variance; None where the method has none.
        estimator_input: "fixed" (AdaCS) or "fixed_warped" (cat(fixed, warped), detached).
        active: names of the updates that run in this iteration.
        differentiable: names of the networks ("displacement", "estimator") that some active update differentiates.
        bidirectional: ``moving`` and ``fixed`` hold every pair twice: cat(A, B) and cat(B, A).
        batched_directions: register both halves in one forward; False takes one after the other.
        inverse_by_negation: with ``bidirectional``, ``displacement`` sees cat(A, B) alone and returns both maps (the
            published AdaCS code); ``velocity`` is then that of A -> B.
        foreground: multiply both images by ``mask`` before they are compared (the published AdaCS code).
        padding: what lies outside the moving image, see ``warp``.
        inside_only: the residual counts only where the sample lies inside the moving image; the mean over a pair is
            then that over these voxels (the ICON code's knees).

    Attributes:
        mask: with ``foreground`` 1 where the moving or the fixed image is not 0, (B, 1, *S); else None.
    """

    def __init__(
        self,
        moving: Tensor,
        fixed: Tensor,
        displacement: Callable[[Tensor], tuple[Tensor, ...]],
        similarity: nn.Module,
        estimator: Callable[[Tensor], Tensor] | None,
        estimator_input: str,
        active: frozenset[str],
        differentiable: frozenset[str],
        bidirectional: bool = False,
        batched_directions: bool = True,
        padding: str = "zeros",
        inside_only: bool = False,
        inverse_by_negation: bool = False,
        foreground: bool = False,
    ) -> None:
        self.moving, self.fixed, self.active = moving, fixed, active
        self.bidirectional = bidirectional
        self._forwards = 2 if bidirectional and not batched_directions else 1
        self._one_way = bidirectional and inverse_by_negation
        self.mask = ((moving != 0) | (fixed != 0)).to(moving.dtype) if foreground else None
        self._displacement, self._similarity, self._estimator = displacement, similarity, estimator
        self._estimator_input = estimator_input
        self._padding, self._inside_only = padding, inside_only
        self._differentiable = differentiable
        self._estimate: tuple[Tensor, ...] | None = None
        self._estimated: Tensor | None = None
        self._warped: Tensor | None = None
        self._residual: Tensor | None = None

    def _gradients(self, network: str) -> torch.set_grad_enabled:
        """Whoever asks first, under no_grad or not: what an update differentiates carries its graph."""
        return torch.set_grad_enabled(network in self._differentiable)

    @property
    def estimate(self) -> tuple[Tensor, ...]:
        """The displacement network's named tuple."""
        if self._estimate is None:
            with self._gradients("displacement"):
                image = torch.cat([self.moving, self.fixed], dim=1)
                if self._one_way:
                    self._estimate = self._displacement(image.chunk(2)[0])
                    return self._estimate
                parts = [self._displacement(part) for part in image.chunk(self._forwards)]
                self._estimate = join(parts)
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
        forward, backward = self.estimate.ddf.chunk(2)  # type: ignore[attr-defined]
        return forward, backward

    @property
    def velocity(self) -> Tensor:
        """The field that smoothness acts on, (B, d, *S')."""
        return self.estimate.velocity  # type: ignore[attr-defined]

    @property
    def warped(self) -> Tensor:
        """Moving image on the fixed one, (B, 1, *S)."""
        if self._warped is None:
            with self._gradients("displacement"):
                self._warped = warp(self.moving, self.estimate.ddf, padding=self._padding)  # type: ignore[attr-defined]
        return self._warped

    @property
    def residual(self) -> Tensor:
        """Similarity's residual map, (B, 1, *S)."""
        if self._residual is None:
            with self._gradients("displacement"):
                warped, fixed = self.warped, self.fixed
                if self.mask is not None:
                    warped, fixed = warped * self.mask, fixed * self.mask
                self._residual = self._similarity(warped, fixed)
                if self._inside_only:
                    valid = samples_inside(self.estimate.ddf.detach())  # type: ignore[attr-defined]
                    share = valid.mean(dim=tuple(range(1, valid.dim())), keepdim=True)
                    self._residual = self._residual * (valid / share.clamp(min=1e-6))
        return self._residual

    @property
    def estimated(self) -> Tensor:
        """Score or log variance, (B, 1, *S), not masked."""
        if self._estimated is None:
            if self._estimator is None:
                raise ValueError("estimator: this objective needs a score or variance network, the trainer has none.")
            image = self.fixed
            if self._estimator_input == "fixed_warped":
                image = torch.cat([self.fixed, self.warped.detach()], dim=1)
            with self._gradients("estimator"):
                self._estimated = self._estimator(image)
        return self._estimated

    def forget_displacement(self) -> None:
        """Have the displacement computed anew: an update has changed its network."""
        self._estimate = self._warped = self._residual = None
        if self._estimator_input == "fixed_warped":
            self._estimated = None
