# SPDX-License-Identifier: Apache-2.0
import itertools

import nibabel as nib
import numpy as np
import pytest
import torch

from common.io.images import Image, same_grid
from common.io.orientation import Axes, reorient, reoriented, slice_axis, stored_axes
from common.io.spacing import resample_to_spacing

STRAIGHT = np.eye(3)
TURN = np.linalg.qr(np.array([[1.0, 0.4, -0.2], [-0.5, 1.0, 0.3], [0.1, -0.2, 1.0]]))[0]
EXACTLY_HALF_WAY = np.array([[1, -1, 0], [1, 1, 0], [0, 0, np.sqrt(2)]]) / np.sqrt(2)
STORED = [
    Axes(order, flipped)
    for order in itertools.permutations(range(3))
    for flipped in itertools.product((False, True), repeat=3)
]


def image(shape=(5, 6, 4), spacing=(1.5, 1.25, 8.0), turn=STRAIGHT, codes=(1, 1)):
    array = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    affine = np.eye(4)
    affine[:3, : len(shape)] = turn[:, : len(shape)] * np.array(spacing)
    affine[:3, 3] = (-31.0, 7.5, 12.0)
    return Image(array, affine, tuple(spacing), codes)


@pytest.mark.parametrize("turn", [np.eye(3), TURN, EXACTLY_HALF_WAY], ids=["straight", "oblique", "half way"])
@pytest.mark.parametrize("dims", [2, 3])
def test_one_image_stored_in_any_of_48_ways_gives_one_array(dims, turn):
    expected = reorient(image(turn=turn), "RAS", dims)
    for axes in STORED:
        got = reorient(reoriented(image(turn=turn), axes), "RAS", dims)
        assert torch.equal(got.array, expected.array)
        np.testing.assert_allclose(got.affine, expected.affine, rtol=0, atol=1e-9)
        assert got.spacing == expected.spacing


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR"])
def test_volumes_are_turned_as_nibabel_turns_them(orientation):
    for axes in STORED[::5]:
        given = reoriented(image(turn=TURN), axes)
        got = reorient(given, orientation)
        assert nib.aff2axcodes(got.affine) == tuple(orientation)
        ornt = nib.orientations.ornt_transform(
            nib.io_orientation(given.affine), nib.orientations.axcodes2ornt(orientation)
        )
        np.testing.assert_array_equal(got.array.numpy(), nib.apply_orientation(given.array.numpy(), ornt))


def test_every_voxel_stays_where_it_is_and_comes_back():
    given = reoriented(image(turn=TURN), STORED[29])
    axes = stored_axes(given, "RAS", 2)
    got = reorient(given, "RAS", 2)
    assert torch.equal(axes.restore(got.array), given.array)
    index = got.array.flatten().argsort()[7]
    position = np.array([*np.unravel_index(int(index), got.array.shape), 1])
    before = np.array([*np.unravel_index(int((given.array == got.array.flatten()[index]).flatten().nonzero()[0, 0]),
                                         given.array.shape), 1])  # fmt: skip
    np.testing.assert_allclose(got.affine @ position, given.affine @ before, atol=1e-9)


def test_slices_lie_images_and_planes_are_turned_too():
    flat = image((5, 6), (1.5, 1.25))
    expected = reorient(flat, "RAS", 2)
    for order in ((0, 1), (1, 0)):
        for flipped in itertools.product((False, True), repeat=2):
            got = reorient(reoriented(flat, Axes(order, flipped)), "RAS", 2)
            assert torch.equal(got.array, expected.array) and same_grid(got, expected)


def test_without_an_orientation_only_slices_are_moved(caplog):
    caplog.set_level("INFO")
    given = image((4, 5, 6), (8.0, 1.5, 1.25), codes=(0, 0))
    assert torch.equal(reorient(given, "LPI", 3).array, given.array)
    assert torch.equal(reorient(given, "LPI", 2).array, given.array.permute(1, 2, 0))
    assert "no orientation (both form codes 0)" in caplog.text


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((128, 10, 120), (1.5, 8, 1.5), 1),
        ((26, 128, 128), (5, 1.4, 1.4), 0),
        ((30, 40, 60), (1.2, 1.2, 2.0), 2),
        ((128, 128, 10), (1, 1, 1), 2),
        ((1, 90, 70), (1, 1, 1), 0),
        ((128, 10, 120), (1.5, 1.5, 1.8), 1),
    ],
)
def test_slices_are_found_from_spacing_then_shape(shape, spacing, axis):
    assert slice_axis(Image(torch.empty(shape), np.eye(4), spacing)) == axis


@pytest.mark.parametrize("shape, spacing", [((60, 64, 60), (1, 1, 1)), ((90, 10, 10), (1, 1, 1))])
def test_stacks_that_do_not_say_are_refused(shape, spacing):
    with pytest.raises(ValueError, match=r"does not say which axis holds the slices. Set the spacing in the header"):
        slice_axis(Image(torch.empty(shape), np.eye(4), spacing))
    with pytest.raises(ValueError, match=r"expected a stack \(X, Y, Z\)"):
        slice_axis(Image(torch.empty(4, 5), np.eye(4), (1, 1)))


@pytest.mark.parametrize("orientation", ["RAX", "RR", "RRS", "", None, 3])
def test_an_unknown_orientation_is_refused(orientation):
    with pytest.raises(ValueError, match="orientation: expected three of the letters R or L, A or P, S or I"):
        reorient(image(), orientation)


@pytest.mark.parametrize(
    "shape, spacing", [((20, 24, 15), (1, 1, 1)), ((10, 12, 15), (2.0, 2.0, 1)), ((31, 30), (1, 1))]
)
@pytest.mark.parametrize("target", [0.5, 1.0, 2.0])
def test_a_linear_image_keeps_its_values_at_every_spacing(shape, spacing, target):
    """Smoothing and interpolation leave a ramp alone, so that positions are seen to be right."""
    given = image(shape, spacing, TURN)
    gradient = np.array([3.0, -2.0, 1.0])

    def ramp(affine, size):
        index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
        points = index @ affine[:3, : len(size)].T + affine[:3, 3]
        return torch.from_numpy(points @ gradient).float()

    got = resample_to_spacing(given._replace(array=ramp(given.affine, shape)), [target] * len(shape), "bilinear")
    assert got.spacing == (target,) * len(shape)
    np.testing.assert_allclose(np.linalg.norm(got.affine[:3, : len(shape)], axis=0), target)
    middles = [i.affine[:3, : len(shape)] @ ((np.array(i.array.shape) - 1) / 2) + i.affine[:3, 3] for i in (given, got)]
    np.testing.assert_allclose(middles[0], middles[1], atol=1e-6)
    inner = tuple(slice(2, -2) for _ in shape)  # the border goes on with its value
    torch.testing.assert_close(got.array[inner], ramp(got.affine, got.array.shape)[inner], rtol=0, atol=1e-2)


def test_coarser_images_are_smoothed_and_labels_are_not():
    given = image((64, 64), (1.0, 1.0))
    coarse = resample_to_spacing(given, [4.0, 4.0], "bilinear")
    assert coarse.array.shape == (16, 16) and coarse.array.std() < 0.35 * given.array.std()
    label = given._replace(array=(given.array > 0).int() * 514)
    assert set(resample_to_spacing(label, [2.0, 2.0], "nearest").array.unique().tolist()) == {0, 514}
    assert resample_to_spacing(given, [1.0, 1.0], "bilinear") is given
    flat = given._replace(array=torch.full((64, 64), 7.0))
    for mm in (0.7, 3.0):
        torch.testing.assert_close(resample_to_spacing(flat, [mm, mm], "bilinear").array.unique(), torch.tensor([7.0]))
    with pytest.raises(ValueError, match="mode: expected 'bilinear'"):
        resample_to_spacing(given, [2.0, 2.0], "linear")
    with pytest.raises(ValueError, match="spacing: expected 2 numbers above 0 in mm"):
        resample_to_spacing(given, [1.0, 0.0], "bilinear")
