# SPDX-License-Identifier: Apache-2.0
"""What a registration of two images gives: it warps, inverts, measures and is saved."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import known_name
from ..io.images import Image
from ..io.landmarks import Landmarks
from ..io.memory import as_given, as_image
from ..io.transforms import Transform
from ..runs.outputs import REGISTRATION, replaced_set
from ..transforms.paste import determinant_of
from .pair_metrics import pair_metrics
from .saving import inverse_on_moving, warped_label, write_result

logger = logging.getLogger(__name__)
SPACES = ("fixed", "moving")


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """A registration of ``moving`` to ``fixed``.

    Attributes:
        transform: φ, from points of fixed to points of moving: warped(p) = moving(φ(p)). Its field lies on the grid of
            fixed; that of an ``inverse()`` on a finer one where that is needed.
        moving: image, on its own grid.
        fixed: image.
        moving_label: label map of moving, or None.
        fixed_label: label map of fixed, or None.
        moving_points: landmarks of moving, or None.
        fixed_points: landmarks of fixed, or None.
        maps: on the grid of fixed by name, what the method estimates, see ``engines.maps``.
        provenance: what registered, with which settings and files.
        item: what is drawn, see ``transforms.picture``; None draws nothing.
        stack: whether slices were registered one by one.
    """

    transform: Transform
    moving: Image
    fixed: Image
    moving_label: Image | None = None
    fixed_label: Image | None = None
    moving_points: Landmarks | None = None
    fixed_points: Landmarks | None = None
    maps: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    item: Mapping[Any, Any] | None = None
    stack: bool = False

    def warp(self, image: Any) -> Any:
        """Bring an image of moving's space onto the grid of fixed, linearly, sampled once.

        Args:
            image: a path, an array, a tensor or an image, see ``io.memory.as_image``.

        Returns:
            In the form of ``image``; 0 where it has no data.

        Raises:
            ValueError: as ``io.memory.as_image``.
        """
        return as_given(self.pull.apply(as_image(image, "image"), "bilinear"), image)

    def warp_label(self, label: Any, interpolation: str = "nearest") -> Any:
        """Bring a label map of moving's space onto the grid of fixed.

        Args:
            label: as of ``warp``.
            interpolation: "nearest", or "one_hot": each label is warped linearly by itself, and the largest holds.

        Returns:
            In the form of ``label``.

        Raises:
            ValueError: as ``warp``, or for an unknown interpolation.
        """
        return as_given(warped_label(self.pull, as_image(label, "label", label=True), interpolation), label)

    def warp_points(self, points_mm: np.ndarray, to: str = "fixed") -> np.ndarray:
        """Carry points from one image to the other.

        Args:
            points_mm: (N, 3) in mm, RAS.
            to: "fixed": points of moving, to where ``warp`` brings what lies there, φ⁻¹. "moving": points of fixed, to
                what they correspond to, φ.

        Returns:
            (N, 3) in mm, RAS.

        Raises:
            ValueError: for another space or shape.
        """
        known_name("to", to, SPACES)
        return (self.transform if to == "moving" else self._inverse).points(points_mm)

    def inverse(self) -> Result:
        """The registration of fixed to moving that undoes this one.

        Returns:
            Result whose fixed image is the moving one, on its grid; maps are left out.
        """
        return Result(
            self._inverse, self.fixed, self.moving, self.fixed_label, self.moving_label,
            self.fixed_points, self.moving_points, provenance={**self.provenance, "inverse": True}, stack=self.stack,
        )  # fmt: skip

    @property
    def pull(self) -> Transform:
        """``transform`` with its field on the grid of fixed, by which images come onto it."""
        return self.transform.on(self.fixed)

    @property
    def jacobian_determinant(self) -> Tensor:
        """Of id + ddf without the placement, on the grid of fixed; of stacks of slices 2D, in their plane."""
        if self.item is not None:
            return self.item["jacobian_determinant"]
        ddf, shape = self.pull.ddf, self.fixed.array.shape
        return torch.ones(shape) if ddf is None else determinant_of(ddf, len(shape))

    def metrics(self) -> dict[str, Any]:
        """How well the images agree before and after, and how regular the map is.

        Returns:
            See ``engines.pair_metrics.pair_metrics``.
        """
        kept = self.__dict__.get("_metrics_kept")
        if kept is None:
            kept = self.__dict__["_metrics_kept"] = pair_metrics(self, self._inverse)
        return kept

    def save(self, folder: str | Path, interpolation: str = "nearest") -> Path:
        """Write the files that docs/conventions.md lists, all of them or none.

        Args:
            folder: created; an earlier registration in it is replaced.
            interpolation: of the warped label, see ``warp_label``.

        Returns:
            The folder.

        Raises:
            ValueError: where the folder cannot be written to, or holds files of these names that are not ours.
        """
        folder = Path(folder).expanduser()
        logger.info("Writing the results to %s.", folder)
        with replaced_set(folder, REGISTRATION) as place:
            write_result(place, self, self._inverse, interpolation)
        logger.info("Wrote %s.", folder)
        return folder

    @property
    def _inverse(self) -> Transform:
        kept = self.__dict__.get("_inverse_kept")
        if kept is None:
            logger.info("Inverting the transform.")
            kept = inverse_on_moving(self.transform, self.moving)
            self.__dict__["_inverse_kept"] = kept
        return kept
