# SPDX-License-Identifier: Apache-2.0
"""The inverse that is saved: on the grid of moving, finer where interpolation between its voxels would miss the map."""

import nibabel as nib
import numpy as np
import pytest
import torch

from common.engines import saving
from common.engines.pair_metrics import inverse_error
from common.engines.result import Result
from common.engines.saving import inverse_on_moving
from common.io.composite import load_transform
from common.io.images import Image, load_image
from common.io.transforms import Transform
from common.spatial.integrate import integrate_svf

AFFINE = np.diag([-0.8, 1.3, 2.0, 1.0])
ACROSS = np.array([[0, 0, 1.2, 4.0], [1.0, 0, 0, -3.0], [0, -2.1, 0, 45.0], [0, 0, 0, 1.0]])


def image(shape: tuple[int, ...], affine: np.ndarray, slice_axis: bool = False) -> Image:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    return Image(values, affine, tuple(np.linalg.norm(affine[:3, : len(shape)], axis=0)), slice_axis=slice_axis)


def strong(shape: tuple[int, ...], strength: float) -> torch.Tensor:
    nodes = strength * torch.randn(1, len(shape), *[6] * len(shape), generator=torch.Generator().manual_seed(0))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    velocity = torch.nn.functional.interpolate(nodes, size=shape, mode=mode, align_corners=True)
    return integrate_svf(velocity)[0]


@pytest.mark.parametrize("shape", [(40, 44), (24, 28, 20)])
def test_a_strong_map_gets_a_finer_inverse_that_holds_between_the_voxels(shape):
    fixed = image(shape, AFFINE)
    moving = image(tuple(n - 2 for n in shape), AFFINE)
    transform = Transform(np.eye(4), strong(shape, 1.2), fixed)
    inverse = inverse_on_moving(transform, moving)
    assert tuple(inverse.grid.array.shape) == tuple(2 * n - 1 for n in moving.array.shape)
    coarse, fine = (inverse_error(transform, found, moving) for found in (transform.inverse_on(moving), inverse))
    assert coarse["q99"] > 0.05 and fine["mean"] < 0.02 and fine["q99"] < 0.6 * coarse["q99"]
    # Every second of its voxels is one of moving's.
    at = inverse.on(moving)
    np.testing.assert_allclose(at.ddf, transform.inverse_on(moving).ddf, rtol=0, atol=2e-3)
    assert np.allclose(inverse.grid.affine[:, 3], moving.affine[:, 3])


def test_a_smooth_map_keeps_the_grid_of_moving_and_so_does_a_large_one(monkeypatch):
    fixed = image((24, 28, 20), AFFINE)
    moving = image((22, 26, 18), AFFINE)
    inverse = inverse_on_moving(Transform(np.eye(4), strong((24, 28, 20), 0.1), fixed), moving)
    assert inverse.grid.array.shape == moving.array.shape
    monkeypatch.setattr(saving, "MOST_FINER", 43 * 51 * 35 - 1)
    inverse = inverse_on_moving(Transform(np.eye(4), strong((24, 28, 20), 1.2), fixed), moving)
    assert inverse.grid.array.shape == moving.array.shape
    assert inverse_on_moving(Transform(AFFINE, None, fixed), moving).ddf is None


def test_slices_get_no_voxels_between_them():
    """Registered one by one, and moving's axes lie in another order."""
    fixed = image((30, 32, 6), AFFINE)
    ddf = torch.zeros(3, 30, 32, 6)
    for number in range(6):
        ddf[:2, :, :, number] = strong((30, 32), 1.2 + 0.1 * number)
    moving = image((28, 6, 30), AFFINE[:, [0, 2, 1, 3]])
    inverse = inverse_on_moving(Transform(np.eye(4), ddf, fixed), moving)
    assert tuple(inverse.grid.array.shape) == (55, 6, 59)


@pytest.mark.parametrize("slice_axis", [False, True])
def test_the_inverse_result_warps_onto_the_grid_of_moving(tmp_path, slice_axis):
    shape = (30, 32) if slice_axis else (20, 22, 18)
    fixed, moving = image(shape, AFFINE, slice_axis), image(shape, AFFINE, slice_axis)
    labels = {"moving_label": moving._replace(array=(moving.array > 0.5).int()), "fixed_label": None}
    result = Result(Transform(np.eye(4), strong(shape, 1.2), fixed), moving, fixed, **labels).inverse()
    assert result.transform.grid.array.shape != moving.array.shape
    array = fixed.array[..., None] if slice_axis else fixed.array
    warped = result.warp(nib.Nifti1Image(array.numpy(), fixed.affine)).get_fdata(dtype=np.float32)
    expected = result.transform.on(moving).apply(fixed, "bilinear").array
    np.testing.assert_allclose(warped.reshape(shape), expected, rtol=0, atol=1e-5)
    label = nib.Nifti1Image((array > 0.5).numpy().astype(np.int16), fixed.affine)
    assert result.warp_label(label).shape == array.shape
    assert result.jacobian_determinant.shape == moving.array.shape
    folder = result.save(tmp_path / "back")
    assert load_image(folder / "warped.nii.gz").array.shape == moving.array.shape
    assert load_transform(folder / "forward.h5", moving if slice_axis else None).ddf is not None
    assert result.metrics()["inverse_error_voxels"]["mean"] < 0.05
