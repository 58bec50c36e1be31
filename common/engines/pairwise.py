# SPDX-License-Identifier: Apache-2.0
"""Registration without training: one stationary velocity field per pair, optimised coarse to fine."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor, nn
from tqdm import tqdm

from ..losses.smoothness import Diffusion
from ..spatial.integrate import integrate_svf, resize_field
from ..spatial.warp import warp
from .solvers import Solver, check_pair

logger = logging.getLogger(__name__)

# Adam's epsilon where the loss were a sum over voxels: far below the gradients of contrast in [0, 1], far above the
# rounding errors that its normalisation would otherwise blow up to full steps in flat regions.
EPSILON = 1e-5

# A progress bar of one pair: on a terminal only, and gone when it is done.
SHORT_LIVED: dict[str, Any] = {"leave": False, "mininterval": 1.0, "disable": None}


class PairwiseRegistration(Solver):
    """Optimises the velocity field of each pair: the solver "pairwise", which needs no training.

    At each level Adam minimises, over a velocity v on a grid ``velocity_downsample`` coarser than the level's image,

        sum over pairs of [ mean_x similarity(moving(x + u(x)), fixed(x)) + smoothness_weight * Diffusion(v) ],

    with u = exp(v) resampled to the image. The sum, and Adam's element-wise steps, keep pairs of a batch independent
    of each other. The result of a level starts the next one.

    Diffusion acts on v in voxels of its own grid, between neighbouring nodes: the mean squared derivative
    (dv_c/dx_i)^2, which has no unit. The weight hence means the same at every level and ``velocity_downsample``
    (but for rounding, and for axes so short that they keep two nodes).
    Images are smoothed and resampled corner to corner, as fields are; what lies outside has the border's intensity.
    They may have any size. Along an axis of one voxel nothing moves.

    The defaults were tuned with the squared error on training patients of ACDC (128 x 128 slices in [0, 1]), where 30
    and 100 steps a level differ by less than 0.002 in Dice. Another similarity needs another weight.

    Args:
        similarity: (warped, fixed) -> residual map (B, 1, *S), as ``losses.similarity`` has them.
        smoothness_weight: of the diffusion energy against the mean of the similarity's map.
        levels: factors by which the images are coarsened, in order; ``(1,)`` is full resolution alone.
        steps: Adam steps of each level; 0 leaves a level out.
        learning_rate: Adam's, about the voxels of the velocity's grid that a node moves in a step.
        smoothing: standard deviation of the Gaussian before coarsening, in voxels of the coarsened image; 0 for none.
        velocity_downsample: voxels of the level's image between nodes of the velocity.
        integration_steps: squarings, see ``integrate_svf``.

    Raises:
        ValueError: for a value out of its range.
    """

    name = "pairwise"

    def __init__(
        self,
        similarity: nn.Module,
        smoothness_weight: float = 0.025,
        levels: Sequence[int] = (4, 2, 1),
        steps: Sequence[int] = (40, 40, 40),
        learning_rate: float = 0.1,
        smoothing: float = 0.5,
        velocity_downsample: int = 2,
        integration_steps: int = 7,
    ) -> None:
        super().__init__()
        if not levels or len(levels) != len(steps) or min(levels) < 1 or min(steps) < 0:
            raise ValueError(
                "levels, steps: expected one number of steps (>= 0) for each factor (>= 1), got "
                f"{tuple(levels)} and {tuple(steps)}; give e.g. levels (4, 2, 1), steps (40, 40, 40)."
            )
        for name, value, least in (
            ("smoothness_weight", smoothness_weight, 0),
            ("smoothing", smoothing, 0),
            ("velocity_downsample", velocity_downsample, 1),
            ("integration_steps", integration_steps, 1),
        ):
            if not least <= value < math.inf:
                raise ValueError(f"{name}: expected a number from {least}, got {value!r}.")
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected a number above 0, got {learning_rate!r}; take e.g. 0.1.")
        self.similarity = similarity
        self.smoothness = Diffusion()
        self.smoothness_weight = float(smoothness_weight)
        self.schedule = tuple((level, count) for level, count in zip(levels, steps, strict=True) if count > 0)
        self.learning_rate = float(learning_rate)
        self.smoothing = float(smoothing)
        self.velocity_downsample = velocity_downsample
        self.integration_steps = integration_steps

    def register(self, image: Tensor, initial: Tensor | None = None) -> Tensor:
        """Register a batch of pairs. Works under ``torch.no_grad`` and computes in float32 under autocast.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1], two or three axes of any size.
            initial: velocity to start from, (B, d, *S') in voxels of its own grid, any grid over the same extent. It is
                resampled to the first level: ``levels=(1,)`` keeps its detail. None starts from zero. Not modified.

        Returns:
            ddf, (B, d, *S) in voxels of the fixed image, without gradient.

        Raises:
            ValueError: if a shape is not as above, or ``initial`` is not finite.
            RuntimeError: if the loss or the field is not finite; names the level and the step.
        """
        check_pair(image)
        _check_initial(image, initial)
        dims, size = image.dim() - 2, image.shape[2:]
        with torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
            image = _at_least_two_voxels(image.detach().float())
            shape = list(image.shape[2:])
            self.similarity.to(image.device)
            if initial is None:
                velocity = image.new_zeros(len(image), dims, *_coarse_size(shape, self.velocity_downsample))
            else:
                velocity = initial.detach().float()  # may carry a network's graph, or be half precision
            for level, steps in self.schedule:
                velocity = self._optimise(velocity, self._coarsen(image, level), level, steps)
            ddf = resize_field(integrate_svf(velocity, self.integration_steps), shape)
            return ddf[tuple(slice(length) for length in (*ddf.shape[:2], *size))]

    def _coarsen(self, image: Tensor, level: int) -> Tensor:
        if self.smoothing > 0:
            kernel = gaussian_1d(torch.tensor(self.smoothing * level), truncated=3.0).to(image.device)
            image = separable_filtering(image, [kernel] * (image.dim() - 2), mode="replicate")
        size = _coarse_size(image.shape[2:], level)
        mode = "bilinear" if image.dim() == 4 else "trilinear"
        return F.interpolate(image, size=size, mode=mode, align_corners=True)

    def _optimise(self, velocity: Tensor, image: Tensor, level: int, steps: int) -> Tensor:
        moving, fixed = image[:, :1], image[:, 1:]
        size, pairs = list(image.shape[2:]), len(image)
        start = resize_field(velocity, _coarse_size(size, self.velocity_downsample))
        velocity = start.clone().requires_grad_()
        # Gradients of a mean shrink with the number of nodes; Adam's epsilon must follow, or large images stand still.
        optimiser = torch.optim.Adam([velocity], lr=self.learning_rate, eps=EPSILON / velocity[0, 0].numel())
        for step in tqdm(range(1, steps + 1), f"optimising the field at 1/{level}", **SHORT_LIVED):
            ddf = resize_field(integrate_svf(velocity, self.integration_steps), size)
            residual = self.similarity(warp(moving, ddf, padding="border"), fixed)
            loss = residual.mean() + self.smoothness_weight * self.smoothness(velocity)
            # Before the backward pass: grid_sample's may crash the process on coordinates that are not finite. A field
            # that is not finite has no finite smoothness, not even times 0.
            if not loss.isfinite():
                raise _not_finite("loss", level, step, steps)
            (velocity.grad,) = torch.autograd.grad(pairs * loss, velocity)
            optimiser.step()
            if step in (1, steps):
                logger.debug("level %d, step %d of %d: mean loss of a pair %.4g", level, step, steps, loss.detach())
        velocity = velocity.detach()
        if not velocity.isfinite().all():
            raise _not_finite("velocity", level, steps, steps)
        return velocity


def _not_finite(what: str, level: int, step: int, steps: int) -> RuntimeError:
    return RuntimeError(
        f"pairwise registration: the {what} is not finite at level {level}, step {step} of {steps}; check the images "
        "for NaN or infinity, then lower learning_rate or raise smoothness_weight."
    )


def _coarse_size(shape: Sequence[int], factor: int) -> list[int]:
    """At least two nodes an axis, since a field needs a difference along each."""
    return [max(2, math.ceil(size / factor)) for size in shape]


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
