# SPDX-License-Identifier: Apache-2.0
"""Displacement fields in closed form."""

import torch

from common.spatial.warp import identity_grid


def smooth_field(shape, amplitude, seed=0):
    """Slow sines that vanish on the border."""
    grid = identity_grid(list(shape), torch.device("cpu"), torch.float64)
    unit = torch.stack([axis / (n - 1) for axis, n in zip(grid, shape, strict=True)])
    window = torch.sin(torch.pi * unit).prod(0)
    phase = torch.rand(len(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    channels = [torch.cos(torch.pi * (unit.sum(0) + p)) for p in phase]
    return (amplitude * window * torch.stack(channels))[None]


def linear_field(matrix, shape):
    grid = identity_grid(list(shape), torch.device("cpu"), torch.float64)
    centre = torch.tensor([(n - 1) / 2 for n in shape], dtype=torch.float64).view([-1] + [1] * len(shape))
    return torch.einsum("ij,j...->i...", matrix, grid - centre)[None]
