# SPDX-License-Identifier: Apache-2.0
"""LapIRN and its conditional form: a pyramid of three networks, whose fields add up from coarse to fine."""

import math
from collections.abc import Sequence
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..spatial.integrate import integrate_svf, resize_field
from ..spatial.pyramid import halved
from ..spatial.units import unit_to_voxel, voxel_to_unit
from ..spatial.warp import warp
from .contract import Estimate, check_pair, condition_code, default_code, pair_image
from .convolution import weights_channels_last
from .lapirn_level import Level

LEVELS = 3
START_CHANNELS = {2: 64, 3: 7}
CODES = {2: 0.1, 3: 0.4}  # what the published test scripts take
# Learning rates and regularisers of the levels, the coarsest first: Tian et al., GradICON, CVPR 2023, Table 4 (lungs).
LUNG: dict[str, dict[str, Any]] = {
    "lapirn_lung": {"level_learning_rates": (1e-5, 5e-5, 1e-4), "level_smoothness": (1.0, 0.1, 0.1)},
    "lapirn_lung_svf": {
        "diffeomorphic": True, "level_learning_rates": (5e-5, 1e-4, 1e-4), "level_smoothness": (1.0, 0.1, 0.1),
    },
}  # fmt: skip


class LapIRN(nn.Module):
    """Three levels at a quarter, a half and the whole of the image's size, each adding its flow to the coarser ones'.

    A level sees the moving image warped so far, the fixed one and the field so far, on its own grid; images are
    averaged (``spatial.pyramid.halved``), fields interpolated. A level's flow is ``flow_range`` times a Softsign in the
    coordinates of ``grid_sample``, [-1, 1]: with 0.4 up to a fifth of the image's extent along each axis.

    Any size is taken: grids are rounded up on the way down and cut on the way up (published: multiples of 8). Channel i
    of a flow lies along array axis i (published: channel 0 along the last axis), so that published weights need their
    flow channels reversed. Fields are interpolated with align_corners=False, as published, though they are sampled with
    align_corners=True. Weights start as torch draws them, as published: the first displacement is a few per cent of the
    image's extent, not the identity.

    923,748 parameters in 3D; conditional 1,222,068, in 2D 26,783,424, as published.

    Args:
        spatial_dims: 2 or 3.
        start_channels: a quarter of the width of all convolutions; None is the published 7 in 3D, 64 in 2D (published
            for the conditional form).
        blocks: residual blocks a level (published 5).
        flow_range: of a level's flow.
        diffeomorphic: the levels' flows add up to a velocity, integrated on the level's grid by 7 squarings.
        conditional: the blocks take a code in [0, 1], the share of the smoothness weight's range.
        level_learning_rates: of the stages in which a level is the finest that runs, the coarsest first; None is the
            training's own throughout.
        level_smoothness: weights of the smoothness in these stages, in the units of the released code; they take the
            place of the method's. None is the method's, see ``engines.adaptation.lapirn``.

    Attributes:
        running: how many levels run, see ``run_levels``; stored with the weights.
        default_condition: code where none is given, (1, 1), stored with the weights: 0.1 in 2D, 0.4 in 3D, as in the
            published test scripts. Conditional networks only.

    Raises:
        ValueError: for a value out of range.

    Reference:
        Mok and Chung, LapIRN, MICCAI 2020; Conditional LapIRN, MICCAI 2021; their released code.
    """

    default_condition: Optional[Tensor]

    def __init__(
        self,
        spatial_dims: int,
        start_channels: int | None = None,
        blocks: int = 5,
        flow_range: float = 0.4,
        diffeomorphic: bool = False,
        conditional: bool = False,
        level_learning_rates: Sequence[float] | None = None,
        level_smoothness: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in START_CHANNELS:
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        channels = 4 * (START_CHANNELS[spatial_dims] if start_channels is None else start_channels)
        if channels < 1 or blocks < 1 or not flow_range > 0:
            raise ValueError(
                f"start_channels, blocks, flow_range: expected numbers above 0, got {channels // 4}, {blocks} and "
                f"{flow_range!r}; 7, 5 and 0.4 are published."
            )
        self.level_learning_rates = _of_levels("level_learning_rates", level_learning_rates)
        self.level_smoothness = _of_levels("level_smoothness", level_smoothness)
        if level_smoothness is not None and conditional:
            raise ValueError("level_smoothness: expected None with conditional, whose code sets the weight.")
        self.spatial_dims, self.conditional, self.diffeomorphic = spatial_dims, bool(conditional), bool(diffeomorphic)
        self.flow_range, self.squarings = float(flow_range), 7
        self.levels = nn.ModuleList(
            Level(spatial_dims, 2 + (spatial_dims if number else 0), channels, blocks, self.conditional)
            for number in range(LEVELS)
        )
        self.running = LEVELS
        self.register_buffer("levels_run", torch.tensor(LEVELS))
        self.register_buffer("default_condition", default_code(CODES[spatial_dims], self.conditional))
        weights_channels_last(self)

    @torch.jit.unused
    def run_levels(self, number: int) -> None:
        """Have the coarsest levels run alone, for training in stages; finer ones are neither computed nor trained.

        Args:
            number: of levels, 1 to 3.

        Raises:
            ValueError: for another number.
        """
        if number not in range(1, LEVELS + 1):
            raise ValueError(f"levels: expected 1 to {LEVELS}, got {number!r}.")
        self.running = int(number)
        self.levels_run.fill_(number)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.running = int(self.levels_run)  # an int: reading the buffer in each forward would wait for the device

    def forward(self, image: Tensor, fixed: Optional[Tensor] = None, condition: Optional[Tensor] = None) -> Tensor:
        """Displacement that pulls moving onto fixed.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1]; or moving alone, (B, 1, *S), when ``fixed`` is given.
            fixed: (B, 1, *S), optional.
            condition: code in [0, 1], (B, 1); None is ``default_condition``. Without ``conditional`` it must be None.

        Returns:
            ddf (B, d, *S) in voxels.

        Raises:
            ValueError: for another number of channels or axes, or another condition.
        """
        return self.estimate(pair_image(image, fixed), condition).ddf

    def estimate(self, image: Tensor, condition: Optional[Tensor] = None) -> Estimate:
        """As ``forward``, with the fields of the levels.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: as ``forward``.

        Returns:
            ``velocity``: of the finest level that runs, on its grid (without ``diffeomorphic`` the displacement
            itself). ``coarser``: the displacements of all levels below the image's grid that run. ``ddf``: that of the
            third level, or the finest one brought to the image's grid.
        """
        check_pair(image, self.spatial_dims)
        code = condition_code(condition, self.default_condition, image, self.training, "LapIRN", 1.0)
        images = [image]
        for _ in range(len(self.levels) - 1):
            images.append(halved(images[-1]))
        images.reverse()
        embedding: Optional[Tensor] = None
        coarser: list[Tensor] = []
        flow_unit = torch.zeros([0], device=image.device)  # of the levels so far, in [0, 1]^d
        velocity, ddf = flow_unit, flow_unit
        for number, level in enumerate(self.levels):
            if number < self.running:
                inputs = images[number]
                if number > 0:
                    coarser.append(ddf)
                    flow_unit = _resized(flow_unit, inputs.shape[2:])
                    inputs = self._inputs(inputs, flow_unit, ddf)
                flow, embedding = level(inputs, embedding, code)
                flow = flow * (0.5 * self.flow_range)
                flow_unit = flow if number == 0 else flow_unit + flow
                velocity = unit_to_voxel(flow_unit)
                ddf = integrate_svf(velocity, self.squarings) if self.diffeomorphic else velocity
        if self.running < len(self.levels):
            coarser.append(ddf)
        return Estimate(resize_field(ddf, image.shape[2:]), velocity, None, None, coarser)

    def _inputs(self, image: Tensor, flow_unit: Tensor, coarser: Tensor) -> Tensor:
        """What a level sees: cat(moving warped by the displacement so far, fixed, flow so far), (B, 2 + d, *S)."""
        displacement_unit = flow_unit
        if self.diffeomorphic:
            displacement_unit = _resized(voxel_to_unit(coarser), image.shape[2:])
        warped = warp(image[:, :1], unit_to_voxel(displacement_unit), padding="border")
        return torch.cat([warped, image[:, 1:], 2.0 * flow_unit], dim=1)  # in [-1, 1]^d, as published


def _of_levels(name: str, values: Sequence[float] | None) -> list[float]:
    """One number a level, or none."""
    listed = [] if values is None else [float(value) for value in values]
    if values is not None and (len(listed) != LEVELS or not all(0 <= value < math.inf for value in listed)):
        raise ValueError(
            f"{name}: expected {LEVELS} numbers of at least 0, the coarsest level's first, got {values!r}."
        )
    return listed


def _resized(field_unit: Tensor, size: list[int]) -> Tensor:
    """A field on another grid, its values kept, as published (align_corners=False)."""
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(field_unit, size=size, mode=mode, align_corners=False)
