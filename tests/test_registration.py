# SPDX-License-Identifier: Apache-2.0
"""register(): what it finds in closed-form cases, what other software makes of what it writes, and what it refuses."""

from __future__ import annotations

import json

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

from common.engines.result import Result
from common.io.fields import load_ddf
from common.io.images import Image, load_image, save_image
from common.io.landmarks import Landmarks, load_landmarks
from common.io.transforms import Transform
from common.registration import register

sitk = pytest.importorskip("SimpleITK")

TURN = np.linalg.qr(np.array([[1.0, 0.4, -0.2], [-0.5, 1.0, 0.3], [0.1, -0.2, 1.0]]))[0]
RIGHT = TURN if np.linalg.det(TURN) > 0 else TURN * [1, 1, -1]
QUICK = {"levels_mm": [4, 2], "steps": [30, 20], "affine": "none"}


def affine_of(directions, spacing, shape):
    """A grid whose centre lies at (5, -9, 14) mm."""
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = [5, -9, 14] - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


GRIDS = {
    "straight": ((24, 22, 20), affine_of(np.eye(3), [2, 2, 2], (24, 22, 20))),
    "anisotropic": ((30, 26, 10), affine_of(np.eye(3), [1.5, 1.7, 4.2], (30, 26, 10))),
    "oblique": ((24, 20, 18), affine_of(RIGHT, [1.9, 2.2, 2.4], (24, 20, 18))),
    "left-handed": ((22, 24, 20), affine_of(RIGHT * [1, 1, -1], [2.1, 1.8, 2.2], (22, 24, 20))),
    "permuted": ((20, 24, 22), affine_of(np.eye(3)[:, [2, 0, 1]] * [1, -1, 1], [2.2, 1.9, 2.0], (20, 24, 22))),
}


def picture(shape, affine, move=lambda p: p) -> Image:
    """Smooth blobs that are functions of the position in mm: every grid shows the same body."""
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).astype(float)
    points = move(voxels @ affine[:3, :3].T + affine[:3, 3])
    values = np.zeros(shape)
    for centre, width, height in (((5, -9, 14), 11, 80), ((-3, -4, 8), 5, 60), ((12, -15, 18), 4, 50),
                                  ((8, 2, 22), 5, -40), ((0, -18, 16), 4, 55), ((15, -3, 8), 4, 45)):  # fmt: skip
        values += height * np.exp(-((points - centre) ** 2).sum(-1) / (2 * width**2))
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0))
    return Image(torch.from_numpy(values).float() + 20, affine, spacing)


def bend(points):
    """A smooth deformation of some millimetres."""
    x, y, z = np.moveaxis(points - [5, -9, 14], -1, 0)
    shift = [2.0 * np.sin(y / 9), 1.5 * np.cos(z / 10) - 1.5, 1.8 * np.sin(x / 11)]
    return points + np.stack(shift, -1) * np.exp(-(x**2 + y**2 + z**2) / 500)[..., None]


def field_transform(grid: Image, placement=None) -> Transform:
    """A known deformation on a grid, with a placement."""
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in grid.array.shape), indexing="ij"), -1).astype(float)
    points = voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    moved = (bend(points) - points) @ np.linalg.inv(grid.affine)[:3, :3].T
    return Transform(
        np.eye(4) if placement is None else placement, torch.from_numpy(moved).movedim(-1, 0).float(), grid
    )


def rigid(angle=0.08, shift=(2.0, -1.5, 1.0)):
    """A rotation about the body's centre and a translation, from fixed to moving."""
    placement, centre = np.eye(4), np.array([5.0, -9.0, 14.0])
    placement[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    placement[:3, 3] = centre - placement[:3, :3] @ centre + shift
    return placement


def saved(tmp_path, fixed_name, moving_name):
    fixed, moving = (picture(*GRIDS[name]) for name in (fixed_name, moving_name))
    for name, image in (("fixed", fixed), ("moving", moving)):
        save_image(tmp_path / f"{name}.nii.gz", image.array, image)
    fixed, moving = (load_image(tmp_path / f"{name}.nii.gz") for name in ("fixed", "moving"))
    points = np.array([[5.0, -9, 14], [-2, -3, 9], [11, -14, 19], [7.5, -1, 21]])
    landmarks = Landmarks(points, tuple("abcd"))
    result = Result(
        field_transform(fixed, rigid()), moving, fixed, fixed_points=landmarks, moving_points=landmarks
    )  # fmt: skip
    result.save(tmp_path / "out")
    return result, tmp_path / "out"


def interior(values, margin=3):
    return np.asarray(values)[tuple(slice(margin, n - margin) for n in np.shape(values))]


def covered(result):
    """Voxels of fixed that moving's voxels surround: beyond, each software has its own rule."""
    ones = result.moving._replace(array=torch.ones(result.moving.array.shape))
    return (result.transform.apply(ones, "bilinear").array > 0.999).numpy()


def itk_resampled(moving, fixed, transform):
    resampler = itk.ResampleImageFilter.New(
        moving, transform=transform, use_reference_image=True, reference_image=fixed
    )
    resampler.Update()
    return itk.array_from_image(resampler.GetOutput()).T


PAIRS = [("straight", "anisotropic"), ("anisotropic", "oblique"), ("oblique", "left-handed"),
         ("left-handed", "permuted"), ("permuted", "straight")]  # fmt: skip
all_pairs = pytest.mark.parametrize(("fixed_name", "moving_name"), PAIRS, ids=lambda value: value)


@all_pairs
def test_itk_and_simpleitk_warp_as_we_do(tmp_path, fixed_name, moving_name):
    result, out = saved(tmp_path, fixed_name, moving_name)
    ours, seen = load_image(out / "warped.nii.gz").array.numpy(), covered(result)
    assert seen.mean() > 0.3
    moving, fixed = (itk.imread(str(tmp_path / f"{name}.nii.gz"), itk.F) for name in ("moving", "fixed"))
    composite = itk.down_cast(itk.transformread(str(out / "forward.h5"))[0])
    vectors = itk.imread(str(out / "forward.nii.gz"))
    values = itk.array_from_image(vectors).astype(np.float64)
    double = itk.image_from_array(values, is_vector=True)
    double.CopyInformation(vectors)
    field = itk.DisplacementFieldTransform[itk.D, 3].New(displacement_field=double)
    for transform in (composite, field):
        theirs = itk_resampled(moving, fixed, transform)
        np.testing.assert_allclose(theirs[seen], ours[seen], atol=0.05)
    images = [sitk.ReadImage(str(tmp_path / f"{name}.nii.gz"), sitk.sitkFloat32) for name in ("moving", "fixed")]
    read = sitk.Transform(sitk.ReadTransform(str(out / "forward.h5")))
    as_field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(out / "forward.nii.gz"), sitk.sitkVectorFloat64))
    for transform in (read, as_field):
        theirs = sitk.GetArrayFromImage(sitk.Resample(images[0], images[1], transform, sitk.sitkLinear)).T
        np.testing.assert_allclose(theirs[seen], ours[seen], atol=0.05)


@all_pairs
def test_ants_warps_as_we_do(tmp_path, fixed_name, moving_name):
    ants = pytest.importorskip("ants")
    result, out = saved(tmp_path, fixed_name, moving_name)
    ours, seen = load_image(out / "warped.nii.gz").array.numpy(), covered(result)
    assert seen.mean() > 0.3
    moving, fixed = (ants.image_read(str(tmp_path / f"{name}.nii.gz")) for name in ("moving", "fixed"))
    for name in ("forward.h5", "forward.nii.gz"):
        theirs = ants.apply_transforms(fixed, moving, [str(out / name)]).numpy()
        np.testing.assert_allclose(theirs[seen], ours[seen], atol=0.05)


@all_pairs
def test_points_go_where_itk_carries_them(tmp_path, fixed_name, moving_name):
    result, out = saved(tmp_path, fixed_name, moving_name)
    for name, to, given in (("forward", "moving", result.fixed_points), ("inverse", "fixed", result.moving_points)):
        transform = itk.down_cast(itk.transformread(str(out / f"{name}.h5"))[0])
        lps = given.points_mm * [-1, -1, 1]
        theirs = np.array([list(transform.TransformPoint(point.tolist())) for point in lps]) * [-1, -1, 1]
        np.testing.assert_allclose(result.warp_points(given.points_mm, to), theirs, atol=1e-3)
        stem = "fixed_points_in_moving" if to == "moving" else "moving_points_in_fixed"
        for suffix in ("csv", "fcsv"):
            written = load_landmarks(out / f"{stem}.{suffix}", None)
            np.testing.assert_allclose(written.points_mm, theirs, atol=1e-3)
            assert written.names == ("a", "b", "c", "d")


@all_pairs
def test_forward_and_inverse_undo_each_other_inside(tmp_path, fixed_name, moving_name):
    result, out = saved(tmp_path, fixed_name, moving_name)
    error = result.metrics()["inverse_error_voxels"]
    assert error["max"] < 0.05
    assert json.loads((out / "metrics.json").read_text())["inverse_error_voxels"] == error
    there = result.warp_points(result.fixed_points.points_mm, "moving")
    back = result.inverse().warp_points(there, "moving")
    assert np.abs(back - result.fixed_points.points_mm).max() < 0.05 * max(result.fixed.spacing)


@pytest.mark.parametrize("name", ["straight", "oblique"])
def test_a_translation_is_found(name):
    """moving(p + t) = fixed(p): the transform carries p to p + t where there is anything to see."""
    shift = np.array([3.0, -2.0, 2.5])
    fixed, moving = picture(*GRIDS[name]), picture(*GRIDS[name], lambda p: p - shift)
    result = register(moving, fixed, similarity="mse", **QUICK)
    points = np.array([[5.0, -9, 14], [-2, -5, 9], [11, -14, 17]])
    off = result.warp_points(points, "moving") - points - shift
    assert np.linalg.norm(off, axis=1).max() < 0.8
    metrics = result.metrics()
    assert metrics["foldings_percent"] == 0
    assert metrics["similarity"]["after"]["ncc"] > 0.99 > 0.95 > metrics["similarity"]["before"]["ncc"]


@pytest.mark.parametrize("backend", ["elastix", "itk"])
def test_a_rotation_is_found_by_the_alignment(backend, monkeypatch):
    if backend == "elastix":
        pytest.importorskip("itk.itkElastixRegistrationMethodPython")
    monkeypatch.setattr("common.engines.alignment.has_elastix", lambda: backend == "elastix")
    placement = rigid(0.2, (4.0, -3.0, 2.0))
    inverse = np.linalg.inv(placement)
    fixed = picture(*GRIDS["oblique"])
    moving = picture(*GRIDS["left-handed"], lambda p: p @ inverse[:3, :3].T + inverse[:3, 3])
    result = register(moving, fixed, steps=0, affine="rigid")
    points = np.array([[5.0, -9, 14], [-2, -5, 9], [11, -14, 17], [8, 0, 20]])
    expected = points @ placement[:3, :3].T + placement[:3, 3]
    assert np.linalg.norm(result.warp_points(points, "moving") - expected, axis=1).max() < 0.5


def test_a_known_deformation_is_found_whatever_the_grid():
    """The same bodies on other grids give the same map."""
    moved, points = [], np.array([[5.0, -9, 14], [0, -6, 11], [9, -12, 16]])
    for fixed_name, moving_name in (("straight", "straight"), ("left-handed", "permuted")):
        fixed, moving = picture(*GRIDS[fixed_name], bend), picture(*GRIDS[moving_name])
        result = register(moving, fixed, **QUICK)
        moved.append(result.warp_points(points, "moving"))
        assert result.metrics()["similarity"]["after"]["ncc"] > 0.98
    assert np.linalg.norm(moved[0] - bend(points), axis=1).max() < 1.2
    assert np.linalg.norm(moved[0] - moved[1], axis=1).max() < 0.6


def test_an_initial_transform_is_where_it_starts_and_what_it_keeps():
    fixed, moving = picture(*GRIDS["straight"], bend), picture(*GRIDS["anisotropic"])
    start = field_transform(fixed)
    result = register(moving, fixed, initial_transform=start, steps=0)
    points = np.array([[5.0, -9, 14], [0, -6, 11], [9, -12, 16]])
    assert np.linalg.norm(result.warp_points(points, "moving") - bend(points), axis=1).max() < 0.5
    expected = start.apply(moving, "bilinear").array.numpy()
    np.testing.assert_allclose(interior(result.warp(moving).array), interior(expected), atol=0.5)


def test_a_mask_leaves_out_what_is_not_alike():
    """A bright blob that moving lacks pulls the field; masked, it does not."""
    fixed, moving = picture(*GRIDS["straight"]), picture(*GRIDS["straight"])
    spoilt, mask = fixed.array.clone(), torch.ones(fixed.array.shape, dtype=torch.int32)
    spoilt[4:12, 4:12, 4:12] += 90
    mask[2:14, 2:14, 2:14] = 0
    fixed = fixed._replace(array=spoilt)
    moved = [
        float(register(moving, fixed, fixed_mask=chosen, **QUICK).transform.ddf.norm(dim=0).mean())
        for chosen in (None, fixed._replace(array=mask))
    ]
    assert moved[1] < 0.8 * moved[0]


def test_with_a_mask_what_lies_outside_sets_no_intensity_range():
    """A bright frame on both images, outside of the mask, leaves the squared error of what counts nearly as it is.

    Over the whole images the range would be dozens of times as wide, and next to nothing would move.
    """
    fixed, moving = picture(*GRIDS["straight"], bend), picture(*GRIDS["straight"])
    mask = torch.ones(fixed.array.shape, dtype=torch.int32)
    mask[:3] = 0
    found = []
    for level in (0.0, 3000.0):
        pair = []
        for image in (moving, fixed):
            array = image.array.clone()
            array[:3] += level
            pair.append(image._replace(array=array))
        options = QUICK | {"similarity": "mse"}
        result = register(*pair, fixed_mask=fixed._replace(array=mask), **options)
        found.append(result.transform.ddf[:, 8:])
    assert min(field.norm(dim=0).max() for field in found) > 0.5
    assert (found[1] - found[0]).norm(dim=0).mean() < 0.3 * found[0].norm(dim=0).mean()


def test_two_dimensions():
    affine = np.diag([1.5, 1.5, 1.0, 1.0])
    affine[:3, 3] = [-24, -36, 14]
    values = picture((40, 36, 1), affine).array[:, :, 0].numpy()
    planes = [(np.roll(values, 2, axis=0), affine), (values, affine)]
    result = register(*planes, similarity="mse", **QUICK)
    (warped, where), (target, _) = result.warp(planes[0]), planes[1]
    assert warped.shape == target.shape and np.array_equal(where, planes[1][1])
    assert (
        np.abs(interior(warped, 5) - interior(target, 5)).mean()
        < 0.2 * np.abs(interior(planes[0][0], 5) - interior(target, 5)).mean()
    )


def test_what_goes_in_comes_out_in_the_same_form():
    fixed, moving = picture(*GRIDS["oblique"]), picture(*GRIDS["permuted"])
    result = Result(field_transform(fixed), moving, fixed)
    expected = result.warp(moving).array.numpy()
    pair = (moving.array.numpy(), moving.affine)
    np.testing.assert_array_equal(result.warp(pair)[0], expected)
    np.testing.assert_array_equal(result.warp(pair)[1], fixed.affine)
    nifti = result.warp(nib.Nifti1Image(*pair))
    np.testing.assert_allclose(nifti.affine, fixed.affine)
    np.testing.assert_allclose(nifti.get_fdata(), expected, atol=1e-3)
    lps = np.diag([-1, -1, 1, 1]) @ moving.affine
    image = itk.image_from_array(np.ascontiguousarray(pair[0].T))
    image.SetSpacing(list(moving.spacing))
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(lps[:3, :3] / moving.spacing))
    np.testing.assert_allclose(itk.array_from_image(result.warp(image)).T, expected, atol=1e-3)
    other = sitk.GetImageFromArray(np.ascontiguousarray(pair[0].T))
    other.SetSpacing([float(mm) for mm in moving.spacing])
    other.SetOrigin(lps[:3, 3].tolist())
    other.SetDirection((lps[:3, :3] / moving.spacing).ravel().tolist())
    warped = result.warp(other)
    np.testing.assert_allclose(sitk.GetArrayFromImage(warped).T, expected, atol=1e-3)
    corner = np.array(warped.TransformIndexToPhysicalPoint([3, 4, 5])) * [-1, -1, 1]
    np.testing.assert_allclose(corner, (fixed.affine @ [3, 4, 5, 1])[:3], atol=1e-4)


def test_labels_are_warped_both_ways():
    fixed, moving = picture(*GRIDS["straight"]), picture(*GRIDS["straight"])
    result = Result(field_transform(fixed), moving, fixed)
    label = moving._replace(array=(moving.array > 60).int() * 3, stored=np.dtype(np.int16))
    nearest, smooth = (result.warp_label(label, how).array for how in ("nearest", "one_hot"))
    assert set(nearest.unique().tolist()) == set(smooth.unique().tolist()) == {0, 3}
    assert float((nearest == smooth).float().mean()) > 0.97
    expected = result.warp(moving).array > 60
    assert float(((smooth == 3) == expected).float().mean()) > 0.97


def test_images_apart_are_brought_together_and_it_is_said(caplog):
    fixed, moving = picture(*GRIDS["straight"], bend), picture(*GRIDS["straight"])
    far = moving._replace(affine=moving.affine.copy())
    far.affine[:3, 3] += [400, 0, -300]
    result = register(far, fixed, **QUICK)
    assert "do not overlap in space" in caplog.text
    there = result.warp_points(np.array([[5.0, -9, 14]]), "moving")
    assert np.linalg.norm(there - bend(np.array([[5.0, -9, 14]])) - [400, 0, -300]) < 1.5
    assert result.metrics()["similarity"]["after"]["ncc"] > 0.97


def test_bad_input_is_refused(tmp_path):
    fixed = picture(*GRIDS["straight"])
    good = (fixed.array.numpy(), fixed.affine)
    broken = good[0].copy()
    broken[3, 3, 3] = np.nan
    singular = fixed.affine.copy()
    singular[:3, 2] = 0
    (tmp_path / "no.nii.gz").write_bytes(b"this is not an image")
    refused = [
        (("no such file.nii", good), {}, "moving: expected an image .* does not exist"),
        ((tmp_path / "no.nii.gz", good), {}, "moving: expected a readable NIfTI file"),
        ((np.zeros((4, 5, 6, 2)), good), {}, r"moving: expected an image of shape .*\(4, 5, 6, 2\)"),
        (((broken, good[1]), good), {}, "moving: expected finite values"),
        ((good, (good[0], singular)), {}, "fixed: expected an invertible affine"),
        ((good, (good[0][:, :, 0], good[1])), {}, "expected two 2D images or two volumes"),
        (("a", object()), {}, "moving: expected an image"),
        ((good, object()), {}, "fixed: expected a path, a nibabel"),
        ((good, good), {"moving_label": (good[0] + 0.5, good[1])}, "moving_label: expected whole numbers"),
        ((good, good), {"fixed_mask": (np.zeros(good[0].shape, int), good[1])}, "fixed_mask: expected voxels above 0"),
        ((good, good), {"similarity": "lnc"}, "similarity: .*Did you mean 'lncc'"),
        ((good, good), {"preset": "quick"}, "preset: expected one of fast, accurate"),
        ((good, good), {"affine": "rigit"}, "affine: .*Did you mean 'rigid'"),
        ((good, good), {"levels_mm": [1, 2]}, "levels_mm: .* from coarse to fine"),
        ((good, good), {"levelsmm": [1, 2]}, "option: .*Did you mean 'levels_mm'"),
        ((good, good), {"moving_labels": good}, "option: .*Did you mean 'moving_label'"),
        ((good, good), {"smoothness_weight": "a"}, "smoothness_weight: expected a number from 0, got 'a'"),
        ((good, good), {"device": "gpu"}, "device must be like 'cpu'"),
        ((good, good), {"initial_transform": tmp_path / "no.h5"}, "initial_transform: expected a file of a transform"),
        ((good, good), {"initial_transform": tmp_path / "no.nii.gz"}, "initial_transform: expected a readable"),
        ((good, good), {"bundle": "adacs_acd"}, "bundle_root: 'adacs_acd'"),
    ]
    for images, options, message in refused:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            register(*images, **options)


def test_fields_hold_the_whole_transform(tmp_path):
    result, out = saved(tmp_path, "oblique", "straight")
    ddf, affine = load_ddf(out / "forward.nii.gz")
    np.testing.assert_allclose(affine, result.fixed.affine, atol=1e-4)
    np.testing.assert_allclose(ddf, result.transform.displacement(), atol=1e-3)
    assert load_ddf(out / "inverse.nii.gz")[0].shape[1:] == result.moving.array.shape
