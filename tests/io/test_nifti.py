# SPDX-License-Identifier: Apache-2.0
"""Headers and values as they lie in files, against ITK's reading of the same files."""

import gzip
import logging
import warnings
import zipfile

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from common.io.fields import load_ddf, save_ddf
from common.io.images import Image, load_image, load_label, same_grid, save_image
from common.io.resampling import resample_like
from tests.io.synthetic import itk_affine, ramp, write_header

SHAPE = (6, 5, 4)
SPACING = np.array([0.8, 1.7, 2.9])
TURN = Rotation.from_euler("xyz", (0.3, -0.4, 0.5)).as_matrix() * [-1, 1, 1]


def placed(directions: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = directions * SPACING
    affine[:3, 3] = [12.0, -40.0, 7.5]
    return affine


def assert_itk_agrees(path, affine) -> None:
    read = itk_affine(path)
    assert read is not None, "ITK does not open the file"
    np.testing.assert_allclose(read, affine, rtol=0, atol=2e-3)  # mm; its directions are those of a float32 header


def quiet_load(path) -> Image | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return load_image(path, "fixed")
        except ValueError as error:
            assert "fixed: expected orthogonal axes" in str(error) and path.name in str(error)
            return None


@pytest.mark.parametrize("qform", [False, True])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("amount", [2e-5, 9e-5, 1.5e-4, 1e-3, 0.1])
def test_itk_opens_what_is_accepted_and_the_field_written_on_its_grid(tmp_path, amount, seed, qform):
    shear = np.eye(3)
    shear[[(0, 1), (0, 2), (1, 2), (1, 0), (2, 0), (2, 1)][seed]] = amount
    affine = placed((TURN if seed % 2 else np.diag([-1, 1, 1])) @ shear)
    path = write_header(tmp_path / "a.nii", ramp(SHAPE), affine, affine if qform else None)
    fixed = quiet_load(path)
    if not qform:  # beside a qform ITK ignores a sheared sform, and would place the image elsewhere
        assert (fixed is not None) == (itk_affine(path) is not None)
    assert (fixed is not None) == (amount < 1e-4)
    if fixed is None:
        return
    assert_itk_agrees(path, fixed.affine)
    save_ddf(tmp_path / "ddf.nii.gz", torch.rand(3, *SHAPE), fixed)
    save_image(tmp_path / "warped.nii.gz", fixed.array, fixed)
    for name in ("ddf.nii.gz", "warped.nii.gz"):
        assert_itk_agrees(tmp_path / name, fixed.affine)


@pytest.mark.parametrize("seed", range(30))
def test_itk_opens_what_is_accepted_near_its_tolerance(tmp_path, seed):
    rng = np.random.default_rng(seed)
    bent = np.eye(3) + rng.uniform(0, 1.2e-4) * rng.normal(size=(3, 3))
    affine = placed(Rotation.random(random_state=seed).as_matrix() @ bent)
    path = write_header(tmp_path / "a.nii", ramp(SHAPE), affine)
    if quiet_load(path) is not None:
        assert itk_affine(path) is not None


@pytest.mark.parametrize(
    ("columns", "pixdim"),
    [((2.0, 3, 4), (1, 1, 1)), ((-1.0, -1, 1), (1.375, 1.375, 10))],  # the second: ACDC's frames
)
def test_where_pixdim_is_not_the_sforms_its_voxels_are_taken_as_by_itk_and_said(columns, pixdim, tmp_path):
    path = write_header(tmp_path / "a.nii", ramp(SHAPE), np.diag([*columns, 1]), pixdim=pixdim)
    with pytest.warns(UserWarning, match=r"moving: .*a.nii: pixdim and sform disagree, .* as ITK and ANTs do"):
        image = load_image(path, "moving")
    assert image.spacing == pixdim
    assert_itk_agrees(path, image.affine)
    save_image(tmp_path / "b.nii", image.array, image)
    assert_itk_agrees(tmp_path / "b.nii", image.affine)


def test_equal_forms_are_not_warned_about(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(write_header(tmp_path / "a.nii", ramp(SHAPE), placed(TURN), placed(TURN)))
        load_image(write_header(tmp_path / "b.nii", ramp(SHAPE), placed(TURN) * [1e3], placed(TURN) * [1e3], units=3))


@pytest.mark.parametrize("excess", [1e-7, 1e-6, 1e-4])
def test_a_quaternion_longer_than_one_is_as_in_itk(tmp_path, excess):
    quaternion = np.array([0.6, 0.8, 0.0]) * (1 + excess)
    alone = write_header(tmp_path / "qform.nii", ramp(SHAPE), pixdim=SPACING, quaternion=quaternion)
    assert_itk_agrees(alone, load_image(alone).affine)
    beside = write_header(tmp_path / "both.nii", ramp(SHAPE), placed(TURN), quaternion=quaternion)
    with pytest.warns(UserWarning, match="qform and sform disagree"):
        image = load_image(beside)
    np.testing.assert_allclose(image.affine, placed(TURN), rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_half_turns_in_a_qform_are_as_in_itk(tmp_path, seed):
    """Their quaternion's real part is 0, and the root of what rounding leaves of it in float32 would not be."""
    axis = np.random.default_rng(seed).normal(size=3)
    affine = placed(Rotation.from_rotvec(np.pi * axis / np.linalg.norm(axis)).as_matrix())
    path = write_header(tmp_path / "a.nii", ramp((60, 50, 40)), qform=affine)
    np.testing.assert_allclose(load_image(path).affine, itk_affine(path), rtol=0, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(write_header(tmp_path / "b.nii", ramp((60, 50, 40)), affine, affine))


@pytest.mark.parametrize(("units", "scale"), [(0, 1), (1, 1000), (2, 1), (3, 1e-3)])
@pytest.mark.parametrize("forms", ["sform", "qform", "none"])
def test_metres_and_microns_become_millimetres(tmp_path, units, scale, forms):
    given = {"sform": placed(TURN)} if forms == "sform" else {"qform": placed(TURN)} if forms == "qform" else {}
    path = write_header(tmp_path / "a.nii", ramp(SHAPE), **given, pixdim=SPACING, units=units)
    image = load_image(path)
    np.testing.assert_allclose(image.spacing, SPACING * scale, rtol=1e-6)
    np.testing.assert_allclose(image.affine, itk_affine(path), rtol=1e-5, atol=1e-5 * scale)
    ddf = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    save_ddf(tmp_path / "ddf.nii.gz", ddf, image)
    assert nib.load(tmp_path / "ddf.nii.gz").header.get_xyzt_units()[0] == "mm"
    loaded, affine = load_ddf(tmp_path / "ddf.nii.gz")
    torch.testing.assert_close(loaded, ddf, rtol=0, atol=1e-4)
    np.testing.assert_allclose(affine, image.affine, rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(itk_affine(tmp_path / "ddf.nii.gz"), image.affine, rtol=1e-5, atol=1e-5 * scale)


def test_a_field_in_microns_has_its_grid_converted_and_its_vectors_not_as_in_itk(tmp_path):
    like = Image(torch.rand(SHAPE), np.diag([-1.0, -1.0, 2.0, 1.0]), (1.0, 1.0, 2.0))
    ddf = torch.rand(3, *SHAPE)
    save_ddf(tmp_path / "mm.nii", ddf, like)
    stored = nib.load(tmp_path / "mm.nii")
    for form in (stored.set_sform, stored.set_qform):
        form(np.diag([-1e3, -1e3, 2e3, 1.0]), 1)
    stored.header.set_xyzt_units("micron")
    nib.save(stored, tmp_path / "micron.nii")
    field = itk.imread(str(tmp_path / "micron.nii"))
    np.testing.assert_allclose(list(field.GetSpacing()), [1, 1, 2])
    np.testing.assert_array_equal(
        itk.array_from_image(field), itk.array_from_image(itk.imread(str(tmp_path / "mm.nii")))
    )
    loaded, affine = load_ddf(tmp_path / "micron.nii")
    torch.testing.assert_close(loaded, ddf, rtol=0, atol=1e-5)
    np.testing.assert_allclose(affine, like.affine, atol=1e-6)


def test_grids_of_microscopes_are_told_apart():
    fine = Image(torch.rand(SHAPE), np.diag([5e-5, 5e-5, 1e-4, 1]), (5e-5, 5e-5, 1e-4))  # 0.05 microns
    moved = fine.affine.copy()
    moved[0, 3] = 5e-5
    assert same_grid(fine, fine) and not same_grid(fine, fine._replace(affine=moved))


@pytest.mark.parametrize("codes", [(0, 0), (1, 0)])
@pytest.mark.parametrize("size", [0.0, np.nan])
def test_voxels_of_no_size_are_refused_and_not_taken_for_a_millimetre(tmp_path, codes, size):
    nifti = nib.Nifti1Image(ramp(SHAPE), np.diag([-2.0, -2, 2, 1]))
    for code, name in zip(codes, ("qform_code", "sform_code"), strict=True):
        nifti.header[name] = code
    header = nifti.header.copy()
    header["qform_code"], header["sform_code"], header["vox_offset"], header["magic"] = *codes, 352, b"n+1"
    header["pixdim"][2] = size
    path = tmp_path / "a.nii"
    path.write_bytes(header.binaryblock + bytes(4) + ramp(SHAPE).tobytes(order="F"))
    with pytest.raises(
        ValueError, match=rf"fixed: expected voxels of a size above 0; .*a.nii has 2 x {size:.4g} x 2 mm"
    ):
        load_image(path, "fixed")


def test_a_file_without_form_codes_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_image(write_header(tmp_path / "a.nii", ramp(SHAPE), pixdim=SPACING), "moving")
    assert "moving: " in caplog.text and "gives no orientation (qform and sform codes are 0)" in caplog.text


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.uint8, [0, 1, 255]),
        (np.int16, [-300, 0, 7]),
        (np.int32, [0, 614454277, -614454277]),
        (np.int32, [0, 16777216, 16777217]),
        (np.uint32, [0, 3_000_000_000, 4_294_967_295]),
        (np.int64, [0, 3_000_000_000, 6_000_000_000]),
        (np.int64, [-(2**62) - 1, 0, 2**62 + 1]),
        (np.uint64, [0, 2**53 + 1, 2**60 + 3]),
    ],
)
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_integer_labels_come_out_as_they_went_in(tmp_path, dtype, values, suffix):
    array = np.array(values, dtype).repeat(8).reshape(6, 2, 2)
    nib.save(nib.Nifti1Image(array, np.eye(4), dtype=dtype), tmp_path / f"a.{suffix}")
    label = load_label(tmp_path / f"a.{suffix}")
    assert label.array.dtype == (torch.int32 if max(map(abs, values)) < 2**31 else torch.int64)
    assert label.stored == dtype and sorted(label.array.unique().tolist()) == sorted(values)
    # the next grid, a voxel further: what is outside becomes 0
    further = np.eye(4)
    further[0, 3] = 1
    moved = resample_like(label, label._replace(affine=further), "nearest")
    assert torch.equal(moved.array[:-1], label.array[1:]) and not moved.array[-1].any()
    save_image(tmp_path / "b.nii.gz", label.array, label, dtype=label.stored)
    written = nib.load(tmp_path / "b.nii.gz")
    assert written.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), array)
    if dtype().itemsize < 8:  # ITK's Python wraps no others
        np.testing.assert_array_equal(itk.array_from_image(itk.imread(str(tmp_path / "b.nii.gz"))).T, array)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whole_numbers_stored_as_floating_point_become_integers(tmp_path, dtype):
    array = np.array([[0, 1, 514], [-3, 16777216, 2]], dtype)
    label = load_label(write_header(tmp_path / "a.nii", array, np.eye(4)))
    assert label.stored is None and label.array.tolist() == array.astype(int).tolist()


@pytest.mark.parametrize(
    ("raw", "scale", "expected"),
    [
        (np.array([[0, 10, 20]], np.uint8), (0.1, 0), [[0, 1, 2]]),
        (np.array([[0, 2, 6]], np.int16), (0.5, -2), [[-2, -1, 1]]),
        (np.array([[0, 1, 614454277]], np.int32), (1, 1), [[1, 2, 614454278]]),
        (np.array([[0, 1, 2]], np.uint8), (2**30, 0), [[0, 2**30, 2**31]]),
    ],
)
def test_scaled_labels_that_are_whole_are_whole(tmp_path, raw, scale, expected):
    label = load_label(write_header(tmp_path / "a.nii", raw, np.eye(4), scale=scale))
    assert label.array.tolist() == expected and label.stored is None
    save_image(tmp_path / "b.nii", label.array, label, dtype=label.stored)
    assert load_label(tmp_path / "b.nii").array.tolist() == expected


def test_labels_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    path = write_header(tmp_path / "a.nii", np.array([[0, 2**63 + 1]], np.uint64), np.eye(4))
    with pytest.raises(
        ValueError, match=r"moving_label: expected labels of at most .*a.nii holds 0 to 9223372036854775809"
    ):
        load_label(path, "moving_label")
    halves = write_header(tmp_path / "b.nii", np.array([[1, 2]], np.int16), np.eye(4), scale=(0.5, 0))
    with pytest.raises(ValueError, match=r"moving_label: expected whole numbers.* holds 0.5"):
        load_label(halves, "moving_label")
    like = Image(torch.zeros(2, 1), np.eye(4), (1.0, 1.0))
    for values, dtype in (
        ([300, 1], np.uint8),
        ([-1, 1], np.uint64),
        ([16777217, 0], np.float32),
        ([2**40, 0], np.int32),
    ):
        with pytest.raises(ValueError, match="cannot hold the array's values"):
            save_image(tmp_path / "c.nii", torch.tensor(values)[:, None], like, dtype=dtype)
    assert not (tmp_path / "c.nii").exists()


def test_complex_images_are_refused(tmp_path):
    path = write_header(tmp_path / "a.nii", ramp(SHAPE).astype(np.complex64) * (1 + 1j), np.eye(4))
    for load in (load_image, load_label):
        with pytest.raises(ValueError, match=r"moving: expected real values; .*a.nii holds complex numbers.*numpy.abs"):
            load(path, "moving")


def test_scaled_intensities_are_those_of_nibabel(tmp_path):
    raw = np.random.default_rng(0).integers(-(2**31), 2**31, SHAPE).astype(np.int32)
    path = write_header(tmp_path / "a.nii", raw, np.eye(4), scale=(1e-9, 2.0))
    expected = raw * np.float64(np.float32(1e-9)) + 2.0
    np.testing.assert_allclose(load_image(path).array.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_other_formats_are_named_with_a_remedy(tmp_path):
    for name, start, message in (
        ("a.png", b"\x89PNG\r\n", "is a PNG picture: .*nibabel.Nifti1Image"),
        ("a.nii.gz", b"\x89PNG\r\n", "is a PNG picture"),
        ("a.mgz", gzip.compress(b"\x00\x00\x00\x01" * 200), "is in FreeSurfer's MGH format: .*mri_convert"),
        ("a.nii", gzip.compress(bytes(400)), "is gzipped: rename it"),
    ):
        (tmp_path / name).write_bytes(start + bytes(300))
        with pytest.raises(ValueError, match=f"moving: expected a NIfTI file .*{name} {message}"):
            load_image(tmp_path / name, "moving")


def test_what_itk_writes_in_other_formats_is_named_too(tmp_path):
    itk.imwrite(itk.image_from_array(np.arange(20, dtype=np.uint8).reshape(4, 5)), str(tmp_path / "a.png"))
    with pytest.raises(ValueError, match="fixed: expected a NIfTI file .*a.png is .*: "):
        load_image(tmp_path / "a.png", "fixed")
    nib.save(nib.MGHImage(ramp(SHAPE), np.eye(4)), tmp_path / "a.mgz")
    with pytest.raises(ValueError, match="a.mgz is in FreeSurfer's MGH format"):
        load_label(tmp_path / "a.mgz", "fixed")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.nii", b"")
    with pytest.raises(ValueError, match="a zip archive: unpack it"):
        load_image(tmp_path / "a.zip")


def test_a_folder_is_said_to_be_one(tmp_path):
    with pytest.raises(
        ValueError, match="fixed: expected a NIfTI file .* is a folder. It holds no NIfTI file and no DICOM"
    ):
        load_image(tmp_path, "fixed")
    (tmp_path / "brain.nii.gz").touch()
    with pytest.raises(ValueError, match="is a folder. Give a file in it: brain.nii.gz"):
        load_image(tmp_path, "fixed")


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_a_file_cut_short_is_named(tmp_path, suffix):
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((20, 20, 20)), np.eye(4)), tmp_path / f"a.{suffix}")
    for kept in (100, 20000):
        (tmp_path / f"b.{suffix}").write_bytes((tmp_path / f"a.{suffix}").read_bytes()[:kept])
        for load in (load_image, load_label):
            with pytest.raises(ValueError, match=f"moving: expected a readable .*b.{suffix} is not .*cut short"):
                load(tmp_path / f"b.{suffix}", "moving")


def test_written_gzip_is_read_by_all_and_the_same_again(tmp_path):
    image = Image(torch.from_numpy(ramp(SHAPE)), placed(TURN), tuple(SPACING))
    for name in ("a.nii.gz", "b.nii.gz", "a.nii"):
        save_image(tmp_path / name, image.array, image)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[352:] == (tmp_path / "a.nii").read_bytes()[352:]
    for name in ("a.nii.gz", "a.nii"):
        np.testing.assert_array_equal(nib.load(tmp_path / name).get_fdata(dtype=np.float32), image.array.numpy())
        np.testing.assert_array_equal(itk.array_from_image(itk.imread(str(tmp_path / name))).T, image.array.numpy())
