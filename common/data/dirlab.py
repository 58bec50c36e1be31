# SPDX-License-Identifier: Apache-2.0
"""DIR-Lab's two sets of chest CT with 300 landmarks a case, to measure lung registration on: COPDgene and 4DCT.

Layouts, as published (cases 1 to 10)::

    folder/copd1/copd1_eBHCT.img            CT at expiration, raw 16-bit integers, x fastest, no header
                 copd1_iBHCT.img            at inspiration
                 copd1_300_eBH_xyz_r1.txt   300 landmarks: x y z in voxels, counted from 1
                 copd1_300_iBH_xyz_r1.txt   the same points at inspiration, line by line

    folder/Case1Pack/Images/case1_T50_s.img, case1_T00_s.img                            end of expiration, inspiration
                     ExtremePhases/Case1_300_T50_xyz.txt, Case1_300_T00_xyz.txt         (cases 1 to 5)
    folder/Case6Pack/Images/case6_T50.img, …; extremePhases/case6_dirLab300_T50_xyz.txt (6 to 10; Case8Deploy)

HU is the stored number less 1024. x leads to the patient's left, y to the back, z downwards. Sizes and spacings are in
no file: they are those of the data set's web page. Expiration is moving, inspiration fixed. A phantom in the first
layout adds ``copd1/copd1_grid.json`` with its own size and spacing.

Reference: Castillo et al., A Reference Dataset for Deformable Image Registration Spatial Accuracy Evaluation Using the
COPDgene Study Archive, Physics in Medicine and Biology 58, 2013; Castillo et al., A Framework for Evaluation of
Deformable Image Registration Spatial Accuracy Using Large Landmark Point Sets, same journal 54, 2009.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..io.images import Image
from .layout import DatasetLayoutError

logger = logging.getLogger(__name__)

OFFSET = 1024.0  # stored number less HU
LANDMARKS = 300
# Of DIR-Lab COPDgene: slices, mm in the plane, mean distance of the 300 landmarks before registration in mm.
COPDGENE = {
    1: (121, 0.625, 26.334), 2: (102, 0.645, 21.786), 3: (126, 0.652, 12.639), 4: (126, 0.590, 29.584),
    5: (131, 0.647, 30.083), 6: (119, 0.633, 28.456), 7: (112, 0.625, 21.602), 8: (115, 0.586, 26.457),
    9: (116, 0.664, 14.860), 10: (135, 0.742, 21.806),
}  # fmt: skip
# Of DIR-Lab 4DCT: voxels along x and y, slices, mm in the plane. The mean distances are not verified.
FOUR_D = {
    1: (256, 94, 0.97), 2: (256, 112, 1.16), 3: (256, 104, 1.15), 4: (256, 99, 1.13), 5: (256, 106, 1.10),
    6: (512, 128, 0.97), 7: (512, 136, 0.97), 8: (512, 128, 0.97), 9: (512, 128, 0.97), 10: (512, 120, 0.97),
}  # fmt: skip
THICKNESS = 2.5  # mm between slices, of all
APART = 0.05  # mm, by which the first distance may differ from the published one: that is rounded
LAYOUT = (
    "expected copd1/copd1_iBHCT.img, copd1_eBHCT.img, copd1_300_iBH_xyz_r1.txt, copd1_300_eBH_xyz_r1.txt, … (DIR-Lab "
    "COPDgene) or Case1Pack/Images, Case1Pack/ExtremePhases, … (DIR-Lab 4DCT); request them from dir-lab.com"
)
ROLES = {"moving": ("eBH", "T50"), "fixed": ("iBH", "T00")}


class Grid(NamedTuple):
    """Voxels and mm along x, y, z; and the mean distance of the landmarks before registration in mm, where known."""

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    distance: float | None = None


def find_cases(folder: str | Path) -> list[dict[str, Any]]:
    """The cases of a folder, of both sets.

    Args:
        folder: see the module's layouts.

    Returns:
        A dictionary a case, by number: paths under ``moving_image``, ``fixed_image``, ``moving_points``,
        ``fixed_points``; ``subject``: 'copd1' or 'case1'; ``case``; ``grid``: ``size``, ``spacing``, ``distance``.
        JSON-serialisable. Empty where there is none.

    Raises:
        DatasetLayoutError: for a case that lacks a file, or has two of a kind.
    """
    found: dict[str, dict[str, Any]] = {}
    folders = [path for path in Path(folder).iterdir() if path.is_dir()] if Path(folder).is_dir() else []
    for path in folders:
        copd, four_d = re.fullmatch(r"copd(\d+)", path.name), re.fullmatch(r"Case(\d+)(Pack|Deploy)", path.name)
        match = copd or four_d
        if match is None:
            continue
        number = int(match[1])
        name = f"{'copd' if copd else 'case'}{number}"
        entry: dict[str, Any] = {"subject": name, "case": name}
        for role, (breath, phase) in ROLES.items():
            patterns = (
                (f"**/{name}_{breath}CT.img", f"**/{name}_300_{breath}_xyz_r1.txt")
                if copd
                else (f"Images/case{number}_{phase}*.img", f"[eE]xtremePhases/[cC]ase{number}_*{phase}_xyz.txt")
            )
            for key, pattern in zip(("image", "points"), patterns, strict=True):
                entry[f"{role}_{key}"] = _one(path, pattern)
        grid = _grid(path, name, number)
        entry["grid"] = {"size": list(grid.size), "spacing": list(grid.spacing), "distance": grid.distance}
        found[name] = entry
    return [found[name] for name in sorted(found, key=lambda name: (name[:4], int(name[4:])))]


def read_image(path: str | Path, grid: Mapping[str, Any]) -> Image:
    """Read a raw CT.

    Args:
        path: the ``.img``.
        grid: ``size`` and ``spacing`` along x, y, z.

    Returns:
        Image in HU; its affine places x to the left, y to the back, z downwards, the first voxel at the origin.

    Raises:
        DatasetLayoutError: for a file of another size.
    """
    size, spacing = tuple(grid["size"]), tuple(float(mm) for mm in grid["spacing"])
    expected, got = 2 * int(np.prod(size)), Path(path).stat().st_size
    if got != expected:
        raise DatasetLayoutError(
            f"expected {' x '.join(map(str, size))} numbers of 16 bits, {expected} bytes, in {path}, got {got} bytes; "
            "unpack the published file anew, and keep each case's files in its own folder."
        )
    values = np.fromfile(path, dtype="<i2").reshape(size, order="F").astype(np.float32) - OFFSET
    affine = np.diag([-spacing[0], -spacing[1], -spacing[2], 1.0])  # RAS
    return Image(torch.from_numpy(np.ascontiguousarray(values)), affine, spacing)


def read_points(path: str | Path, size: tuple[int, ...]) -> Tensor:
    """Read landmarks.

    Args:
        path: text, a point a line: x, y and z, counted from 1, separated by blanks or tabs.
        size: voxels of the image along x, y, z.

    Returns:
        (N, 3) float64, voxels counted from 0.

    Raises:
        DatasetLayoutError: for lines that are not three numbers, no line, or points outside the image.
    """
    lines = [line for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    try:
        points = np.array([[float(word) for word in line.split()] for line in lines], dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
            raise ValueError
    except ValueError:
        raise DatasetLayoutError(
            f"expected landmarks in {path}, three numbers x, y, z a line; got {lines[:1] or 'no line'}; restore the "
            "published file."
        ) from None
    outside = np.flatnonzero(((points < 1) | (points > np.array(size))).any(1))
    if len(outside):
        line = int(outside[0])
        raise DatasetLayoutError(
            f"expected landmarks inside the image, 1 to {list(size)} along x, y, z, in {path}; {len(outside)} of "
            f"{len(points)} lie outside, the first in line {line + 1}: {points[line].tolist()}. Points are counted "
            "from 1; check that the file belongs to this case and is as published."
        )
    return torch.from_numpy(points - 1)


def read_landmarks(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the landmarks of a case, and compare their mean distance with the published one.

    Args:
        entry: of ``find_cases``.

    Returns:
        ``moving_points``, ``fixed_points``: (N, 3) float64, voxels of the stored images, counted from 0.

    Raises:
        DatasetLayoutError: as ``read_points``, and for two files of different numbers of points.
    """
    grid = entry["grid"]
    points = {f"{role}_points": read_points(entry[f"{role}_points"], tuple(grid["size"])) for role in ROLES}
    counts = [len(own) for own in points.values()]
    if counts[0] != counts[1]:
        raise DatasetLayoutError(
            f"expected as many landmarks in both images, line by line the same points; got "
            f"{counts[0]} in {entry['moving_points']} and {counts[1]} in {entry['fixed_points']}; restore the "
            "published files."
        )
    distance = mean_distance_mm(points["moving_points"], points["fixed_points"], grid["spacing"])
    if grid["distance"] is not None and counts[0] == LANDMARKS and abs(distance - grid["distance"]) > APART:
        logger.warning(
            "%s: the landmarks lie %.3f mm apart before registration, by the publication %.3f mm: are they this "
            "case's, and as published?", entry["case"], distance, grid["distance"],
        )  # fmt: skip
    return points


def mean_distance_mm(moving_points: Tensor, fixed_points: Tensor, spacing: tuple[float, ...]) -> float:
    """Mean distance of corresponding landmarks before registration, both images being on one grid.

    Args:
        moving_points: (N, 3), voxels.
        fixed_points: (N, 3), voxels.
        spacing: mm along x, y, z.

    Returns:
        mm.
    """
    apart = (fixed_points - moving_points) * torch.tensor(spacing, dtype=torch.float64)
    return float(apart.norm(dim=1).mean())


def _one(folder: Path, pattern: str) -> str:
    paths = sorted(folder.glob(pattern))
    if len(paths) != 1:
        raise DatasetLayoutError(
            f"{folder.name}: expected one file {pattern} in {folder}, got {[path.name for path in paths]}; {LAYOUT}."
        )
    return str(paths[0])


def _grid(folder: Path, name: str, number: int) -> Grid:
    own = folder / f"{name}_grid.json"
    if own.is_file():  # a phantom's
        stated = json.loads(own.read_text(encoding="utf-8"))
        return Grid(tuple(stated["size"]), tuple(stated["spacing"]), stated["distance"])
    table = COPDGENE if name.startswith("copd") else FOUR_D
    if number not in table:
        raise DatasetLayoutError(f"{name}: expected a case from 1 to 10; {LAYOUT}.")
    if table is COPDGENE:
        slices, mm, distance = COPDGENE[number]
        return Grid((512, 512, slices), (mm, mm, THICKNESS), distance)
    plane, slices, mm = FOUR_D[number]
    return Grid((plane, plane, slices), (mm, mm, THICKNESS))
