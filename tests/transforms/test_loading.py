# SPDX-License-Identifier: Apache-2.0
import logging

import nibabel as nib
import numpy as np
import pytest
import torch

from common.io.images import load_image
from common.transforms.crop import centre_on_grid
from common.transforms.loading import LoadPaird
from tests.transforms.synthetic import AFFINE, blobs, seen, seen_label, write


def test_loading_keeps_intensities_of_one_grid(files):
    item = LoadPaird(2)(files)
    for role, path in (("moving", files["image"]), ("fixed", files["fixed"])):
        torch.testing.assert_close(seen(item, role)[0], load_image(path).array, rtol=0, atol=0)
    assert item["pair"].label is None and item["transform"].ddf is None


def test_moving_stored_with_flipped_axes_is_brought_onto_the_fixed_grid(files, tmp_path):
    moving = nib.load(files["image"])
    label = (moving.get_fdata() > 500).astype(np.uint16) * 300
    flipped = AFFINE @ np.array([[-1, 0, 0, 36], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    item = LoadPaird(2)(files | {"moving_label": write(tmp_path / "label.nii.gz", label, dtype=np.uint16)})
    again = LoadPaird(2)(
        {
            "image": write(tmp_path / "flipped.nii.gz", moving.get_fdata()[::-1], flipped),
            "fixed": files["fixed"],
            "moving_label": write(tmp_path / "flipped_label.nii.gz", label[::-1], flipped, np.uint16),
        }
    )
    assert torch.equal(seen(again, "moving"), seen(item, "moving"))
    assert torch.equal(seen_label(again), seen_label(item)) and item["pair"].label.stored == np.uint16


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
            LoadPaird(2)(files | {"image": write(tmp_path / name, array)})
    away = AFFINE.copy()
    away[0, 3] = 500
    with pytest.raises(ValueError, match="away.nii.gz and .*fixed.nii.gz do not overlap"):
        LoadPaird(2)(files | {"image": write(tmp_path / "away.nii.gz", values, away)})
    with pytest.raises(
        ValueError, match="moving_label: expected a label map that covers the moving image, .*label.nii"
    ):
        LoadPaird(2)(files | {"moving_label": write(tmp_path / "label.nii.gz", values[2:] > 500, dtype=np.uint8)})
    with pytest.raises(ValueError, match="moving_label: expected as many axes as moving"):
        LoadPaird(2)(files | {"moving_label": write(tmp_path / "flat.nii.gz", values[..., 2] > 500, dtype=np.uint8)})
    with pytest.raises(FileNotFoundError, match="absent.nii.gz does not exist"):
        LoadPaird(2)(files | {"image": str(tmp_path / "absent.nii.gz")})


def laid(image, grid):
    """On a working grid as for training; 0 outside the image."""
    return centre_on_grid(image, grid, label=True)


@pytest.mark.parametrize("m, n", [(9, 12), (12, 9), (10, 12), (9, 13), (15, 10)])
def test_equal_voxels_are_laid_centre_on_centre_without_interpolation(tmp_path, caplog, m, n):
    """As training lays them, for every parity of the shapes, and wherever the headers put the two images."""
    affine = np.array([[1.5, 0.0, 0.0, 40.0], [0.0, 1.25, 0.0, -7.0], [0.0, 0.0, 2.0, 3.0], [0.0, 0.0, 0.0, 1.0]])
    away = affine.copy()
    away[:3, 3] = [-300.0, 55.5, 12.3]
    files = {
        "image": write(tmp_path / "moving.nii.gz", blobs((m, m + 1, 7), 1), away),
        "fixed": write(tmp_path / "fixed.nii.gz", blobs((n, n + 2, 8), 2), affine),
    }
    with caplog.at_level(logging.INFO):
        item = LoadPaird(3, "centres")(files)
    grid = (20, 20, 12)
    expected = laid(load_image(files["image"]).array[None], grid) * laid(torch.ones(1, n, n + 2, 8), grid)
    torch.testing.assert_close(laid(seen(item, "moving"), grid), expected, rtol=1e-6, atol=1e-6)
    # within half a voxel, the largest of which is 2 mm
    middles = [a @ [*(k - 1) / 2, 1] for a, k in ((away, np.array([m, m + 1, 7])), (affine, np.array([n, n + 2, 8])))]
    assert np.abs(item["transform"].placement[:3, 3] - (middles[0] - middles[1])[:3]).max() <= 1.001
    moved = [round(-float(mm), 2) for mm in item["transform"].placement[:3, 3]]
    assert f"Centres aligned: moving is translated by {moved} mm (RAS)" in caplog.text


def test_other_voxels_are_centred_exactly(tmp_path):
    turned = np.eye(4)
    turned[:3, :3] = np.linalg.qr(np.array([[1.0, 0.4, -0.2], [-0.5, 1.0, 0.3], [0.1, -0.2, 1.0]]))[0] * [0.9, 1.6, 2.7]
    turned[:3, 3] = [900.0, 0.0, 3.0]
    files = {
        "image": write(tmp_path / "moving.nii.gz", blobs((11, 14, 9), 1), turned),
        "fixed": write(tmp_path / "fixed.nii.gz", blobs((12, 9, 8), 2)),
    }
    item = LoadPaird(3, "centres")(files)
    expected = (turned @ [5, 6.5, 4, 1] - AFFINE @ [5.5, 4, 3.5, 1])[:3]
    np.testing.assert_allclose(item["transform"].placement[:3, 3], expected, atol=1e-4)
    with pytest.raises(ValueError, match="do not overlap in space"):
        LoadPaird(3, "physical")(files)


def test_centred_images_stored_with_other_axes_are_the_same(tmp_path):
    values, fixed = blobs((11, 14, 9), 1).numpy(), write(tmp_path / "fixed.nii.gz", blobs((12, 9, 8), 2), np.eye(4))
    flipped = np.eye(4)[[1, 0, 2, 3]] * [1, -1, 1, 1]  # first axis along y, second against x
    paths = [
        write(tmp_path / "a.nii.gz", values, np.eye(4)),
        write(tmp_path / "b.nii.gz", values.transpose(1, 0, 2)[:, ::-1], flipped),
    ]
    items = [LoadPaird(3, "centres")({"image": path, "fixed": fixed}) for path in paths]
    assert torch.equal(seen(items[0], "moving"), seen(items[1], "moving"))


def test_label_follows_its_centred_image(tmp_path):
    values = blobs((11, 14, 9), 1).numpy()
    away = AFFINE.copy()
    away[:3, 3] = 400
    files = {
        "image": write(tmp_path / "moving.nii.gz", values, away),
        "moving_label": write(tmp_path / "label.nii.gz", values > 500, away, np.uint8),
        "fixed": write(tmp_path / "fixed.nii.gz", blobs((10, 12, 9), 2)),
    }
    item = LoadPaird(3, "centres")(files)
    assert torch.equal(seen_label(item), (seen(item, "moving") > 500).to(seen_label(item).dtype))
    moving, label = (item["transform"].placed(image) for image in (item["pair"].moving, item["pair"].label))
    np.testing.assert_allclose(label.affine, moving.affine, rtol=0, atol=0)


def test_an_unknown_alignment_names_the_known_ones():
    with pytest.raises(ValueError, match=r"align: expected one of \('physical', 'centres'\), got 'center'"):
        LoadPaird(2, "center")


def test_a_grid_that_itk_cannot_express_is_refused_on_loading(tmp_path):
    turned = np.eye(4)
    turned[1:3, 1:3] = [[0.8, -0.6], [0.6, 0.8]]
    flat = {key: write(tmp_path / f"{key}.nii.gz", blobs((20, 16), 1), turned) for key in ("image", "fixed")}
    with pytest.raises(ValueError, match=r"fixed: .*tilted plane .*Store the slice as a file of shape \(X, Y, 1\)"):
        LoadPaird(2)(flat)
    sheared = np.eye(4)
    sheared[0, 1] = 5e-4
    fine = write(tmp_path / "fine.nii.gz", blobs((20, 16, 12), 2), np.eye(4))
    for key, name in (("image", "moving"), ("fixed", "fixed")):
        files = {"image": fine, "fixed": fine, key: write(tmp_path / "sheared.nii.gz", blobs((20, 16, 12)), sheared)}
        with pytest.raises(ValueError, match=f"{name}: expected orthogonal axes, .*sheared.nii.gz has a sheared sform"):
            LoadPaird(3)(files)
