# SPDX-License-Identifier: Apache-2.0
import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.data.pairs import PairDataset
from common.io.images import load_image
from common.transforms.registration import CropPaird, LoadPaird, RegistrationResultd, input_files

AFFINE = np.diag([-1.5, -1.25, 8.0, 1.0])


def write(path, values, affine=AFFINE, dtype=np.float32):
    nib.save(nib.Nifti1Image(np.asarray(values).astype(dtype), affine), path)
    return str(path)


def blobs(shape, seed=0):
    """Smooth positive intensities with texture, so that shifts can be seen."""
    coarse = torch.rand(1, 1, *(n // 2 + 1 for n in shape), generator=torch.Generator().manual_seed(seed))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return 900 * torch.nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)[0, 0] + 50


@pytest.fixture
def files(tmp_path):
    shape = (37, 30, 5)
    return {
        "image": write(tmp_path / "moving.nii.gz", blobs(shape, 1)),
        "fixed": write(tmp_path / "fixed.nii.gz", blobs(shape, 2)),
    }


def test_input_files_are_both_images_or_the_example():
    def example(folder):
        return f"{folder}/ed.nii.gz", f"{folder}/es.nii.gz"

    assert input_files("a", "b", None, "phantom", example) == {"image": "a", "fixed": "b"}
    assert input_files("a", "b", "c", "phantom", example)["moving_label"] == "c"
    assert input_files(None, None, None, "x", example) == {"image": "x/ed.nii.gz", "fixed": "x/es.nii.gz"}
    for given in (("a", None, None), (None, "b", None), (None, None, "c")):
        with pytest.raises(ValueError, match="pass --moving FILE --fixed FILE"):
            input_files(*given, "phantom", example)


def test_loading_keeps_intensities_of_one_grid(files):
    item = LoadPaird()(files)
    for key, path in (("moving_image", files["image"]), ("fixed_image", files["fixed"])):
        torch.testing.assert_close(item[key][0], load_image(path).array, rtol=0, atol=0)
    assert "moving_label" not in item


def test_moving_stored_with_flipped_axes_is_brought_onto_the_fixed_grid(files, tmp_path, caplog):
    moving = nib.load(files["image"])
    label = (moving.get_fdata() > 500).astype(np.uint16) * 300
    flipped = AFFINE @ np.array([[-1, 0, 0, 36], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    item = LoadPaird()(files | {"moving_label": write(tmp_path / "label.nii.gz", label, dtype=np.uint16)})
    with caplog.at_level(logging.INFO):
        again = LoadPaird()(
            {
                "image": write(tmp_path / "flipped.nii.gz", moving.get_fdata()[::-1], flipped),
                "fixed": files["fixed"],
                "moving_label": write(tmp_path / "flipped_label.nii.gz", label[::-1], flipped, np.uint16),
            }
        )
    assert "The grids differ, resampling moving" in caplog.text
    torch.testing.assert_close(again["moving_image"], item["moving_image"], rtol=0, atol=1e-2)
    assert torch.equal(again["moving_label"], item["moving_label"]) and item["label_dtype"] == np.uint16


def test_loading_refuses_bad_files(files, tmp_path):
    shape = (37, 30, 5)
    values = blobs(shape).numpy()
    holed = values.copy()
    holed[3, 3, 3] = np.nan
    cases = {
        "nan.nii.gz": (holed, "finite values; .*nan.nii.gz holds 1 NaN"),
        "flat.nii.gz": (np.full(shape, 7.0), "flat.nii.gz is constant"),
        "cine.nii.gz": (np.stack([values] * 3, -1), r"cine.nii.gz has shape \(37, 30, 5, 3\)"),
        "slice.nii.gz": (values[..., 2], r"slice.nii.gz of shape \(37, 30\) and .*fixed.nii.gz of shape \(37, 30, 5\)"),
    }
    for name, (array, message) in cases.items():
        with pytest.raises(ValueError, match=message):
            LoadPaird()(files | {"image": write(tmp_path / name, array)})
    away = AFFINE.copy()
    away[0, 3] = 500
    with pytest.raises(ValueError, match="away.nii.gz and .*fixed.nii.gz do not overlap"):
        LoadPaird()(files | {"image": write(tmp_path / "away.nii.gz", values, away)})
    with pytest.raises(ValueError, match="moving_label: expected the grid of the moving image .*moving.nii.gz"):
        LoadPaird()(files | {"moving_label": write(tmp_path / "label.nii.gz", values[1:] > 500, dtype=np.uint8)})
    with pytest.raises(FileNotFoundError, match="absent.nii.gz does not exist"):
        LoadPaird()(files | {"image": str(tmp_path / "absent.nii.gz")})
    with pytest.raises(KeyError, match=r"\['fixed'\] is missing"):
        LoadPaird()({"image": files["image"]})


@pytest.mark.parametrize("size", [(16, 12), (48, 20), (64, 64)])
def test_network_sees_what_training_saw(files, size):
    item = CropPaird(size, [20.0, 13.0])(LoadPaird()(files))
    pairs = [
        {"moving_image": item["moving_image"][..., z], "fixed_image": item["fixed_image"][..., z]}
        | {"centre": torch.tensor([20.0, 13.0])}
        for z in range(5)
    ]
    dataset = PairDataset(pairs, size)
    for z in range(5):
        seen = dataset[z]
        expected = torch.cat([seen["moving_image"], seen["fixed_image"]])
        torch.testing.assert_close(item["image"][..., z].as_subclass(torch.Tensor), expected, rtol=0, atol=0)


def test_automatic_centre_lies_where_the_images_differ(tmp_path):
    fixed = blobs((170, 150))
    fixed[104:112, 40:48] = fixed.min()
    moving = fixed.clone()
    moving[104:112, 40:48] = fixed.max()
    item = {"image": "a", "moving_image": moving[None], "fixed_image": fixed[None]}
    item["fixed_grid"] = load_image(write(tmp_path / "fixed.nii.gz", fixed))
    start = CropPaird((20, 20))(item)["crop_start"]
    torch.testing.assert_close(start.float() + 9.5, torch.tensor([107.5, 43.5]), rtol=0, atol=1)


def test_crop_says_where_the_result_belongs(files):
    """What MONAI Label reads of the input when it restores and writes the result."""
    item = CropPaird((16, 16))(LoadPaird()(files))
    assert isinstance(item["image"], MetaTensor)
    assert list(item["image"].meta["spatial_shape"]) == [37, 30, 5]
    np.testing.assert_allclose(item["image"].meta["original_affine"], AFFINE)


@pytest.mark.parametrize("centre", [[37.0, 5.0], [-1.0, 5.0], [5.0], [5.0, 5.0, 5.0], "middle", [float("nan"), 2.0], 3])
def test_crop_refuses_a_centre_outside_the_image(files, centre):
    with pytest.raises(ValueError, match=r"crop_center: expected 'auto' or 2 voxel coordinates inside the image of"):
        CropPaird((16, 16), centre)(LoadPaird()(files))


def test_slices_without_contrast_are_named(files, tmp_path, caplog):
    values = nib.load(files["image"]).get_fdata()
    values[..., 3] = 5
    files["image"] = write(tmp_path / "gap.nii.gz", values)
    CropPaird((16, 16))(LoadPaird()(files))
    assert "constant in the crop of slice(s) [3]" in caplog.text


def test_constant_displacement_shifts_image_and_label_inside_the_crop(files, tmp_path, caplog):
    label = (nib.load(files["image"]).get_fdata() > 500) * 3
    files["moving_label"] = write(tmp_path / "label.nii.gz", label, dtype=np.uint8)
    item = CropPaird((16, 12), [18.0, 14.0])(LoadPaird()(files))
    pred = torch.zeros(2, 16, 12, 5)
    pred[0] = 2.0
    with caplog.at_level(logging.INFO):
        result = RegistrationResultd()(item | {"pred": pred})
    a, b = item["crop_start"].tolist()
    for got, source in (("pred", "moving_image"), ("warped_label", "moving_label")):
        expected = item[source][:, a + 2 : a + 18, b : b + 12].as_subclass(torch.Tensor)
        torch.testing.assert_close(
            result[got][:, a : a + 16, b : b + 12].as_subclass(torch.Tensor), expected, rtol=0, atol=2e-2
        )
    assert result["warped_label"].dtype == torch.int32
    assert result["ddf"].shape == (2, 37, 30, 5) and result["jacobian_determinant"].shape == (37, 30, 5)
    torch.testing.assert_close(result["jacobian_determinant"][a + 2 : a + 14, b + 2 : b + 10], torch.ones(12, 8, 5))
    assert "Largest displacement 2.00 voxels; foldings (2D in-plane |J| <= 0): 0 % of the crop" in caplog.text


def test_share_of_foldings_is_that_of_the_crop(files, caplog):
    item = CropPaird((16, 12), [18.0, 14.0])(LoadPaird()(files))
    pred = torch.zeros(2, 16, 12, 5)
    pred[0, 7, :, 0] = 3.0  # u' = -3/2 in the row after it: 12 voxels of 16 x 12 x 5
    with caplog.at_level(logging.INFO):
        RegistrationResultd()(item | {"pred": pred})
    # the displaced row goes on outside the crop, and folds there until it has decayed to 2 voxels
    assert "1.25 % of the crop, 18 voxels in all" in caplog.text


def test_results_refuse_a_diverged_network(files):
    item = CropPaird((16, 16))(LoadPaird()(files))
    with pytest.raises(FloatingPointError, match="pred: expected finite displacements"):
        RegistrationResultd()(item | {"pred": torch.full((2, 16, 16, 5), torch.nan)})
