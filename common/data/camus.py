# SPDX-License-Identifier: Apache-2.0
"""CAMUS, Cardiac Acquisitions for Multi-structure Ultrasound Segmentation: 2D echocardiography at ED and ES.

Layout, as the NIfTI release has it::

    dataset_dir/[CAMUS_public/][database_nifti/]patient0001/patient0001_2CH_ED.nii.gz     image at end-diastole
                                                            patient0001_2CH_ED_gt.nii.gz  labels: 1 LV, 2 myocardium,
                                                                                          3 left atrium
                                                            patient0001_2CH_ES.nii.gz, …_ES_gt.nii.gz  end-systole
                                                            patient0001_4CH_…             four-chamber view
                                                            Info_2CH.cfg, Info_4CH.cfg    ImageQuality: Good; …
    dataset_dir/[CAMUS_public/]database_split/subgroup_{training,validation,testing}.txt  a patient a line

``*_half_sequence*`` is not read; Info files and the split may be absent, as in processed copies. A phantom in this
layout adds ``patient0001_2CH_ED_to_ES_ddf.nii.gz``, the true displacement ``(X, Y, 1, 2)`` in voxels of the file:
fixed(x) = moving(x + ddf(x)) with moving = ED, fixed = ES, and ``patient0001_2CH_ES_noise.nii.gz``, the standard
deviation of the noise of ES.

Every view of a patient is a pair. The whole image is brought to ``spatial_size``, as the published preprocessing does,
its aspect ratio lost; voxels of both axes then differ. Files are (width, depth) with the axes that ITK gives an image
without directions (`ORIENTATION`); where all voxels have 1 mm the spacing is unknown, and so is the orientation: the
axes are as stored then, and nothing may be given in millimetres.

Reference: Leclerc et al., IEEE Transactions on Medical Imaging 38(9), 2019.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..checks import known_name
from ..io.images import Image, load_grid
from ..io.orientation import spacing_is_unknown
from ..transforms.intensity import clipped
from .camus_folder import LAYOUT, PARTITIONS, VIEWS, official_split, patient_folders, view_files
from .camus_phantom import PHANTOM
from .decoded import MEMORY, DecodedPairs
from .layout import DatasetLayoutError, Invalid, dataset_root
from .reading import check_phases, read_case, read_displacement, read_noise_level, slices_first

SPLITS = ("train", "validation", "all")  # and "test", where the release's split is at hand
LABELS = {"myocardium": 2, "lv": 1, "atrium": 3}
ORIENTATION, SPACING, SPACING_RANGE = "LPS", None, None
SPATIAL_SIZE = (128, 128)  # to which the whole image is brought
# How inference reads a pair of images; what is not said here is as in training.
INFERENCE = {"align": "physical", "orientation": ORIENTATION, "resize": True, "crop_center": "middle"}
TENSORS = ("moving_image", "fixed_image", "moving_label", "fixed_label", "true_ddf", "noise_level")


def root(dataset_dir: str | Path) -> Path:
    """Folder of the data set; "phantom" makes the phantom, once.

    Args:
        dataset_dir: see the module's layout, or "phantom".

    Returns:
        The folder.

    Raises:
        DatasetLayoutError: where it is absent.
    """
    return dataset_root(dataset_dir, PHANTOM.folder, LAYOUT)


def split_of(subject: str) -> str:
    """Split of a patient by its number: those ending in 4 or 9 are validation, the rest train.

    Args:
        subject: 'patient0001'.

    Returns:
        Name of the split.

    Raises:
        ValueError: for a name of another form.
    """
    if not re.fullmatch(r"patient\d{4}", subject):
        raise ValueError(f"subject: expected a name like 'patient0001', got {subject!r}.")
    return "validation" if subject[-1] in "49" else "train"


def subjects(dataset_dir: str | Path, split: str = "all", partition: str = "number") -> list[str]:
    """Names (``patient0001``) of the patients of a split, sorted.

    Args:
        dataset_dir: see the module's layout, or "phantom".
        split: one of ``SPLITS``, or "test", which only the release's split has.
        partition: "number": see ``split_of``; patients that the release's split, where it is at hand, sets aside for
            testing are in neither training nor validation. "official": as the release's split says.

    Returns:
        The names.

    Raises:
        DatasetLayoutError: when the folder is missing, or holds no patient of the split, or no split files.
        ValueError: for an unknown split or partition.
    """
    return [folder.name for folder in _folders(dataset_dir, split, partition)]


def example_pair(dataset_dir: str | Path) -> tuple[Path, Path]:
    """Image files, ED and ES, of the first validation patient's two-chamber view.

    Args:
        dataset_dir: see ``subjects``.

    Returns:
        Paths of moving and fixed.

    Raises:
        DatasetLayoutError: as ``subjects``, and where a file is missing.
    """
    files = view_files(_folders(dataset_dir, "validation", "number")[0], VIEWS[0])
    return Path(files["moving_image"]), Path(files["fixed_image"])


def datalist(
    dataset_dir: str | Path,
    split: str = "train",
    views: Sequence[str] = VIEWS,
    partition: str = "number",
    skip_invalid: bool = False,
) -> list[dict[str, Any]]:
    """The files of a split, a dictionary a patient and view, in the order of ``load_pairs``; none is read.

    Args:
        dataset_dir: see ``subjects``.
        split: see ``subjects``.
        views: "2CH" and "4CH", or one of them.
        partition: see ``subjects``.
        skip_invalid: leave out patients that lack a view or phase, with a warning each.

    Returns:
        What ``camus_folder.view_files`` returns. JSON-serialisable.

    Raises:
        DatasetLayoutError: as ``subjects``, and for a patient that lacks a file.
        ValueError: for an unknown split, partition or view.
    """
    for view in views:
        known_name("views", view, VIEWS)
    invalid = Invalid(skip_invalid)
    entries: list[dict[str, Any]] = []
    for folder in _folders(dataset_dir, split, partition):
        with invalid.left_out(folder.name):
            entries += [view_files(folder, view) for view in views]
    invalid.report(split, dataset_dir, len(entries))
    return entries


def load_pairs(
    dataset_dir: str | Path,
    split: str = "train",
    spatial_size: Sequence[int] = SPATIAL_SIZE,
    views: Sequence[str] = VIEWS,
    partition: str = "number",
    skip_invalid: bool = False,
    percentiles: Sequence[float] | None = None,
    cache: str | Path = MEMORY,
) -> Sequence[dict[str, Any]]:
    """Read a split: every view of a patient a pair, moving = ED, fixed = ES. Each file is decoded once.

    Args:
        dataset_dir: see ``subjects``.
        split: see ``subjects``.
        spatial_size: voxels to which the whole image is brought, two numbers.
        views: see ``datalist``.
        partition: see ``subjects``.
        skip_invalid: leave out patients that cannot be read, or lack a view or phase, with a warning each.
        percentiles: lower and upper, in per cent, to which the intensities of each image are clipped; None leaves them.
        cache: "memory", or a folder for decoded views, see ``data.decoded``.

    Returns:
        A dict a pair, in memory a list of them. ``moving_image``, ``fixed_image``: float32 ``(1, X, Y)``;
        ``moving_label``, ``fixed_label``: uint8 ``(1, X, Y)``; ``centre``: float32 ``(2,)``, of the image; ``subject``:
        'patient0001'; ``case``: 'patient0001_2CH'; ``group``: the image's quality, 'Good', 'Medium' or 'Poor', '' where
        not given; ``spacing``: float32 ``(2,)`` in mm, NaN where unknown; for phantoms ``true_ddf``: float32
        ``(2, X, Y)``, voxels, and ``noise_level``: float32 ``(1, X, Y)``, standard deviation of the noise of the fixed
        image, in its units.

    Raises:
        DatasetLayoutError: as ``datalist``, and for files that are not as published.
        ValueError: as ``datalist``, and for a size that is not two numbers, or percentiles that are not two in order.
    """
    if len(spatial_size) != 2:
        raise ValueError(f"spatial_size: expected two numbers for the images of this data set, got {spatial_size!r}.")
    clipped(torch.zeros(1), percentiles)  # before anything is read
    options = {"spatial_size": [int(n) for n in spatial_size], "percentiles": percentiles}
    invalid = Invalid(skip_invalid)
    pairs = DecodedPairs(
        datalist(dataset_dir, split, views, partition, skip_invalid),
        parts=lambda entry: [{**entry, **options}],
        read=read_view,
        join=_pair,
        cache=cache,
        lazily=skip_invalid,
    )
    return pairs.finished(invalid, split, dataset_dir)


def read_view(part: Mapping[str, Any]) -> dict[str, Any]:
    """Decode a view of a patient, ED and ES.

    Args:
        part: as ``camus_folder.view_files`` returns, and ``spatial_size``, ``percentiles`` of ``load_pairs``.

    Returns:
        The tensors of ``load_pairs``.

    Raises:
        DatasetLayoutError: naming patient and view, for files that are not as published.
    """
    try:
        (moving, moving_label), (fixed, fixed_label) = (_frame(part, role) for role in ("moving", "fixed"))
        before, after = (load_grid(part[f"{role}_image"], "image") for role in ("moving", "fixed"))
        check_phases(before, after)
        images = {
            "moving_image": clipped(moving.array, part["percentiles"]),
            "fixed_image": clipped(fixed.array, part["percentiles"]),
            "moving_label": moving_label.array.byte(),
            "fixed_label": fixed_label.array.byte(),
        }
        read = {key: slices_first(array)[0] for key, array in images.items()}
        if "true_ddf" in part:
            read["true_ddf"] = read_displacement(part["true_ddf"], moving, ORIENTATION)[0]
        if "noise_level" in part:
            read["noise_level"] = read_noise_level(part["noise_level"], fixed, ORIENTATION)[0]
    except DatasetLayoutError as error:
        raise DatasetLayoutError(f"{part['case']}: {error}") from error
    known = not spacing_is_unknown(before)
    return read | {"spacing": torch.tensor(moving.spacing[:2] if known else [torch.nan] * 2)}


def _folders(dataset_dir: str | Path, split: str, partition: str) -> list[Path]:
    known_name("partition", partition, PARTITIONS)
    known_name("split", split, (*SPLITS, "test"))
    base = root(dataset_dir)
    folders = patient_folders(base)
    official = official_split(base, required=partition == "official" or split == "test")

    def belongs(subject: str) -> bool:
        listed = official.get(subject)
        if partition == "official" or split == "test" or listed == "test":
            return listed == split
        return split_of(subject) == split

    found = [folder for folder in folders if split == "all" or belongs(folder.name)]
    if not found:
        raise DatasetLayoutError(
            f"split: {split!r} is empty; {dataset_dir} holds {len(folders)} patient(s), {folders[0].name} to "
            f"{folders[-1].name}. Validation is patients whose number ends in 4 or 9, train the rest; add the missing "
            f"folders or choose another split. {LAYOUT}."
        )
    return found


def _frame(part: Mapping[str, Any], role: str) -> tuple[Image, Image]:
    """Image and labels of one frame, stacks of one slice."""
    image, label = read_case(
        part[f"{role}_image"], part[f"{role}_label"], (0, *LABELS.values()), spatial_dims=2, orientation=ORIENTATION,
        resize=part["spatial_size"],
    )  # fmt: skip
    if image.array.shape[2] != 1:
        raise DatasetLayoutError(
            f"expected one frame, (X, Y) or (X, Y, 1), in {part[f'{role}_image']}, got {image.array.shape[2]}; "
            "restore the published file."
        )
    return image, label


def _pair(entry: Mapping[str, Any], view: Mapping[str, Any]) -> dict[str, Any]:
    size = torch.tensor([float(n) for n in view["moving_image"].shape[1:]])
    tensors = {key: view[key] for key in (*TENSORS, "spacing") if key in view}
    return tensors | {"centre": (size - 1) / 2} | {key: entry[key] for key in ("subject", "case", "group")}
