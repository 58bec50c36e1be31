# SPDX-License-Identifier: Apache-2.0
"""DRIVE: vessels of the retina, each image registered to a synthetic elastic deformation of itself.

Layout, as published (565 x 584 pixels, 8 bits)::

    dataset_dir/[DRIVE/]training/images/21_training.tif … 40         photographs in colour
                                 1st_manual/21_manual1.gif …         vessels, drawn by hand: 255 inside
                                 mask/21_training_mask.gif …         field of view of the camera
                        test/images/01_test.tif … 20, 1st_manual/01_manual1.gif …, mask/01_test_mask.gif …

Later downloads have no ``test/1st_manual``: there is no split "test" then. ``2nd_manual`` is not read.

As in GradICON's experiment, no two retinas are registered: moving is the drawing of the vessels, fixed the same drawing
under a random deformation (``common.data.elastic``), which stands in the pair as ``true_ddf``. A deformation depends on
(seed, image, number) alone. The whole picture is deformed at its own size and then brought to ``spatial_size``, its
aspect ratio lost.

Departures from the ICON code: vessels are bright on black, not black on white; pictures are smoothed and resampled, not
averaged over 4 x 4 pixels to 141 x 146; deformations are sampled linearly, not by cubic splines, and none folds.
Array axes run to the right and downwards. There are no millimetres: spacing is NaN.

Reference: Staal et al., IEEE TMI 23(4), 2004 (the data set); Tian et al., GradICON, CVPR 2023, Sec. 6.2 (the pairs).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import known_name, whole
from ..io.images import Image, save_image
from ..io.spacing import resample_to_spacing, spacing_of_size
from ..spatial.fields import resized
from ..spatial.warp import warp
from .decoded import MEMORY, DecodedPairs
from .drive_phantom import PHANTOM
from .elastic import elastic_displacement
from .layout import DatasetLayoutError, dataset_root
from .phantom_cache import cache_folder
from .pictures import read_mask, read_picture

SPLITS = ("train", "validation", "test", "all")
PARTITIONS = ("number", "official")
PICTURES = ("vessels", "photograph")
LABELS = {"vessel": 1}
ORIENTATION, SPACING, SPACING_RANGE = "LPS", None, None  # as ITK places a picture; there is no physical unit
SPATIAL_SIZE = (144, 144)  # to which the whole picture is brought
# How inference reads a pair of images; what is not said here is as in training.
INFERENCE = {"align": "physical", "orientation": ORIENTATION, "resize": True, "crop_center": "middle"}
NAME = r"\d\d_(?:training|test)"
LAYOUT = (
    "expected DIR/training/1st_manual/21_manual1.gif, …, beside training/mask/21_training_mask.gif and "
    "training/images/21_training.tif, …; get DRIVE from drive.grand-challenge.org and unpack it there unchanged"
)


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
    """Split of an image: of the release's training images those whose number ends in 4 or 9 are validation.

    Args:
        subject: '21_training' or '01_test'.

    Returns:
        Name of the split.

    Raises:
        ValueError: for a name of another form.
    """
    if not re.fullmatch(NAME, subject):
        raise ValueError(f"subject: expected a name like '21_training' or '01_test', got {subject!r}.")
    if subject.endswith("test"):
        return "test"
    return "validation" if subject[1] in "49" else "train"


def subjects(dataset_dir: str | Path, split: str = "all", partition: str = "number") -> list[str]:
    """Names (``21_training``) of the images of a split that have a drawing of their vessels, sorted.

    Args:
        dataset_dir: see the module's layout, or "phantom".
        split: one of ``SPLITS``.
        partition: "number": see ``split_of``. "official": all training images of the release are "train", and none is
            validation; GradICON's experiment trains on them, and is evaluated on the same pairs.

    Returns:
        The names.

    Raises:
        DatasetLayoutError: when the folder is missing or holds no image of the split.
        ValueError: for an unknown split or partition.
    """
    known_name("partition", partition, PARTITIONS)
    known_name("split", split, SPLITS)
    folder = _folder(dataset_dir)
    names = []
    for part in ("training", "test"):
        found = [re.fullmatch(r"(\d\d)_manual1\.gif", path.name) for path in (folder / part).glob("1st_manual/*")]
        names += [f"{match[1]}_{part}" for match in found if match]

    def belongs(name: str) -> bool:
        return split == ("train" if partition == "official" and name.endswith("training") else split_of(name))

    chosen = sorted(name for name in names if split == "all" or belongs(name))
    if not chosen:
        raise DatasetLayoutError(
            f"split: no image of {split!r} (partition {partition!r}) among the {len(names)} with vessels in {folder}; "
            f"choose another split. {LAYOUT}."
        )
    return chosen


def datalist(
    dataset_dir: str | Path,
    split: str = "train",
    deformations: int = 1,
    deformation_seed: int = 0,
    picture: str = "vessels",
    partition: str = "number",
) -> list[dict[str, Any]]:
    """The files of a split and what is made of them, a dictionary a pair, in the order of ``load_pairs``.

    Args:
        dataset_dir: see ``subjects``.
        split: see ``subjects``.
        deformations: pairs of each image, from 1. The ICON code has 20.
        deformation_seed: of the deformations, >= 0.
        picture: "vessels": the drawing is the image. "photograph": the photograph's green channel, 0 outside the
            field of view.
        partition: see ``subjects``.

    Returns:
        Paths under ``moving_image``, ``moving_label``, ``moving_mask``; ``subject``: '21_training'; ``case``:
        '21_training_deformation00'; under ``generated`` the arguments of the deformation. JSON-serialisable.

    Raises:
        DatasetLayoutError: as ``subjects``, and for an image without one of its files.
        ValueError: for unknown names, or numbers out of range.
    """
    known_name("picture", picture, PICTURES)
    for name, value, least in (("deformations", deformations, 1), ("deformation_seed", deformation_seed, 0)):
        whole(name, value, least)
    folder, entries = _folder(dataset_dir), []
    for subject in subjects(dataset_dir, split, partition):
        number, _, part = subject.partition("_")
        files = {"moving_label": folder / part / "1st_manual" / f"{number}_manual1.gif"}
        files["moving_mask"] = folder / part / "mask" / f"{subject}_mask.gif"
        photograph = folder / part / "images" / f"{subject}.tif"
        files["moving_image"] = files["moving_label"] if picture == "vessels" else photograph
        missing = [str(path) for path in files.values() if not path.is_file()]
        if missing:
            raise DatasetLayoutError(f"{subject}: there are vessels, but no {', '.join(missing)}; {LAYOUT}.")
        entries += [
            {key: str(path) for key, path in files.items()}
            | {"subject": subject, "case": f"{subject}_deformation{index:02d}"}
            | {"generated": {"number": int(number), "index": index, "seed": int(deformation_seed)}}
            for index in range(deformations)
        ]
    return entries


def load_pairs(
    dataset_dir: str | Path,
    split: str = "train",
    spatial_size: Sequence[int] = SPATIAL_SIZE,
    deformations: int = 1,
    deformation_seed: int = 0,
    picture: str = "vessels",
    partition: str = "number",
    cache: str | Path = MEMORY,
) -> Sequence[dict[str, Any]]:
    """Read a split and deform its images.

    Args:
        dataset_dir: see ``subjects``.
        split: see ``subjects``.
        spatial_size: pixels to which the whole picture is brought, two numbers.
        deformations: see ``datalist``.
        deformation_seed: see ``datalist``.
        picture: see ``datalist``.
        partition: see ``subjects``.
        cache: "memory", or a folder for decoded pairs, see ``data.decoded``.

    Returns:
        A dict a pair, in memory a list of them: ``read_pair``, with ``subject`` and ``case`` of ``datalist``.

    Raises:
        DatasetLayoutError: as ``datalist``, and for pictures that cannot be read, are no masks or differ in size.
        ValueError: as ``datalist``, and for a size that is not two numbers.
    """
    if len(spatial_size) != 2:
        raise ValueError(f"spatial_size: expected two numbers for the pictures of this data set, got {spatial_size!r}.")
    size = [int(n) for n in spatial_size]
    pairs = DecodedPairs(
        datalist(dataset_dir, split, deformations, deformation_seed, picture, partition),
        parts=lambda entry: [{**entry, "spatial_size": size}],
        read=read_pair,
        join=lambda entry, pair: {**pair, "subject": entry["subject"], "case": entry["case"]},
        cache=cache,
    )
    return list(pairs) if str(cache) == MEMORY else pairs


def read_pair(part: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read an image, deform it, and bring both to the working size.

    Args:
        part: an entry of ``datalist``, and ``spatial_size``; None leaves the pictures' own.

    Returns:
        ``moving_image``, ``fixed_image``: float32 ``(1, X, Y)``; ``moving_label``, ``fixed_label``: uint8, 1 where
        vessels cover half of a pixel or more; ``moving_mask``, ``fixed_mask``: uint8, the field of view; ``true_ddf``:
        float32 ``(2, X, Y)`` in voxels of the working size; ``centre``; ``spacing``: NaN.

    Raises:
        DatasetLayoutError: naming the image, for pictures that are not as published.
    """
    try:
        vessels, view = read_mask(part["moving_label"], "vessels"), read_mask(part["moving_mask"], "a field of view")
        image = vessels
        if part["moving_image"] != part["moving_label"]:
            image = read_picture(part["moving_image"], "a photograph")
        if not vessels.shape == view.shape == image.shape:
            raise DatasetLayoutError(
                f"expected pictures of one size, got vessels of {tuple(vessels.shape)}, a field of view of "
                f"{tuple(view.shape)} and an image of {tuple(image.shape)} pixels; restore the published files."
            )
    except DatasetLayoutError as error:
        raise DatasetLayoutError(f"{part['subject']}: {error}") from error
    made, size = part["generated"], part["spatial_size"] or list(vessels.shape)
    rng = np.random.default_rng((made["seed"], made["number"], made["index"]))
    true_ddf = elastic_displacement(vessels.shape, rng)[None]
    moving = {"image": image if image is vessels else image * view, "label": vessels, "mask": view}
    pair: dict[str, Tensor] = {}
    for role in ("moving", "fixed"):
        for key, picture in moving.items():
            seen = picture if role == "moving" else warp(picture[None, None], true_ddf)[0, 0]
            small = _brought_to(seen, size)[None]
            pair[f"{role}_{key}"] = small if key == "image" else (small >= 0.5).byte()
    centre = (torch.tensor([float(n) for n in size]) - 1) / 2
    true_ddf = resized(true_ddf, size)[0].contiguous()
    return pair | {"true_ddf": true_ddf, "centre": centre, "spacing": torch.full((2,), torch.nan)}


def example_pair(dataset_dir: str | Path) -> tuple[Path, Path]:
    """Write the first validation pair at its own size as NIfTI, pixels of 1 mm, into the cache of the phantoms.

    Args:
        dataset_dir: see ``subjects``.

    Returns:
        Files of moving and fixed.

    Raises:
        DatasetLayoutError: as ``load_pairs``.
    """
    entry = datalist(root(dataset_dir), "validation")[0]
    pair = read_pair({**entry, "spatial_size": None})
    folder = cache_folder() / f"drive_example_{hashlib.sha256(entry['moving_image'].encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    moving, fixed = (folder / f"{role}.nii.gz" for role in ("moving", "fixed"))
    for file, key in ((moving, "moving_image"), (fixed, "fixed_image")):
        save_image(file, pair[key][0], Image(pair[key][0], np.eye(4), (1.0, 1.0)))
    return moving, fixed


def _brought_to(picture: Tensor, size: Sequence[int]) -> Tensor:
    """A whole picture at another size, as inference brings a file to it."""
    image = Image(picture, np.eye(4), (1.0, 1.0))
    return resample_to_spacing(image, spacing_of_size(image, size), "bilinear").array.contiguous()


def _folder(dataset_dir: str | Path) -> Path:
    base = root(dataset_dir)
    for folder in (base, base / "DRIVE"):
        if (folder / "training" / "1st_manual").is_dir():
            return folder
    raise DatasetLayoutError(f"dataset_dir: no folder training/1st_manual in {str(base)!r}; {LAYOUT}.")
