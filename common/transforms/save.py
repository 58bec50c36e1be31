# SPDX-License-Identifier: Apache-2.0
"""Write the results of one registration."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from torch import Tensor

from ..io.fields import save_ddf
from ..io.images import Image, save_image, write_nifti
from ..runs.outputs import INFERENCE, replaced_set
from .picture import draw_registration

logger = logging.getLogger(__name__)


class SaveRegistrationd(Transform):
    """Write what ``RegistrationResultd`` computed, on the grid of fixed: all files or none, in place of earlier ones.

    ``ddf.nii.gz``: displacement in mm, LPS, as ITK and ANTs read it, from fixed to the moving file where that lies
    (it holds the translation of ``LoadPaird(align="centres")``); ``warped.nii.gz``: the moving image warped;
    ``jacobian.nii.gz``: Jacobian determinant, 2D in-plane for slices (the header's description says so);
    ``warped_label.nii.gz``, where there is a label, in the integer type of its file; ``registration.png``: the slice in
    the middle, with the network's window.

    Args:
        output_dir: folder to write in; created.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir).expanduser()

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Write the files and return the dictionary unchanged.

        Raises:
            ValueError: where ITK cannot express the grid of fixed (see ``common.io.fields.save_ddf``), or
                ``output_dir`` holds a file of these names that is not ours.
            OSError: naming ``output_dir``, where the disk is full; what was there before is unchanged.
        """
        logger.info("Writing the results to %s.", self.output_dir)
        with replaced_set(self.output_dir, INFERENCE) as folder:
            kind = self._write(folder, data)
        logger.info("Wrote the field, the warped image and the %s Jacobian to %s.", kind, self.output_dir)
        return dict(data)

    def _write(self, folder: Path, data: Mapping[str, Any]) -> str:
        fixed: Image = data["fixed_grid"]
        dims = len(data["crop_start"])
        # The field first: it is the file that a grid can make impossible, and then nothing is written.
        save_ddf(folder / "ddf.nii.gz", _whole_transform(data["ddf"], fixed, data["translation_mm"]), fixed)
        save_image(folder / "warped.nii.gz", data["pred"].as_subclass(Tensor)[0], fixed)
        determinant = data["jacobian_determinant"].numpy()
        kind = "2D in-plane" if dims == 2 else f"{dims}D"
        write_nifti(
            folder / "jacobian.nii.gz",
            determinant[..., None] if fixed.slice_axis else determinant,
            fixed,
            description=f"Jacobian determinant, {kind}",
        )
        if data.get("warped_label") is not None:
            label = data["warped_label"][0]
            save_image(folder / "warped_label.nii.gz", label, fixed, dtype=data["label_dtype"])
        draw_registration(folder / "registration.png", data)
        return kind


def _whole_transform(ddf: Tensor, fixed: Image, translation_mm: np.ndarray) -> Tensor:
    """Displacement and translation together, in voxels of fixed, (axes, *F)."""
    if not translation_mm.any():
        return ddf
    axes = len(ddf)
    translation = torch.from_numpy(np.linalg.inv(fixed.affine[:3, :3]) @ translation_mm)[:axes]
    return ddf + translation.to(ddf.dtype).reshape([-1] + [1] * axes)
