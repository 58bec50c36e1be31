# SPDX-License-Identifier: Apache-2.0
"""Where the files of COPDGene lie, see ``common.data.copdgene``."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from .copdgene_phantom import DISPLACEMENT
from .layout import DatasetLayoutError, present

LAYOUT = (
    "expected DIR/splits/train.txt and DIR/NAME/NAME_{INSP,EXP}_STD*_COPD_{img,label}.nii.gz (COPDGene; request it "
    "from dbGaP, phs000179), or DIR/copd1, … or DIR/Case1Pack, … (DIR-Lab; request them from dir-lab.com)"
)
PHASES = {"moving": "EXP", "fixed": "INSP"}
LISTS = {"train": "train.txt", "validation": "test.txt"}
HELD_OUT = 10  # without lists one name of so many is validation


def find_pairs(base: Path, split: str) -> list[dict[str, Any]]:
    """The pairs of COPDGene in a split.

    Args:
        base: folder of the data set.
        split: "train" or "validation".

    Returns:
        A dictionary a pair, by name, as ``copdgene.datalist`` returns; empty where there is none.

    Raises:
        DatasetLayoutError: for a listed subject that lacks an image, or a subject that has two of a kind.
    """
    return [_files(base, split, name) for name in _names(base, split)]


def _names(base: Path, split: str) -> list[str]:
    if (base / "splits").is_dir():
        listed = base / "splits" / LISTS[split]
        if not listed.is_file():
            raise DatasetLayoutError(f"dataset_dir: no {LISTS[split]} in {str(base / 'splits')!r}; {LAYOUT}.")
        return sorted({line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()})
    folders = [path.name for path in base.iterdir() if path.is_dir() and any(path.glob(f"{path.name}_INSP_STD*img*"))]
    held_out = {name for name in folders if int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT == 0}
    return sorted(name for name in folders if (name in held_out) == (split == "validation"))


def _files(base: Path, split: str, name: str) -> dict[str, Any]:
    if not re.fullmatch(r"[\w-]+", name):
        raise DatasetLayoutError(f"splits: expected names of letters, digits and hyphens, got {name!r}; mend the list.")
    files: dict[str, Path] = {}
    for role, phase in PHASES.items():
        for key, ending in (("image", "img"), ("label", "label")):
            found = sorted((base / name).glob(f"{name}_{phase}_STD*_COPD_{ending}.nii.gz"))
            if len(found) > 1 or (key == "image" and not found):
                raise DatasetLayoutError(
                    f"{name}: expected one file {name}_{phase}_STD*_COPD_{ending}.nii.gz in {base / name}, got "
                    f"{[path.name for path in found]}; {LAYOUT}."
                )
            files |= {f"{role}_{key}": path for path in found}
    files["true_ddf"] = base / name / f"{name}_{DISPLACEMENT}.nii.gz"  # a phantom's
    subject = f"{split}_{name}"
    return present(files) | {"subject": subject, "case": subject}
