# SPDX-License-Identifier: Apache-2.0
"""Displacements at half resolution in float16, the form in which Learn2Reg 2021 took them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom


def halved(ddf: NDArray) -> NDArray[np.float16]:
    """A displacement at half resolution, by quadratic splines.

    Args:
        ddf: (d, *S), in voxels.

    Returns:
        (d, *T), T half of S, rounded as ``scipy.ndimage.zoom`` does, in voxels of the full grid.

    Reference:
        Chen et al., TransMorph, 2022 (code of the submission to Learn2Reg 2021).
    """
    return np.stack([zoom(np.asarray(part, np.float32), 0.5, order=2).astype(np.float16) for part in ddf])


def restored(half: NDArray, shape: Sequence[int]) -> NDArray[np.float32]:
    """The displacement on the full grid again, by quadratic splines, as the challenge's evaluation reads it.

    Args:
        half: (d, *T), as ``halved`` returns it.
        shape: S; the challenge's is 2 T.

    Returns:
        (d, *S), in voxels.
    """
    result = np.empty((len(half), *shape), np.float32)
    factors = [n / m for n, m in zip(shape, half.shape[1:], strict=True)]
    for part, values in zip(half, result, strict=True):
        zoom(part.astype(np.float32), factors, values, order=2)
    return result
