# SPDX-License-Identifier: Apache-2.0
"""Placement and displacement together: closed forms, group laws, and what ITK makes of the written files."""

import itk
import numpy as np
import pytest
import torch

from common.io.composite import load_transform, save_transform
from common.io.fields import load_ddf
from common.io.images import Image, load_image, save_image
from common.io.transforms import Transform

TURN = np.linalg.qr(np.array([[1.0, 0.4, -0.2], [-0.5, 1.0, 0.3], [0.1, -0.2, 1.0]]))[0]
OBLIQUE = np.eye(4)
OBLIQUE[:3] = np.column_stack([TURN * [0.9, -1.6, 2.7], [13.0, -52.0, 31.0]])
PLANAR = np.array([[0.0, 1.4, 0.0, 6.0], [-0.6, 0.0, 0.0, -9.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
AFFINE = np.eye(4)  # turns, scales, shears and shifts
AFFINE[:3] = np.array([[0.95, 0.12, -0.03, 4.0], [-0.10, 1.05, 0.06, -7.0], [0.02, -0.05, 0.9, 3.0]])
IN_PLANE = np.eye(4)
IN_PLANE[:2] = np.array([[0.95, 0.12, 0.0, 1.3], [-0.10, 1.05, 0.0, -0.7]])
CASES = [((17, 15, 12), OBLIQUE, AFFINE), ((19, 16), PLANAR, IN_PLANE)]
cases = pytest.mark.parametrize(("shape", "affine", "placement"), CASES, ids=["volume", "plane"])


def image(shape, affine, seed=3, slice_axis=False) -> Image:
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0)[: len(shape)])
    return Image(smooth(shape, 1, seed)[0], affine, spacing, slice_axis=slice_axis)


def smooth(shape, channels, seed=7, amplitude=1.0) -> torch.Tensor:
    coarse = torch.randn(1, channels, *[4] * len(shape), generator=torch.Generator().manual_seed(seed))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return amplitude * torch.nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)[0]


def voxel_points(grid: Image, margin=0) -> np.ndarray:
    """Positions of the voxels of a grid, (N, 3) in mm, RAS."""
    axes = [np.arange(margin, n - margin) for n in grid.array.shape]
    voxels = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes)).astype(float)
    voxels = np.pad(voxels, ((0, 0), (0, 3 - len(axes))))
    return voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def itk_points(transform, points: np.ndarray) -> np.ndarray:
    """The same points carried by ITK, which counts in LPS."""
    dims = transform.GetInputSpaceDimension()
    lps = points * [-1, -1, 1]
    carried = np.array([list(transform.TransformPoint(point[:dims].tolist())) for point in lps])
    return np.column_stack([carried, lps[:, dims:]]) * [-1, -1, 1]


@cases
def test_points_go_through_the_displacement_and_then_the_placement(shape, affine, placement):
    """A constant displacement of c voxels is φ(p) = P (p + A c), on the grid and beyond it."""
    constant = torch.tensor([1.5, -0.5, 0.25][: len(shape)]).reshape(-1, *[1] * len(shape)).expand(-1, *shape)
    transform = Transform(placement, constant, image(shape, affine))
    points = np.random.default_rng(0).normal(0, 40, (50, 3))
    moved = points + affine[:3, : len(shape)] @ [1.5, -0.5, 0.25][: len(shape)]
    np.testing.assert_allclose(transform.points(points), moved @ placement[:3, :3].T + placement[:3, 3], atol=1e-5)


@cases
def test_displacement_holds_the_placement(shape, affine, placement):
    grid = image(shape, affine)
    transform = Transform(placement, smooth(shape, len(shape)), grid)
    whole = Transform(np.eye(4), transform.displacement(), grid)
    points = voxel_points(grid)
    np.testing.assert_allclose(whole.points(points), transform.points(points), rtol=0, atol=2e-4)
    still = Transform(np.eye(4), None, grid)
    assert not still.displacement().any() and torch.equal(
        Transform(np.eye(4), transform.ddf, grid).displacement(), transform.ddf
    )


@cases
def test_an_image_moved_by_the_placement_is_brought_back_exactly(shape, affine, placement):
    """The moving file holds fixed's own voxels at P · A: nothing may be interpolated, labels of any size included."""
    fixed = image(shape, affine)
    transform = Transform(placement, None, fixed)
    moving = fixed._replace(affine=placement @ affine)
    torch.testing.assert_close(transform.apply(moving, "bilinear").array, fixed.array, rtol=0, atol=1e-5)
    label = moving._replace(array=(fixed.array * 1e9).to(torch.int64), stored=np.dtype(np.int64))
    warped = transform.apply(label, "nearest")
    assert torch.equal(warped.array, label.array) and warped.stored == np.int64


@cases
def test_inverse_undoes_the_transform(shape, affine, placement):
    transform = Transform(placement, smooth(shape, len(shape), amplitude=0.4), image(shape, affine))
    points = voxel_points(transform.grid, margin=4)
    there = transform.points(points)
    # Between the voxels of its grid the inverse is linear, the true one is not.
    assert np.linalg.norm(transform.inverse().points(there) - points, axis=1).mean() < 0.05
    inverse = transform.inverse()
    own = voxel_points(inverse.grid, margin=4)
    np.testing.assert_allclose(transform.points(inverse.points(own)), own, rtol=0, atol=1e-3)


def test_inverse_of_an_affine_is_its_inverse():
    transform = Transform(AFFINE, None, image((6, 5, 4), OBLIQUE))
    np.testing.assert_allclose(transform.inverse().placement @ AFFINE, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(transform.inverse().inverse().grid.affine, OBLIQUE, atol=1e-9)


@cases
def test_composition_is_that_of_points(shape, affine, placement):
    one = Transform(placement, smooth(shape, len(shape), 1), image(shape, affine))
    other_affine = placement @ affine  # of another grid, in the space that ``first`` leads to
    other_affine[:3, : len(shape)] *= 1.1
    other = Transform(np.linalg.inv(placement), smooth(shape, len(shape), 2), image(shape, other_affine))
    points = voxel_points(one.grid)
    expected = other.points(one.points(points))
    composed = other.after(one)
    np.testing.assert_allclose(composed.points(points), expected, rtol=0, atol=5e-4)
    left = Transform(np.eye(4), None, one.grid)
    for same in (one.after(left), left.after(one)):
        torch.testing.assert_close(same.ddf, one.ddf, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(same.placement, placement)


def test_composition_warps_as_one_transform_after_the_other():
    """A linear ramp is read exactly between voxels, so that two interpolations equal one."""
    shape, grid = (24, 20), image((24, 20), PLANAR)
    ramp = grid._replace(array=torch.arange(24.0)[:, None] * 3 + torch.arange(20.0)[None] * 5)
    one, other = (Transform(np.eye(4), smooth(shape, 2, seed), grid) for seed in (1, 2))
    twice = one.apply(other.apply(ramp, "bilinear"), "bilinear").array
    once = other.after(one).apply(ramp, "bilinear").array
    inside = slice(6, -6)
    # the inner field is linear between voxels, and so is a ramp pulled through it
    torch.testing.assert_close(once[inside, inside], twice[inside, inside], rtol=0, atol=1e-3)


@cases
def test_slabs_of_a_field_are_worked_on_as_the_whole(shape, affine, placement):
    """More planes than a slab has, and no multiple of it: composition and placement are those of the points."""
    grid = image((37, *shape[1:]), affine)
    first, last = (Transform(placement, smooth(grid.array.shape, len(shape), seed), grid) for seed in (1, 2))
    points = voxel_points(grid)
    expected = last.points(first.points(points))
    whole = last.after(first)
    np.testing.assert_allclose(whole.points(points), expected, atol=1e-3)
    alone = Transform(np.eye(4), whole.displacement(), grid).points(points)
    inverse = np.linalg.inv(affine)[: len(shape), :3]
    np.testing.assert_allclose((alone - expected) @ inverse.T, 0, atol=1e-4)


@cases
def test_a_field_on_another_grid_carries_the_same_points(shape, affine, placement):
    transform = Transform(placement, smooth(shape, len(shape)), image(shape, affine))
    finer = affine.copy()
    finer[:3, : len(shape)] /= 2
    grid = image(tuple(2 * n - 1 for n in shape), finer)
    points = voxel_points(transform.grid)
    np.testing.assert_allclose(transform.on(grid).points(points), transform.points(points), rtol=0, atol=1e-4)


@cases
@pytest.mark.parametrize("suffix", [".nii.gz", ".h5", ".tfm"])
def test_itk_carries_points_alike_and_files_read_back(tmp_path, shape, affine, placement, suffix):
    transform = Transform(placement, smooth(shape, len(shape)), image(shape, affine))
    path = tmp_path / f"transform{suffix}"
    save_transform(path, transform)
    read = load_transform(path)
    points = voxel_points(transform.grid)[::7]
    np.testing.assert_allclose(read.points(points), transform.points(points), rtol=0, atol=2e-4)
    np.testing.assert_allclose(read.grid.affine, affine, atol=1e-5)
    if suffix != ".nii.gz":
        np.testing.assert_allclose(read.placement, placement, atol=1e-9)
        torch.testing.assert_close(read.ddf, transform.ddf, rtol=0, atol=1e-5)
        composite = itk.down_cast(itk.transformread(str(path))[0])
        inner = voxel_points(transform.grid, margin=1)[::7]
        np.testing.assert_allclose(itk_points(composite, inner), transform.points(inner), rtol=0, atol=2e-4)
    again = load_transform(path, grid=transform.grid)
    torch.testing.assert_close(again.displacement(), transform.displacement(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("suffix", [".nii", ".h5"])
def test_images_of_one_slice_come_back_as_such(tmp_path, suffix):
    grid = image((17, 15), OBLIQUE, slice_axis=True)  # a tilted plane
    transform = Transform(np.eye(4), smooth((17, 15), 2), grid)
    save_transform(tmp_path / f"slice{suffix}", transform)
    read = load_transform(tmp_path / f"slice{suffix}", grid if suffix == ".h5" else None)
    assert read.grid.slice_axis and read.grid.array.shape == (17, 15)
    torch.testing.assert_close(read.ddf, transform.ddf, rtol=0, atol=1e-5)


def test_a_linear_transform_of_itk_is_placed_on_a_given_grid(tmp_path):
    rotation = itk.Euler3DTransform[itk.D].New()
    rotation.SetCenter([10.0, -4.0, 6.0])
    rotation.SetRotation(0.2, -0.1, 0.3)
    rotation.SetTranslation([5.0, 2.0, -1.0])
    itk.transformwrite([rotation], str(tmp_path / "rigid.tfm"))
    grid = image((9, 8, 7), OBLIQUE)
    read = load_transform(tmp_path / "rigid.tfm", grid)
    points = voxel_points(grid)
    np.testing.assert_allclose(read.points(points), itk_points(rotation, points), atol=1e-9)
    save_transform(tmp_path / "again.h5", read)
    np.testing.assert_allclose(load_transform(tmp_path / "again.h5", grid).placement, read.placement, atol=1e-12)
    with pytest.raises(ValueError, match="grid: .*rigid.tfm holds no displacement field: expected the fixed image"):
        load_transform(tmp_path / "rigid.tfm")


def test_itk_resamples_a_file_through_the_written_composite_as_apply_does(tmp_path):
    fixed, moving = image((17, 15, 12), OBLIQUE), image((22, 19, 16), np.diag([1.0, 1.3, 1.9, 1.0]), seed=5)
    placement = AFFINE.copy()
    placement[:3, 3] += moving.affine[:3, :3] @ [10.5, 9, 7.5] - (AFFINE @ OBLIQUE @ [8, 7, 5.5, 1])[:3]
    transform = Transform(placement, smooth((17, 15, 12), 3), fixed)
    save_image(tmp_path / "fixed.nii", fixed.array, fixed)
    save_image(tmp_path / "moving.nii", moving.array, moving)
    save_transform(tmp_path / "composite.h5", transform)
    composite = itk.down_cast(itk.transformread(str(tmp_path / "composite.h5"))[0])
    theirs = itk.resample_image_filter(
        itk.imread(str(tmp_path / "moving.nii"), itk.F),
        transform=composite,
        reference_image=itk.imread(str(tmp_path / "fixed.nii"), itk.F),
        use_reference_image=True,
        default_pixel_value=99,
    )
    theirs = itk.array_from_image(theirs).T
    ours = transform.apply(load_image(tmp_path / "moving.nii"), "bilinear").array.numpy()
    voxels = transform.points(voxel_points(fixed)) @ np.linalg.inv(moving.affine[:3, :3]).T
    inside = ((voxels > 0.01) & (voxels < np.array(moving.array.shape) - 1.01)).all(1).reshape(ours.shape)
    assert inside.mean() > 0.3 and (theirs[inside] < 90).all()
    np.testing.assert_allclose(ours[inside], theirs[inside], rtol=0, atol=2e-3)


def test_bad_transforms(tmp_path):
    grid = image((6, 5, 4), OBLIQUE)
    for placement in (np.eye(3), np.zeros((4, 4)), np.diag([1, 1, 0, 1.0]), np.full((4, 4), np.nan), 2 * np.eye(4)):
        with pytest.raises(ValueError, match=r"placement: expected an invertible affine \(4, 4\)"):
            Transform(placement, None, grid)
    with pytest.raises(ValueError, match=r"ddf: expected the shape \(3, 6, 5, 4\).*got \(2, 6, 5, 4\)"):
        Transform(np.eye(4), torch.zeros(2, 6, 5, 4), grid)
    transform = Transform(np.eye(4), None, grid)
    with pytest.raises(ValueError, match="mode: expected 'bilinear'"):
        transform.apply(grid, "linear")
    with pytest.raises(ValueError, match="image: expected 3 axes"):
        transform.apply(image((6, 5), PLANAR), "bilinear")
    with pytest.raises(ValueError, match=r"points_mm: expected \(N, 3\) in mm, RAS, got the shape \(4, 2\)"):
        transform.points(np.zeros((4, 2)))
    flat = Transform(np.eye(4), None, image((6, 5), PLANAR))
    tilted = image((6, 5), PLANAR)._replace(affine=OBLIQUE)
    with pytest.raises(ValueError, match="2D images must lie in one plane"):
        flat.apply(tilted, "bilinear")
    with pytest.raises(ValueError, match=r"path: expected a name that ends in .nii, .* got .*field.mha"):
        save_transform(tmp_path / "field.mha", transform)
    with pytest.raises(FileNotFoundError, match="initial: expected a file of a transform, there is no"):
        load_transform(tmp_path / "none.h5", argument="initial")
    (tmp_path / "text.tfm").write_text("no transform")
    with pytest.raises(ValueError, match="ITK cannot read .*text.tfm"):
        load_transform(tmp_path / "text.tfm")
    spline = itk.BSplineTransform[itk.D, 3, 3].New()
    itk.transformwrite([spline], str(tmp_path / "spline.tfm"))
    with pytest.raises(ValueError, match="is to be sampled on a grid: expected the fixed image, got None"):
        load_transform(tmp_path / "spline.tfm")


def test_the_written_field_is_that_of_itk(tmp_path):
    """What ``load_ddf`` reads of a placement's file is A⁻¹ (P − I) A x, the whole displacement."""
    grid = image((6, 5, 4), OBLIQUE)
    save_transform(tmp_path / "field.nii.gz", Transform(AFFINE, None, grid))
    ddf, _ = load_ddf(tmp_path / "field.nii.gz")
    x = np.array([3, 2, 1, 1.0])
    expected = np.linalg.inv(OBLIQUE) @ (AFFINE - np.eye(4)) @ OBLIQUE @ x
    np.testing.assert_allclose(ddf[:, 3, 2, 1], expected[:3], atol=1e-5)


@cases
def test_an_inverse_elsewhere_is_solved_for_there(shape, affine, placement):
    """On another grid, after another transform, and at points φ(φ⁻¹(p)) is p; interpolation misses it."""
    transform = Transform(placement, smooth(shape, len(shape), 3, amplitude=0.8), image(shape, affine))
    half = placement @ affine  # of voxels between those of P · G
    half[:3, 3] += half[:3, : len(shape)].sum(1) / 2
    moving = image(tuple(n - 1 for n in shape), half)
    points = voxel_points(moving, margin=3)
    found = [transform.inverse_on(moving), transform.inverse().on(moving)]
    off = [np.linalg.norm(transform.points(inverse.points(points)) - points, axis=1).max() for inverse in found]
    assert off[0] < 1e-3 < 0.02 < off[1]
    np.testing.assert_allclose(transform.inverse_points(points), found[0].points(points), rtol=0, atol=1e-3)
    first = Transform(np.linalg.inv(placement), smooth(moving.array.shape, len(shape), 5), moving)
    both, start = transform.inverse_after(first), voxel_points(moving)
    np.testing.assert_allclose(transform.points(both.points(start)), first.points(start), rtol=0, atol=2e-3)


def test_the_inverse_of_points_keeps_to_points_of_space():
    transform = Transform(AFFINE, None, image((6, 5, 4), OBLIQUE))
    np.testing.assert_allclose(transform.inverse_points(transform.points(np.eye(3))), np.eye(3), atol=1e-9)
    assert transform.inverse_points(np.zeros((0, 3))).shape == (0, 3)
    with pytest.raises(ValueError, match=r"points_mm: expected \(N, 3\)"):
        transform.inverse_points(np.zeros(3))


def test_a_transform_on_its_own_grid_is_itself():
    transform = Transform(AFFINE, smooth((6, 5, 4), 3), image((6, 5, 4), OBLIQUE))
    assert transform.on(transform.grid) is transform
