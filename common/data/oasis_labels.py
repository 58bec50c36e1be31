# SPDX-License-Identifier: Apache-2.0
"""Labels of OASIS: 35 structures, and the four tissues that they make up."""

from __future__ import annotations

import torch

from ..checks import known_name

PAIRED_1 = (
    "cerebral_white_matter", "cerebral_cortex", "lateral_ventricle", "inferior_lateral_ventricle",
    "cerebellum_white_matter", "cerebellum_cortex", "thalamus", "caudate", "putamen", "pallidum",
)  # fmt: skip
PAIRED_2 = ("hippocampus", "amygdala", "accumbens", "ventral_dc", "vessel", "choroid_plexus")
MIDDLE = ("third_ventricle", "fourth_ventricle", "brain_stem")
NAMES = (
    *(f"left_{name}" for name in PAIRED_1), *MIDDLE, *(f"left_{name}" for name in PAIRED_2),
    *(f"right_{name}" for name in (*PAIRED_1, *PAIRED_2)),
)  # fmt: skip
LABELS = {name: value for value, name in enumerate(NAMES, start=1)}
TISSUES = {"cortex": 1, "subcortical_grey_matter": 2, "white_matter": 3, "csf": 4}
LABEL_SETS = {"35": LABELS, "4": TISSUES}

# The structures of each tissue; all others are CSF. The cerebellum's cortex counts as subcortical grey matter, the
# brain stem and the ventral DC as white matter.
_CORTEX = ("cerebral_cortex",)
_GREY = ("cerebellum_cortex", "thalamus", "caudate", "putamen", "pallidum", "hippocampus", "amygdala", "accumbens")
_WHITE = ("cerebral_white_matter", "cerebellum_white_matter", "brain_stem", "ventral_dc")


def tissue_of(name: str) -> str:
    """Tissue of a structure.

    Args:
        name: of ``LABELS``.

    Returns:
        A name of ``TISSUES``.
    """
    structure = name.removeprefix("left_").removeprefix("right_")
    if structure in _CORTEX:
        return "cortex"
    if structure in _GREY:
        return "subcortical_grey_matter"
    return "white_matter" if structure in _WHITE else "csf"


def tissues(label: torch.Tensor) -> torch.Tensor:
    """Label map of the four tissues.

    Args:
        label: of the 35 structures, whole numbers 0 to 35, any shape.

    Returns:
        uint8, of the same shape.
    """
    table = torch.zeros(len(LABELS) + 1, dtype=torch.uint8)
    for name, value in LABELS.items():
        table[value] = TISSUES[tissue_of(name)]
    return table[label.long()]


def label_set_name(label_set: str | int | None) -> str | None:
    """Name of a set of labels, from what a command line gives.

    Args:
        label_set: "35", "4" or the number; None for no labels.

    Returns:
        A key of ``LABEL_SETS``, or None.

    Raises:
        ValueError: for another.
    """
    return None if label_set is None else known_name("label_set", str(label_set), LABEL_SETS)
