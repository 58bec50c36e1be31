# SPDX-License-Identifier: Apache-2.0
"""What MONAI Label and MONAI Deploy return of a registration."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from ..io.images import storage_type
from .loading import Pair
from .served import answers_client

RESULTS = {"image": "warped_image", "label": "warped_label"}


class Answerd(MapTransform):
    """Put the result that is asked for under ``pred``, the key that platforms return; the last of postprocessing.

    ``answer`` of the item chooses: "image" (also where it is absent or ""), the warped moving image, float32; "label",
    its warped label map, in the type of ``warped_label.nii.gz``. ``pred`` becomes (1, X, Y, Z), for 2D images
    (1, X, Y, 1): MONAI Label drops the channel of arrays of more than three axes alone. Nothing else changes: what is
    written to files comes from the named results.
    """

    def __init__(self) -> None:
        super().__init__("pred")

    @answers_client
    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the dictionary with the answer.

        Raises:
            ValueError: for an unknown answer, a label where none was given, or ``result_dtype`` of MONAI Label that
                does not hold the label's values.
        """
        pair: Pair = data["pair"]
        answer = data.get("answer") or "image"
        if answer not in RESULTS:
            raise ValueError(f"answer: expected one of {list(RESULTS)}, got {answer!r}.")
        if answer == "label" and pair.label is None:
            raise ValueError(
                "answer: 'label' is the label map of moving, warped, and there is none; pass its path as moving_label."
            )
        result: Tensor = data[RESULTS[answer]]
        if answer == "label" and pair.label is not None:
            values = result.numpy()
            _check_holds(data.get("result_dtype"), values)
            kind = storage_type(values) if pair.label.stored is None else pair.label.stored
            result = torch.from_numpy(values.astype(kind))
        flat = result.dim() == 3
        affine = torch.from_numpy(pair.fixed.affine)
        return {**data, "pred": MetaTensor(result[..., None] if flat else result, affine=affine)}


def _check_holds(dtype: Any, label: np.ndarray) -> None:
    """MONAI Label casts without a check, and 3D Slicer asks for uint8: 300 would come as 44."""
    if dtype is not None and not np.array_equal(label.astype(dtype), label):
        raise ValueError(
            f"result_dtype: expected a type that holds the label's values, {label.min()} to {label.max()}, got "
            f"{np.dtype(dtype)}; ask for int32, or number the labels anew."
        )
