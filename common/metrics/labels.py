# SPDX-License-Identifier: Apache-2.0
"""Overlap and surface distances of labelled structures, before and after registration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checks import known_name
from ..spatial.warp import identity_grid, sample, warp
from .cases import Cases
from .overlap import Overlap, count_overlap
from .surface import Surface, SurfaceDistances, directed_distance, surface_distances
from .thickness import mean_thickness

# The published code counts any warped value above 0; below this it is the interpolation's rounding.
ABOVE_ZERO = 1e-4
Column = tuple[str, str]  # of a table: "hd" and "_mm_before" are the column hd_mm_before, of one label hd_lv_mm_before
OFFICIAL = (("dice_official", ""), ("asd_official", ""))
INTERPOLATIONS = ("linear", "nearest", "one_hot")
GROUP, GROUPS = "dice_group_", "dice_groups"  # the Dice of a group's name, and the mean over all groups


class Masks(NamedTuple):
    """Masks of one label, (B, 1, *S) bool; ``touched`` is where the warped mask is above 0 at all."""

    moving: Tensor
    fixed: Tensor
    warped: Tensor
    touched: Tensor


class LabelMeasures:
    """Dice, Jaccard and surface distances of the labels, one label at a time.

    A label's mask is warped (bi)linearly and counts where it reaches 0.5; ``interpolation`` has other ways.
    ``dice_<label>`` of every label, surface distances ``hd_<label>``, ``hd95_<label>``, ``asd_<label>`` of the scored
    ones; ``dice``, ``hd``, ``hd95``, ``asd`` are the means of the scored labels. A label can be scored in a case whose
    originals both hold it; the case is ``scorable`` where that is true of all scored labels. Otherwise the cells of the
    label and the means are NaN: a mean is never one over some of its labels. ``*_official`` are means of the measures
    of the published Yale code (any linearly warped value above 0 counts, surface distance from fixed to warped only).
    ``thickness`` is that of the fixed label, to plot results against. Distances are in voxels, those in ``*_mm`` only
    where the spacing is known. The quick variant has ``dice`` alone.

    Of a subject: ``dice_3d``, the Dice of all its cases' voxels together, scorable or not.

    Of groups, such as a structure of both sides: ``dice_group_<group>``, the mean Dice of its labels, and
    ``dice_groups``, the mean over the groups, NaN where one of them is. The spread over groups and cases, as it is
    published for IXI, is in the tables of ``python -m common compare``.

    Args:
        labels: value by name of every label that is reported.
        scored: names of the labels that the means are of; None scores all.
        groups: names of labels by group; None for no groups.
        interpolation: how labels are warped: "linear", each as a mask; "nearest", the label map, as Learn2Reg does;
            "one_hot", every value of the label map linearly, the largest one holds, the lowest value where several are,
            as TransMorph does on IXI.

    Raises:
        ValueError: for no label, none that is scored, a scored one or one of a group that ``labels`` does not name, a
            group of none, or an unknown interpolation.
    """

    headlines = ("dice", "hd", "hd95", "asd")

    def __init__(
        self,
        labels: Mapping[str, int],
        scored: Sequence[str] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        interpolation: str = "linear",
    ) -> None:
        if not labels:
            raise ValueError("labels: expected at least one name and value, as {'myocardium': 2}; got none.")
        self.labels = {name: int(value) for name, value in labels.items()}
        self.scored = _scored(self.labels, scored)
        self.groups = {name: _scored(self.labels, own, f"groups[{name!r}]") for name, own in (groups or {}).items()}
        self.interpolation = known_name("interpolation", interpolation, INTERPOLATIONS)

    def __call__(self, cases: Cases) -> dict[str, Tensor]:
        """Return ``scorable`` and the columns of all labels, each (B,).

        Raises:
            ValueError: where the data hold no labels.
        """
        moving, fixed = cases.of("labels", "moving_label", "fixed_label")
        each: dict[str, dict[Column, Tensor]] = {}
        present: dict[str, Tensor] = {}
        counts = []
        reach = _reach(cases.ddf)
        warped = None if self.interpolation == "linear" else warped_labels(moving, cases.ddf, self.interpolation)
        for name, value in self.labels.items():
            masks = _masks_in_box(moving, fixed, cases.ddf, value, reach, warped)
            after, before = (count_overlap(mask, masks.fixed) for mask in (masks.warped, masks.moving))
            counts.append(torch.stack([*after, *before], dim=1))
            present[name] = (before.predicted > 0) & (before.reference > 0)
            values = _overlaps(after, before, cases.thorough)
            if cases.thorough and name in self.scored:
                values[OFFICIAL[0]] = count_overlap(masks.touched, masks.fixed).dice()
                values["thickness", ""] = mean_thickness(masks.fixed)
                values |= _surfaces(masks, cases.spacing, present[name])
            each[name] = {column: torch.where(present[name], value, torch.nan) for column, value in values.items()}
        cases.sums["labels"] = torch.stack(counts, dim=1)
        scorable = torch.stack([present[name] for name in self.scored], dim=1).all(1)
        return {"scorable": scorable.int()} | self._columns(each)

    def _columns(self, each: Mapping[str, Mapping[Column, Tensor]]) -> dict[str, Tensor]:
        """A column a measure with the scored labels' mean, and one a label of those that have it."""
        columns = {}
        for measure, suffix in each[self.scored[0]]:
            values = torch.stack([each[name][measure, suffix] for name in self.scored], dim=1)
            columns[f"{measure}{suffix}"] = values.mean(1)
            if (measure, suffix) not in OFFICIAL:
                having = {name: values for name, values in each.items() if (measure, suffix) in values}
                columns |= {f"{measure}_{name}{suffix}": values[measure, suffix] for name, values in having.items()}
        for ending in ("", "_before") if self.groups else ():
            own = {name: [each[label]["dice", ending] for label in labels] for name, labels in self.groups.items()}
            means = {f"{GROUP}{name}{ending}": torch.stack(values).mean(0) for name, values in own.items()}
            columns |= {**means, f"{GROUPS}{ending}": torch.stack(list(means.values())).mean(0)}
        return columns

    def of_subject(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """``dice_3d`` and ``dice_3d_before``, and ``dice_3d_<label>`` and ``dice_3d_before_<label>``.

        Args:
            sums: by name, each summed over the subject's cases.

        Returns:
            Value by column.
        """
        counts = sums["labels"].double()  # (K, 6)
        known = (counts[:, 4] > 0) & (counts[:, 5] > 0)
        after, before = (
            torch.where(known, Overlap(*part.unbind(1)).dice(), torch.nan) for part in (counts[:, :3], counts[:, 3:])
        )
        scored = [index for index, name in enumerate(self.labels) if name in self.scored]
        row = {"dice_3d": float(after[scored].mean()), "dice_3d_before": float(before[scored].mean())}
        for name, *values in zip(self.labels, after.tolist(), before.tolist(), strict=True):
            row |= {f"dice_3d_{name}": values[0], f"dice_3d_before_{name}": values[1]}
        return row


def label_masks(moving: Tensor, fixed: Tensor, ddf: Tensor, value: int) -> Masks:
    """Masks of one label, before and after warping.

    Args:
        moving: label map (B, 1, *S).
        fixed: label map (B, 1, *S).
        ddf: (B, d, *S) in voxels.
        value: of the label.

    Returns:
        Masks (B, 1, *S).
    """
    mask = moving == value
    soft = warp(mask.to(ddf.dtype), ddf)
    return Masks(mask, fixed == value, soft >= 0.5, soft > ABOVE_ZERO)


def warped_labels(moving: Tensor, ddf: Tensor, interpolation: str) -> Tensor:
    """A label map warped as a whole; outside of ``moving`` is background.

    Args:
        moving: label map (B, 1, *S).
        ddf: (B, d, *S) in voxels.
        interpolation: "nearest", or "one_hot": of the values of ``moving``, each warped linearly as a mask, the largest
            holds, and of equals the lowest value. One mask at a time, and only where it can be above 0.

    Returns:
        (B, 1, *S), of the type of ``moving``.
    """
    if interpolation == "nearest":
        return warp(moving, ddf, mode="nearest")
    reach, warped = _reach(ddf), torch.zeros_like(moving)
    largest = warp((moving == 0).to(ddf.dtype), ddf)
    for value in moving.unique().tolist():
        if value == 0:
            continue
        box, soft = _soft_mask(moving == value, None, ddf, reach)
        better = soft > largest[box]
        largest[box] = torch.where(better, soft, largest[box])
        warped[box] = torch.where(better, torch.full_like(warped[box], value), warped[box])
    return warped


def _masks_in_box(
    moving: Tensor,
    fixed: Tensor,
    ddf: Tensor,
    value: int,
    reach: Sequence[tuple[int, int]],
    warped: Tensor | None = None,
) -> Masks:
    """As ``label_masks``, cut to a box outside of which all four are empty: most labels fill little of a volume."""
    mask, still = moving == value, fixed == value
    part, soft = _soft_mask(mask, still, ddf, reach)
    return Masks(mask[part], still[part], soft >= 0.5 if warped is None else warped[part] == value, soft > ABOVE_ZERO)


def _soft_mask(
    mask: Tensor, still: Tensor | None, ddf: Tensor, reach: Sequence[tuple[int, int]]
) -> tuple[tuple[slice, ...], Tensor]:
    """A box outside of which the warped mask is 0 and ``still`` is empty, and the warped mask in it."""
    held = _extent(mask)
    kept = held if still is None else _extent(still)
    source: list[slice] = []
    box: list[slice] = []
    for (a, b), (c, d), (low, high), size in zip(held, kept, reach, mask.shape[2:], strict=True):
        source.append(slice(max(a - 1, 0), min(b + 2, size)))  # never one voxel wide, which has no extent for a sampler
        # the warped mask may be above 0 where x + ddf(x) lies less than a voxel from the mask
        box.append(slice(max(min(a, c, a - 1 - high), 0), min(max(b, d, b + 1 - low) + 1, size)))
    part, held_part = (slice(None), slice(None), *box), (slice(None), slice(None), *source)
    shift = torch.tensor([float(own.start - other.start) for own, other in zip(box, source, strict=True)])
    points = identity_grid([own.stop - own.start for own in box], ddf.device, ddf.dtype) + ddf[part]
    points += shift.to(ddf).reshape(-1, *[1] * len(box))
    return part, sample(mask[held_part].to(ddf.dtype), points, padding="zeros")


def _extent(mask: Tensor) -> list[tuple[int, int]]:
    """First and last voxel of (B, 1, *S) along each axis, of all cases together; 0 and 0 of an empty mask."""
    whole = mask.flatten(0, 1).any(0)
    extents = []
    for axis in range(whole.dim()):
        places = whole.movedim(axis, 0).flatten(1).any(1).nonzero().flatten().tolist() or [0]
        extents.append((places[0], places[-1]))
    return extents


def _reach(ddf: Tensor) -> list[tuple[int, int]]:
    """Lowest and highest displacement along each axis in whole voxels, rounded outwards; at most the image's size."""
    columns = ddf.movedim(1, 0).flatten(1)
    limits = []
    for low, high, size in zip(columns.amin(1).tolist(), columns.amax(1).tolist(), ddf.shape[2:], strict=True):
        known = math.isfinite(low) and math.isfinite(high)
        limits.append((max(math.floor(low), -size), min(math.ceil(high), size)) if known else (-size, size))
    return limits


def _scored(labels: Mapping[str, int], scored: Sequence[str] | None, argument: str = "scored") -> list[str]:
    if scored is None:
        return list(labels)
    names = [scored] if isinstance(scored, str) else list(scored)
    if not names:
        raise ValueError(f"{argument}: expected at least one of {list(labels)}, got none.")
    return [known_name(argument, name, labels) for name in dict.fromkeys(names)]


def _overlaps(after: Overlap, before: Overlap, thorough: bool) -> dict[Column, Tensor]:
    values = {("dice", ""): after.dice(), ("dice", "_before"): before.dice()}
    if thorough:
        values |= {("jaccard", ""): after.jaccard(), ("jaccard", "_before"): before.jaccard()}
    return values


def _surfaces(masks: Masks, spacing: Tensor, present: Tensor) -> dict[Column, Tensor]:
    """Surface distances of one label, (B,) a column, on the CPU whatever the device."""
    arrays = [mask[:, 0].cpu().numpy() for mask in masks]
    sizes = [tuple(row) if all(map(math.isfinite, row)) else None for row in spacing.tolist()]
    endings = ("", "_before") if not any(sizes) else ("", "_before", "_mm", "_mm_before")
    names = [(name, ending) for ending in endings for name in SurfaceDistances._fields] + [OFFICIAL[1]]
    values = {name: np.full(len(sizes), np.nan, dtype=np.float32) for name in names}
    for case in present.nonzero().flatten().tolist():
        for name, value in _surfaces_of_case([array[case] for array in arrays], sizes[case]).items():
            values[name][case] = value
    return {name: torch.from_numpy(value).to(present.device) for name, value in values.items()}


def _surfaces_of_case(masks: Sequence[NDArray[np.bool_]], size: tuple[float, ...] | None) -> dict[Column, float]:
    """Surface distances of one case, from one edge extraction and one search tree for each of ``Masks``, (*S)."""
    moving, fixed, warped, touched = (Surface.of(mask) for mask in masks)
    distances = {"": surface_distances(warped, fixed), "_before": surface_distances(moving, fixed)}
    if size is not None:
        fixed_mm = fixed.in_mm(size)
        if np.allclose(size, size[0], rtol=1e-6, atol=0):
            distances |= {f"_mm{ending}": voxels.scaled(size[0]) for ending, voxels in distances.items()}
        else:
            distances["_mm"] = surface_distances(warped.in_mm(size), fixed_mm)
            distances["_mm_before"] = surface_distances(moving.in_mm(size), fixed_mm)
    values = {(name, end): value for end, part in distances.items() for name, value in part._asdict().items()}
    return values | {OFFICIAL[1]: directed_distance(fixed, touched)}
