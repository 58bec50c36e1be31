# SPDX-License-Identifier: Apache-2.0
import itk
import nibabel as nib
import numpy as np
import pytest
import torch

from common.io.fields import check_grid, load_ddf, save_ddf
from common.io.images import Image, load_image, save_image
from common.spatial.warp import warp

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.linalg.qr(np.array([[1.0, 0.4, -0.2], [-0.5, 1.0, 0.3], [0.1, -0.2, 1.0]]))[0] * [0.9, -1.6, 2.7]
OBLIQUE[:3, 3] = [13.0, -52.0, 31.0]
PLANAR = np.array([[0.0, 1.4, 0.0, 6.0], [-0.6, 0.0, 0.0, -9.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
FLIPPED = np.diag([-0.7, 1.3, 2.1, 1.0])
TURNED = np.eye(4)
TURNED[:2, :2] = np.array([[np.cos(0.5), np.sin(0.5)], [np.sin(0.5), -np.cos(0.5)]]) * [0.7, 1.9]
TURNED[:2, 3] = [4.0, -3.0]

GRIDS = [((17, 15, 12), OBLIQUE), ((14, 16, 9), FLIPPED), ((19, 16), PLANAR), ((18, 15), TURNED), ((18, 13), FLIPPED)]


def grid_image(shape, affine, codes=(1, 1)) -> Image:
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0)[: len(shape)])
    values = torch.rand(shape, generator=torch.Generator().manual_seed(5))
    return Image(values, affine, spacing, codes)


def smooth_ddf(shape, channels, amplitude=1.5) -> torch.Tensor:
    coarse = torch.randn(1, channels, *[5] * len(shape), generator=torch.Generator().manual_seed(7))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return amplitude * torch.nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)[0]


def itk_warp(moving_path, fixed_path, field_path) -> np.ndarray:
    """Resample as any ITK program would, knowing nothing but the three files; -1 outside the moving image."""
    moving, fixed = itk.imread(str(moving_path), itk.F), itk.imread(str(fixed_path), itk.F)
    dims = moving.GetImageDimension()
    field = itk.imread(str(field_path))
    assert itk.template(field)[1] == (itk.Vector[itk.F, dims], dims)
    # The reader gives float vectors, the transform takes double ones. The view does not own its memory: keep it alive.
    vectors = np.ascontiguousarray(itk.array_from_image(field), dtype=np.float64)
    displacement = itk.image_view_from_array(vectors, ttype=itk.Image[itk.Vector[itk.D, dims], dims])
    displacement.CopyInformation(field)
    transform = itk.DisplacementFieldTransform[itk.D, dims].New()
    transform.SetDisplacementField(displacement)
    resampled = itk.resample_image_filter(
        moving,
        transform=transform,
        reference_image=fixed,
        use_reference_image=True,
        interpolator=itk.LinearInterpolateImageFunction.New(moving),
        default_pixel_value=-1,
    )
    values = itk.array_from_image(resampled).T
    return values[..., 0] if values.shape[2:] == (1,) else values


def compare_with_itk(tmp_path, fixed: Image, ddf: torch.Tensor, stack: bool = False) -> None:
    moving = torch.rand(fixed.array.shape, generator=torch.Generator().manual_seed(9))
    save_image(tmp_path / "moving.nii.gz", moving, fixed)
    save_image(tmp_path / "fixed.nii.gz", fixed.array, fixed)
    save_ddf(tmp_path / "field.nii.gz", ddf, fixed, stack=stack)
    expected = itk_warp(tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz", tmp_path / "field.nii.gz")
    full = torch.cat([ddf, torch.zeros_like(ddf[:1])]) if stack else ddf
    warped = warp(moving[None, None], full[None])[0, 0]
    # What is sampled from outside the moving image is a matter of padding: compare where both have data.
    coordinates = full + torch.stack(torch.meshgrid(*[torch.arange(n) for n in moving.shape], indexing="ij"))
    inside = torch.ones(moving.shape, dtype=torch.bool)
    for axis, size in enumerate(moving.shape):
        # Slice by slice, the first and last slice are inside too: nothing moves across.
        margin = -0.001 if stack and axis == 2 else 0.001
        inside &= (coordinates[axis] > margin) & (coordinates[axis] < size - 1 - margin)
    assert inside.float().mean() > 0.6
    assert (expected[inside.numpy()] >= 0).all()
    np.testing.assert_allclose(expected[inside.numpy()], warped[inside].numpy(), rtol=0, atol=2e-4)
    # The same test must be able to fail: the identity is far away.
    assert np.abs(expected - moving.numpy())[inside.numpy()].mean() > 0.05


@pytest.mark.parametrize(("shape", "affine"), GRIDS)
@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (1, 0)])
def test_itk_resamples_as_warp_does(tmp_path, shape, affine, codes):
    compare_with_itk(tmp_path, grid_image(shape, affine, codes), smooth_ddf(shape, len(shape)))


@pytest.mark.parametrize("shape", [(17, 15, 12), (17, 15)])
def test_itk_agrees_without_orientation_in_the_header(tmp_path, shape):
    nifti = nib.Nifti1Image(grid_image(shape, np.eye(4)).array.numpy(), None)
    nifti.header.set_zooms((0.8, 1.7, 2.2)[: len(shape)])
    nib.save(nifti, tmp_path / "bare.nii")
    compare_with_itk(tmp_path, load_image(tmp_path / "bare.nii"), smooth_ddf(shape, len(shape)))


def test_itk_resamples_a_stack_registered_slice_by_slice(tmp_path):
    shape = (17, 15, 6)
    compare_with_itk(tmp_path, grid_image(shape, OBLIQUE), smooth_ddf(shape, 2), stack=True)
    loaded, _ = load_ddf(tmp_path / "field.nii.gz")
    assert loaded.shape == (3, *shape)
    assert loaded[2].abs().max() < 1e-5


@pytest.mark.parametrize("affine", [PLANAR, FLIPPED, OBLIQUE])
def test_itk_resamples_files_of_one_slice_tilted_or_not(tmp_path, affine):
    slice_form = grid_image((17, 15), affine)._replace(slice_axis=True)
    save_image(tmp_path / "slice.nii.gz", slice_form.array, slice_form)
    fixed = load_image(tmp_path / "slice.nii.gz")
    compare_with_itk(tmp_path, fixed, smooth_ddf((17, 15), 2))
    assert nib.load(tmp_path / "moving.nii.gz").shape == (17, 15, 1)
    loaded, loaded_affine = load_ddf(tmp_path / "field.nii.gz")
    torch.testing.assert_close(loaded, smooth_ddf((17, 15), 2), rtol=0, atol=1e-5)
    np.testing.assert_allclose(loaded_affine, fixed.affine, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("shape", "affine"), GRIDS)
def test_round_trip(tmp_path, shape, affine):
    ddf = smooth_ddf(shape, len(shape), amplitude=4.0)
    save_ddf(tmp_path / "field.nii.gz", ddf, grid_image(shape, affine))
    loaded, loaded_affine = load_ddf(tmp_path / "field.nii.gz")
    torch.testing.assert_close(loaded, ddf, rtol=0, atol=1e-5)
    np.testing.assert_allclose(loaded_affine, affine, rtol=0, atol=1e-5)


def test_layout_of_the_file(tmp_path):
    save_ddf(tmp_path / "a.nii", torch.ones(3, 6, 5, 4), grid_image((6, 5, 4), FLIPPED))
    save_ddf(tmp_path / "b.nii", torch.ones(2, 6, 5), grid_image((6, 5), FLIPPED))
    three, two = nib.load(tmp_path / "a.nii"), nib.load(tmp_path / "b.nii")
    assert (three.shape, two.shape) == ((6, 5, 4, 1, 3), (6, 5, 1, 1, 2))
    for field in (three, two):
        assert int(field.header["intent_code"]) == 1007
        assert field.get_data_dtype() == np.float32
    # One voxel along each axis of diag(-0.7, 1.3, 2.1) mm RAS, in LPS.
    np.testing.assert_allclose(three.get_fdata()[2, 3, 1, 0], [0.7, -1.3, 2.1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(two.get_fdata()[2, 3, 0, 0], [0.7, -1.3], rtol=0, atol=1e-6)


def test_save_bad_input(tmp_path):
    volume, plane = grid_image((6, 5, 4), FLIPPED), grid_image((6, 5), FLIPPED)
    path = tmp_path / "field.nii.gz"
    with pytest.raises(ValueError, match=r"must have shape \(3, 6, 5, 4\).*got \(1, 3, 6, 5, 4\).* batch axis"):
        save_ddf(path, torch.zeros(1, 3, 6, 5, 4), volume)
    with pytest.raises(ValueError, match=r"must have shape \(3, 6, 5, 4\).*stack=True for"):
        save_ddf(path, torch.zeros(2, 6, 5, 4), volume)
    with pytest.raises(ValueError, match=r"must have shape \(2, 6, 5, 4\)"):
        save_ddf(path, torch.zeros(3, 6, 5, 4), volume, stack=True)
    with pytest.raises(ValueError, match="Leave stack out in 2D"):
        save_ddf(path, torch.zeros(2, 6, 5), plane, stack=True)
    with pytest.raises(ValueError, match="must be finite"):
        save_ddf(path, torch.full((2, 6, 5), torch.nan), plane)
    with pytest.raises(ValueError, match="tilted plane"):
        save_ddf(path, torch.zeros(2, 6, 5), grid_image((6, 5), OBLIQUE))
    with pytest.raises(ValueError, match="several slices"):
        save_ddf(path, torch.zeros(3, 6, 5, 1), grid_image((6, 5, 1), OBLIQUE))
    sheared = FLIPPED.copy()
    sheared[0, 1] = 0.5
    with pytest.raises(ValueError, match="sheared affine"):
        save_ddf(path, torch.zeros(3, 6, 5, 4), grid_image((6, 5, 4), sheared))
    assert not path.exists()
    with pytest.raises(ValueError, match="fixed: plane_affine: .* tilted plane"):
        check_grid(grid_image((6, 5), OBLIQUE), "fixed")
    for form in (grid_image((6, 5), PLANAR), grid_image((6, 5), OBLIQUE)._replace(slice_axis=True), volume):
        check_grid(form, "fixed")


def test_load_bad_input(tmp_path):
    path = tmp_path / "field.nii"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_ddf(path)
    save_image(path, grid_image((6, 5, 4), FLIPPED).array, grid_image((6, 5, 4), FLIPPED))
    with pytest.raises(ValueError, match="expected a field of shape"):
        load_ddf(path)
    nib.save(nib.Nifti1Image(np.zeros((6, 5, 4, 1, 3), dtype=np.float32), FLIPPED), path)
    with pytest.raises(ValueError, match="expected intent code 1007 .* has 0"):
        load_ddf(path)
    save_ddf(path, torch.ones(2, 6, 5), grid_image((6, 5), FLIPPED))
    raw = bytearray(path.read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match="1 NaN and 0 infinite"):
        load_ddf(path)
