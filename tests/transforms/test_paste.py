# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from common.spatial.jacobian import jacobian_determinant
from common.transforms.paste import from_stack, paste_field, to_stack


def smooth_field(size, seed, amplitude):
    coarse = torch.randn(2, len(size), *[4] * len(size), generator=torch.Generator().manual_seed(seed))
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return amplitude * torch.nn.functional.interpolate(coarse, size=size, mode=mode, align_corners=True)


@pytest.mark.parametrize(
    ("size", "start", "shape"),
    [((16, 20), (10, 5), (50, 41)), ((32, 32), (-6, 3), (20, 60)), ((8, 12, 10), (4, -2, 20), (30, 8, 45))],
)
def test_pasted_field_is_unchanged_inside_and_zero_far_away(size, start, shape):
    crop = smooth_field(size, 3, 1.0)
    full = paste_field(crop, start, shape, falloff=8)
    assert full.shape == (2, len(size), *shape)
    reach = max(8, np.pi * float(crop.norm(dim=1).max()))
    grid = torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij")
    far = torch.zeros(shape, dtype=torch.bool)
    for axis, index in enumerate(grid):
        far |= (index < start[axis] - reach) | (index > start[axis] + size[axis] - 1 + reach)
    assert far.any() and (full[:, :, far] == 0).all()
    inside = [(max(s, 0), min(s + w, n)) for s, w, n in zip(start, size, shape, strict=True)]
    pasted = full[(..., *(slice(a, b) for a, b in inside))]
    kept = crop[(..., *(slice(a - s, b - s) for (a, b), s in zip(inside, start, strict=True)))]
    torch.testing.assert_close(pasted, kept, rtol=0, atol=0)


@pytest.mark.parametrize("direction", [(9.0, 0.0), (-9.0, 0.0), (0.0, 9.0), (6.0, -7.0), (-7.0, -7.0), (2.0, 1.0)])
def test_constant_crop_displacement_does_not_fold_at_the_seam(direction):
    crop = torch.tensor(direction).reshape(1, 2, 1, 1).expand(1, 2, 24, 20)
    determinant = jacobian_determinant(paste_field(crop, (30, 35), (90, 88)))
    assert determinant.min() > 0.3  # a hard cut would give 1 - 9/2
    cut = torch.zeros(1, 2, 90, 88)
    cut[:, :, 30:54, 35:55] = crop
    assert determinant.min() > jacobian_determinant(cut).min()


@pytest.mark.parametrize("seed", range(5))
def test_smooth_field_with_displaced_border_does_not_fold_at_the_seam(seed):
    crop = smooth_field((40, 48), seed, 2.0)
    assert jacobian_determinant(crop).min() > 0
    assert jacobian_determinant(paste_field(crop, (20, 20), (90, 84))).min() > 0


def test_paste_refuses_a_crop_beside_the_image():
    with pytest.raises(ValueError, match=r"start: expected a crop of \(4, 4\) that meets the image \(10, 10\)"):
        paste_field(torch.zeros(1, 2, 4, 4), (12, 0), (10, 10))


def test_stack_and_back_are_inverse():
    for shape, count in (((2, 7, 5), 1), ((2, 7, 5, 3), 3)):
        image = torch.rand(shape)
        stack = to_stack(image, 2)
        assert stack.shape == (count, 2, 7, 5)
        torch.testing.assert_close(from_stack(stack, sliced=len(shape) == 4), image, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"expected 2 axes, or 3 for a stack of slices, got the shape \(4, 4, 4, 4\)"):
        to_stack(torch.zeros(1, 4, 4, 4, 4), 2)
