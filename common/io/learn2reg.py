# SPDX-License-Identifier: Apache-2.0
"""Displacements as the Learn2Reg challenge takes them: ``disp_FIXED_MOVING``, (X, Y, Z, 3) in voxels.

The array lies along the axes of the images' own files, component i along array axis i, and warped(x) =
moving(x + disp(x)): as the ddf here, but for axes that a data set's reader has brought to another orientation. The form
"half" is that of 2021: (3, X/2, Y/2, Z/2) float16, in voxels of the whole grid all the same.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..atomic import atomic_path
from ..checks import known_name
from ..spatial.half_resolution import halved, restored
from .nifti import open_nifti, read_values

FORMS = ("nii.gz", "npz", "half")
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


def matching_axes(orientation: str, target: str) -> list[int]:
    """Which axis of an orientation lies along each axis of another, in either direction.

    Args:
        orientation: where axes point, as in "LIA".
        target: where those of the result point, as in "RAS".

    Returns:
        An axis of ``orientation`` for each of ``target``.

    Raises:
        ValueError: for names that are not three axes.
    """
    for name, letters in (("orientation", orientation), ("target", target)):
        if sorted(min(letter, OPPOSITE.get(letter, "")) for letter in letters) != ["A", "I", "L"]:
            raise ValueError(f"{name}: expected three axes as in 'RAS', got {letters!r}.")
    return [next(i for i, own in enumerate(orientation) if own in (letter, OPPOSITE[letter])) for letter in target]


def reoriented_field(ddf: Tensor, orientation: str, target: str) -> Tensor:
    """A displacement in voxels on a grid of other axes over the same voxels.

    Args:
        ddf: (3, X, Y, Z), component i along array axis i.
        orientation: where these axes point, as in "LIA".
        target: where those of the result point, as in "RAS".

    Returns:
        (3, *S) along ``target``.

    Raises:
        ValueError: for a field of another shape, or names that are not three axes.
    """
    axes = matching_axes(orientation, target)
    if ddf.dim() != 4 or len(ddf) != 3:
        raise ValueError(f"ddf: expected the shape (3, X, Y, Z), got {tuple(ddf.shape)}; pass one case.")
    turned = [i for i, axis in enumerate(axes) if orientation[axis] != target[i]]
    field = ddf[axes].permute(0, *(axis + 1 for axis in axes)).flip([axis + 1 for axis in turned])
    signs = torch.tensor([-1.0 if axis in turned else 1.0 for axis in range(3)])
    return field * signs.to(field).reshape(3, 1, 1, 1)


def write_disp(folder: str | Path, fixed: str, moving: str, ddf: Tensor, form: str = "nii.gz") -> Path:
    """Write ``disp_FIXED_MOVING.nii.gz`` or ``.npz``: float32, and of the form "half" float16 at half resolution.

    Args:
        folder: to write in.
        fixed: number of the fixed image, "0395".
        moving: of the moving one.
        ddf: (3, X, Y, Z) in voxels, along the axes of the images' files.
        form: one of ``FORMS``.

    Returns:
        Path of the file.

    Raises:
        ValueError: for another form.

    Reference:
        Hering et al., Learn2Reg, IEEE TMI 42, 2023, and its submission instructions.
    """
    known_name("form", form, FORMS)
    field = ddf.detach().cpu().float().numpy()
    disp = halved(field) if form == "half" else np.ascontiguousarray(np.moveaxis(field, 0, -1))
    path = Path(folder) / f"disp_{fixed}_{moving}.{suffix(form)}"
    with atomic_path(path) as temporary:
        if form == "nii.gz":
            nib.save(nib.Nifti1Image(disp, np.eye(4)), temporary)
        else:
            with temporary.open("wb") as stream:
                np.savez_compressed(stream, disp)
    return path


def suffix(form: str) -> str:
    """What the names of a form's files end in.

    Args:
        form: one of ``FORMS``.

    Returns:
        "nii.gz" or "npz".
    """
    return "npz" if form == "half" else form


def read_disp(path: str | Path) -> NDArray:
    """Read such a file; one of half resolution on twice its grid, as the challenge does.

    Args:
        path: of the file.

    Returns:
        (X, Y, Z, 3) in voxels.

    Raises:
        ValueError: for an array of another shape.
    """
    if str(path).endswith(".npz"):
        with np.load(path, allow_pickle=False) as arrays:
            disp = arrays["arr_0"]
        if disp.ndim == 4 and len(disp) == 3 and disp.dtype == np.float16:
            disp = np.moveaxis(restored(disp, [2 * size for size in disp.shape[1:]]), 0, -1)
    else:
        disp = read_values(open_nifti(path, "displacement"), path, "displacement")
    if disp.ndim != 4 or disp.shape[-1] != 3:
        raise ValueError(f"displacement: expected the shape (X, Y, Z, 3) in {path}, got {disp.shape}.")
    return disp
