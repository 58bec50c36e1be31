# SPDX-License-Identifier: Apache-2.0
"""Labels of the preprocessed IXI: FreeSurfer's numbers, the classes that they become, and the groups of both sides."""

from __future__ import annotations

import torch

_SIDES = {
    "cerebral_white_matter": (2, 41), "cerebral_cortex": (3, 42), "lateral_ventricle": (4, 43),
    "inferior_lateral_ventricle": (5, 44), "cerebellum_white_matter": (7, 46), "cerebellum_cortex": (8, 47),
    "thalamus": (10, 49), "caudate": (11, 50), "putamen": (12, 51), "pallidum": (13, 52), "hippocampus": (17, 53),
    "amygdala": (18, 54), "accumbens": (26, 58), "ventral_dc": (28, 60), "vessel": (30, 62), "choroid_plexus": (31, 63),
}  # fmt: skip
_MIDDLE = {
    "third_ventricle": 14, "fourth_ventricle": 15, "brain_stem": 16, "csf": 24, "fifth_ventricle": 72,
    "white_matter_hypointensities": 77, "other_hypointensities": 80, "optic_chiasm": 85,
    "corpus_callosum_posterior": 251, "corpus_callosum_mid_posterior": 252, "corpus_callosum_central": 253,
    "corpus_callosum_mid_anterior": 254, "corpus_callosum_anterior": 255,
}  # fmt: skip
FREESURFER = _MIDDLE | {
    f"{side}_{name}": numbers[index] for index, side in enumerate(("left", "right")) for name, numbers in _SIDES.items()
}
# All classes: 1 to 45 in the order of FreeSurfer's numbers, 0 is what has none of them.
LABELS = {name: index for index, name in enumerate(sorted(FREESURFER, key=lambda name: FREESURFER[name]), start=1)}

# The structures that the papers evaluate: 13 of two sides and 4 in the middle.
_PAIRED_GROUPS = (
    "thalamus", "cerebellum_cortex", "cerebral_white_matter", "cerebellum_white_matter", "putamen", "ventral_dc",
    "pallidum", "caudate", "lateral_ventricle", "hippocampus", "amygdala", "cerebral_cortex", "choroid_plexus",
)  # fmt: skip
GROUPS = {name: [name] for name in ("brain_stem", "third_ventricle", "fourth_ventricle", "csf")} | {
    name: [f"left_{name}", f"right_{name}"] for name in _PAIRED_GROUPS
}
EVALUATED = {name: value for name, value in LABELS.items() if any(name in names for names in GROUPS.values())}


def classes(label: torch.Tensor) -> torch.Tensor:
    """Label map of the 46 classes, from one of FreeSurfer's numbers; numbers of no class count as background.

    Args:
        label: whole numbers 0 to 255, any shape.

    Returns:
        uint8, 0 to 45, of the same shape.
    """
    table = torch.zeros(256, dtype=torch.uint8)
    for name, value in LABELS.items():
        table[FREESURFER[name]] = value
    return table[label.long()]
