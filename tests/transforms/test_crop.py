# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from common.transforms.crop import CropToCentred, auto_centre, centre_on_grid, centroid, crop_window


def _disc(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> torch.Tensor:
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    return (sum((x - c) ** 2 for x, c in zip(axes, centre, strict=True)) <= radius**2).float()


@pytest.mark.parametrize(("shape", "centre"), [((40, 31), (22.0, 9.0)), ((20, 31, 16), (8.0, 20.0, 7.0))])
def test_centroid_of_a_ball_is_its_centre(shape: tuple[int, ...], centre: tuple[float, ...]) -> None:
    assert torch.allclose(centroid(_disc(shape, centre, 5.0)), torch.tensor(centre), atol=1e-5)


def test_centroid_of_an_empty_mask_is_none() -> None:
    assert centroid(torch.zeros(4, 5)) is None


@pytest.mark.parametrize(("shape", "centre"), [((120, 96), (70.0, 38.0)), ((48, 40, 56), (30.0, 17.0, 22.0))])
def test_auto_centre_finds_a_contracting_ball(shape: tuple[int, ...], centre: tuple[float, ...]) -> None:
    noise = torch.rand(3, 1, *shape, generator=torch.Generator().manual_seed(0)) * 0.02
    # a brighter ball that does not move must not attract the centre; gains differ between the frames
    still = 2 * _disc(shape, tuple(6.0 for _ in shape), 4.0)
    moving = still + _disc(shape, centre, 10.0) + noise
    fixed = 5 * (still + _disc(shape, centre, 6.0) + noise)
    found = auto_centre(moving, fixed, sigma=6.0)
    assert torch.allclose(found, torch.tensor(centre), atol=1.5)


@pytest.mark.parametrize("kept", [slice(40, 120), slice(0, 90)])
def test_auto_centre_compares_what_both_show(kept: slice) -> None:
    """What one image lacks, of the plane or of the stack, is no difference, and sets no range."""
    shape, centre = (120, 96), (70.0, 38.0)
    noise = torch.rand(4, 1, *shape, generator=torch.Generator().manual_seed(0)) * 0.02 + 0.3
    mask = torch.zeros(4, 1, *shape, dtype=torch.bool)
    mask[1:, :, kept, 10:70] = True
    moving = (noise + _disc(shape, centre, 10.0)) * mask
    fixed = noise + _disc(shape, centre, 6.0)
    fixed[:, :, :, 80:] += 9
    found = auto_centre(moving, fixed, mask, sigma=6.0)
    assert torch.allclose(found, torch.tensor(centre), atol=1.5)
    assert not torch.allclose(auto_centre(moving, fixed, sigma=6.0), torch.tensor(centre), atol=10)


def test_auto_centre_of_equal_images_is_their_middle() -> None:
    image = torch.rand(2, 1, 9, 14, generator=torch.Generator().manual_seed(0))
    assert auto_centre(image, image).tolist() == [4.0, 6.5]


def test_auto_centre_refuses_a_fraction_of_one() -> None:
    with pytest.raises(ValueError, match=r"fraction: expected a number in \[0, 1\)"):
        auto_centre(torch.zeros(1, 1, 8, 9), torch.zeros(1, 1, 8, 9), fraction=1.0)


def test_auto_centre_of_unequal_stacks_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"two stacks of one shape \(N, C, \*S\)"):
        auto_centre(torch.zeros(2, 1, 8, 9), torch.zeros(3, 1, 8, 9))


@pytest.mark.parametrize(
    ("n", "centre", "size", "start", "padding"),
    [
        (20, 9.5, 8, 6, (0, 0)),  # first voxels 6..13 have their middle at 9.5
        (20, 10.0, 9, 6, (0, 0)),
        (20, 1.0, 8, 0, (0, 0)),  # shifted inside
        (20, 19.0, 8, 12, (0, 0)),
        (20, -30.0, 20, 0, (0, 0)),
        (5, 0.0, 8, -1, (1, 2)),  # smaller than the window: kept whole
    ],
)
def test_crop_window_along_one_axis(n: int, centre: float, size: int, start: int, padding: tuple[int, int]) -> None:
    first, slices, pads = crop_window([n], [centre], [size])
    assert (first, pads) == ([start], [padding])
    assert slices[0].stop - slices[0].start + sum(padding) == size


@pytest.mark.parametrize(
    ("n", "centre", "size", "start", "part", "padding"),
    [
        (20, 9.4, 8, 5, (5, 13), (0, 0)),  # the published window is [c - 4, c + 4) about the rounded c
        (20, 9.6, 8, 6, (6, 14), (0, 0)),
        (20, 1.0, 8, -3, (0, 5), (3, 0)),
        (20, 19.0, 8, 15, (15, 20), (0, 3)),
        (5, 2.0, 8, -2, (0, 5), (2, 1)),
        (20, -30.0, 8, -34, (0, 0), (8, 0)),
        (20, 60.0, 8, 56, (20, 20), (0, 8)),
    ],
)
def test_published_window_stays_where_it_is(n, centre, size, start, part, padding) -> None:
    first, (taken,), pads = crop_window([n], [centre], [size], shift=False)
    assert (first, (taken.start, taken.stop), pads) == ([start], part, [padding])


@pytest.mark.parametrize("shape", [(20, 24), (20, 24, 18)])
def test_published_crop_holds_zeros_outside_the_image(shape: tuple[int, ...]) -> None:
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)) + 3
    label = torch.ones(1, *shape, dtype=torch.uint8)
    item = {"moving_image": image, "moving_label": label, "centre": torch.tensor([2.0, 12.0, 9.0][: len(shape)])}
    out = CropToCentred(["moving_image", "moving_label"], (12, 8, 6)[: len(shape)], shift=False)(item)
    assert out["crop_start"].tolist() == [-4, 8, 6][: len(shape)]
    assert (out["moving_image"][:, :4] == 0).all() and (out["moving_label"][:, :4] == 0).all()
    window = (slice(None), slice(0, 8), slice(8, 16), slice(6, 12))[: len(shape) + 1]
    assert torch.equal(out["moving_image"][:, 4:], image[window])
    shifted = CropToCentred("moving_image", (12, 8, 6)[: len(shape)])(item)
    assert shifted["crop_start"][0] == 0 and shifted["moving_image"].min() >= 3
    far = CropToCentred("moving_image", (12, 8, 6)[: len(shape)], shift=False)
    assert not far(item | {"centre": torch.full((len(shape),), 90.0)})["moving_image"].any()


def test_crop_window_of_unequal_lengths_is_an_error() -> None:
    with pytest.raises(ValueError, match="of one length"):
        crop_window([10, 10], [5.0], [4, 4])


def test_crop_window_at_nan_is_an_error() -> None:
    with pytest.raises(ValueError, match="finite voxel coordinates"):
        crop_window([10], [float("nan")], [4])


@pytest.mark.parametrize(
    ("values", "size", "expected"),
    [
        ([1, 2, 3], 5, [0, 1, 2, 3, 0]),
        ([1, 2, 3], 6, [0, 1, 2, 3, 0, 0]),  # half a voxel towards the first one
        ([1, 2, 3, 4], 6, [0, 1, 2, 3, 4, 0]),
        ([1, 2, 3, 4, 5], 3, [2, 3, 4]),
        ([1, 2, 3, 4, 5, 6], 3, [3, 4, 5]),  # likewise
        ([1, 2, 3, 4], 4, [1, 2, 3, 4]),
    ],
)
def test_centre_on_grid_along_one_axis(values: list[int], size: int, expected: list[int]) -> None:
    assert centre_on_grid(torch.tensor([values]), [size], label=True).tolist() == [expected]


@pytest.mark.parametrize(("shape", "size"), [((9, 14), (12, 11)), ((8, 15, 7), (10, 9, 7)), ((11, 6, 9), (6, 11, 12))])
def test_centre_on_grid_keeps_the_centre_to_half_a_voxel(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"))
    out = centre_on_grid(grid + 100, size, label=True)
    assert out.shape == (len(shape), *size)
    target = torch.stack(torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in size), indexing="ij"))
    inside = out[0] != 0
    assert inside.sum() == torch.tensor([min(n, s) for n, s in zip(shape, size, strict=True)]).prod()
    # wherever it came from, a voxel lies where it lay about the centre
    assert (out - 100 - target)[:, inside].abs().max() <= 0.5


def test_centre_on_grid_pads_images_with_their_smallest_value_and_labels_with_zero() -> None:
    image = torch.full((2, 3, 4), 7.0)
    image[1, 0, 0] = 3
    out = centre_on_grid(image, (5, 4))
    assert torch.equal(out[:, 1:4], image) and (out[:, [0, 4]] == 3).all()
    assert (centre_on_grid(image, (5, 4), label=True)[:, [0, 4]] == 0).all()


def test_centre_on_a_grid_of_other_axes_is_an_error() -> None:
    with pytest.raises(ValueError, match="of one length"):
        centre_on_grid(torch.zeros(1, 4, 5), (4, 5, 6))


@pytest.mark.parametrize("shape", [(30, 21), (22, 30, 19)])
def test_crop_is_the_image_from_crop_start_on(shape: tuple[int, ...]) -> None:
    d = len(shape)
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"))
    item = {"moving_image": grid.float(), "true_ddf": grid.float() * 2, "centre": torch.tensor([11.0, 9.0, 10.0][:d])}
    size = (12, 7, 9)[:d]
    out = CropToCentred("moving_image", size)(item)
    corner = (slice(None), *([0] * d))
    assert out["moving_image"].shape == (d, *size)
    assert torch.equal(out["moving_image"][corner], out["crop_start"].float())
    assert torch.equal(out["true_ddf"], 2 * out["moving_image"])
    assert item["moving_image"].shape[1:] == shape and "crop_start" not in item


def test_padding_is_the_minimum_for_images_and_zero_for_labels_and_displacements() -> None:
    item = {
        "fixed_image": torch.rand(1, 6, 20, generator=torch.Generator().manual_seed(0)) + 3,
        "fixed_label": torch.full((1, 6, 20), 2, dtype=torch.uint8),
        "true_ddf": torch.ones(2, 6, 20),
        "centre": torch.tensor([3.0, 10.0]),
    }
    out = CropToCentred(["fixed_image", "fixed_label"], (10, 8))(item)
    inside = item["fixed_image"][:, :, out["crop_start"][1] : out["crop_start"][1] + 8]
    assert out["crop_start"].tolist() == [-2, 7]
    assert torch.equal(out["fixed_image"][:, 2:8], inside)
    assert (out["fixed_image"][:, [0, 1, 8, 9]] == inside.min()).all()
    assert out["fixed_label"].dtype == torch.uint8 and out["fixed_label"].sum() == 2 * 6 * 8
    assert out["true_ddf"].sum() == 2 * 6 * 8


def test_jitter_moves_the_window_over_its_whole_range_and_repeats_with_the_seed() -> None:
    item = {"moving_image": torch.zeros(1, 40, 30), "centre": torch.tensor([20.0, 15.0])}
    crop = CropToCentred("moving_image", (9, 11), jitter=2)
    generator = torch.Generator().manual_seed(0)
    starts = torch.stack([crop(item, generator)["crop_start"] for _ in range(300)])
    exact = torch.tensor([16, 10])
    assert torch.equal(crop(item)["crop_start"], exact)
    assert len({tuple(row) for row in (starts - exact).tolist()}) == 25
    assert (starts - exact).abs().max() == 2
    again = crop(item, torch.Generator().manual_seed(0))["crop_start"]
    assert torch.equal(again, starts[0])


def test_bad_arguments_and_items_are_errors() -> None:
    with pytest.raises(ValueError, match="size: expected positive"):
        CropToCentred("moving_image", (8, 0))
    with pytest.raises(ValueError, match="jitter: expected a whole number"):
        CropToCentred("moving_image", (8, 8), jitter=-1)
    crop = CropToCentred(["moving_image", "fixed_image"], (4, 4))
    item = {"moving_image": torch.zeros(1, 8, 8), "fixed_image": torch.zeros(1, 8, 9)}
    with pytest.raises(KeyError, match="centre"):
        crop(item)
    with pytest.raises(ValueError, match="fixed_image: expected the spatial shape"):
        crop(item | {"centre": torch.tensor([4.0, 4.0])})
    with pytest.raises(ValueError, match="of one length"):
        crop(item | {"centre": torch.tensor([4.0, 4.0, 4.0])})
