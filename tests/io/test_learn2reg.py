# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import zoom

from common.io.learn2reg import matching_axes, read_disp, reoriented_field, write_disp

SHAPE = (5, 7, 6)


def displaced(ddf: np.ndarray) -> np.ndarray:
    """Where each voxel goes, (3, *S)."""
    return np.indices(ddf.shape[1:]) + ddf


@pytest.mark.parametrize("target", ["RAS", "LIA", "PSR", "ILP"])
@pytest.mark.parametrize("orientation", ["LIA", "RAS"])
def test_points_go_to_the_same_place_whatever_the_axes(orientation: str, target: str) -> None:
    """nibabel says where each voxel of the other orientation lies."""
    ddf = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    field = reoriented_field(ddf, orientation, target)
    codes = [nibabel.orientations.axcodes2ornt(tuple(letters)) for letters in (orientation, target)]
    transform = nibabel.orientations.ornt_transform(*codes)
    affine = nibabel.orientations.inv_ornt_aff(transform, SHAPE)  # voxels of the target to voxels of the original
    there = displaced(field.numpy()).reshape(3, -1)
    here = affine[:3, :3] @ np.indices(field.shape[1:]).reshape(3, -1) + affine[:3, 3:]
    original = displaced(ddf.numpy())[(slice(None), *here.round().astype(int))]
    np.testing.assert_allclose(affine[:3, :3] @ there + affine[:3, 3:], original, atol=1e-12)
    assert torch.equal(reoriented_field(field, target, orientation), ddf)
    assert field.shape[1:] == tuple(SHAPE[axis] for axis in matching_axes(orientation, target))


@pytest.mark.parametrize("form", ["nii.gz", "npz"])
def test_files_have_the_challenges_names_shapes_and_values(tmp_path: Path, form: str) -> None:
    ddf = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    path = write_disp(tmp_path, "0395", "0396", ddf, form)
    assert path == tmp_path / f"disp_0395_0396.{form}" and [path] == list(tmp_path.iterdir())
    disp = read_disp(path)
    assert disp.shape == (*SHAPE, 3) and disp.dtype == np.float32
    assert np.array_equal(disp, ddf.movedim(0, -1).numpy())
    raw = np.load(path)["arr_0"] if form == "npz" else nibabel.load(path).get_fdata()
    assert np.array_equal(raw, disp)


def test_the_form_of_2021_is_float16_at_half_resolution_in_voxels_of_the_whole_grid(tmp_path: Path) -> None:
    x, y, z = np.indices((16, 12, 20)) / 10
    ddf = torch.from_numpy(np.stack([2 + x, y * z - 1, 0.5 * x**2])).float()
    path = write_disp(tmp_path, "0395", "0396", ddf, "half")
    assert path.name == "disp_0395_0396.npz"
    raw = np.load(path)["arr_0"]
    assert raw.dtype == np.float16 and raw.shape == (3, 8, 6, 10)
    assert raw[0, 0, 0, 0] == 2 and raw[0, -1, 0, 0] == pytest.approx(3.5, abs=2e-3)
    as_evaluated = np.stack([zoom(part.astype(np.float32), 2, order=2) for part in raw])
    disp = read_disp(path)
    assert disp.shape == (16, 12, 20, 3) and np.array_equal(np.moveaxis(disp, -1, 0), as_evaluated)
    error = np.abs(as_evaluated - ddf.numpy())
    assert error[:, 4:-4, 4:-4, 4:-4].max() < 0.005 and error.max() < 0.1  # the splines are mirrored at the border


def test_bad_input_is_refused(tmp_path: Path) -> None:
    ddf = torch.zeros(3, *SHAPE)
    with pytest.raises(ValueError, match="form: expected one of nii.gz, npz, half, got 'nii'"):
        write_disp(tmp_path, "0395", "0396", ddf, "nii")
    for wrong in ("RAP", "RA", "RAX", "RRS"):
        with pytest.raises(ValueError, match=f"target: expected three axes as in 'RAS', got '{wrong}'"):
            reoriented_field(ddf, "LIA", wrong)
    with pytest.raises(ValueError, match=r"ddf: expected the shape \(3, X, Y, Z\), got \(1, 3, 5, 7, 6\)"):
        reoriented_field(ddf[None], "LIA", "RAS")
    np.savez(tmp_path / "disp.npz", np.zeros(SHAPE))
    with pytest.raises(ValueError, match=r"expected the shape \(X, Y, Z, 3\) in .*disp.npz, got \(5, 7, 6\)"):
        read_disp(tmp_path / "disp.npz")
