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

from ..figures.panels import registration_panel
from ..io.fields import save_ddf
from ..io.images import Image, save_image, write_nifti
from ..runs.outputs import INFERENCE, replaced_set
from .intensity import clip_percentiles

logger = logging.getLogger(__name__)


class SaveRegistrationd(Transform):
    """Write what ``RegistrationResultd`` computed, on the grid of fixed: all files or none, in place of earlier ones.

    ``ddf.nii.gz``: displacement in mm, LPS, as ITK and ANTs read it, from fixed to the moving file where that lies
    (it holds the translation of ``LoadPaird(align="centres")``); ``warped.nii.gz``: the moving image warped;
    ``jacobian.nii.gz``: Jacobian determinant, 2D in-plane for slices (the header's description says so);
    ``warped_label.nii.gz``, where there is a label, in the integer type of its file; ``registration.png``: the middle
    slice, moving and fixed from their 1st to 99th percentile.

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
        with replaced_set(self.output_dir, INFERENCE) as folder:
            kind = self._write(folder, data)
        logger.info("Wrote the field, the warped image and the %s Jacobian to %s.", kind, self.output_dir)
        return dict(data)

    def _write(self, folder: Path, data: Mapping[str, Any]) -> str:
        fixed: Image = data["fixed_grid"]
        dims = data["ddf"].shape[0]
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
        _draw(folder / "registration.png", data, dims)
        return kind


def _whole_transform(ddf: Tensor, fixed: Image, translation_mm: np.ndarray) -> Tensor:
    """Displacement and translation together, in voxels of fixed, (axes of fixed, *S[, Z]) float64."""
    axes = fixed.array.dim()
    across = ddf.new_zeros(axes - len(ddf), *ddf.shape[1:])  # nothing is displaced across slices, ...
    translation = torch.from_numpy(np.linalg.inv(fixed.affine[:3, :3]) @ translation_mm)[:axes]  # ... but translated
    return torch.cat([ddf, across]).double() + translation.reshape([-1] + [1] * axes)


def _draw(path: Path, data: Mapping[str, Any], dims: int) -> None:
    arrays = {key: data[key].as_subclass(Tensor) for key in ("moving_image", "fixed_image", "pred", "ddf")}
    arrays["jacobian"] = data["jacobian_determinant"][None]
    for key in ("moving_label", "warped_label"):
        if data.get(key) is not None:
            arrays[key] = data[key]
    title, slices = "", arrays["ddf"].shape[3] if arrays["ddf"].dim() == 4 else 0
    if slices:
        arrays = {key: array[..., slices // 2] for key, array in arrays.items()}
        title = f"slice {slices // 2 + 1} of {slices}"
    # Two scanners' intensities have nothing to do with each other; the warped image keeps the moving image's scale.
    moving, fixed = data["moving_grid"].array, data["fixed_grid"].array
    registration_panel(
        path,
        _shown(arrays["moving_image"], moving),
        _shown(arrays["fixed_image"], fixed),
        _shown(arrays["pred"], moving),
        arrays["ddf"][:2],
        moving_label=arrays["moving_label"][0] if "moving_label" in arrays else None,
        warped_label=arrays["warped_label"][0] if "warped_label" in arrays else None,
        jacobian_determinant=arrays["jacobian"][0],
        title=title,
    )


def _shown(image: Tensor, source: Tensor) -> Tensor:
    # A few voxels far brighter than all tissue would leave the rest black.
    low, high = torch.aminmax(clip_percentiles(source))
    return ((image - low) / (high - low)).clamp(0, 1)[0]
