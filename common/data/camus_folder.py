# SPDX-License-Identifier: Apache-2.0
"""Where a CAMUS copy has its patients, the files of each view, and the release's split."""

from __future__ import annotations

from pathlib import Path

from .layout import DatasetLayoutError, present, subject_folders

VIEWS = ("2CH", "4CH")
PARTITIONS = ("number", "official")
PHASES = {"moving": "ED", "fixed": "ES"}
SUBGROUPS = {"train": "training", "validation": "validation", "test": "testing"}
LAYOUT = (
    "expected DIR/database_nifti/patient0001/{patient0001_2CH_ED.nii.gz, patient0001_2CH_ED_gt.nii.gz, "
    "patient0001_2CH_ES.nii.gz, …, patient0001_4CH_ES_gt.nii.gz}, or the patient folders directly under DIR. Get the "
    "NIfTI release of CAMUS from CREATIS, Lyon, and unpack it there unchanged"
)


def patient_folders(base: Path) -> list[Path]:
    """List the patient folders of a CAMUS copy, by patient number.

    Args:
        base: where a copy of the data set lies.

    Returns:
        Their paths.

    Raises:
        DatasetLayoutError: when the folder holds no patient, or a patient twice.
    """
    parents = [folder / end for folder in _tops(base) for end in ("", "database_nifti")]
    return subject_folders(base, parents, r"patient\d{4}", LAYOUT)


def _tops(base: Path) -> list[Path]:
    return [base, base / "CAMUS_public"]


def view_files(folder: Path, view: str) -> dict[str, str]:
    """Files of one view of a patient, moving = ED and fixed = ES.

    Args:
        folder: of the patient.
        view: "2CH" or "4CH".

    Returns:
        Paths under ``moving_image``, ``fixed_image``, ``moving_label``, ``fixed_label`` and, of phantoms, ``true_ddf``,
        ``noise_level``; ``subject``: 'patient0001'; ``case``: 'patient0001_2CH'; ``group``: the image's quality, ''
        where not given.

    Raises:
        DatasetLayoutError: for a file that is missing.
    """
    case = f"{folder.name}_{view}"
    files = {}
    for role, phase in PHASES.items():
        for kind, end in (("image", ""), ("label", "_gt")):
            path = folder / f"{case}_{phase}{end}.nii.gz"
            if not path.is_file():
                raise DatasetLayoutError(
                    f"{folder.name}: no file {path}; a view or phase is missing, so that the patient has no pair of "
                    f"it. Restore the file, or leave such patients out with skip_invalid. {LAYOUT}."
                )
            files[f"{role}_{kind}"] = str(path)
    phantom = {"true_ddf": "ED_to_ES_ddf", "noise_level": "ES_noise"}
    files |= present({key: folder / f"{case}_{end}.nii.gz" for key, end in phantom.items()})
    return files | {"subject": folder.name, "case": case, "group": _info(folder / f"Info_{view}.cfg")}


def _info(path: Path) -> str:
    """The image's quality, as Info_2CH.cfg says it."""
    if not path.is_file():
        return ""
    lines = [line.partition(":") for line in path.read_bytes().decode("utf-8", errors="replace").splitlines()]
    return {key.strip().lstrip("\ufeff"): value.strip() for key, _, value in lines}.get("ImageQuality", "")


def official_split(base: Path, required: bool = False) -> dict[str, str]:
    """The release's own split, where it is at hand.

    Args:
        base: where a copy of the data set lies.
        required: its absence is an error.

    Returns:
        Split by patient; empty where there are no files.

    Raises:
        DatasetLayoutError: where the files are needed and absent, or name a patient twice.
    """
    split: dict[str, str] = {}
    folders = [top / "database_split" for top in _tops(base)]
    for name, part in SUBGROUPS.items():
        path = next((file for folder in folders if (file := folder / f"subgroup_{part}.txt").is_file()), None)
        if path is None:
            if required:
                raise DatasetLayoutError(
                    f"partition: the release's split needs {folders[0] / f'subgroup_{part}.txt'}, which is missing. "
                    "Add the release's folder database_split, or choose partition number and split train or validation."
                )
            continue
        for patient in path.read_text(encoding="utf-8-sig").split():
            if split.setdefault(patient, name) != name:
                raise DatasetLayoutError(f"partition: {patient} is in two of the files beside {path}; restore them.")
    return split
