# SPDX-License-Identifier: Apache-2.0
"""Registration without training: stationary velocity fields of each pair, optimised coarse to fine."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from ..checks import at_least, positive, whole
from ..losses.smoothness import Diffusion
from ..spatial.fields import all_finite, compose
from ..spatial.integrate import integrate_svf, resize_field
from ..spatial.warp import warp
from .solvers import Solver, check_pair

logger = logging.getLogger(__name__)

# Adam's epsilon where the loss were a sum over voxels: far below the gradients of contrast in [0, 1], far above the
# rounding errors that its normalisation would otherwise blow up to full steps in flat regions.
EPSILON = 1e-5

Level = tuple[float, int]  # factor or mm, and steps

# A progress bar of one pair: on a terminal only, and gone when it is done.
SHORT_LIVED: dict[str, Any] = {"leave": False, "mininterval": 1.0, "disable": None}


class PairwiseRegistration(Solver):
    """Optimises the velocity fields of each pair: the solver "pairwise", which needs no training.

    At each level Adam minimises, over a velocity v on a grid ``velocity_downsample`` coarser than the level's image,

        sum over pairs of [ mean_x similarity(moving(x + u(x)), fixed(x)) + smoothness_weight * Diffusion(v) ],

    with u = exp(v) resampled to the image. The sum, and Adam's element-wise steps, keep pairs of a batch independent
    of each other. The result of a level starts the next one.

    A level that is not finer than the one before it begins a further velocity, for the moving image as the maps so far
    have warped it: levels 4, 2, 2, 1 give exp(v_1) ∘ exp(v_2), with v_1 from 4 and 2 and v_2 from 2 and 1. Each pays
    for its own smoothness only: two reach further than one, and fold less than one of a smaller weight.

    Diffusion acts on v in voxels of its own grid, between neighbouring nodes: the mean squared derivative
    (dv_c/dx_i)^2, which has no unit. The weight hence means the same at every level and ``velocity_downsample``
    (but for rounding, and for axes so short that they keep two nodes).
    Images are smoothed and resampled corner to corner, as fields are; what lies outside has the border's intensity.
    They may have any size. Along an axis of one voxel nothing moves.

    With ``spacing`` the levels are voxel sizes in mm, and smoothing and Diffusion count in mm as well: what comes out
    depends on the anatomy's size, not on how finely it was sampled. An axis whose voxels are larger than a level keeps
    its own.

    The defaults were tuned with the squared error on training patients of ACDC (128 x 128 slices in [0, 1]), where 30
    and 100 steps a level differ by less than 0.002 in Dice. Another similarity needs another weight.

    Args:
        similarity: (warped, fixed) -> residual map (B, 1, *S), as ``losses.similarity`` has them.
        smoothness_weight: of the diffusion energy against the mean of the similarity's map.
        levels: factors by which the images are coarsened, in order; ``(1,)`` is full resolution alone. With ``spacing``
            the voxel sizes in mm. One that is not finer than the one before begins a further velocity.
        steps: Adam steps of each level; 0 leaves a level out.
        learning_rate: Adam's, about the voxels of the velocity's grid that a node moves in a step.
        smoothing: standard deviation of the Gaussian before coarsening, in voxels of the coarsened image; 0 for none.
        velocity_downsample: voxels of the level's image between nodes of the velocity.
        integration_steps: squarings, see ``integrate_svf``.
        spacing: of the images' voxels in mm, a number an axis; None where nothing is to be counted in mm.
        annealed: let the learning rate fall to 0 along half a cosine within each level. Large volumes then fold less,
            at the same accuracy (docs/performance.md).

    Raises:
        ValueError: for a value out of its range.
    """

    name = "pairwise"

    def __init__(
        self,
        similarity: nn.Module,
        smoothness_weight: float = 0.025,
        levels: Sequence[float] = (4, 2, 1),
        steps: Sequence[int] = (40, 40, 40),
        learning_rate: float = 0.1,
        smoothing: float = 0.5,
        velocity_downsample: int = 2,
        integration_steps: int = 7,
        spacing: Sequence[float] | None = None,
        annealed: bool = False,
    ) -> None:
        super().__init__()
        least = 1 if spacing is None else 1e-6
        if not levels or len(levels) != len(steps) or min(levels) < least or min(steps) < 0:
            raise ValueError(
                "levels, steps: expected one number of steps (>= 0) for each factor (>= 1), got "
                f"{tuple(levels)} and {tuple(steps)}; give e.g. levels (4, 2, 1), steps (40, 40, 40)."
            )
        self.similarity = similarity
        self.smoothness = Diffusion()
        self.smoothness_weight = at_least("smoothness_weight", smoothness_weight)
        self.rounds = _rounds([(level, count) for level, count in zip(levels, steps, strict=True) if count > 0])
        self.learning_rate = positive("learning_rate", learning_rate)
        self.smoothing = at_least("smoothing", smoothing)
        self.velocity_downsample = whole("velocity_downsample", velocity_downsample, 1)
        self.integration_steps = whole("integration_steps", integration_steps, 1)
        self.annealed = bool(annealed)
        if spacing is not None and not all(0 < mm < math.inf for mm in spacing):
            raise ValueError(f"spacing: expected numbers above 0 in mm, one an axis, got {list(spacing)}.")
        self.spacing = None if spacing is None else tuple(float(mm) for mm in spacing)

    def register(self, image: Tensor, initial: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Register a batch of pairs. Works under ``torch.no_grad`` and computes in float32 under autocast.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1], two or three axes of any size.
            initial: velocity that the first one starts from, (B, d, *S') in voxels of its own grid, any grid over the
                same extent. It is resampled to the first level: ``levels=(1,)`` keeps its detail. None starts from
                zero. Not modified.
            mask: (B, 1, *S), from 0 to 1: how much each voxel of fixed counts in the similarity; None counts all.

        Returns:
            ddf, (B, d, *S) in voxels of the fixed image, without gradient.

        Raises:
            ValueError: if a shape is not as above, ``initial`` is not finite, or a mask is empty.
            RuntimeError: if the loss or the field is not finite; names the level and the step.
        """
        check_pair(image)
        _check_initial(image, initial)
        self._check_mask(image, mask)
        dims, size = image.dim() - 2, image.shape[2:]
        with torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
            image = _at_least_two_voxels(image.detach().float())
            weight = None if mask is None else _at_least_two_voxels(mask.detach().to(image))
            shape = list(image.shape[2:])
            self.similarity.to(image.device)
            zero = image.new_zeros(len(image), dims, *_coarse_size(shape, [self.velocity_downsample] * dims))
            velocity = zero if initial is None else initial.detach().float()  # may carry a graph, or be half precision
            ddf = self._map(velocity, image, self.rounds[0], weight)
            for levels in self.rounds[1:]:
                moved = warp(image[:, :1], ddf, padding="border")
                ddf = compose(ddf, self._map(zero, torch.cat([moved, image[:, 1:]], dim=1), levels, weight))
            return ddf[tuple(slice(length) for length in (*ddf.shape[:2], *size))]

    def _map(self, velocity: Tensor, image: Tensor, levels: Sequence[Level], weight: Tensor | None) -> Tensor:
        """Displacement of the exponential of a velocity that is optimised level by level."""
        for level, steps in levels:
            coarse = self._coarsen(image, level)
            inside = None if weight is None else F.interpolate(weight, size=coarse.shape[2:], mode="nearest-exact")
            velocity = self._optimise(velocity, coarse, level, steps, inside)
        return resize_field(integrate_svf(velocity, self.integration_steps), list(image.shape[2:]))

    def _coarsen(self, image: Tensor, level: float) -> Tensor:
        sizes = self._sizes(image)
        if self.smoothing > 0:
            sigmas = [torch.tensor(self.smoothing * level / mm) for mm in sizes]
            kernels = [gaussian_1d(sigma, truncated=3.0).to(image.device) for sigma in sigmas]
            image = separable_filtering(image, kernels, mode="replicate")
        size = _coarse_size(image.shape[2:], [max(level / mm, 1.0) for mm in sizes])
        mode = "bilinear" if image.dim() == 4 else "trilinear"
        return F.interpolate(image, size=size, mode=mode, align_corners=True)

    def _sizes(self, image: Tensor) -> tuple[float, ...]:
        """Of the voxels, along each axis."""
        return (1.0,) * (image.dim() - 2) if self.spacing is None else self.spacing

    def _optimise(self, velocity: Tensor, image: Tensor, level: float, steps: int, mask: Tensor | None) -> Tensor:
        moving, fixed = image[:, :1], image[:, 1:]
        size, pairs = list(image.shape[2:]), len(image)
        # Along an axis of voxels larger than the level the velocity's nodes need not lie further apart than theirs.
        voxels = [max(level, mm) for mm in self._sizes(image)]
        factors = [max(self.velocity_downsample * level / mm, 1.0) for mm in voxels]
        start = resize_field(velocity, _coarse_size(size, factors))
        velocity = start.clone().requires_grad_()
        nodes = [mm * (n - 1) / (m - 1) for mm, n, m in zip(voxels, size, start.shape[2:], strict=True)]
        # Gradients of a mean shrink with the number of nodes; Adam's epsilon must follow, or large images stand still.
        optimiser = torch.optim.Adam([velocity], lr=self.learning_rate, eps=EPSILON / velocity[0, 0].numel())
        slower = CosineAnnealingLR(optimiser, steps) if self.annealed else None
        unit = "" if self.spacing is None else " mm"
        title = f"optimising the field at {level:g}{unit}" if unit else f"optimising the field at 1/{level}"
        for step in tqdm(range(1, steps + 1), title, **SHORT_LIVED):
            ddf = resize_field(integrate_svf(velocity, self.integration_steps), size)
            residual = self.similarity(warp(moving, ddf, padding="border"), fixed)
            loss = _mean(residual, mask)
            loss = loss + self.smoothness_weight * self.smoothness(
                velocity, spacing=None if self.spacing is None else nodes
            )
            # Before the backward pass: grid_sample's may crash the process on coordinates that are not finite. A field
            # that is not finite has no finite smoothness, not even times 0.
            if not loss.isfinite():
                raise _not_finite("loss", level, step, steps)
            (velocity.grad,) = torch.autograd.grad(pairs * loss, velocity)
            optimiser.step()
            if slower is not None:
                slower.step()
            if step in (1, steps):
                logger.debug("level %g, step %d of %d: mean loss of a pair %.4g", level, step, steps, loss.detach())
        velocity = velocity.detach()
        if not all_finite(velocity):
            raise _not_finite("velocity", level, steps, steps)
        return velocity

    def _check_mask(self, image: Tensor, mask: Tensor | None) -> None:
        if self.spacing is not None and len(self.spacing) != image.dim() - 2:
            raise ValueError(
                f"spacing: expected {image.dim() - 2} numbers, one an axis of the images, got {list(self.spacing)}."
            )
        if mask is None:
            return
        expected = (len(image), 1, *image.shape[2:])
        if tuple(mask.shape) != expected or not (mask.flatten(1) > 0).any(1).all():
            raise ValueError(
                f"mask: expected a map {expected} with voxels above 0 in every image, got the shape "
                f"{tuple(mask.shape)} with {int((mask > 0).sum())} of them; leave it out to count all voxels."
            )


def _rounds(schedule: Sequence[Level]) -> list[list[Level]]:
    """The levels of each velocity: as long as they become finer."""
    rounds: list[list[Level]] = [[]]
    for level in schedule:
        if rounds[-1] and level[0] >= rounds[-1][-1][0]:
            rounds.append([])
        rounds[-1].append(level)
    return rounds


def _mean(residual: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the pairs of a residual's mean, over the voxels of a mask where there is one."""
    if mask is None:
        return residual.mean()
    axes = list(range(1, residual.dim()))
    return ((residual * mask).sum(axes) / mask.sum(axes).clamp(min=1e-6)).mean()


def _not_finite(what: str, level: float, step: int, steps: int) -> RuntimeError:
    return RuntimeError(
        f"pairwise registration: the {what} is not finite at level {level:g}, step {step} of {steps}; check the images "
        "for NaN or infinity, then lower learning_rate or raise smoothness_weight."
    )


def _coarse_size(shape: Sequence[int], factors: Sequence[float]) -> list[int]:
    """At least two nodes an axis, since a field needs a difference along each."""
    return [max(2, math.ceil(size / factor - 1e-6)) for size, factor in zip(shape, factors, strict=True)]


def _at_least_two_voxels(image: Tensor) -> Tensor:
    """The image with axes of one voxel doubled, since a field needs a difference along each: nothing moves there."""
    for axis in range(2, image.dim()):
        if image.shape[axis] == 1:
            image = image.repeat_interleave(2, dim=axis)
    return image


def _check_initial(image: Tensor, initial: Tensor | None) -> None:
    dims = image.dim() - 2
    if initial is None:
        return
    if initial.dim() != image.dim() or initial.shape[:2] != (len(image), dims) or min(initial.shape[2:]) < 2:
        raise ValueError(
            f"initial: expected a velocity ({len(image)}, {dims}, *S') over the extent of the image, got "
            f"{tuple(initial.shape)}; give one field a pair, a channel an axis."
        )
    broken = int(initial.isfinite().logical_not().sum())
    if broken:
        raise ValueError(
            f"initial: expected finite velocities, got {broken} value(s) that are NaN or infinite; start without it."
        )
