# SPDX-License-Identifier: Apache-2.0
import logging

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from common.data import hippocampus
from common.data.pairs import PairDataset
from common.io.fields import load_ddf
from common.io.images import load_image
from common.transforms.loading import LoadPaird
from common.transforms.registration import CropPaird, RegistrationResultd
from common.transforms.save import SaveRegistrationd
from tests.transforms.synthetic import AFFINE, blobs, seen, seen_label, write


@pytest.mark.parametrize("size", [(16, 12), (48, 20), (64, 64)])
def test_network_sees_what_training_saw(files, size):
    item = CropPaird(size, [20.0, 13.0])(LoadPaird(2)(files))
    pairs = [
        {"moving_image": seen(item, "moving")[..., z], "fixed_image": seen(item, "fixed")[..., z]}
        | {"centre": torch.tensor([20.0, 13.0])}
        for z in range(5)
    ]
    dataset = PairDataset(pairs, size)
    for z in range(5):
        pair = dataset[z]
        expected = torch.cat([pair["moving_image"], pair["fixed_image"]])
        torch.testing.assert_close(item["image"][..., z].as_subclass(torch.Tensor), expected, rtol=0, atol=0)


def test_automatic_centre_lies_where_the_images_differ(tmp_path):
    fixed = blobs((170, 150))
    fixed[104:112, 40:48] = fixed.min()
    moving = fixed.clone()
    moving[104:112, 40:48] = fixed.max()
    files = {"image": write(tmp_path / "moving.nii.gz", moving), "fixed": write(tmp_path / "fixed.nii.gz", fixed)}
    start = torch.tensor(CropPaird((20, 20))(LoadPaird(2)(files))["pair"].start)
    torch.testing.assert_close(start.float() + 9.5, torch.tensor([107.5, 43.5]), rtol=0, atol=1)


def test_crop_says_where_the_result_belongs(files):
    """What MONAI Label reads of the input when it restores and writes the result."""
    item = CropPaird((16, 16))(LoadPaird(2)(files))
    assert isinstance(item["image"], MetaTensor)
    assert list(item["image"].meta["spatial_shape"]) == [37, 30, 5]
    np.testing.assert_allclose(item["image"].meta["original_affine"], AFFINE)


@pytest.mark.parametrize("centre", [[37.0, 5.0], [-1.0, 5.0], [5.0], [5.0, 5.0, 5.0], "centre", [float("nan"), 2.0], 3])
def test_crop_refuses_a_centre_outside_the_image(files, centre):
    with pytest.raises(ValueError, match="crop_center: expected 'auto', 'middle' or 2 voxel coordinates inside the im"):
        CropPaird((16, 16), centre)(LoadPaird(2)(files))


def test_slices_without_contrast_are_named(files, tmp_path, caplog):
    values = nib.load(files["image"]).get_fdata()
    values[..., 3] = 5
    files["image"] = write(tmp_path / "gap.nii.gz", values)
    CropPaird((16, 16))(LoadPaird(2)(files))
    assert "constant in the crop of slice(s) [3]" in caplog.text


def test_constant_displacement_shifts_image_and_label_inside_the_crop(files, tmp_path, caplog):
    label = (nib.load(files["image"]).get_fdata() > 500) * 3
    files["moving_label"] = write(tmp_path / "label.nii.gz", label, dtype=np.uint8)
    item = CropPaird((16, 12), [18.0, 14.0])(LoadPaird(2)(files))
    pred = torch.zeros(2, 16, 12, 5)
    pred[0] = 2.0
    with caplog.at_level(logging.INFO):
        result = RegistrationResultd()(item | {"pred": pred})
    a, b = item["pair"].start
    for got, source in (("warped_image", seen(item, "moving")), ("warped_label", seen_label(item))):
        expected = source[:, a + 2 : a + 18, b : b + 12]
        torch.testing.assert_close(
            result[got][:, a : a + 16, b : b + 12].as_subclass(torch.Tensor), expected, rtol=0, atol=2e-2
        )
    assert result["warped_label"].dtype == item["pair"].label.array.dtype
    assert result["ddf"].shape == (3, 37, 30, 5) and result["jacobian_determinant"].shape == (37, 30, 5)
    torch.testing.assert_close(result["jacobian_determinant"][a + 2 : a + 14, b + 2 : b + 10], torch.ones(12, 8, 5))
    assert "Largest displacement 2.00 voxels; foldings (2D in-plane |J| <= 0): 0 % of the crop" in caplog.text


def test_share_of_foldings_is_that_of_the_crop(files, caplog):
    item = CropPaird((16, 12), [18.0, 14.0])(LoadPaird(2)(files))
    pred = torch.zeros(2, 16, 12, 5)
    pred[0, 7, :, 0] = 3.0  # u' = -3/2 in the row after it: 12 voxels of 16 x 12 x 5
    with caplog.at_level(logging.INFO):
        RegistrationResultd()(item | {"pred": pred})
    # the displaced row goes on outside the crop, and folds there until it has decayed to 2 voxels
    assert "1.25 % of the crop, 18 voxels in all" in caplog.text


def test_results_refuse_a_diverged_network(files):
    item = CropPaird((16, 16))(LoadPaird(2)(files))
    with pytest.raises(FloatingPointError, match="pred: expected finite displacements"):
        RegistrationResultd()(item | {"pred": torch.full((2, 16, 16, 5), torch.nan)})


GRID = (16, 20, 12)


def smooth_field(shape, dims, seed=7, amplitude=1.5):
    coarse = torch.randn(1, dims, *[4] * len(shape), generator=torch.Generator().manual_seed(seed))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return amplitude * torch.nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)[0]


def subjects(root, shapes, origins=(1, 1)):
    """Two volumes in the layout of the hippocampus data set, with a few voxels far brighter than the rest."""
    for number, (shape, origin) in enumerate(zip(shapes, origins, strict=True), 1):
        values = blobs(shape, number).numpy()
        values[1, 2, 3:5] = 9000
        affine = np.eye(4)
        affine[:3, 3] = origin
        for part, array in (("imagesTr", values), ("labelsTr", values > 500)):
            (root / part).mkdir(exist_ok=True)
            write(root / part / f"hippocampus_{number:03d}.nii.gz", array, affine)
    return root


@pytest.mark.parametrize(
    "shapes",
    [
        ((12, 14, 10), (14, 18, 8)),
        ((13, 15, 9), (14, 18, 12)),  # odd on even
        ((12, 16, 8), (15, 17, 11)),  # even on odd
        ((16, 20, 12), (11, 13, 7)),
        ((21, 15, 9), (12, 25, 17)),  # each larger than the grid where the other is not
        ((22, 24, 14), (19, 27, 15)),  # larger throughout
    ],
)
def test_network_sees_two_volumes_as_in_training(tmp_path, shapes):
    """What load_pairs and PairDataset make of the same files, in both directions."""
    root = subjects(tmp_path, shapes, origins=(1, (-80.0, 3.5, 20.0)))
    dataset = PairDataset(hippocampus.load_pairs(root, "train", GRID), GRID, with_labels=True)
    files = {name: str(root / "imagesTr" / f"{name}.nii.gz") for name in ("hippocampus_001", "hippocampus_002")}
    prepare = Compose([LoadPaird(3, "centres"), CropPaird(GRID, "middle", [1, 99])])
    for index in range(2):
        pair = dataset[index]
        moving, fixed = pair["case"].split("_to_")
        crop = prepare({"image": files[moving], "fixed": files[fixed]})["image"].as_subclass(torch.Tensor)
        torch.testing.assert_close(crop, torch.cat([pair["moving_image"], pair["fixed_image"]]), rtol=0, atol=1e-6)


def test_clipping_is_for_the_network_alone(tmp_path):
    root = subjects(tmp_path, ((12, 14, 10), (12, 14, 10)))
    moving, fixed = (root / "imagesTr" / f"hippocampus_00{n}.nii.gz" for n in (1, 2))
    item = CropPaird(GRID, "middle", [1, 99])(LoadPaird(3, "centres")({"image": moving, "fixed": fixed}))
    result = RegistrationResultd()(item | {"pred": torch.zeros(3, *GRID)})
    stored = load_image(moving).array
    assert stored.max() == 9000
    torch.testing.assert_close(result["warped_image"][0], stored, rtol=1e-5, atol=1e-2)
    for percentiles in ("1, 99", [1], [1, 50, 99]):
        with pytest.raises(ValueError, match=r"percentiles: expected two numbers like \[1, 99\], or None"):
            CropPaird(GRID, "middle", percentiles)
    with pytest.raises(ValueError, match="percentiles: expected 0 <= lower < upper <= 100 per cent, .*, got 99 and 1"):
        CropPaird(GRID, "middle", [99, 1])


def test_larger_volumes_are_said_and_registered_around_the_centre(tmp_path, caplog):
    root = subjects(tmp_path, ((12, 14, 10), (56, 18, 10)))
    moving, fixed = (root / "imagesTr" / f"hippocampus_00{n}.nii.gz" for n in (1, 2))
    item = CropPaird(GRID, "middle")(LoadPaird(3, "centres")({"image": moving, "fixed": fixed}))
    assert "Larger than spatial_size [16, 20, 12]: fixed. The network sees" in caplog.text
    assert (
        "voxels [20, 0, 0] to [35, 17, 9] of fixed as it sees it; outside, the displacement falls off to 0"
        in caplog.text
    )
    ddf = RegistrationResultd()(item | {"pred": torch.full((3, *GRID), 1.5)})["ddf"]
    torch.testing.assert_close(ddf[:, 20:36], torch.full((3, 16, 18, 10), 1.5))
    assert ddf[:, [0, -1]].abs().max() == 0 and ddf[:, [19, 36]].abs().max() < 1.5
    caplog.clear()
    CropPaird(GRID, "middle")(LoadPaird(3, "centres")({"image": fixed, "fixed": moving}))
    assert "Larger than spatial_size [16, 20, 12]: moving." in caplog.text
    caplog.clear()
    CropPaird((56, 20, 12), "middle")(LoadPaird(3, "centres")({"image": moving, "fixed": fixed}))
    assert "Larger" not in caplog.text


def test_images_in_2d_are_refused_by_a_3d_configuration(tmp_path):
    files = [write(tmp_path / f"{n}.nii.gz", blobs((37, 30), n)) for n in (1, 2)]
    message = (
        r"for 3D volumes \(spatial_size \[40, 56, 40\]\), got 2D images, .*1.nii.gz of shape \(37, 30\); pass whole"
    )
    with pytest.raises(ValueError, match=message):
        CropPaird((40, 56, 40), "middle")(LoadPaird(3, "centres")({"image": files[0], "fixed": files[1]}))
    with pytest.raises(ValueError, match="spatial_size: expected positive whole numbers"):
        CropPaird((40, 0, 40))


def test_what_moving_holds_beside_fixed_is_pulled_in(tmp_path):
    """Image and label come from moving's own grid, not from what the field of view of fixed covers of it."""
    away = np.eye(4)
    away[:3, 3] = 70
    label = (torch.arange(16 * 18 * 14).reshape(16, 18, 14) % 7).numpy()
    files = {
        "image": write(tmp_path / "moving.nii.gz", blobs((16, 18, 14), 1), away),
        "moving_label": write(tmp_path / "label.nii.gz", label, away, np.uint8),
        "fixed": write(tmp_path / "fixed.nii.gz", blobs((8, 10, 10), 2), np.eye(4)),
    }
    item = CropPaird(GRID, "middle")(LoadPaird(3, "centres")(files))
    pred = torch.zeros(3, *GRID)
    pred[0] = 4.0
    result = RegistrationResultd()(item | {"pred": pred})
    expected = load_image(files["image"]).array[8:16, 4:14, 2:12]
    torch.testing.assert_close(result["warped_image"][0], expected, rtol=1e-5, atol=1e-2)
    assert torch.equal(result["warped_label"][0], torch.from_numpy(label[8:16, 4:14, 2:12]).int())


TURN = np.linalg.qr(np.array([[1.0, 0.4, -0.2], [-0.5, 1.0, 0.3], [0.1, -0.2, 1.0]]))[0]


def placed(directions, spacing, origin):
    affine = np.eye(4)
    affine[:3, :3] = directions * np.array(spacing)
    affine[:3, 3] = origin
    return affine


@pytest.mark.parametrize(
    ("size", "moving", "fixed"),
    [
        (GRID, ((15, 21, 12), np.eye(4)), ((14, 18, 9), placed(np.eye(3), (1, 1, 1), (50, 2, -9)))),
        (
            GRID,
            ((22, 19, 16), placed(TURN, (0.9, 1.2, 1.4), (13, -52, 31))),
            ((14, 18, 20), placed(TURN[::-1], (1.5, 1.2, 1), (4, 5, 6))),
        ),
        ((16, 20), ((25, 22, 7), placed(np.eye(3), (1.4, 1.3, 8), (90, 0, 33))), ((24, 23, 5), AFFINE)),
        ((16, 20), ((25, 22), AFFINE), ((21, 23), placed(np.eye(3), (-1.2, 1.3, 8), (9, -70, 0)))),
    ],
    ids=["volumes", "oblique volumes of other voxels", "stacks", "slices"],
)
def test_itk_takes_the_moving_file_to_the_warped_one(tmp_path, size, moving, fixed):
    """ITK knows nothing but the files: the written field holds translation and displacement."""
    names = {"image": tmp_path / "moving.nii.gz", "fixed": tmp_path / "fixed.nii.gz"}
    for seed, (path, (shape, affine)) in enumerate(zip(names.values(), (moving, fixed), strict=True)):
        write(path, blobs(shape, seed), affine)
    item = CropPaird(size, "middle")(LoadPaird(3, "centres")(names))
    pred = smooth_field((*size, *fixed[0][len(size) :]), len(size))
    SaveRegistrationd(tmp_path)(RegistrationResultd()(item | {"pred": pred}))
    ours = nib.load(tmp_path / "warped.nii.gz").get_fdata()
    theirs = itk_warp(names["image"], names["fixed"], tmp_path / "ddf.nii.gz")
    # Beside moving the two pad differently: compare where the written field points well into it.
    ddf, affine = load_ddf(tmp_path / "ddf.nii.gz")
    axes = len(ddf)
    points = ddf.numpy() + np.stack(np.meshgrid(*map(np.arange, fixed[0]), indexing="ij"))
    relative = (np.linalg.inv(moving[1]) @ affine)[[*range(axes), 3]][:, [*range(axes), 3]]
    points = np.einsum("ij,j...->i...", relative[:axes, :axes], points)
    points += relative[:axes, -1].reshape([-1] + [1] * axes)
    inside = np.all([(p > 1e-3) & (p < n - 1.001) for p, n in zip(points, moving[0], strict=True)], axis=0)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(ours[inside], theirs[inside], rtol=0, atol=0.1)  # of intensities up to 950
    assert np.abs(ddf.numpy()).max() > 5  # without the translation it would be elsewhere


def test_any_affine_places_moving(tmp_path):
    """A file that an affine took elsewhere is registered as the one it was, and the written field leads to it."""
    away = np.eye(4)
    away[:3] = np.column_stack([1.1 * TURN, [60.0, -25.0, 14.0]])
    own = placed(np.eye(3), (1.1, 1.2, 0.9), (-2, -3, -1))
    values = blobs((20, 24, 18), 1)
    files = {"moving": write(tmp_path / "moving.nii.gz", values, own)}
    files["fixed"] = write(tmp_path / "fixed.nii.gz", blobs((18, 22, 14), 2), np.eye(4))
    crop, pred = CropPaird(GRID, "middle"), smooth_field(GRID, 3)
    plain = RegistrationResultd()(crop(LoadPaird(3)(files)) | {"pred": pred})
    taken = files | {"moving": write(tmp_path / "taken.nii.gz", values, away @ own), "placement": away}
    result = RegistrationResultd()(crop(LoadPaird(3)(taken)) | {"pred": pred})
    assert "placement" not in result
    for key, tolerance in (("image", 1e-4), ("warped_image", 2e-2), ("ddf", 0)):
        one, other = (item[key].as_subclass(torch.Tensor) for item in (plain, result))
        torch.testing.assert_close(other, one, rtol=0, atol=tolerance)
    SaveRegistrationd(tmp_path / "out")(result)
    theirs = itk_warp(taken["moving"], taken["fixed"], tmp_path / "out" / "ddf.nii.gz")
    ours = nib.load(tmp_path / "out" / "warped.nii.gz").get_fdata()
    inside = theirs != 0
    assert inside.mean() > 0.6
    np.testing.assert_allclose(np.median(np.abs(ours - theirs)[inside]), 0, atol=0.01)
    np.testing.assert_allclose(np.quantile(np.abs(ours - theirs)[inside], 0.95), 0, atol=0.1)


def itk_warp(moving_path, fixed_path, field_path):
    moving, fixed, field = (itk.imread(str(path), *kind) for path, kind in (
        (moving_path, (itk.F,)), (fixed_path, (itk.F,)), (field_path, ())))  # fmt: skip
    dims = moving.GetImageDimension()
    # The view does not own its memory: keep the array alive.
    vectors = np.ascontiguousarray(itk.array_from_image(field), dtype=np.float64)
    double = itk.image_view_from_array(vectors, ttype=itk.Image[itk.Vector[itk.D, dims], dims])
    double.CopyInformation(field)
    transform = itk.DisplacementFieldTransform[itk.D, dims].New()
    transform.SetDisplacementField(double)
    warped = itk.resample_image_filter(moving, transform=transform, reference_image=fixed, use_reference_image=True)
    return itk.array_from_image(warped).T
