# SPDX-License-Identifier: Apache-2.0
"""Foldings of a digital deformation: all its finite-difference determinants, the volume that folds, Learn2Reg's SDlogJ.

Central differences miss foldings: they skip the voxel itself. A map is digitally diffeomorphic where the simplices that
a voxel spans with its neighbours all keep their orientation. Their volumes, in units of the undeformed ones, are the
determinants here: 2^d of one-sided differences, and in 3D those of two tetrahedra between the corners of a cube.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..spatial.half_resolution import halved, restored
from ..spatial.jacobian import jacobian_determinant
from .cases import Cases
from .folding import LEARN2REG_OFFSET, check_mask, foldings_percent, masked_mean, sd_log_jacobian

LEARN2REG_BORDER = 2  # voxels a side that Learn2Reg leaves out
SLAB = 2**18  # voxels whose determinants are computed together: what a processor's cache holds


class DigitalMeasures:
    """``ndv_percent``, ``foldings_any_percent`` and ``sd_log_jacobian_l2r``, as published for IXI and OASIS.

    In quick evaluations nothing is measured.

    Args:
        mask: key of the data whose voxels above 0 ``ndv_percent`` is of, (B, 1, *S); None takes all. The default is
            the published choice, the atlas' labels, although the determinants lie on the fixed grid.
        half_resolution: ``sd_log_jacobian_l2r`` is that of the displacement after ``half_resolution_float16``.
    """

    headlines = ("ndv_percent",)

    def __init__(self, mask: str | None = "moving_label", half_resolution: bool = False) -> None:
        self.mask, self.half_resolution = mask, bool(half_resolution)

    def __call__(self, cases: Cases) -> dict[str, Tensor]:
        """Return the columns, each (B,).

        Raises:
            ValueError: where the data lack the mask.
        """
        if not cases.thorough:
            return {}
        mask = None if self.mask is None else cases.of("digital foldings", self.mask)[0][:, 0] > 0
        volume, least = digital_maps(cases.ddf)
        determinant = cases.determinant
        if self.half_resolution:
            determinant = jacobian_determinant(half_resolution_float16(cases.ddf))
        return {
            "ndv_percent": ndv_percent(volume, mask),
            "foldings_any_percent": foldings_percent(least),
            "sd_log_jacobian_l2r": sd_log_jacobian_l2r(determinant),
        }


def one_sided_determinants(ddf: Tensor) -> Tensor:
    """Determinants of id + ddf by forward (+) and backward (-) differences, in every combination of the axes.

    Args:
        ddf: displacement in voxels, (B, d, *S), at least three voxels an axis.

    Returns:
        (B, 2^d, *(S - 2)), inner voxels alone, in the order of ``itertools.product("+-", repeat=d)``.

    Raises:
        ValueError: if the channels do not match the number of axes, or an axis has fewer than three voxels.

    Reference:
        Liu et al., On Finite Difference Jacobian Computation in Deformable Image Registration, arXiv:2212.06060, 2022.
    """
    _check_field(ddf, 3)
    return torch.stack(list(_one_sided(ddf)), dim=1)


def star_determinants(ddf: Tensor) -> Tensor:
    """J*1 and J*2 in 3D: determinants of the two tetrahedra inside a cube that are no voxel's corner.

    J*1 has the edges from x to x - e_0 - e_1, x - e_0 - e_2, x - e_1 - e_2; J*2 those to x + e_0 + e_1,
    x + e_1 + e_2, x + e_0 + e_2. Both are 2 of the identity: these tetrahedra are twice as large as the others.

    Args:
        ddf: displacement in voxels, (B, 3, X, Y, Z), at least three voxels an axis.

    Returns:
        (B, 2, X - 2, Y - 2, Z - 2).

    Raises:
        ValueError: for another shape.

    Reference:
        Liu et al., arXiv:2212.06060, 2022.
    """
    _check_field(ddf, 3)
    if ddf.shape[1] != 3:
        raise ValueError(
            f"ddf: expected three axes, got the shape {tuple(ddf.shape)}; in 2D there are no such simplices."
        )
    return torch.stack(list(_stars(ddf)), dim=1)


def digital_maps(ddf: Tensor) -> tuple[Tensor, Tensor]:
    """Folded volume around each inner voxel, and the least of its one-sided determinants.

    Folded volume: sum over determinants J (2D: four one-sided; 3D: eight, J*1, J*2) of ½ max(-J, 0) / d!, in voxels,
    which is the mean over both ways of cutting a cube into tetrahedra. Computed in slabs, so that it takes little
    memory beside the result.

    Args:
        ddf: displacement in voxels, (B, d, *S), at least three voxels an axis; no gradient flows to it.

    Returns:
        Two of (B, *(S - 2)), NaN where the field is.

    Raises:
        ValueError: as ``one_sided_determinants``.

    Reference:
        Liu et al., arXiv:2212.06060, 2022 (non-diffeomorphic area and volume).
    """
    _check_field(ddf, 3)
    ddf, dims, inner = ddf.detach(), ddf.shape[1], [n - 2 for n in ddf.shape[2:]]
    volume, least = ddf.new_zeros((len(ddf), *inner)), ddf.new_full((len(ddf), *inner), torch.inf)
    thickness = max(1, SLAB // math.prod(ddf.shape[3:]))
    for start in range(0, inner[0], thickness):
        count = min(thickness, inner[0] - start)
        slab = ddf.narrow(2, start, count + 2)
        folded, lowest = volume.narrow(1, start, count), least.narrow(1, start, count)
        for determinant in _one_sided(slab):
            torch.minimum(lowest, determinant, out=lowest)
            folded += determinant.clamp_(max=0)
        for determinant in _stars(slab) if dims == 3 else ():
            folded += determinant.clamp_(max=0)
    return volume.mul_(-0.5 / math.factorial(dims)), least


def ndv_percent(volume: Tensor, mask: Tensor | None = None) -> Tensor:
    """Non-diffeomorphic volume (2D: area) in percent of a mask's voxels; the border voxel counts in neither.

    Args:
        volume: of ``digital_maps``, (B, *(S - 2)).
        mask: (B, *S), non-zero where voxels count; None for all.

    Returns:
        (B,) in percent; NaN where the mask is empty or the field is not finite.

    Raises:
        ValueError: if the mask has another shape.

    Reference:
        Liu et al., arXiv:2212.06060, 2022.
    """
    if mask is not None:
        whole = volume.new_empty(()).expand(len(volume), *(n + 2 for n in volume.shape[1:]))
        mask = _inner(check_mask(mask, whole, "field"), 1)
    return 100.0 * masked_mean(volume, check_mask(mask, volume, "map"))


def sd_log_jacobian_l2r(determinant: Tensor) -> Tensor:
    """SDlogJ as Learn2Reg evaluates it: standard deviation of log(clip(|J| + 3, 1e-9, 1e9)) without the border.

    Two voxels a side are left out. Learn2Reg pads displacements with zeros before it takes central differences, which
    no voxel sees that is kept.

    Args:
        determinant: of id + ddf, (B, *S), at least five voxels an axis.

    Returns:
        (B,).

    Raises:
        ValueError: for another shape, or fewer voxels.

    Reference:
        Hering et al., IEEE TMI 42, 2023 (Learn2Reg), and its evaluation code.
    """
    if min(determinant.shape[1:]) <= 2 * LEARN2REG_BORDER:
        raise ValueError(
            f"determinant: expected at least {2 * LEARN2REG_BORDER + 1} voxels an axis, of which Learn2Reg leaves out "
            f"{LEARN2REG_BORDER} a side, got the shape {tuple(determinant.shape)}; use sd_log_jacobian."
        )
    return sd_log_jacobian(_inner(determinant, LEARN2REG_BORDER), offset=LEARN2REG_OFFSET)


def half_resolution_float16(ddf: Tensor) -> Tensor:
    """The displacement as Learn2Reg 2021 got it: at half resolution in float16, by quadratic splines there and back.

    Args:
        ddf: displacement in voxels, (B, d, *S).

    Returns:
        (B, d, *S), in voxels of the full grid throughout.

    Raises:
        ValueError: for a field of another shape.

    Reference:
        Chen et al., TransMorph, 2022 (code of the submission to Learn2Reg 2021).
    """
    _check_field(ddf, 4)
    fields = [restored(halved(field), field.shape[1:]) for field in ddf.detach().float().cpu().numpy()]
    return torch.from_numpy(np.stack(fields)).to(ddf)


def _one_sided(ddf: Tensor) -> Iterator[Tensor]:
    """Each (B, *(S - 2)): the edge of the first axis times the normal to the others'."""
    dims = ddf.shape[1]
    edges = []
    for axis in range(dims):
        steps = ddf.diff(dim=axis + 2)
        steps[:, axis] += 1
        for other in set(range(dims)) - {axis}:
            steps = steps.narrow(other + 2, 1, ddf.shape[other + 2] - 2)
        edges.append([steps.narrow(axis + 2, start, ddf.shape[axis + 2] - 2) for start in (1, 0)])
    normals = [_normal(*others) for others in itertools.product(*edges[1:])]
    for first in edges[0]:
        for normal in normals:
            yield _dot(first, normal)


def _stars(ddf: Tensor) -> Iterator[Tensor]:
    here = _shifted(ddf, (0, 0, 0))
    for side, pairs in ((-1, ((0, 1), (0, 2), (1, 2))), (1, ((0, 1), (1, 2), (0, 2)))):
        edges = []
        for pair in pairs:
            edge = _shifted(ddf, [side * (axis in pair) for axis in range(3)]) - here
            edge[:, list(pair)] += side
            edges.append(edge)
        yield _dot(edges[0], _normal(*edges[1:]))


def _shifted(ddf: Tensor, step: tuple[int, ...] | list[int]) -> Tensor:
    """u(x + step) at the inner x."""
    for axis, distance in enumerate(step):
        ddf = ddf.narrow(axis + 2, 1 + distance, ddf.shape[axis + 2] - 2)
    return ddf


def _normal(*edges: Tensor) -> list[Tensor]:
    """Components of the vector n with det(a, *edges) = a · n."""
    if len(edges) == 1:
        return [edges[0][:, 1], -edges[0][:, 0]]
    a, b = edges
    return [a[:, i] * b[:, j] - a[:, j] * b[:, i] for i, j in ((1, 2), (2, 0), (0, 1))]


def _dot(edge: Tensor, normal: list[Tensor]) -> Tensor:
    result = edge[:, 0] * normal[0]
    for axis, component in enumerate(normal[1:], start=1):
        result.addcmul_(edge[:, axis], component)
    return result


def _inner(values: Tensor, border: int) -> Tensor:
    return values[(slice(None), *[slice(border, -border)] * (values.dim() - 1))]


def _check_field(ddf: Tensor, least: int) -> None:
    dims = ddf.dim() - 2
    if dims not in (2, 3) or ddf.shape[1] != dims or min(ddf.shape[2:]) < least:
        raise ValueError(
            f"ddf: expected the shape (B, d, *S) with d = 2 or 3 axes of at least {least} voxels, got "
            f"{tuple(ddf.shape)}; move the components to the channel axis."
        )
