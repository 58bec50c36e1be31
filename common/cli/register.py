# SPDX-License-Identifier: Apache-2.0
"""``python -m common register``: one pair of images, or a list of pairs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from ..bundle import select_device
from ..checks import known_name
from ..engines.provenance import described
from ..engines.result import Result
from ..io.images import load_grid
from ..io.landmarks import Landmarks, load_landmarks
from ..io.memory import as_label
from ..registration import register as register_pair
from ..runs import outputs
from .pairs import FILES, register_pairs, request
from .transform import INTERPOLATIONS
from .words import numbers

logger = logging.getLogger(__name__)


def register(
    output_dir: str,
    moving: str | None = None,
    fixed: str | None = None,
    bundle: str | None = None,
    pairs: str | None = None,
    moving_label: str | None = None,
    fixed_label: str | None = None,
    moving_points: str | None = None,
    fixed_points: str | None = None,
    fixed_mask: str | None = None,
    affine: str = "auto",
    initial_transform: str | None = None,
    preset: str | None = None,
    similarity: str | None = None,
    smoothness_weight: float | None = None,
    levels_mm: str | None = None,
    steps: str | None = None,
    interpolation: str = "nearest",
    device: str = "cpu",
    **options: Any,
) -> str:
    """Register two images and write the transforms, the warped image and what was measured.

    Reads NIfTI, NRRD, MetaImage and folders of one DICOM series, 2D or 3D, each on its own grid. docs/tutorial.md goes
    through an example, docs/conventions.md says what each file holds.

    Args:
        output_dir: folder for the results; an earlier registration in it is replaced, other files are not touched.
        moving: image that is warped.
        fixed: image that it is warped to; results lie on its grid.
        bundle: name or folder of the bundle whose network registers; without one a velocity field is optimised for the
            pair, which needs no training.
        pairs: CSV file with a row a pair in place of the files; see docs/conventions.md.
        moving_label: label map of moving, warped along.
        fixed_label: label map of fixed: Dice before and after goes into metrics.json.
        moving_points: landmarks of moving (.csv, .fcsv, .mrk.json), carried into fixed.
        fixed_points: landmarks of fixed, carried into moving; with both, errors in mm go into metrics.json.
        fixed_mask: only fixed's voxels above 0 count (without a bundle).
        affine: auto, none, rigid, affine, or the file of a linear transform.
        initial_transform: file of a transform to start from.
        preset: accurate or fast (without a bundle).
        similarity: lncc, mse, mi, mind, or a sum as lncc+mind.
        smoothness_weight: of the solver.
        levels_mm: voxel sizes of the solver's levels in mm, coarse to fine, as 4,2,1; one that is not finer than
            the one before begins a further velocity, as in 4,2,2,1.
        steps: of each level, as 60,60,40.
        interpolation: of the warped label: nearest, or one_hot, which warps each label linearly.
        device: cpu, cuda or cuda:1.
        options: of the bundle's inference.json, as --architecture pairwise, --instance_iterations 50,
            --ckpt_path FILE, --maps false.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: naming the option, what was expected and what came.
    """
    _log()
    known_name("interpolation", interpolation, INTERPOLATIONS)
    select_device(device)
    if bundle is None and options:
        known_name("option", next(iter(options)), list(signature(register).parameters)[:-1])
    names = (moving, fixed, moving_label, fixed_label, moving_points, fixed_points, fixed_mask, initial_transform)
    files = {name: path for name, path in zip(FILES, names, strict=True) if path is not None}
    own = {"bundle": bundle, "affine": affine, "preset": preset, "similarity": similarity, "device": device,
           **_numbers(smoothness_weight, levels_mm, steps)}  # fmt: skip
    settings = {**{key: value for key, value in own.items() if value is not None}, **options}
    if pairs is None:
        return register_files(files, output_dir, settings, interpolation)
    if files:
        raise ValueError(f"{next(iter(files))}: expected no file beside pairs, whose columns name them; leave it out.")
    return register_pairs(pairs, output_dir, settings, interpolation, register_files)


def _numbers(weight: float | None, levels_mm: str | None, steps: str | None) -> dict[str, Any]:
    """The solver's numbers, of the command line's text."""
    counts = None if steps is None else numbers(steps, "steps")
    return {
        "smoothness_weight": None if weight is None else numbers(weight, "smoothness_weight")[0],
        "levels_mm": None if levels_mm is None else numbers(levels_mm, "levels_mm"),
        "steps": counts[0] if counts is not None and len(counts) == 1 else counts,
    }


def register_files(
    files: Mapping[str, str], output_dir: str | Path, settings: dict[str, Any], interpolation: str
) -> str:
    """Register one pair of files and write the results.

    Args:
        files: path by name of ``FILES``.
        output_dir: folder for the results.
        settings: further arguments of ``common.registration.register``.
        interpolation: of the warped label.

    Returns:
        What was written.

    Raises:
        FileNotFoundError, ValueError: as ``register``.
    """
    given = {name: str(path) for name, path in files.items() if path not in (None, "")}
    for name in ("moving", "fixed"):
        if name not in given:
            raise ValueError(
                f"{name}: expected two images, --moving FILE --fixed FILE, or --pairs FILE; got no {name}."
            )
    outputs.check(Path(output_dir).expanduser(), outputs.REGISTRATION, given)
    extra = _extra(given)
    chosen = ("moving_label", "fixed_mask", "initial_transform")
    passed: dict[str, Any] = {name: given[name] for name in chosen if name in given}
    result = register_pair(given["moving"], given["fixed"], **passed, **settings)
    inputs = {**result.provenance["inputs"], **described({name: given[name] for name in extra})}
    record = {**result.provenance, "inputs": inputs, "request": request(settings, interpolation)}
    result = dataclasses.replace(result, **extra, provenance=record)
    folder = result.save(output_dir, interpolation)
    return f"{folder}: {_summary(result)}"


def _extra(given: dict[str, str]) -> dict[str, Any]:
    """Label map of fixed and landmarks, read before the work starts."""
    extra: dict[str, Any] = {}
    if "fixed_label" in given:
        extra["fixed_label"] = as_label(given["fixed_label"], load_grid(given["fixed"], "fixed"), "fixed_label")
    for role in ("moving", "fixed"):
        if f"{role}_points" in given:
            image = load_grid(given[role], role)
            extra[f"{role}_points"] = load_landmarks(given[f"{role}_points"], image, f"{role}_points")
    counts = {len(points.points_mm) for points in extra.values() if isinstance(points, Landmarks)}
    if len(counts) > 1:
        raise ValueError(
            f"moving_points and fixed_points: expected as many points in the same order, got {sorted(counts)}."
        )
    return extra


def _summary(result: Result) -> str:
    metrics = result.metrics()
    said = []
    for name, unit in (("ncc", "correlation"),):
        before, after = (metrics["similarity"][when][name] for when in ("before", "after"))
        if before is not None and after is not None:
            said.append(f"{unit} {before:.3f} before, {after:.3f} after")
    said.append(f"foldings {metrics['foldings_percent']:.3g} %")
    if "dice" in metrics:
        said.append(
            f"Dice {metrics['dice']['before']['mean']:.3f} before, {metrics['dice']['after']['mean']:.3f} after"
        )
    if "tre_mm" in metrics:
        said.append(f"landmarks {metrics['tre_mm']['before']['mean']:.3g} mm before, "
                    f"{metrics['tre_mm']['after']['mean']:.3g} mm after")  # fmt: skip
    return "; ".join(said)


def _log() -> None:
    """Show what is done, unless the caller has set up logging."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("ignite", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
