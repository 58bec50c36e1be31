# SPDX-License-Identifier: Apache-2.0
"""Photographs and drawn masks in the formats of pictures: TIFF, GIF, PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture
from PIL import UnidentifiedImageError
from torch import Tensor

from .layout import DatasetLayoutError

GREEN = 1  # of red, green, blue: the channel in which the retina's vessels stand out most
DAMAGED = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError)  # what pillow raises for such files


def read_picture(path: str | Path, wanted: str) -> Tensor:
    """Grey values of a picture of 8 bits; of one in colour the green channel.

    Args:
        path: the file.
        wanted: what errors call the picture.

    Returns:
        ``(X, Y)`` float32: X runs to the right, Y downwards.

    Raises:
        DatasetLayoutError: for a file that is missing, no picture, damaged, or has several frames.
    """
    try:
        with Picture.open(path) as picture:
            frames = getattr(picture, "n_frames", 1)
            if frames > 1:
                raise ValueError(f"it has {frames} frames")
            values = np.asarray(picture.convert("RGB"))[..., GREEN]  # of grey ones all channels are the same
    except FileNotFoundError as error:
        raise DatasetLayoutError(f"expected {wanted} in {path}, there is no such file; restore it.") from error
    except DAMAGED as error:
        raise DatasetLayoutError(
            f"expected {wanted}, one TIFF, GIF or PNG picture, in {path}, which cannot be read as one: {error}. "
            "Restore it from the archive, or get it anew."
        ) from error
    return torch.from_numpy(np.ascontiguousarray(values.T, dtype=np.float32))


def read_mask(path: str | Path, wanted: str) -> Tensor:
    """A picture of two values, the larger one inside.

    Args:
        path: the file.
        wanted: what errors call the picture.

    Returns:
        ``(X, Y)`` float32, 1 inside and 0 outside.

    Raises:
        DatasetLayoutError: as ``read_picture``, and for another number of values.
    """
    values = read_picture(path, wanted)
    found = values.unique()
    if len(found) != 2:
        raise DatasetLayoutError(
            f"expected {wanted}, a picture of two values, in {path}, got {len(found)}: {found[:8].tolist()}; restore "
            "the published file."
        )
    return (values == found[1]).float()
