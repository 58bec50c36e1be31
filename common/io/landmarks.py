# SPDX-License-Identifier: Apache-2.0
"""Landmarks: 3D Slicer's files, and CSV as ANTs has it. In memory they are in mm, RAS."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..atomic import atomic_path
from .images import Image
from .placement import mapped

TO_RAS = np.array([-1.0, -1.0, 1.0])
# Columns of a CSV file and what they count in.
SPACES = {("x", "y", "z"): "lps", ("l", "p", "s"): "lps", ("r", "a", "s"): "ras", ("i", "j", "k"): "voxels"}
EXPECTED = (
    "a CSV file with columns x,y,z (mm, LPS, as ITK and ANTs), r,a,s (mm, RAS) or i,j,k (voxels), and optionally name; "
    "or 3D Slicer's .fcsv or .mrk.json"
)


class Landmarks(NamedTuple):
    """Points and their names.

    points_mm: (N, 3) float64 in mm, RAS.
    names: N texts.
    """

    points_mm: np.ndarray
    names: tuple[str, ...]


def load_landmarks(
    path: str | Path, image: Image | None, argument: str = "path", plane: Image | None = None
) -> Landmarks:
    """Read the landmarks of an image.

    Args:
        path: .csv, .fcsv or .mrk.json, see ``EXPECTED``. 2D images need no third column.
        image: whose points they are: columns i,j,k count in its voxels, and points outside of it are refused. None:
            not known.
        argument: what errors call it.
        plane: where image is None, one of the same space: if it is 2D, points without a third column lie in its plane.

    Returns:
        At least one point.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another form, no points, numbers that are not finite, or points outside the image.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: expected {EXPECTED}; there is no {path}. Check the spelling.")
    try:
        if path.name.endswith(".json"):
            found = _of_markups(path)
        else:
            found = _of_fcsv(path) if path.suffix == ".fcsv" else _of_csv(path, image, plane)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{argument}: expected {EXPECTED}; {path} is not one: {error}") from error
    if not len(found.points_mm) or not np.isfinite(found.points_mm).all():
        raise ValueError(f"{argument}: expected at least one point, finite numbers; {path} has none or others.")
    if image is not None:
        check_inside(found.points_mm, image, argument)
    return found


def check_inside(points_mm: np.ndarray, image: Image, argument: str) -> None:
    """Refuse points outside of an image: they are of another image, or count in another system.

    Args:
        points_mm: (N, 3) in mm, RAS.
        image: whose points they should be.
        argument: what the error calls them.

    Raises:
        ValueError: naming the first such point.
    """
    outside = ~_inside(points_mm, image)
    if not outside.any():
        return
    first = int(outside.argmax())
    hint = "Are they of this image?"
    if _inside(points_mm * TO_RAS, image).all():
        hint = "With the signs of x and y changed they would all lie in it: RAS and LPS are mixed up."
    raise ValueError(
        f"{argument}: expected points inside the image; {int(outside.sum())} of {len(points_mm)} are not, the first is "
        f"number {first + 1} at {np.round(points_mm[first], 2).tolist()} mm, RAS. {hint}"
    )


def save_landmarks(path: str | Path, landmarks: Landmarks) -> None:
    """Write landmarks, atomically.

    Args:
        path: .csv (x,y,z,name in mm, LPS, which antsApplyTransformsToPoints reads) or .fcsv of 3D Slicer.
        landmarks: in mm, RAS.

    Raises:
        ValueError: for another suffix.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".fcsv"):
        raise ValueError(f"path: expected a name that ends in .csv or .fcsv, got {path}.")
    rows = [[*(f"{value:.6f}" for value in point), name] for point, name in
            zip(landmarks.points_mm * TO_RAS, landmarks.names, strict=True)]  # fmt: skip
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        if path.suffix == ".csv":
            writer.writerow(["x", "y", "z", "name"])
            writer.writerows(rows)
            return
        stream.write("# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n")
        stream.write("# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n")
        for number, (x, y, z, name) in enumerate(rows, 1):
            writer.writerow([f"vtkMRMLMarkupsFiducialNode_{number}", x, y, z, 0, 0, 0, 1, 1, 1, 0, name, "", ""])


def _inside(points_mm: np.ndarray, image: Image) -> np.ndarray:
    inverse = np.linalg.inv(image.affine)
    voxels = points_mm @ inverse[:3, :3].T + inverse[:3, 3]
    dims = image.array.dim()
    limit = np.array(image.array.shape)
    return np.all((voxels[:, :dims] >= -1) & (voxels[:, :dims] <= limit), axis=1)


def _of_csv(path: Path, image: Image | None, plane: Image | None) -> Landmarks:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream, skipinitialspace=True))
    columns = {name.strip().lower(): name for name in (rows[0] if rows else {}) if name}
    plane = image if image is not None else plane
    least = 3 if plane is None else plane.array.dim()
    for axes, space in SPACES.items():
        known = [columns[axis] for axis in axes if axis in columns]
        if len(known) >= least:
            values = np.array([[float(row[name]) for name in known] for row in rows])
            return Landmarks(
                _in_ras(values, space, image, plane), _names([row.get(columns.get("name", "")) for row in rows])
            )
    raise ValueError(f"its columns are {list(columns)}.")


def _in_ras(values: np.ndarray, space: str, image: Image | None, plane: Image | None) -> np.ndarray:
    points = np.pad(values, ((0, 0), (0, 3 - values.shape[1])))
    if space == "voxels":
        if image is None:
            raise ValueError("columns i,j,k need the image that they count in")
        return mapped(image.affine, points)
    points = points * TO_RAS if space == "lps" else points
    if plane is not None and values.shape[1] == 2:
        points[:, 2] = plane.affine[2, 3]
    return points


def _of_fcsv(path: Path) -> Landmarks:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    header = {key.strip("# ").lower(): value.strip() for key, sign, value in
              (line.partition("=") for line in lines if line.startswith("#")) if sign}  # fmt: skip
    system = header.get("coordinatesystem", "RAS").upper()
    if system not in ("LPS", "RAS", "0", "1"):
        raise ValueError(f"its CoordinateSystem is {system}.")
    columns = header.get("columns", "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID").split(",")
    rows = [
        dict(zip(columns, row, strict=False)) for row in csv.reader(line for line in lines if line[:1] not in ("#", ""))
    ]
    values = np.array([[float(row[axis]) for axis in "xyz"] for row in rows]).reshape(-1, 3)
    return Landmarks(values * TO_RAS if system in ("LPS", "1") else values, _names([row.get("label") for row in rows]))


def _of_markups(path: Path) -> Landmarks:
    markup = json.loads(path.read_text(encoding="utf-8"))["markups"][0]
    points = markup["controlPoints"]
    values = np.array([point["position"] for point in points], dtype=np.float64).reshape(-1, 3)
    lps = markup.get("coordinateSystem", "LPS").upper() == "LPS"
    return Landmarks(values * TO_RAS if lps else values, _names([point.get("label") for point in points]))


def _names(given: Sequence[str | None]) -> tuple[str, ...]:
    return tuple(name or f"F-{number}" for number, name in enumerate(given, 1))
