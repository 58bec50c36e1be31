# SPDX-License-Identifier: Apache-2.0
"""Where the files of OAI knees lie, see ``common.data.oai``."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from .layout import DatasetLayoutError
from .pairing import pair_names

LAYOUT = (
    "expected DIR/splits/{train,val,test}/pair_path_list.txt, lists as in the ICON repository, or "
    "DIR/images/NAME_image.nii.gz and NAME_label_all.nii.gz; request the images from the Osteoarthritis Initiative, "
    "nda.nih.gov/oai"
)
FOLDERS = {"train": "train", "validation": "val", "test": "test"}
ENDING, LABEL_ENDING = "_image.nii.gz", "_label_all.nii.gz"


Knee = dict[str, Path]  # its files, under "image" and "label"


def find_knees(base: Path, split: str) -> dict[str, Knee]:
    """The knees of a split.

    Args:
        base: folder of the data set.
        split: "train", "validation" or "test".

    Returns:
        By name, 'train_9000001_…', the files under ``image`` and ``label``; empty where there is none.

    Raises:
        DatasetLayoutError: for damaged lists, or files that are not there.
    """
    if (base / "splits").is_dir():
        return {f"{split}_{_name(knee)}": knee for row in _rows(base, split) for knee in row}
    folder = base / "images" if (base / "images").is_dir() else base
    images = [path for path in folder.glob(f"*{ENDING}") if _split_by_number(path.name) == split]
    knees = [{"image": path, "label": Path(str(path).removesuffix(ENDING) + LABEL_ENDING)} for path in sorted(images)]
    for knee in knees:
        if not knee["label"].is_file():
            raise DatasetLayoutError(f"{knee['image'].name}: there is no {knee['label'].name} beside it; {LAYOUT}.")
    return {f"{split}_{_name(knee)}": knee for knee in knees}


def listed_pairs(base: Path, split: str) -> list[tuple[str, str]]:
    """The pairs that validate or test: those of the list, in plain folders those of the rule.

    Args:
        base: folder of the data set.
        split: "validation" or "test".

    Returns:
        Names of moving and fixed, a tuple a pair.

    Raises:
        DatasetLayoutError: as ``find_knees``, and for a pair that is listed twice.
    """
    if not (base / "splits").is_dir():
        return pair_names(sorted(find_knees(base, split)), 1)
    pairs = [(f"{split}_{_name(moving)}", f"{split}_{_name(fixed)}") for moving, fixed in _rows(base, split)]
    twice = sorted({" ".join(pair) for pair in pairs if pairs.count(pair) > 1})
    if twice:
        raise DatasetLayoutError(
            f"splits: {FOLDERS[split]}/pair_path_list.txt lists a pair twice: {twice[0]}; keep one."
        )
    return pairs


def _name(knee: Knee) -> str:
    return knee["image"].name.removesuffix(ENDING)


def _split_by_number(name: str) -> str:
    number = re.match(r"\d+", name)
    return "validation" if number is not None and number[0][-1] in "49" else "train"


def _rows(base: Path, split: str) -> list[tuple[Knee, Knee]]:
    """Both knees of every row of a list."""
    listed = base / "splits" / FOLDERS[split] / "pair_path_list.txt"
    if not listed.is_file():
        return []
    status = listed.stat()
    return _read_rows(base, listed, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _read_rows(base: Path, listed: Path, changed: int) -> list[tuple[Knee, Knee]]:
    rows = []
    for number, line in enumerate(listed.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 4 or not all(word.endswith(ENDING) for word in words[:2]):
            raise DatasetLayoutError(
                f"{listed}, line {number}: expected imageA imageB segmentationA segmentationB, files *{ENDING} and "
                f"*{LABEL_ENDING}, got {line!r}; restore the list."
            )
        files = [base / word for word in words]  # an absolute path stays as it is
        missing = [str(path) for path in files if not path.is_file()]
        if missing:
            raise DatasetLayoutError(
                f"{listed}, line {number}: no file {missing[0]}. Paths are from dataset_dir, or absolute; correct the "
                "list, or put the images there."
            )
        rows.append(({"image": files[0], "label": files[2]}, {"image": files[1], "label": files[3]}))
    return rows
