# SPDX-License-Identifier: Apache-2.0
"""Images in memory are placed as their own software places them, and are checked as files are."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.io.images import load_image, load_label
from common.io.memory import as_given, as_image

SHAPE = (5, 6, 7)
AFFINE = np.array([[0.0, -2.0, 0.0, 40.0], [1.5, 0.0, 0.0, -60.0], [0.0, 0.0, 3.0, 10.0], [0.0, 0.0, 0.0, 1.0]])
VALUES = np.random.default_rng(0).random(SHAPE).astype(np.float32)


@pytest.mark.parametrize(
    "given",
    [
        (VALUES, AFFINE),
        (torch.from_numpy(VALUES), torch.from_numpy(AFFINE)),
        MetaTensor(torch.from_numpy(VALUES), affine=torch.from_numpy(AFFINE)),
        MetaTensor(torch.from_numpy(VALUES[None]), affine=torch.from_numpy(AFFINE)),
        nib.Nifti1Image(VALUES, AFFINE),
        nib.MGHImage(VALUES, AFFINE.astype(np.float32)),
    ],
    ids=["array", "tensor", "MetaTensor", "channel first", "NIfTI", "MGH"],
)
def test_values_and_place_are_kept(given):
    image = as_image(given, "moving")
    np.testing.assert_array_equal(image.array.numpy(), VALUES)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    np.testing.assert_allclose(image.spacing, [1.5, 2.0, 3.0], rtol=1e-6)
    again = as_image(as_given(image, given), "again")
    np.testing.assert_array_equal(again.array.numpy(), VALUES)
    np.testing.assert_allclose(again.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize("module", ["itk", "SimpleITK"])
def test_itks_images_lie_where_the_file_of_them_does(tmp_path, module):
    software = pytest.importorskip(module)
    nib.save(nib.Nifti1Image(VALUES, AFFINE), tmp_path / "a.nii.gz")
    read = (
        software.imread(str(tmp_path / "a.nii.gz"))
        if module == "itk"
        else software.ReadImage(str(tmp_path / "a.nii.gz"))
    )
    image, expected = as_image(read, "moving"), load_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(image.array, expected.array)
    np.testing.assert_allclose(image.affine, expected.affine, atol=1e-5)
    back = as_given(image, read)
    assert type(back).__name__ == type(read).__name__
    np.testing.assert_allclose(as_image(back, "again").affine, expected.affine, atol=1e-5)


def test_an_array_alone_has_voxels_of_a_millimetre_and_a_plane_is_two_dimensional():
    assert np.array_equal(as_image(VALUES, "moving").affine, np.eye(4))
    plane = as_image((VALUES[:, :, :1], AFFINE), "moving")
    assert plane.slice_axis and plane.array.shape == (5, 6)
    assert as_given(plane, VALUES).shape == (5, 6, 1)


def test_labels_stay_whole_numbers(tmp_path):
    values = (VALUES * 9).astype(np.uint16)
    label = as_image((values, AFFINE), "label", label=True)
    assert label.array.dtype == torch.int32 and label.stored == np.uint16
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "a.nii.gz")
    assert label.array.equal(load_label(tmp_path / "a.nii.gz").array)
    assert as_image(VALUES > 0.5, "label", label=True).array.max() == 1


def test_bad_input():
    constant, infinite, sheared, flat = np.ones(SHAPE), VALUES.copy(), AFFINE.copy(), AFFINE.copy()
    infinite[0, 0, 0] = np.inf
    sheared[0, 0], flat[:3, 1] = 1.0, 0
    for given, message in (
        ({"a": 1}, "expected a path, a nibabel, ITK or SimpleITK image"),
        (constant, "expected an image with contrast"),
        (infinite, "expected finite values"),
        (VALUES[0, 0], r"expected an image of shape .*\(7,\)"),
        (np.stack([VALUES, VALUES]), r"without channels"),
        ((VALUES, np.eye(3)), r"expected an affine \(4, 4\)"),
        ((VALUES, sheared), "orthogonal axes"),
        ((VALUES, flat), "invertible affine"),
    ):
        with pytest.raises(ValueError, match=f"fixed: .*{message}"):
            as_image(given, "fixed")
    with pytest.raises(ValueError, match="moving_label: expected whole numbers"):
        as_image(VALUES, "moving_label", label=True)
