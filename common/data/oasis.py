# SPDX-License-Identifier: Apache-2.0
"""OASIS: T1 MR of whole brains, 160 x 192 x 224 voxels of 1 mm, registered between subjects.

Three layouts of the same volumes (skull-stripped, in [0, 1], aligned to the Talairach atlas), each as published::

    dataset_dir/imagesTr/OASIS_0001_0000.nii.gz … OASIS_0414_0000.nii.gz    Learn2Reg 2021, task 3; axes RAS
                labelsTr/OASIS_0001_0000.nii.gz …                           35 structures
                imagesTs/OASIS_0415_0000.nii.gz … OASIS_0453_0000.nii.gz    test subjects
                labelsTs/…                                                  not public; read where present

    dataset_dir/OASIS_OAS1_0001_MR1/aligned_norm.nii.gz                     neurite-oasis v1.0; axes LIA
                                    aligned_seg35.nii.gz, aligned_seg4.nii.gz

    dataset_dir/[Train/]p_0001.pkl                                          TransMorph's; axes LIA
                [Test/]p_0395_0396.pkl

``OASIS_dataset.json``, ``subjects.txt``, masks and the unaligned volumes are not read. NIfTI files are read by their
headers and brought to LIA, in which the published networks are trained. A pickle of a subject holds (image, labels),
one of a pair (moving, fixed, moving labels, fixed labels), fixed being its first number by Learn2Reg's naming: the
files themselves do not say it. Pickles are read without running code in them (``common.data.pickles``).

Learn2Reg's pairs validate: subjects 0395 to 0414, fixed 0395 to 0413, each with the next number as moving. They are
OAS1_0438 to OAS1_0457, whatever the layout. Training is 0001 to 0394, with pairs as ``common.data.pairing`` lists them.
Papers that "train on 414 scans" and report the validation pairs train on the subjects that they report.

Labels are the 35 structures, or 4 tissues (``label_set``): neurite's ``aligned_seg4``, else made of the 35
(``common.data.oasis_labels``). A small structure may be absent in a subject.

Reference: Marcus et al., Journal of Cognitive Neuroscience 19, 2007 (OASIS); Hoopes et al., IPMI 2021 (neurite-oasis);
Hering et al., Learn2Reg, IEEE TMI 42, 2023; Chen et al., TransMorph, Medical Image Analysis 82, 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..checks import known_name
from .decoded import MEMORY, DecodedPairs
from .layout import DatasetLayoutError, dataset_root
from .oasis_folder import LAYOUT, Subject, find_pairs, find_subjects, listed_pairs, number_and_split, pair_pickles
from .oasis_labels import LABEL_SETS, LABELS, label_set_name, tissues
from .oasis_phantom import PHANTOM
from .reading import read_case, read_displacement, read_image
from .volumes import check_shape, check_window, joined, parts_of, pickled_volumes

SPLITS = ("train", "validation", "test", "all")
ORIENTATION, SPACING, SPACING_RANGE = "LIA", (1.0, 1.0, 1.0), None  # mm
SPATIAL_SIZE = (160, 192, 224)  # of the network's window
# How inference reads a pair of images; what is not said here is as in training.
INFERENCE = {
    "align": "physical", "orientation": ORIENTATION, "spacing": SPACING, "spacing_range": SPACING_RANGE,
    "crop_center": "middle",
}  # fmt: skip


def root(dataset_dir: str | Path) -> Path:
    """Folder of the data set; "phantom" makes the phantom, once.

    Args:
        dataset_dir: see the module's layouts, or "phantom".

    Returns:
        The folder.

    Raises:
        DatasetLayoutError: where it is absent.
    """
    return dataset_root(dataset_dir, PHANTOM.folder, LAYOUT)


def split_of(subject: str) -> str:
    """Split of a subject by its number: up to 0394 train, to 0414 validation, beyond test; see the module.

    Args:
        subject: 'OASIS_0001', 'OASIS_OAS1_0001_MR1' or 'p_0001'.

    Returns:
        Name of the split.

    Raises:
        ValueError: for a name of another form.
    """
    return number_and_split(subject)[1]


def subjects(dataset_dir: str | Path, split: str = "all") -> list[str]:
    """Names (``OASIS_0001``, or as the layout has them) of the subjects of a split, sorted.

    Args:
        dataset_dir: see ``root``.
        split: one of ``SPLITS``; see ``split_of``.

    Returns:
        The names.

    Raises:
        DatasetLayoutError: when the folder is missing or holds no subject of the split.
        ValueError: for an unknown split.
    """
    folder = _folder(dataset_dir, split)
    paired = {subject.name for pair in pair_pickles(folder) for subject in pair}
    names = sorted(paired.union(subject.name for subject in find_subjects(folder)))
    found = [name for name in names if split in ("all", split_of(name))]
    if not found:
        raise DatasetLayoutError(f"split: no subject of {split!r} among the {len(names)} in {folder}; {LAYOUT}.")
    return found


def example_pair(dataset_dir: str | Path) -> tuple[Path, Path]:
    """Image files of the first validation pair.

    Args:
        dataset_dir: see ``root``.

    Returns:
        Paths of moving and fixed.

    Raises:
        DatasetLayoutError: as ``subjects``, and for pickles, which inference does not read.
    """
    first = datalist(dataset_dir, "validation")[0]
    moving, fixed = Path(first["moving_image"]), Path(first["fixed_image"])
    if moving == fixed:
        raise DatasetLayoutError(
            f"{moving} is no image file. Name two NIfTI files: --moving a.nii.gz --fixed b.nii.gz."
        )
    return moving, fixed


def datalist(
    dataset_dir: str | Path,
    split: str = "train",
    partners: int = 1,
    label_set: str | int | None = "35",
    pairs: str | Path | None = None,
) -> list[dict[str, Any]]:
    """The files of a split, a dictionary a pair, in the order of ``load_pairs``; none is read.

    Args:
        dataset_dir: see ``root``.
        split: see ``subjects``; "all" lists the pairs of every split.
        partners: of each training subject; see ``data.pairing.pair_names``. TransMorph's published training draws the
            fixed subject of each anew in each epoch: ``random_target`` of ``data.pairs.PairDataset``.
        label_set: "35" structures, "4" tissues, or None for no labels.
        pairs: file with a list of pairs to take instead (``oasis_folder.listed_pairs``), of any subjects of the set.

    Returns:
        Paths under ``moving_image``, ``fixed_image``; ``moving_label``, ``fixed_label`` where every subject of the
        list has labels; ``true_ddf`` where there is one for every pair; ``moving_part``, ``fixed_part``: 0 and 1, of
        pickles that hold a pair; ``subject``: the fixed one; ``case``: 'OASIS_0396_to_OASIS_0395'. JSON-serialisable.

    Raises:
        DatasetLayoutError: for missing folders or files.
        ValueError: for an unknown split or set of labels, or no partners.
    """
    labels = label_set_name(label_set)
    folder, names = _folder(dataset_dir, split), subjects(dataset_dir, split)
    listed = find_pairs(folder, names, partners) if pairs is None else listed_pairs(folder, pairs)
    kinds = {"4": ("tissues", "label"), "35": ("label",)}[labels] if labels else ()
    entries = []
    for moving, fixed in listed:
        entry = _files("moving", moving, kinds) | _files("fixed", fixed, kinds)
        entry |= {"subject": fixed.name, "case": f"{moving.name}_to_{fixed.name}"}
        truth = Path(fixed.files["image"]).with_name(f"{entry['case']}_ddf.nii.gz")
        entries.append(entry | ({"true_ddf": str(truth)} if truth.is_file() else {}))  # a phantom's
    optional = {key for entry in entries for key in entry if key.endswith(("label", "true_ddf"))}
    partial_keys = {key for key in optional if not all(key in entry for entry in entries)}
    return [{key: value for key, value in entry.items() if key not in partial_keys} for entry in entries]


def load_pairs(
    dataset_dir: str | Path,
    split: str = "train",
    spatial_size: Sequence[int] | None = None,
    partners: int = 1,
    label_set: str | int | None = "35",
    cache: str | Path = MEMORY,
    pairs: str | Path | None = None,
) -> Sequence[dict[str, Any]]:
    """Read a split, each volume once, and pair its subjects.

    The 394 training volumes take 11 GB decoded, their labels 3 GB: name a folder as ``cache`` where memory is less.

    Args:
        dataset_dir: see ``datalist``.
        split: see ``datalist``.
        spatial_size: of the network's window, three numbers; volumes that it would cut are an error. None: any.
        partners: see ``datalist``.
        label_set: see ``datalist``; labels are read where they are asked for.
        cache: "memory", or a folder for decoded volumes, see ``data.decoded``.
        pairs: see ``datalist``.

    Returns:
        A dict a pair, in memory a list of them, volumes shared between them. ``moving_image``, ``fixed_image``: float32
        ``(1, *S)``; ``moving_label``, ``fixed_label``: uint8 ``(1, *S)``, where asked for and present; ``centre``:
        float32 ``(3,)``, of the volume; ``subject``: the fixed one; ``case``: 'OASIS_0396_to_OASIS_0395'; ``spacing``:
        float32 ``(3,)``, mm; ``true_ddf``: float32 ``(3, *S)``, voxels, for a phantom's validation and test pairs.

    Raises:
        DatasetLayoutError: as ``datalist``, and for volumes of other values, or of another shape than the first.
        ValueError: as ``datalist``, and for a size that is smaller than the volumes.
    """
    entries = datalist(dataset_dir, split, partners, label_set, pairs)
    first = {"image": entries[0]["fixed_image"], "part": entries[0].get("fixed_part")}
    shape = list(read_volume(first)["image"].shape)
    check_window(shape[1:], spatial_size, dataset_dir)
    options = {"label_set": label_set_name(label_set), "shape": shape}
    decoded = DecodedPairs(entries, partial(parts_of, options=options), read_volume, joined, cache)
    return list(decoded) if str(cache) == MEMORY else decoded


def read_volume(part: Mapping[str, Any]) -> dict[str, Any]:
    """Decode a volume and its labels, or a true displacement.

    Args:
        part: ``image``, and what there is of ``label``: paths; ``part``: number in a pickle of a pair; ``label_set``
            of ``load_pairs``; ``shape``: that is expected; or ``true_ddf`` and ``image``: paths.

    Returns:
        ``image``, ``label``: ``(1, *S)``; ``spacing``: ``(3,)`` in mm; or ``true_ddf``: ``(3, *S)``, voxels.

    Raises:
        DatasetLayoutError: for files that are not as published.
    """
    if "true_ddf" in part:
        image = read_image(part["image"], ORIENTATION, SPACING, SPACING_RANGE)
        return {"true_ddf": read_displacement(part["true_ddf"], image, ORIENTATION, 3)}
    volume = _unpickled(part) if part["image"].endswith(".pkl") else _from_nifti(part)
    check_shape(volume["image"], part, ORIENTATION)
    if part.get("label_set") == "4" and "label" in volume and not part["label"].endswith("seg4.nii.gz"):
        volume["label"] = tissues(volume["label"])
    return volume


def _from_nifti(part: Mapping[str, Any]) -> dict[str, Any]:
    if "label" not in part:
        image = read_image(part["image"], ORIENTATION, SPACING, SPACING_RANGE)
        return {"image": image.array[None], "spacing": torch.tensor(image.spacing)}
    known = LABEL_SETS["4" if part["label"].endswith("seg4.nii.gz") else "35"]
    image, label = read_case(part["image"], part["label"], (0, *known.values()), orientation=ORIENTATION,
                             spacing=SPACING, spacing_range=SPACING_RANGE)  # fmt: skip
    return {"image": image.array[None], "label": label.array[None].byte(), "spacing": torch.tensor(image.spacing)}


def _unpickled(part: Mapping[str, Any]) -> dict[str, Any]:
    number = part.get("part")
    wanted = 2 if number is None else 4
    arrays = pickled_volumes(part["image"], wanted)
    image, label = (torch.tensor(array)[None] for array in arrays[(number or 0) :: wanted // 2])
    if not torch.isin(label, torch.arange(len(LABELS) + 1)).all():
        raise DatasetLayoutError(
            f"expected the labels 0 to {len(LABELS)} in {part['image']}, got {label.unique().tolist()[-4:]}; restore "
            "the published file."
        )
    volume = {"image": image.float().contiguous(), "spacing": torch.tensor(SPACING)}
    return volume | ({"label": label.byte().contiguous()} if "label" in part else {})


def _folder(dataset_dir: str | Path, split: str) -> Path:
    known_name("split", split, SPLITS)
    return root(dataset_dir)


def _files(role: str, subject: Subject, kinds: Sequence[str]) -> dict[str, Any]:
    label = next((subject.files[kind] for kind in kinds if kind in subject.files), None)
    files: dict[str, Any] = {f"{role}_image": subject.files["image"]}
    files |= {} if label is None else {f"{role}_label": label}
    return files if subject.pair is None else files | {f"{role}_part": subject.pair}
