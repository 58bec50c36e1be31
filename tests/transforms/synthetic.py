# SPDX-License-Identifier: Apache-2.0
"""Images in files that the suites of transforms share."""

import nibabel as nib
import numpy as np
import torch

from common.io.resampling import nearest_values, points_in, sampled_onto

AFFINE = np.diag([1.5, 1.25, 8.0, 1.0])


def write(path, values, affine=AFFINE, dtype=np.float32):
    nib.save(nib.Nifti1Image(np.asarray(values).astype(dtype), affine), path)
    return str(path)


def blobs(shape, seed=0):
    """Smooth positive intensities with texture, so that shifts can be seen."""
    coarse = torch.rand(1, 1, *(n // 2 + 1 for n in shape), generator=torch.Generator().manual_seed(seed))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return 900 * torch.nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)[0, 0] + 50


def seen(item, role):
    """Moving or fixed on the whole working grid, (1, *S[, Z])."""
    pair = item["pair"]
    image = item["transform"].placed(pair.moving) if role == "moving" else pair.fixed
    return sampled_onto(image, pair.working)[0][None]


def seen_label(item):
    """The label of moving on the whole working grid, undeformed, (1, *S[, Z])."""
    working, label = item["pair"].working, item["transform"].placed(item["pair"].label)
    still = torch.zeros(working.array.dim(), *working.array.shape)
    return nearest_values(label, points_in(label, working, still))[None]
