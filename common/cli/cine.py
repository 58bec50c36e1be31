# SPDX-License-Identifier: Apache-2.0
"""``python -m common cine IMAGE``: a beating heart, registered frame by frame to end-diastole, and what it ejects."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..bundle import start
from ..data.acdc import LABELS
from ..data.acdc_folder import read_info
from ..figures.cine import cine_curves
from ..inference import BundleRegistration
from ..io.images import Image, load_grid, load_image, load_label, same_grid, write_nifti
from ..io.nifti import open_nifti
from ..io.orientation import slice_axis, spacing_is_unknown
from ..io.results import write_rows
from ..metrics.ejection_fraction import ejection_fraction
from ..metrics.strain import polar_strains
from .bundles import find_bundles, read_json

logger = logging.getLogger(__name__)
FILES = ("cine.csv", "cine.png", "labels.nii.gz")


class Phases(NamedTuple):
    """Frames of end-diastole and end-systole, counted from 1; ``es`` None where it is not given."""

    ed: int
    es: int | None


def cine(
    image: str,
    output_dir: str,
    label: str | None = None,
    es_label: str | None = None,
    ed: int | None = None,
    es: int | None = None,
    bundle: str = "adacs_acdc",
    myocardium: int = LABELS["myocardium"],
    lv: int = LABELS["lv"],
    **overrides: Any,
) -> str:
    """Register every frame of a 4D short-axis image to end-diastole, and follow the left ventricle over the cycle.

    As in ``cine patient001_4d.nii.gz --output_dir results/patient001``. Writes ``labels.nii.gz``, the labels of ED
    carried to every frame (4D); ``cine.csv``, a row a frame: ``volume_ml`` of the cavity (``voxels`` where the header
    has no spacing) and ``radial`` and ``circumferential`` Lagrangian Green strain of the myocardium in per cent, the
    mean over its voxels at ED; ``cine.png``, the curves. Strain is of the map from ED to a frame (fixed = ED), labels
    come with the map from a frame to ED (moving = ED).

    Args:
        image: 4D NIfTI, as ACDC's ``patient001_4d.nii.gz``.
        output_dir: receives the files; created.
        label: labels of ED; by default ACDC's file beside the image, ``patient001_frame01_gt.nii.gz``.
        es_label: labels of ES, to compare the ejection fraction with; by default ACDC's file, where it lies there.
        ed: frame of end-diastole, counted from 1; by default from ``Info.cfg`` beside the image.
        es: of end-systole, likewise; without one the frame of the smallest volume.
        bundle: name or path of a bundle for 2D slices.
        myocardium: its value in the labels.
        lv: that of the cavity.
        overrides: options of the bundle's inference, ``--architecture pairwise``, ``--ckpt_path``, ``--device``.

    Returns:
        Ejection fraction and peak strains, in words.

    Raises:
        FileNotFoundError: for files that are not there.
        ValueError: for an image that is not 4D, a frame that is not finite or has no contrast, frames of ED and ES
            that are not known, labels on another grid or without a cavity or myocardium, or a bundle for volumes.
    """
    path = Path(image)
    nifti = open_nifti(path, "image")
    if len(nifti.shape) != 4 or nifti.shape[3] < 2:
        raise ValueError(
            f"image: expected a 4D NIfTI file (X, Y, Z, frames) of at least two frames, got {path} of shape "
            f"{tuple(nifti.shape)}; to register two images use inferring."
        )
    phases = _phases(path, nifti.shape[3], ed, es)
    labels, labelled_es = _labels(path, phases, label, es_label)
    with tempfile.TemporaryDirectory() as folder:
        frames = _split(nifti, path, Path(folder))
        first, last = _checked(labels, labelled_es, frames[phases.ed - 1], (myocardium, lv))
        pairs = _pairs(frames, phases.ed - 1, labels)
        inference = _inference(bundle, first, (myocardium, lv), overrides)
        found = _registered(inference, pairs, first, (myocardium, lv))
    return _report(Path(output_dir), found, phases, first, last, (myocardium, lv))


def _phases(path: Path, count: int, ed: int | None, es: int | None) -> Phases:
    given: dict[str, Any] = {"ed": ed, "es": es}
    if None in given.values() and (path.parent / "Info.cfg").is_file():
        info = read_info(path.parent)
        given = {name: info.get(name.upper()) if value is None else value for name, value in given.items()}
    if given["ed"] is None:
        raise ValueError(
            f"ed: expected the frame of end-diastole; {path} does not say it, and there is no Info.cfg with 'ED: 1' "
            "beside it. Pass --ed 1 (frames are counted from 1), and --es where it is known."
        )
    return Phases(_frame("ed", given["ed"], count), None if given["es"] is None else _frame("es", given["es"], count))


def _frame(name: str, value: Any, count: int) -> int:
    number = int(value) if str(value).isdecimal() else 0
    if not 1 <= number <= count:
        raise ValueError(f"{name}: expected a frame from 1 to {count}, got {value!r}.")
    return number


def _labels(path: Path, phases: Phases, label: str | None, es_label: str | None) -> tuple[Path, Path | None]:
    stem = path.name.removesuffix(".gz").removesuffix(".nii").removesuffix("_4d")
    beside = {frame: path.with_name(f"{stem}_frame{frame:02d}_gt.nii.gz") for frame in phases if frame is not None}
    own = Path(label) if label is not None else beside[phases.ed]
    if not own.is_file():
        raise FileNotFoundError(f"label: expected the labels of end-diastole, there is no {own}. Pass --label FILE.")
    other = Path(es_label) if es_label is not None else beside.get(phases.es or 0)
    if es_label is not None and other is not None and not other.is_file():
        raise FileNotFoundError(f"es_label: there is no {other}. Check the spelling.")
    return own, other if other is not None and other.is_file() else None


def _split(nifti: nib.Nifti1Pair, path: Path, folder: Path) -> list[Path]:
    """Each frame in a file of its own, its voxels as they are stored; all are looked at before any is registered."""
    frames = [folder / f"frame{number + 1:03d}.nii.gz" for number in range(nifti.shape[3])]
    for number, (file, frame) in enumerate(zip(frames, nib.four_to_three(nifti), strict=True), start=1):
        nib.save(frame, file)
        try:
            load_image(file, "image")
        except ValueError as error:  # which names a file that will be gone
            raise ValueError(str(error).replace(str(file), f"frame {number} of {path}")) from error
    return frames


def _checked(own: Path, other: Path | None, frame: Path, values: tuple[int, int]) -> tuple[Image, Image | None]:
    grid = load_grid(frame, "image")
    found = [load_label(own, "label"), None if other is None else load_label(other, "es_label")]
    for name, path, labels in (("label", own, found[0]), ("es_label", other, found[1])):
        if labels is not None and not same_grid(labels, grid, atol=0.1):
            raise ValueError(
                f"{name}: expected the grid of the frames, {tuple(grid.array.shape)} voxels at their places, got "
                f"{tuple(labels.array.shape)} in {path}; resample the labels onto a frame first."
            )
    assert found[0] is not None
    present = set(found[0].array.unique().tolist())
    for name, value in zip(("myocardium", "lv"), values, strict=True):
        if value not in present:
            raise ValueError(
                f"{name}: label {value} is absent at end-diastole in {own}, which has the values {sorted(present)}; "
                f"pass the value it has, --{name} N."
            )
    rest = [other for other in range(3) if other != slice_axis(found[0])]
    if not torch.stack([(found[0].array == value).any(rest[1]).any(rest[0]) for value in values]).all(0).any():
        raise ValueError(
            f"myocardium, lv: expected a slice with both at end-diastole, around whose cavity strain is measured; in "
            f"{own} no slice has labels {values[0]} and {values[1]}. Check the labels."
        )
    return found[0], found[1]


def _pairs(frames: Sequence[Path], ed: int, labels: Path) -> list[dict[str, str]]:
    """Of each frame but ED's: ED's labels onto the frame, then the frame onto ED."""
    pairs = []
    for frame in (frame for number, frame in enumerate(frames) if number != ed):
        pairs.append({"moving": str(frames[ed]), "fixed": str(frame), "moving_label": str(labels)})
        pairs.append({"moving": str(frame), "fixed": str(frames[ed])})
    return pairs


def _inference(bundle: str, labels: Image, values: tuple[int, int], overrides: Mapping[str, Any]) -> BundleRegistration:
    (folder,) = find_bundles((str(bundle),))
    size = read_json(folder / "configs" / "inference.json")["spatial_size"]
    if len(size) != 2:
        raise ValueError(
            f"bundle: expected one for 2D slices (*_acdc), got {folder.name} for volumes of {size} voxels."
        )
    return BundleRegistration(folder, {"crop_center": _centre(labels, values), **overrides, "maps": False})


def _centre(labels: Image, values: tuple[int, int]) -> list[float]:
    """Of the left ventricle at ED, in voxels of the file's plane."""
    axis = slice_axis(labels)
    places = torch.nonzero(torch.isin(labels.array, torch.tensor(values))).double().mean(0).tolist()
    return [place for number, place in enumerate(places) if number != axis]


def _registered(
    inference: BundleRegistration, pairs: Sequence[Mapping[str, str]], labels: Image, values: tuple[int, int]
) -> list[dict[str, Any]]:
    """Of each frame but ED's, in order: its labels and the strains of its myocardium."""
    start(0, inference.run.device)
    found: list[dict[str, Any]] = []
    with _quiet():
        for pair in tqdm(pairs, f"registering {len(pairs) // 2} frames, both ways", mininterval=1.0):
            done = inference.register(dict(pair))
            if "moving_label" in pair:
                found.append({"label": done["warped_label"][0].to(labels.array.dtype)})
            else:
                found[-1] |= _strains(done["ddf"], labels, values)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes on each of many pairs, but with warnings."""
    loggers = [logging.getLogger(f"{__name__.partition('.cli.')[0]}.{part}") for part in ("transforms", "engines")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _strains(ddf: Tensor, labels: Image, values: tuple[int, int]) -> dict[str, float]:
    """Means over the voxels of the myocardium, of the slices that have a cavity too; in per cent."""
    axis = slice_axis(labels)
    plane = [number for number in range(3) if number != axis]
    slices = ddf[plane].movedim(axis + 1, 0).double()  # (Z, 2, H, W)
    muscle, cavity = ((labels.array == value).movedim(axis, 0) for value in values)
    means = polar_strains(slices, muscle, cavity, [labels.spacing[number] for number in plane])
    weights = muscle.flatten(1).sum(1).double()
    known = means[:, 0].isfinite()
    shares = weights[known] / weights[known].sum()
    radial, around = (100 * (shares[:, None] * means[known]).sum(0)).tolist()
    return {"radial": radial, "circumferential": around}


def _report(
    output: Path, found: Sequence[Mapping[str, Any]], phases: Phases, labels: Image, at_es: Image | None,
    values: tuple[int, int],
) -> str:  # fmt: skip
    unknown = spacing_is_unknown(labels)
    voxel = 1.0 if unknown else float(np.prod(labels.spacing)) / 1000
    others = iter(found)
    frames: list[Mapping[str, Any]] = [
        {"label": labels.array, "radial": 0.0, "circumferential": 0.0} if number == phases.ed else next(others)
        for number in range(1, len(found) + 2)
    ]
    name = "voxels" if unknown else "volume_ml"
    volumes = [voxel * int((frame["label"] == values[1]).sum()) for frame in frames]
    rows = [{"frame": number, name: volume, "radial": frame["radial"], "circumferential": frame["circumferential"]}
            for number, (frame, volume) in enumerate(zip(frames, volumes, strict=True), start=1)]  # fmt: skip
    systole = phases.es or 1 + int(np.argmin(volumes))
    ejected = ejection_fraction(volumes[phases.ed - 1], volumes[systole - 1])
    lines = [f"ED frame {phases.ed}, ES frame {systole}: ejection fraction {ejected:.1f} %."]
    if at_es is not None:
        lines += _beside(labels, at_es, values[1], ejected)
    peaks = {key: max((row[key] for row in rows), key=abs) for key in ("radial", "circumferential")}
    lines.append(f"Peak strain: radial {peaks['radial']:+.1f} %, circumferential {peaks['circumferential']:+.1f} %.")
    output.mkdir(parents=True, exist_ok=True)
    write_rows(rows, output / FILES[0])
    cine_curves(output / FILES[1], rows, name, phases.ed, systole)
    stack = torch.stack([frame["label"] for frame in frames], dim=-1)
    stored = labels.stored or np.dtype(np.uint8)
    write_nifti(output / FILES[2], stack.numpy().astype(stored), labels)
    logger.info("Wrote %s to %s.", ", ".join(FILES), output)
    return "\n".join(lines)


def _beside(labels: Image, at_es: Image, lv: int, registered: float) -> list[str]:
    """The labels' own ejection fraction, and the slices that it loses."""
    axis = slice_axis(labels)
    diastole, systole = ((image.array == lv).movedim(axis, 0).flatten(1).sum(1) for image in (labels, at_es))
    labelled = ejection_fraction(float(diastole.sum()), float(systole.sum()))
    lost = int(((diastole > 0) & (systole == 0)).sum())
    if lost:
        logger.warning(
            "%d slice(s) with a cavity at ED have none at ES: the base moves through the plane, and a registration "
            "slice by slice keeps a cavity there. The registered ejection fraction is too small by as much.", lost,
        )  # fmt: skip
    return [f"Of the labels: {labelled:.1f} %, registered {registered - labelled:+.1f}; {lost} slice(s) lost at ES."]
