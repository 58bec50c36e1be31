# SPDX-License-Identifier: Apache-2.0
"""The same physical images, however they are stored, reach the network and come back as one."""

import itertools
import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from common.io.images import Image, load_image, save_image
from common.io.orientation import Axes, reoriented
from common.transforms.loading import LoadPaird
from common.transforms.registration import CropPaird, RegistrationResultd
from common.transforms.save import SaveRegistrationd
from tests.transforms.synthetic import blobs, write

TURN = np.linalg.qr(np.array([[1.0, 0.4, -0.2], [-0.5, 1.0, 0.3], [0.1, -0.2, 1.0]]))[0]
STORED = [
    Axes(order, flipped)
    for order in itertools.permutations(range(3))
    for flipped in itertools.product((False, True), repeat=3)
]
PLANES = [Axes(order, flipped) for order in ((0, 1), (1, 0)) for flipped in itertools.product((False, True), repeat=2)]
SPACING = {3: (1.0, 1.0, 1.0), 2: (1.4, 1.4, 8.0)}


def image(shape, seed, spacing, turn=None):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3) if turn is None else turn
    affine[:3, : len(spacing)] *= np.array(spacing)
    affine[:3, 3] = (-31.3, 7.77, 12.1)
    return Image(blobs(shape, seed), affine, tuple(spacing))


def pair(folder, dims, stored=None, of_fixed=None, spacing=None, shape=None, turn=None, sigma=0.0):
    """Files of moving, its label and fixed; every voxel of each at the same place, in whatever order it is stored."""
    shape = shape or ((18, 22, 14) if dims == 3 else (30, 26, 5))
    spacing = spacing or SPACING[dims][: len(shape)]
    files = {}
    for role, seed, axes in (("image", 1, stored), ("moving_label", 1, stored), ("fixed", 2, of_fixed)):
        given = image(shape, seed, spacing, turn)
        given = given._replace(array=torch.from_numpy(gaussian_filter(given.array.numpy(), sigma)))
        if role == "moving_label":
            given = given._replace(array=(given.array / 100).to(torch.int32))
        given = given if axes is None else reoriented(given, axes)
        files[role] = str(folder / f"{role}.nii")
        save_image(files[role], given.array, given)
    return files


def prepare(dims, centre="middle", **options):
    size = [16, 20, 12] if dims == 3 else [16, 20]
    align = "centres" if dims == 3 else "physical"
    options = {"spacing": SPACING[3]} | options if dims == 3 else options
    load, crop = LoadPaird(dims, align, **options), CropPaird(size, centre, [1, 99])
    return lambda files: crop(load(files))


def register(files, dims, **options):
    """A network that depends on what it sees: half the difference of the images, as displacement."""
    item = prepare(dims, **options)(files)
    shown = item["image"].as_subclass(torch.Tensor)
    pred = torch.stack([(shown[0] - shown[1]) * gain for gain in (1.5, -1.0, 0.5)[:dims]])
    return RegistrationResultd()(item | {"pred": pred})


@pytest.mark.parametrize("turn", [None, TURN], ids=["straight", "oblique"])
@pytest.mark.parametrize("dims", [2, 3])
def test_all_48_ways_to_store_the_images_give_the_network_the_same(tmp_path, dims, turn):
    see = prepare(dims, "middle" if dims == 3 or turn is not None else "auto")
    expected = see(pair(tmp_path, dims, turn=turn))["image"].as_subclass(torch.Tensor)
    for number, axes in enumerate(STORED if turn is not None or dims == 3 else STORED[::6]):
        files = pair(tmp_path, dims, axes, STORED[(5 * number) % 48], turn=turn)
        assert torch.equal(see(files)["image"].as_subclass(torch.Tensor), expected), axes


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("number", [0, 13, 22, 43, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 48, 4))])
def test_results_come_back_as_the_fixed_file_is_stored(tmp_path, dims, number):
    plain = register(pair(tmp_path, dims), dims)
    axes = STORED[number]
    turned = register(pair(tmp_path, dims, STORED[47 - number], axes), dims)
    order, signs = list(axes.order), [-1.0 if flipped else 1.0 for flipped in axes.flipped]
    ddf = torch.stack([axes.apply(plain["ddf"][axis]) * sign for axis, sign in zip(order, signs, strict=True)])
    assert torch.equal(turned["ddf"], ddf)
    assert torch.equal(turned["jacobian_determinant"], axes.apply(plain["jacobian_determinant"]))
    for key in ("warped_image", "warped_label"):
        got, expected = turned[key][0], axes.apply(plain[key][0])
        close = (got - expected).abs() < 1e-2
        assert close.float().mean() > 0.995, key  # nearest neighbours half way between two voxels may be either
    SaveRegistrationd(tmp_path)(turned)
    assert nib.load(tmp_path / "ddf.nii.gz").shape == (*load_image(tmp_path / "fixed.nii").array.shape, 1, 3)


def test_2d_images_stored_with_other_axes_are_one_image(tmp_path):
    shape, spacing = (30, 26), (1.4, 1.4)
    plain = register(pair(tmp_path, 2, shape=shape, spacing=spacing), 2)
    for axes in PLANES:
        files = pair(tmp_path, 2, PLANES[5], axes, shape=shape, spacing=spacing)
        turned = register(files, 2)
        assert torch.equal(turned["image"].as_subclass(torch.Tensor), plain["image"].as_subclass(torch.Tensor))
        assert torch.equal(turned["jacobian_determinant"], axes.apply(plain["jacobian_determinant"]))


def test_slices_on_any_axis_are_found_and_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for axis in (0, 1):
        order = tuple([2, 0, 1] if axis == 0 else [0, 2, 1])
        register(pair(tmp_path, 2, Axes(order, (False,) * 3), Axes(order, (False,) * 3)), 2)
        assert (
            f"fixed is brought from its stored axes to RAS for the network, its slices lie along axis {axis + 1} of 3"
        )
        assert f"its slices lie along axis {axis + 1} of 3; results are written as fixed is stored" in caplog.text


def test_one_slice_stored_across_is_registered_and_one_voxel_in_the_plane_is_refused(tmp_path):
    flat = pair(tmp_path, 2, shape=(30, 26), spacing=(1.4, 1.4))
    plain = register(flat, 2)
    values = {key: nib.load(path).get_fdata() for key, path in flat.items()}
    affine = nib.load(flat["fixed"]).affine
    for axis in (0, 1):
        order = [2, 0, 1, 3] if axis == 0 else [0, 2, 1, 3]
        for key, array in values.items():
            write(tmp_path / f"{key}.nii", np.expand_dims(array, axis), affine[:, order])
        across = register(flat, 2)
        torch.testing.assert_close(
            across["ddf"].squeeze(axis + 1)[[a for a in range(3) if a != axis]], plain["ddf"], rtol=0, atol=1e-5
        )
    for dims, shape, spacing in ((2, (1, 26, 5), (1.4, 1.4, 8.0)), (3, (1, 26, 25), (1, 1, 1))):
        files = pair(tmp_path, dims, shape=shape, spacing=spacing)
        with pytest.raises(ValueError, match=r"fixed: expected at least 2 voxels along every axis that is registered"):
            prepare(dims)(files)


def test_a_stack_that_does_not_say_its_slices_is_refused(tmp_path):
    with pytest.raises(ValueError, match="fixed: expected a stack of slices, .* does not say which axis holds the sl"):
        prepare(2)(pair(tmp_path, 2, shape=(20, 22, 24), spacing=(1.4, 1.4, 1.4)))


def coarse(folder, factor, dims=3):
    """The pair of 1 mm at another spacing, over the same extent; smooth, so that it loses little."""
    files = pair(folder, dims, shape=(24, 28, 20), spacing=(1, 1, 1), sigma=2.0)
    for key, path in files.items():
        given = load_image(path)
        array = torch.nn.functional.interpolate(
            given.array[None, None], scale_factor=1 / factor, mode="trilinear", align_corners=False
        )[0, 0]
        affine = given.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.full(3, (factor - 1) / 2)
        affine[:3, :3] *= factor
        if key == "moving_label":
            array = array.round()
        write(path, array, affine)
    return files


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_other_spacings_are_registered_at_that_of_training(tmp_path, factor, caplog):
    caplog.set_level(logging.INFO)
    size = [20, 24, 16]
    load, crop = LoadPaird(3, "centres", spacing=[1, 1, 1]), CropPaird(size, "middle")
    fine = crop(load(pair(tmp_path, 3, shape=(24, 28, 20), spacing=(1, 1, 1), sigma=2.0)))["image"].as_subclass(
        torch.Tensor
    )
    item = crop(load(coarse(tmp_path, factor)))
    assert "registered at 1 x 1 x 1 mm" in caplog.text
    got = item["image"].as_subclass(torch.Tensor)
    assert got.shape == fine.shape
    assert np.corrcoef(got.flatten(), fine.flatten())[0, 1] > 0.98
    # a displacement of 2 mm along the first axis is 2 / factor voxels of the file
    pred = torch.zeros(3, *size)
    pred[0] = 2.0
    result = RegistrationResultd()(item | {"pred": pred})
    middle = tuple(n // 2 for n in result["ddf"].shape[1:])
    torch.testing.assert_close(result["ddf"][(slice(None), *middle)], torch.tensor([2.0 / factor, 0.0, 0.0]))
    assert result["ddf"].shape[1:] == load_image(tmp_path / "fixed.nii").array.shape


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ((0.7, 0.7, 8.0), (1.5, 1.5, 8.0)),
        ((2.4, 2.4, 8.0), (1.5, 1.5, 8.0)),
        ((1.25, 1.95, 10.0), (1.25, 1.95, 10.0)),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),  # unknown
        ((1.0, 1.0, 6.0), (1.5, 1.5, 6.0)),
    ],
)
def test_slices_are_resampled_in_their_plane_where_the_spacing_is_far_from_training(tmp_path, spacing, expected):
    load = LoadPaird(2, spacing=[1.5, 1.5], spacing_range=[1.2, 2.0])
    item = load(pair(tmp_path, 2, spacing=spacing))
    assert item["pair"].working.spacing == pytest.approx(expected)
    assert item["pair"].working.array.shape[2] == 5


@pytest.mark.parametrize("given", [[1.0, 1.0], [1, 1, 0], "1, 1, 1", [1, 1, -1]])
def test_spacings_are_checked(given):
    with pytest.raises(ValueError, match="spacing: expected 3 numbers above 0 in mm, or None"):
        LoadPaird(3, spacing=given)


def test_files_without_an_orientation_are_taken_as_they_are_stored(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    files = pair(tmp_path, 3)
    for path in files.values():
        write(path, np.asarray(nib.load(path).dataobj), None)  # both form codes 0
    item = prepare(3)(files)
    assert item["pair"].axes == Axes((0, 1, 2), (False,) * 3) and "brought from its stored axes" not in caplog.text


def test_many_foldings_are_a_warning_with_a_remedy(tmp_path, caplog):
    item = prepare(2)(pair(tmp_path, 2))
    pred = torch.zeros(2, 16, 20, 5)
    pred[0, 7] = 3.0
    RegistrationResultd()(item | {"pred": pred})
    record = next(r for r in caplog.records if "folds in" in r.message)
    assert record.levelno == logging.WARNING and "do not trust it there. Check that" in record.message


def test_small_overlap_is_a_warning(tmp_path, caplog):
    for dims in (2, 3):
        files = pair(tmp_path, dims)
        nifti = nib.load(files["image"])
        affine = nifti.affine.copy()
        affine[0, 3] += 0.86 * nifti.shape[0] * SPACING[dims][0]
        write(files["image"], nifti.get_fdata(), affine)
        files.pop("moving_label")
        caplog.clear()
        LoadPaird(dims)(files)
        warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warned) == 1 and "fields of view overlap by 1" in warned[0].message
        caplog.clear()
        LoadPaird(dims, "centres")(files)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_labels_of_any_size_come_out_exactly(tmp_path):
    files = pair(tmp_path, 3)
    nifti = nib.load(files["fixed"])
    values = np.zeros(nifti.shape, np.int32)
    values[4:12, 5:15, 3:9] = 16777217
    values[8:12, 5:15, 3:9] = 614454277
    write(files["moving_label"], values, nifti.affine, np.int32)
    item = prepare(3)(files)
    result = RegistrationResultd()(item | {"pred": torch.zeros(3, 16, 20, 12)})
    assert torch.equal(result["warped_label"][0].long(), item["pair"].label.array.long())
    assert item["pair"].label.stored == np.int32


def test_a_label_on_another_grid_that_covers_moving_is_read_where_it_lies(tmp_path):
    files = pair(tmp_path, 3)
    label = nib.load(files["moving_label"])
    fine = np.kron(label.get_fdata(), np.ones((2, 2, 2)))
    affine = label.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.full(3, -0.25)
    affine[:3, :3] /= 2
    still = torch.zeros(3, 16, 20, 12)
    expected = RegistrationResultd()(prepare(3)(files) | {"pred": still})["warped_label"]
    write(files["moving_label"], fine, affine, np.int16)
    assert torch.equal(RegistrationResultd()(prepare(3)(files) | {"pred": still})["warped_label"].int(), expected.int())


@pytest.mark.parametrize(
    "kept", [(slice(30, 100), slice(0, 90), slice(0, 6)), (slice(0, 120), slice(0, 96), slice(2, 4))]
)
def test_the_automatic_centre_looks_where_moving_is(tmp_path, kept):
    """Moving covers less of the plane, or fewer slices, than fixed."""
    shape, centre = (120, 96, 6), (64.0, 40.0)
    x, y = np.meshgrid(*map(np.arange, shape[:2]), indexing="ij")
    distance = np.hypot(x - centre[0], y - centre[1])[..., None]
    texture = 100 + 20 * np.random.default_rng(0).random(shape)
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    placed = affine.copy()
    placed[:3, 3] += affine[:3, :3] @ [part.start for part in kept]
    files = {
        "image": write(tmp_path / "moving.nii", (texture + 80 * (distance < 14))[kept], placed),
        "fixed": write(tmp_path / "fixed.nii", texture + 80 * (distance < 9), affine),
    }
    start = CropPaird([32, 32], "auto")(LoadPaird(2)(files))["pair"].start
    assert np.abs(np.array(start) + 15.5 - centre).max() <= 4


def test_a_given_centre_is_that_of_the_fixed_file(tmp_path):
    expected = prepare(2, [10.0, 14.0])(pair(tmp_path, 2))["image"].as_subclass(torch.Tensor)
    for axes in STORED[1::7]:
        files = pair(tmp_path, 2, None, axes)
        shape = load_image(files["fixed"]).array.shape
        point = [
            shape[axis] - 1 - (10.0, 14.0)[old] if flipped else (10.0, 14.0)[old]
            for axis, (old, flipped) in enumerate(zip(*axes, strict=True))
            if old < 2
        ]
        item = prepare(2, point)(files)
        assert torch.equal(item["image"].as_subclass(torch.Tensor), expected)
