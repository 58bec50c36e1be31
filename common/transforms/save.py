# SPDX-License-Identifier: Apache-2.0
"""Write the results of one registration."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.transforms import MapTransform

from ..io.composite import save_transform
from ..io.images import save_image, write_nifti
from ..runs.outputs import INFERENCE, replaced_set
from .loading import Pair
from .picture import draw_registration

logger = logging.getLogger(__name__)

# What the headers say of each of ``runs.outputs.MAPS``.
DESCRIPTIONS = {
    "score": "Score in [0, 1], 0 outside the network's window",
    "noise_deviation": "Noise deviation, intensities scaled to [0, 1] in the window; 0 outside",
    "weight": "Data weight, 0 outside the network's window",
    "weight_volume": "Weight of the smoothness in [0, 1], 0 outside the network's window",
    "displacement_deviation": "Standard deviation of the displacement in mm, 0 outside the window",
}


class SaveRegistrationd(MapTransform):
    """Write what ``RegistrationResultd`` computed, on the grid of fixed: all files or none, in place of earlier ones.

    ``ddf.nii.gz``: ``transform`` in one field in mm, LPS, as ITK and ANTs read it, from fixed to the moving file where
    that lies: it holds the placement; ``warped.nii.gz``: the moving image warped;
    ``jacobian.nii.gz``: Jacobian determinant, 2D in-plane for slices (the header's description says so);
    ``warped_label.nii.gz``, where there is a label, in the integer type of its file; ``registration.png``: the slice in
    the middle, with the network's window; and what there is of ``maps``, see ``DESCRIPTIONS`` and ``engines.maps``.

    Args:
        output_dir: folder to write in; created.
    """

    def __init__(self, output_dir: str | Path) -> None:
        super().__init__("warped_image")
        self.output_dir = Path(output_dir).expanduser()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
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

    def _write(self, folder: Path, data: Mapping[Hashable, Any]) -> str:
        pair: Pair = data["pair"]
        fixed, dims = pair.fixed, len(pair.start)
        # The field first: it is the file that a grid can make impossible, and then nothing is written.
        save_transform(folder / "ddf.nii.gz", data["transform"])
        save_image(folder / "warped.nii.gz", data["warped_image"][0], fixed)
        kind = "2D in-plane" if dims == 2 else f"{dims}D"
        scalars = {"jacobian": (data["jacobian_determinant"], f"Jacobian determinant, {kind}")}
        scalars |= {name: (values, DESCRIPTIONS[name]) for name, values in data.get("maps", {}).items()}
        for name, (values, description) in scalars.items():
            array = values.numpy()
            stored = array[..., None] if fixed.slice_axis else array
            write_nifti(folder / f"{name}.nii.gz", stored, fixed, description=description)
        if pair.label is not None:
            save_image(folder / "warped_label.nii.gz", data["warped_label"][0], fixed, dtype=pair.label.stored)
        draw_registration(folder / "registration.png", data)
        return kind
