# SPDX-License-Identifier: Apache-2.0
import gzip

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

from common.io.images import Image, load_grid, load_image, load_label, same_grid, save_image
from common.io.resampling import resample_like

SHAPES = [(7, 5), (6, 5, 4)]


def oblique(scale: tuple[float, float, float] = (0.8, 1.7, 2.9)) -> np.ndarray:
    """Rotated, anisotropic, left-handed affine."""
    a, b = 0.4, -0.3
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-scale[0], scale[1], scale[2]])
    affine[:3, 3] = [12.0, -40.0, 7.5]
    return affine


def write(path, values, affine=None, codes=(1, 1)):
    nifti = nib.Nifti1Image(values, affine)
    if affine is not None:
        nifti.set_qform(affine, codes[0])
        nifti.set_sform(affine, codes[1])
    nib.save(nifti, path)
    return path


def ramp(shape) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 10


def image_of(shape, affine) -> Image:
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0)[: len(shape)])
    return Image(torch.from_numpy(ramp(shape)), affine, spacing)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_load_gives_array_affine_and_spacing(tmp_path, shape, suffix):
    image = load_image(write(tmp_path / f"a.{suffix}", ramp(shape), oblique(), (1, 2)))
    assert image.array.dtype == torch.float32
    np.testing.assert_array_equal(image.array.numpy(), ramp(shape))
    np.testing.assert_allclose(image.affine, oblique(), rtol=0, atol=1e-5)
    assert image.affine.dtype == np.float64
    assert image.spacing == pytest.approx((0.8, 1.7, 2.9)[: len(shape)], abs=1e-5)
    assert image.form_codes == (1, 2)


def test_one_slice_is_two_dimensional_and_written_back_as_it_came(tmp_path):
    for name, shape in (("flat", (7, 5)), ("slice", (7, 5, 1)), ("frame", (7, 5, 1, 1))):
        image = load_image(write(tmp_path / f"{name}.nii", ramp(shape), np.diag([1.5, 2.0, 4.0, 1.0])))
        assert tuple(image.array.shape) == (7, 5)
        assert image.spacing == pytest.approx((1.5, 2.0))
        save_image(tmp_path / "out.nii", image.array, like=image)
        assert nib.load(tmp_path / "out.nii").shape == shape[:3]


@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (3, 0), (2, 4)])
@pytest.mark.parametrize("shape", SHAPES)
def test_save_keeps_affine_and_codes(tmp_path, shape, codes):
    source = load_image(write(tmp_path / "a.nii.gz", ramp(shape), oblique(), codes))
    save_image(tmp_path / "b.nii.gz", source.array * 2, like=source)
    saved = nib.load(tmp_path / "b.nii.gz")
    assert (int(saved.header["qform_code"]), int(saved.header["sform_code"])) == codes
    np.testing.assert_allclose(saved.affine, oblique(), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(saved.get_fdata(dtype=np.float32), ramp(shape) * 2)
    assert saved.get_data_dtype() == np.float32
    assert same_grid(load_image(tmp_path / "b.nii.gz"), source)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 255], np.uint8),
        ([-3, 0, 9], np.int16),
        ([0, 1, 300], np.int16),
        ([0, 1, 70000], np.int32),
        ([0, 1, 2**40], np.int64),
    ],
)
def test_labels_stay_integer(tmp_path, values, expected):
    like = image_of((3, 2), np.eye(4))
    label = torch.tensor(values)[:, None].expand(3, 2)
    save_image(tmp_path / "label.nii.gz", label, like)
    assert nib.load(tmp_path / "label.nii.gz").get_data_dtype() == expected
    loaded = load_label(tmp_path / "label.nii.gz").array
    assert loaded.dtype == (torch.int64 if expected is np.int64 else torch.int32)
    assert torch.equal(loaded.long(), label)


def test_dtype_is_honoured_or_refused(tmp_path):
    like = image_of((3, 2), np.eye(4))
    save_image(tmp_path / "a.nii", torch.ones(3, 2), like, dtype=np.int16)
    assert nib.load(tmp_path / "a.nii").get_data_dtype() == np.int16
    with pytest.raises(ValueError, match="uint8 cannot hold .* nearest neighbour"):
        save_image(tmp_path / "b.nii", torch.full((3, 2), 0.5), like, dtype=np.uint8)
    assert not (tmp_path / "b.nii").exists()


def test_header_without_orientation_is_placed_as_itk_places_it(tmp_path):
    nifti = nib.Nifti1Image(ramp((6, 5, 4)), None)
    nifti.header.set_zooms((1.5, 2.0, 3.0))
    nib.save(nifti, tmp_path / "a.nii")
    image = load_image(tmp_path / "a.nii")
    assert image.form_codes == (0, 0)
    save_image(tmp_path / "b.nii", image.array, like=image)
    for name in ("a.nii", "b.nii"):
        reference = itk.imread(str(tmp_path / name))
        point = np.array(reference.TransformIndexToPhysicalPoint([3, 2, 1]))
        np.testing.assert_allclose((image.affine @ [3, 2, 1, 1])[:3] * [-1, -1, 1], point, rtol=0, atol=1e-6)


def test_scaled_integers_are_loaded_in_real_values(tmp_path):
    nifti = nib.Nifti1Image(ramp((6, 5, 4)), np.eye(4))
    nifti.set_data_dtype(np.int16)
    nib.save(nifti, tmp_path / "a.nii")
    np.testing.assert_allclose(load_image(tmp_path / "a.nii").array.numpy(), ramp((6, 5, 4)), rtol=0, atol=1e-3)


def test_disagreeing_forms_warn(tmp_path):
    nifti = nib.Nifti1Image(ramp((6, 5, 4)), np.eye(4))
    moved = np.eye(4)
    moved[2, 3] = 3
    nifti.set_qform(moved, 1)
    nifti.set_sform(np.eye(4), 2)
    nib.save(nifti, tmp_path / "a.nii")
    with pytest.warns(UserWarning, match="qform and sform disagree by up to 3 mm"):
        load_image(tmp_path / "a.nii")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.nii does not exist"):
        load_image(tmp_path / "nowhere.nii")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.txt"])
def test_not_an_image(tmp_path, name):
    (tmp_path / name).write_bytes(b"not an image" * 100)
    with pytest.raises(ValueError, match="readable NIfTI file .* dcm2niix"):
        load_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_truncated_file(tmp_path, suffix):
    noise = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    path = write(tmp_path / f"a.{suffix}", noise)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match="readable NIfTI file"):
        load_image(path)


@pytest.mark.parametrize("start", [0, 4000])
def test_corrupt_gzip_stream(tmp_path, start):
    path = tmp_path / "a.nii"
    write(path, np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32))
    raw = path.read_bytes()
    # A second gzip member whose first deflate block is of the reserved type, in the header or amid the values.
    bad = bytearray(gzip.compress(raw[start:]))
    bad[10] = 0x07
    (tmp_path / "b.nii.gz").write_bytes((gzip.compress(raw[:start]) if start else b"") + bytes(bad))
    with pytest.raises(ValueError, match="readable NIfTI file"):
        load_image(tmp_path / "b.nii.gz")


@pytest.mark.parametrize(("bad", "count"), [(np.nan, "1 NaN and 0 infinite"), (np.inf, "0 NaN and 1 infinite")])
def test_values_that_are_not_finite(tmp_path, bad, count):
    values = ramp((6, 5, 4))
    values[1, 2, 3] = bad
    with pytest.raises(ValueError, match=f"{count}.*nan_to_num"):
        load_image(write(tmp_path / "a.nii", values))


def test_constant_image_is_refused_and_constant_label_is_not(tmp_path):
    path = write(tmp_path / "a.nii", np.full((6, 5), 3, dtype=np.uint8))
    with pytest.raises(ValueError, match="is constant .3 everywhere"):
        load_image(path)
    assert load_label(path).array.unique().tolist() == [3]


def test_sequences_and_colours_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Extract one frame"):
        load_image(write(tmp_path / "a.nii", np.zeros((6, 5, 4, 3), dtype=np.float32)))
    with pytest.raises(ValueError, match="read displacement fields with load_ddf"):
        load_image(write(tmp_path / "b.nii", np.zeros((6, 5, 4, 1, 3), dtype=np.float32)))
    colour = np.zeros((6, 5, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ValueError, match="colour image"):
        load_image(write(tmp_path / "c.nii", colour))


def test_fractional_labels_and_singular_affines_are_refused(tmp_path):
    with pytest.raises(ValueError, match="whole numbers.*nearest neighbour"):
        load_label(write(tmp_path / "a.nii", ramp((6, 5))))
    with pytest.raises(ValueError, match="invertible affine"):
        load_image(write_sform(tmp_path / "b.nii", np.diag([1.0, 0.0, 1.0, 1.0])))


def write_sform(path, affine):
    nifti = nib.Nifti1Image(ramp((6, 5, 4)), np.eye(4))
    nifti.header.set_sform(affine, 2)
    nifti.header["qform_code"] = 0
    nifti._affine = affine
    nib.save(nifti, path)
    return path


def test_save_refuses_other_shapes_and_names(tmp_path):
    like = image_of((6, 5, 4), np.eye(4))
    with pytest.raises(ValueError, match=r"shape of like, \(6, 5, 4\); got \(1, 6, 5, 4\)"):
        save_image(tmp_path / "a.nii", like.array[None], like)
    with pytest.raises(ValueError, match="ends in .nii"):
        save_image(tmp_path / "a.png", like.array, like)


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    like = image_of((6, 5, 4), np.eye(4))
    save_image(tmp_path / "a.nii", like.array, like)
    before = (tmp_path / "a.nii").read_bytes()

    def full_disk(image, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(nib, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_image(tmp_path / "a.nii", like.array * 2, like)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.nii"]
    assert (tmp_path / "a.nii").read_bytes() == before


def test_same_grid_compares_positions_and_shapes():
    first = image_of((6, 5, 4), oblique())
    moved = oblique()
    moved[0, 3] += 0.5
    assert same_grid(first, first)
    assert not same_grid(first, image_of((6, 5, 4), moved))
    assert same_grid(first, image_of((6, 5, 4), moved), atol=0.51)
    assert not same_grid(first, image_of((5, 6, 4), oblique()))


def smooth(shape, generator) -> np.ndarray:
    coarse = torch.rand(1, 1, *[max(n // 3, 2) for n in shape], generator=generator)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return torch.nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)[0, 0].numpy()


@pytest.mark.parametrize("dims", [2, 3])
def test_resample_like_agrees_with_itk(tmp_path, dims):
    generator = torch.Generator().manual_seed(0)
    if dims == 3:
        moving_affine, fixed_affine = oblique(), oblique((1.1, 1.2, 2.0))
        fixed_affine[:3, 3] += 1.5
    else:
        moving_affine = np.diag([-0.8, 1.7, 1.0, 1.0])
        fixed_affine = np.array([[0, 1.1, 0, -12.0], [-1.3, 0, 0, 15.0], [0, 0, 1, 0], [0, 0, 0, 1]])
    write(tmp_path / "m.nii", smooth((19, 14, 11)[:dims], generator), moving_affine)
    write(tmp_path / "f.nii", smooth((12, 15, 13)[:dims], generator), fixed_affine)
    moving, fixed = load_image(tmp_path / "m.nii"), load_image(tmp_path / "f.nii")
    for mode, interpolator in (("bilinear", "Linear"), ("nearest", "NearestNeighbor")):
        itk_moving = itk.imread(str(tmp_path / "m.nii"), itk.F)
        expected = itk.resample_image_filter(
            itk_moving,
            reference_image=itk.imread(str(tmp_path / "f.nii"), itk.F),
            use_reference_image=True,
            interpolator=getattr(itk, f"{interpolator}InterpolateImageFunction").New(itk_moving),
            default_pixel_value=-1,
        )
        expected = itk.array_from_image(expected).T
        resampled = resample_like(moving, fixed, mode)
        inside = expected >= 0
        assert inside.mean() > 0.2
        agree = np.abs(resampled.array.numpy() - expected)[inside] < 1e-4
        # The outermost half voxel is extrapolated in ITK and blended with zeros in MONAI.
        assert agree.mean() > 0.85
        assert same_grid(resampled, fixed)


def test_resample_like_is_exact_on_the_interior_of_a_linear_ramp():
    grid = np.indices((9, 8, 7)).astype(np.float64)
    affine, finer = oblique(), oblique((0.5, 0.9, 1.3))
    finer[:3, 3] = (affine @ [2, 2, 2, 1])[:3]
    positions = np.einsum("ij,jxyz->ixyz", affine, np.concatenate([grid, np.ones((1, 9, 8, 7))]))
    moving = Image(torch.from_numpy(positions[:3].sum(0)).float(), affine, (0.8, 1.7, 2.9))
    resampled = resample_like(moving, image_of((7, 6, 5), finer), "bilinear")
    grid = np.concatenate([np.indices((7, 6, 5)), np.ones((1, 7, 6, 5))])
    expected = np.einsum("ij,jxyz->ixyz", finer, grid)[:3].sum(0)
    np.testing.assert_allclose(resampled.array.numpy(), expected, rtol=0, atol=1e-3)


def test_resample_like_keeps_labels_integer_and_tilted_slices_in_their_plane():
    label = image_of((6, 8), oblique())._replace(array=torch.arange(48, dtype=torch.int32).reshape(6, 8))
    shifted = oblique()
    shifted[:3, 3] += shifted[:3, 0] * 2 - shifted[:3, 1]
    resampled = resample_like(label, image_of((4, 7), shifted), "nearest")
    assert resampled.array.dtype == torch.int32
    assert torch.equal(resampled.array[:, 1:], label.array[2:, :6])


def test_resample_like_bad_input():
    image = image_of((6, 5), np.eye(4))
    with pytest.raises(ValueError, match="mode must be"):
        resample_like(image, image, "linear")
    with pytest.raises(ValueError, match="must be 3D as fixed; got 2D"):
        resample_like(image, image_of((6, 5, 4), np.eye(4)), "nearest")
    above = np.eye(4)
    above[2, 3] = 8.0
    with pytest.raises(ValueError, match="lies up to 8 slices off"):
        resample_like(image, image_of((6, 5), above), "nearest")


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 7)])
def test_a_grid_is_that_of_the_image_and_holds_no_values(tmp_path, shape):
    path = tmp_path / "image.nii.gz"
    affine = np.diag([-1.5, 2.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random(shape, np.float32), affine), path)
    image, grid = load_image(path), load_grid(path)
    assert grid.array.device.type == "meta" and grid.array.shape == image.array.shape
    np.testing.assert_array_equal(grid.affine, image.affine)
    assert grid[2:] == image[2:]
    path.write_bytes(b"not a volume")
    with pytest.raises(ValueError, match="label: expected a readable NIfTI file"):
        load_grid(path, "label")
