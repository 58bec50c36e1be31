# SPDX-License-Identifier: Apache-2.0
"""``python -m common transform`` and ``python -m common score``: saved transforms of any tool, applied and measured."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import atomic_path
from ..checks import known_name, switch
from ..engines.pair_metrics import pair_metrics
from ..engines.result import Result
from ..engines.saving import inverse_on_moving, warped_label
from ..io.composite import ITK_SUFFIXES, load_transform, save_transform
from ..io.images import NIFTI_SUFFIXES, Image, load_grid, save_image
from ..io.landmarks import Landmarks, check_inside, load_landmarks, save_landmarks
from ..io.memory import as_image, as_label
from ..io.placement import carried
from ..io.transforms import Transform
from .words import INVERSE, check_file, paths

logger = logging.getLogger(__name__)

INTERPOLATIONS = ("nearest", "one_hot")
POINT_SUFFIXES = (".csv", ".fcsv")


def composed(files: list[str], reference: Image) -> Transform:
    """Several saved transforms as one.

    Args:
        files: in the order in which a point of the fixed image goes through them, as antsApplyTransforms has them;
            "inverse:FILE" goes through the inverse of one.
        reference: the fixed image.

    Returns:
        The transform, on the grid of ``reference``.

    Raises:
        FileNotFoundError, ValueError: as ``io.composite.load_transform``.
    """
    whole = Transform(np.eye(4), None, reference)
    for file in files:
        path = file.removeprefix(INVERSE)
        # ITK's files of images (X, Y, 1) are three-dimensional, and those without a field have no grid of their own.
        found = load_transform(path, reference, "transforms")
        if found.ddf is not None and not reference.slice_axis and path.endswith((".nii", ".nii.gz", ".h5", ".tfm")):
            found = _on_own_grid(path, found)
        whole = found.after(whole) if file == path else found.inverse_after(whole)
    return whole


def _on_own_grid(path: str, found: Transform) -> Transform:
    """A field where the file has it, beyond the reference too; one that had to be sampled stays there."""
    try:
        return load_transform(path, None, "transforms")
    except ValueError:
        return found


def transform(
    transforms: str,
    reference: str,
    image: str | None = None,
    label: str | None = None,
    points: str | None = None,
    output: str | None = None,
    invert: bool = False,
    interpolation: str = "nearest",
    output_transform: str | None = None,
    fixed: str | None = None,
) -> str:
    """Apply saved transforms to a further image, label map or landmarks of the moving image; or compose them.

    Everything goes from the space of the moving image to that of the reference. With ``--invert true`` it goes back:
    the reference is the moving image then, and what is given is of the fixed one.

    Args:
        transforms: file, or several with commas between, in the order in which a point of the fixed image goes through
            them (that of antsApplyTransforms); "inverse:FILE" is the inverse of one. Displacement fields .nii.gz in mm,
            and .h5, .tfm, .mat of ITK, ANTs and elastix.
        reference: image whose grid the result lies on.
        image: warped linearly.
        label: label map, warped by ``interpolation``.
        points: landmarks (.csv, .fcsv, .mrk.json).
        output: file for the image or label (.nii.gz) or the landmarks (.csv, .fcsv).
        invert: use the inverse of all together.
        interpolation: of labels: nearest, or one_hot.
        output_transform: file for the composed transform (.nii.gz, .h5, .tfm).
        fixed: with invert, the fixed image of the transforms; needed where they are linear and hold no grid of theirs.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: naming the option, what was expected and what came.
    """
    given = {name: path for name, path in (("image", image), ("label", label), ("points", points)) if path is not None}
    files = paths(transforms, "transforms")
    known_name("interpolation", interpolation, INTERPOLATIONS)
    _check_outputs(given, output, output_transform, {"reference": reference, "fixed": fixed, **_reads(files)})
    grid = load_grid(reference, "reference")
    backwards = switch(invert, "invert")
    inner = load_grid(fixed, "fixed") if backwards and fixed is not None else grid
    forward = whole = composed(files, inner)
    if backwards:
        forward = forward if fixed is not None else _widest(files, forward)
        whole = inverse_on_moving(forward, grid)
    written = []
    for name, path in given.items():
        assert output is not None
        if name == "points":  # which go where the image goes, against the map that pulls it
            _carry(path, forward, backwards, output, grid)
        else:
            _apply(name, path, whole.on(grid), output, interpolation)
        written.append(output)
    if output_transform is not None:
        save_transform(output_transform, whole)
        written.append(output_transform)
    return f"Wrote {', '.join(written)}."


def _check_outputs(
    given: dict[str, str], output: str | None, output_transform: str | None, reads: dict[str, str | None]
) -> None:
    """Before the work: what is written goes to a file of its own, of a form that suits it."""
    if len(given) > 1 or bool(given) != bool(output) or not (given or output_transform):
        raise ValueError(
            "image, label, points: expected one of them with output, or output_transform, or both; got "
            f"{', '.join(given) or 'none'}, output={output}, output_transform={output_transform}."
        )
    reads = {**given, **reads}
    if output is not None:
        check_file(output, "output", POINT_SUFFIXES if "points" in given else NIFTI_SUFFIXES, reads)
    if output_transform is not None:
        check_file(output_transform, "output_transform", (*NIFTI_SUFFIXES, *ITK_SUFFIXES), {**reads, "output": output})


def _widest(files: list[str], whole: Transform) -> Transform:
    """To be inverted: on the grid of the first field, which is that of the fixed image."""
    if len(files) == 1 and whole.ddf is not None:
        return _on_own_grid(files[0].removeprefix(INVERSE), whole) if not files[0].startswith(INVERSE) else whole
    return whole


def _reads(files: Sequence[str]) -> dict[str, str]:
    return {f"transforms ({file})": file.removeprefix(INVERSE) for file in files}


def _carry(path: str, forward: Transform, backwards: bool, output: str, plane: Image) -> None:
    landmarks = load_landmarks(path, None, "points", plane)
    grid = forward.grid if backwards else carried(forward.grid, forward.placement)
    try:
        check_inside(landmarks.points_mm, grid, "points")
    except ValueError as error:  # the image that they are of is not known, and may be larger
        logger.warning("%s The transform goes on there as at its border.", error)
    points = (forward.points if backwards else forward.inverse_points)(landmarks.points_mm)
    save_landmarks(output, Landmarks(points, landmarks.names))


def _apply(name: str, path: str, whole: Transform, output: str, interpolation: str) -> None:
    if name == "image":
        save_image(output, whole.apply(as_image(path, "image"), "bilinear").array, whole.grid)
        return
    label = as_image(path, "label", label=True)
    save_image(output, warped_label(whole, label, interpolation).array, whole.grid, dtype=label.stored)


def score(
    transforms: str,
    moving: str,
    fixed: str,
    moving_label: str | None = None,
    fixed_label: str | None = None,
    moving_points: str | None = None,
    fixed_points: str | None = None,
    output: str | None = None,
) -> str:
    """Measure a transform of any tool on a pair: similarity, foldings, inverse, Dice of labels, errors at landmarks.

    Args:
        transforms: as of ``transform``.
        moving: image.
        fixed: image.
        moving_label: label map of moving.
        fixed_label: label map of fixed.
        moving_points: landmarks of moving.
        fixed_points: landmarks of fixed, in the same order.
        output: file for the numbers, .json.

    Returns:
        The numbers as JSON.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: naming the option, what was expected and what came.
    """
    files = paths(transforms, "transforms")
    if output is not None:
        reads = {"moving": moving, "fixed": fixed, "moving_label": moving_label, "fixed_label": fixed_label,
                 "moving_points": moving_points, "fixed_points": fixed_points, **_reads(files)}  # fmt: skip
        check_file(output, "output", (".json",), reads)
    images = [as_image(path, name) for path, name in ((moving, "moving"), (fixed, "fixed"))]
    extra: dict[str, Any] = {}
    for name, path, image in (("moving_label", moving_label, images[0]), ("fixed_label", fixed_label, images[1])):
        extra[name] = None if path is None else as_label(path, image, name)
    for name, path, image in (("moving_points", moving_points, images[0]), ("fixed_points", fixed_points, images[1])):
        extra[name] = None if path is None else load_landmarks(path, image, name)
    whole = composed(files, images[1])
    result = Result(whole, images[0], images[1], **extra)
    text = json.dumps(pair_metrics(result, inverse_on_moving(whole, images[0])), indent=2)
    if output is not None:
        with atomic_path(Path(output)) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return text
