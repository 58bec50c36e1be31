# SPDX-License-Identifier: Apache-2.0
"""Inverse consistency of a pair of maps: the penalties of ICON and GradICON."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checks import known_name
from ..spatial.fields import compose
from ..spatial.units import voxel_to_unit
from ..spatial.warp import identity_grid, sample

KINDS = ("gradicon", "icon")
PRESETS = ("paper_v1", "released")
STEP_UNIT = 0.001  # of the finite differences
STRIDE = 2  # voxels between the points
JITTER = 2.0  # standard deviation of the points in voxels


def _checked(ddf_ab: Tensor, ddf_ba: Tensor) -> tuple[Tensor, Tensor]:
    """Check two displacements of one grid and return them in float32 (float64 where one of them has it)."""
    shape = tuple(ddf_ab.shape)
    if ddf_ba.shape != ddf_ab.shape:
        raise ValueError(
            f"ddf_ab and ddf_ba: expected one shape (B, d, *S), got {shape} and {tuple(ddf_ba.shape)}; "
            "resample one with common.spatial.integrate.resize_field"
        )
    if len(shape) not in (4, 5) or shape[1] != len(shape) - 2 or min(shape[2:]) < 2:
        raise ValueError(
            f"ddf_ab and ddf_ba: expected (B, d, *S) with d = 2 or 3 axes of at least 2 voxels, got {shape}; "
            "move the components to the channel axis"
        )
    dtype = torch.float64 if torch.float64 in (ddf_ab.dtype, ddf_ba.dtype) else torch.float32
    return ddf_ab.to(dtype), ddf_ba.to(dtype)


def _random_points(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Every second voxel along each axis, moved at random: (B, d, M) in voxels, others for each pair."""
    nodes = [-(-size // STRIDE) for size in like.shape[2:]]
    grid = STRIDE * identity_grid(nodes, like.device, like.dtype).flatten(1)
    noise = torch.randn(len(like), *grid.shape, generator=generator, device=like.device, dtype=like.dtype)
    return grid + JITTER * noise


class InverseConsistencyPenalty(nn.Module):
    """How far Φ_AB ∘ Φ_BA is from the identity, over the unit cube (spacing 1 / (n - 1) an axis).

    "gradicon": ‖∇[Φ_AB ∘ Φ_BA] - I‖²_F / d, the mean over points, pairs and components of each column, which is what
    the published λ refers to: affine maps A, B cost ‖I - AB‖²_F / d, translations nothing.
    "icon": (Φ_AB ∘ Φ_BA - Id)², the mean over points, pairs and components.

    Presets:
        "paper_v1": every voxel, forward differences between neighbours, and the penalties of both orders of
        composition added (the loss of the paper's Sec. 5.1).
        "released": one order, Φ_AB ∘ Φ_BA, at every second voxel along each axis moved by Gaussian noise of 2 voxels,
        differences over 0.001 of the cube. Departures: the noise has 2 voxels along every axis (the published code: the
        same share of the cube, that of the last axis) and is drawn for each pair of a batch.

    Beyond the grid displacements go on with their value at the border.

    Reference:
        Tian et al., GradICON, CVPR 2023, Eq. 2; Greer et al., ICON, ICCV 2021.
    """

    def __init__(self, kind: str = "gradicon", preset: str = "paper_v1") -> None:
        """Choose the penalty.

        Args:
            kind: "gradicon" or "icon".
            preset: "paper_v1" or "released".

        Raises:
            ValueError: for any other.
        """
        super().__init__()
        self.kind, self.preset = known_name("kind", kind, KINDS), known_name("preset", preset, PRESETS)

    def forward(self, ddf_ab: Tensor, ddf_ba: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the penalty, a scalar.

        Args:
            ddf_ab: displacement of Φ_AB in voxels, (B, d, *S).
            ddf_ba: displacement of Φ_BA in voxels, on the same grid.
            generator: of the points of "released", on the device of the fields; None is torch's global one.

        Returns:
            A scalar.

        Raises:
            ValueError: the shapes differ, are not (B, d, *S), or have an axis shorter than 2.
        """
        ddf_ab, ddf_ba = _checked(ddf_ab, ddf_ba)
        if self.preset == "released":
            return self._at_random_points(ddf_ab, ddf_ba, generator)
        # One warp for both orders: on a CPU, 3D sampling runs its batch in parallel. Hence 2 times a mean over both.
        error = voxel_to_unit(compose(torch.cat([ddf_ab, ddf_ba]), torch.cat([ddf_ba, ddf_ab])))
        if self.kind == "icon":
            return 2 * error.square().mean()
        terms = []
        for axis in range(2, error.ndim):
            intervals = error.shape[axis] - 1
            later, earlier = error.narrow(axis, 1, intervals), error.narrow(axis, 0, intervals)
            # The fused form neither writes nor keeps the differences.
            terms.append(2 * intervals**2 * functional.mse_loss(later, earlier))
        return torch.stack(terms).sum()

    def _at_random_points(self, ddf_ab: Tensor, ddf_ba: Tensor, generator: torch.Generator | None) -> Tensor:
        intervals = torch.tensor([size - 1.0 for size in ddf_ab.shape[2:]], device=ddf_ab.device, dtype=ddf_ab.dtype)
        points = _random_points(ddf_ab, generator).unsqueeze(2)
        if self.kind == "gradicon":
            # The points and, a step along each axis away, their neighbours, read together: (B, d, 1 + d, M).
            steps = functional.pad(torch.diag(STEP_UNIT * intervals), (1, 0))
            points = points + steps.unsqueeze(2)
        inner = sample(ddf_ba, points)
        error = (inner + sample(ddf_ab, points + inner)) / intervals.view(-1, 1, 1)
        if self.kind == "icon":
            return error.square().mean()
        slopes = (error[:, :, 1:] - error[:, :, :1]) / STEP_UNIT
        return len(intervals) * slopes.square().mean()
