# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt
from scipy.spatial import Delaunay

from common.data.generated import COUNTS
from common.data.pairs import PairDataset
from common.data.shapes import Shape, draw_shape, signed_distance
from common.data.triangles import (
    SHAPES,
    SPLITS,
    STYLES,
    datalist,
    example_pair,
    generate,
    load_pairs,
    split_of,
    subjects,
)
from common.io.images import load_image

SIZES = [(64, 48), (40, 28, 32)]
IMAGES, LABELS = ("moving_image", "fixed_image"), ("moving_label", "fixed_label")
every_size = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


def _draw(kind: str, size: tuple[int, ...], count: int, seed: int = 0) -> list[Shape]:
    rng = np.random.default_rng(seed)
    return [draw_shape(kind, size, rng) for _ in range(count)]


def _vertices(shape: Shape) -> np.ndarray:
    return (shape.centre + shape.radius * shape.directions).numpy()


def _voxels(size: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), -1).astype(float)


def _same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return all(p["subject"] == q["subject"] and torch.equal(p[key], q[key])
               for p, q in zip(a, b, strict=True) for key in IMAGES + LABELS)  # fmt: skip


@every_size
@pytest.mark.parametrize("style", STYLES)
def test_keys_shapes_types_and_ranges(size: tuple[int, ...], style: str) -> None:
    for index, pair in enumerate(load_pairs("phantom", "test", 4, size, style)):
        assert set(pair) == {*IMAGES, *LABELS, "centre", "subject", "spacing"}
        for image in (pair[key] for key in IMAGES):
            assert image.shape == (1, *size) and image.dtype == torch.float32 and image.is_contiguous()
            assert image.min() >= 0 and image.max() <= 1 and image.max() - image.min() > 0.9
        for label in (pair[key] for key in LABELS):
            assert label.shape == (1, *size) and label.dtype == torch.uint8 and label.unique().tolist() == [0, 1]
        assert pair["centre"].tolist() == [(n - 1) / 2 for n in size] and pair["centre"].dtype == torch.float32
        assert pair["spacing"].shape == (len(size),) and pair["spacing"].isnan().all()
        assert pair["subject"] == f"test_{index:05d}"


@every_size
def test_a_pair_depends_on_seed_split_and_index_not_on_the_count(size: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    few = load_pairs("phantom", "train", 3, size)
    torch.manual_seed(2)
    np.random.seed(2)
    many = load_pairs("phantom", "train", {"train": 6, "test": 1}, size)
    assert _same(few, many[:3])
    others = [
        load_pairs("phantom", "train", 3, size, seed=1),
        load_pairs("phantom", "validation", 3, size),
        load_pairs("phantom", "test", 3, size),
    ]
    images = [pair[key].numpy().tobytes() for pairs in (many, *others) for pair in pairs for key in IMAGES]
    assert len(set(images)) == len(images) == 2 * (6 + 3 * 3)


def test_all_is_the_three_splits_one_after_the_other() -> None:
    counts = {"train": 3, "validation": 1, "test": 2}
    parts = [pair for split in counts for pair in load_pairs("phantom", split, counts, (16, 20))]
    assert _same(load_pairs("phantom", "all", counts, (16, 20)), parts)
    assert len({pair["subject"] for pair in parts}) == 6
    assert [len(load_pairs("phantom", split, 2, (16, 20))) for split in ("test", "all")] == [2, 6]


def test_the_default_counts_hold_where_none_is_given() -> None:
    assert [len(load_pairs("phantom", split, None, (16, 16))) for split in COUNTS] == list(COUNTS.values())
    assert len(load_pairs("phantom", "test", {"train": 2}, (16, 16))) == COUNTS["test"]


@every_size
def test_both_styles_show_the_same_shapes(size: tuple[int, ...]) -> None:
    for outline, filled in zip(*(load_pairs("phantom", "train", 6, size, style) for style in STYLES), strict=True):
        for image, label in zip(IMAGES, LABELS, strict=True):
            assert torch.equal(outline[label], filled[label])
            inside = filled[image]
            # a voxel within rounding of the boundary may be on either side of one half
            assert (((inside > 0.5) == outline[label].bool()) | ((inside - 0.5).abs() < 1e-5)).all()
            assert torch.allclose(outline[image], 4 * inside * (1 - inside), atol=1e-6)


@pytest.mark.parametrize("size", [(128, 96), (56, 48, 64)], ids=["2d", "3d"])
def test_the_ball_has_the_closed_form_area_or_volume(size: tuple[int, ...]) -> None:
    for shape in _draw("circle", size, 10):
        exact = math.pi * shape.radius**2 if len(size) == 2 else 4 / 3 * math.pi * shape.radius**3
        assert int((signed_distance(shape, size) <= 0).sum()) == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("size", [(192, 160), (72, 64, 80)], ids=["2d", "3d"])
def test_the_simplex_has_the_area_or_volume_of_its_vertices(size: tuple[int, ...]) -> None:
    d = len(size)
    for shape in _draw("triangle", size, 10):
        corners = _vertices(shape)
        if d == 2:
            (x, y), (nx, ny) = corners.T, np.roll(corners, -1, axis=0).T
            exact = abs(np.sum(x * ny - nx * y)) / 2  # shoelace formula
        else:
            exact = abs(np.linalg.det(corners[1:] - corners[0])) / 6
        assert exact == pytest.approx({2: 3 * 3**0.5 / 4, 3: 8 * 3**0.5 / 27}[d] * shape.radius**d, rel=1e-9)
        assert int((signed_distance(shape, size) <= 0).sum()) == pytest.approx(exact, rel=0.05)


@every_size
def test_the_simplex_is_the_convex_hull_of_its_vertices(size: tuple[int, ...]) -> None:
    for shape in _draw("triangle", size, 5):
        hull = Delaunay(_vertices(shape)).find_simplex(_voxels(size)) >= 0
        distance = signed_distance(shape, size).numpy()
        assert (((distance <= 0) == hull) | (np.abs(distance) < 1e-9)).all()


@every_size
def test_vertices_are_regular_and_lie_on_the_ball(size: tuple[int, ...]) -> None:
    d = len(size)
    for shape in _draw("triangle", size, 20):
        gram = shape.directions @ shape.directions.T
        expected = torch.full((d + 1, d + 1), -1 / d, dtype=torch.float64).fill_diagonal_(1.0)
        assert torch.allclose(gram, expected, atol=1e-12)
        at_vertices = np.linalg.norm(_vertices(shape) - shape.centre.numpy(), axis=1)
        np.testing.assert_allclose(at_vertices, shape.radius, rtol=1e-12)


@every_size
def test_orientations_are_uniform(size: tuple[int, ...]) -> None:
    d, count = len(size), 2000
    vertex = torch.stack([shape.directions[0] for shape in _draw("triangle", size, count)])
    # of a uniform unit vector the mean is 0 and E[v v'] = I / d; each entry's standard error is below 1 / sqrt(count)
    assert vertex.mean(0).abs().max() < 4 / math.sqrt(count)
    assert (vertex.T @ vertex / count - torch.eye(d) / d).abs().max() < 4 / math.sqrt(count)


@every_size
@pytest.mark.parametrize("kind", SHAPES)
def test_distance_is_euclidean_inside_and_never_more_outside(kind: str, size: tuple[int, ...]) -> None:
    for shape in _draw(kind, size, 5):
        distance = signed_distance(shape, size).numpy()
        inside = distance <= 0
        # distances between voxel centres exceed those to the boundary by no more than one voxel's diagonal
        to_outside, to_inside = distance_transform_edt(inside), distance_transform_edt(~inside)
        slack = math.sqrt(len(size))
        assert np.abs(-distance - to_outside)[inside].max() < slack
        assert (distance - to_inside)[~inside].max() < 1e-9
        if kind == "circle":
            assert np.abs(distance - to_inside)[~inside].max() < slack


@pytest.mark.parametrize("d", [2, 3])
def test_distance_along_the_axis_through_a_vertex_has_a_closed_form(d: int) -> None:
    third = {2: [[3**0.5 / 2], [-(3**0.5) / 2]],
             3: [[8**0.5 / 3, 0], [-(2**0.5) / 3, 6**0.5 / 3], [-(2**0.5) / 3, -(6**0.5) / 3]]}[d]  # fmt: skip
    directions = torch.tensor([[1.0, *[0.0] * (d - 1)], *([-1 / d, *row] for row in third)], dtype=torch.float64)
    shape = Shape(torch.full((d,), 20.0, dtype=torch.float64), 9.0, directions)
    along = signed_distance(shape, (41, 31, 27)[:d])[(slice(None), *[20] * (d - 1))]
    x = torch.arange(41, dtype=torch.float64) - 20
    beyond_face, beyond_vertex = -x - 9 / d, x - 9
    assert torch.allclose(along[x <= 0], beyond_face[x <= 0], atol=1e-9)
    assert torch.allclose(along[x >= 9], beyond_vertex[x >= 9], atol=1e-9)
    assert torch.allclose(along[(x > 0) & (x < 9)], (x / d - 9 / d)[(x > 0) & (x < 9)], atol=1e-9)


@pytest.mark.parametrize("size", [(96, 96), (128, 80), (48, 40, 56)])
def test_shapes_stay_inside_with_a_margin_and_spread_over_the_documented_ranges(size: tuple[int, ...]) -> None:
    unit, last = min(size) - 1, np.array(size) - 1
    for kind in SHAPES:
        shapes = _draw(kind, size, 400)
        radii = np.array([shape.radius for shape in shapes]) / unit
        centres = np.stack([shape.centre.numpy() for shape in shapes])
        room = np.minimum(centres, last - centres).min(1) / unit - radii
        assert room.min() >= 0.05 - 1e-12
        assert 0.2 <= radii.min() < 0.21 and 0.39 < radii.max() <= 0.4
        shift = (centres - last / 2) / unit
        assert np.abs(shift).max() <= 0.15 and (shift.max(0) > 0.13).all() and (shift.min(0) < -0.13).all()


@every_size
def test_images_fade_towards_the_border(size: tuple[int, ...]) -> None:
    for pair in load_pairs("phantom", "train", 10, size):
        for key in IMAGES:
            inner = torch.nn.functional.pad(torch.zeros([n - 2 for n in size]), [1] * (2 * len(size)), value=1.0)
            # 0.05 of the shortest side away from the boundary, with edge scale 1/80 of it or half a voxel
            scale = max((min(size) - 1) / 80, 0.5)
            bound = 1 - math.tanh(0.05 * (min(size) - 1) / (2 * scale)) ** 2
            assert (pair[key][0] * inner).max() <= bound + 1e-6


@every_size
def test_outlines_peak_on_the_boundary_of_the_label(size: tuple[int, ...]) -> None:
    for pair in load_pairs("phantom", "train", 6, size):
        for image_key, label_key in zip(IMAGES, LABELS, strict=True):
            image, label = pair[image_key][0].numpy(), pair[label_key][0].numpy().astype(bool)
            band = binary_dilation(label) & ~binary_erosion(label)
            assert band.ravel()[image.argmax()]
            assert image[band].mean() > 5 * image[~band].mean()


def test_edge_is_a_logistic_of_the_distance_with_the_documented_scale() -> None:
    size, scale = (161, 180), 2.0  # the shortest side is 160 voxels
    for pair in load_pairs("phantom", "train", 5, size, "filled", shapes=["circle"]):
        for key in IMAGES:
            image = pair[key][0].double()
            edge = (image > 0.02) & (image < 0.98)
            distance = -scale * torch.logit(image.clamp(1e-6, 1 - 1e-6)).numpy()
            slope = np.hypot(*np.gradient(distance))  # of a distance it is 1
            np.testing.assert_allclose(slope[edge.numpy()], 1.0, atol=0.01)


def test_shapes_choose_what_is_drawn_in_any_order() -> None:
    size, counts = (64, 64), {}
    for chosen in (("triangle",), ("circle",), SHAPES):
        # area over that of the smallest centred ball: 1 for a ball, 3 sqrt(3) / 4 pi = 0.41 for a triangle
        roundness = []
        for pair in load_pairs("phantom", "train", 60, size, shapes=chosen):
            for key in LABELS:
                points = pair[key][0].nonzero().double()
                reach = (points - points.mean(0)).norm(dim=1).max() + 0.5
                roundness.append(len(points) / (math.pi * float(reach) ** 2))
        counts[chosen] = sum(value > 0.7 for value in roundness)
    assert counts[("triangle",)] == 0 and counts[("circle",)] == 120
    assert 40 < counts[SHAPES] < 80
    assert _same(
        load_pairs("phantom", "train", 3, size),
        load_pairs("phantom", "train", 3, size, shapes=[*SHAPES[::-1], "circle"]),
    )


@every_size
@pytest.mark.parametrize("style", STYLES)
def test_pair_dataset_takes_the_pairs(size: tuple[int, ...], style: str) -> None:
    pairs = load_pairs("phantom", "validation", 3, size, style)
    dataset = PairDataset(pairs, size, with_labels=True)
    for pair, item in zip(pairs, dataset.__getitems__([0, 1, 2]), strict=True):
        assert torch.equal(item["crop_start"], torch.zeros_like(item["crop_start"]))
        assert item["subject"] == pair["subject"]
        for key in LABELS:
            assert torch.equal(item[key], pair[key])
        for key in IMAGES:  # already nearly in [0, 1]
            assert torch.allclose(item[key], pair[key], atol=0.1)
            assert (item[key].min(), item[key].max()) == (0.0, 1.0)


@every_size
@pytest.mark.parametrize("style", STYLES)
def test_the_example_is_the_first_test_pair(size: tuple[int, ...], style: str) -> None:
    files = example_pair("phantom", size, style)
    assert [file.name for file in files] == ["moving.nii.gz", "fixed.nii.gz"]
    (pair,) = load_pairs("phantom", "test", 1, size, style)
    for file, key in zip(files, IMAGES, strict=True):
        image = load_image(file)
        assert torch.equal(image.array, pair[key][0]) and image.spacing == (1.0,) * len(size)
        np.testing.assert_array_equal(image.affine, np.eye(4))


def test_the_example_is_outlines_by_default_and_the_same_again() -> None:
    first, second = example_pair("phantom", (24, 32)), example_pair("phantom", (24, 32), "outlines")
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_a_pair_is_generated_from_its_entry_in_the_list() -> None:
    arguments = {"count": 2, "spatial_size": (16, 20), "style": "filled", "seed": 3, "shapes": ["circle"]}
    entries = json.loads(json.dumps(datalist("phantom", "validation", **arguments)))
    again = [generate(entry["subject"], **entry["generated"]) for entry in entries]
    assert _same(again, load_pairs("phantom", "validation", **arguments))


def test_subjects_are_those_of_the_pairs() -> None:
    counts = {"train": 3, "validation": 1, "test": 2}
    for split in SPLITS:
        pairs = load_pairs("phantom", split, counts, (16, 16))
        assert subjects("phantom", split, counts) == sorted(pair["subject"] for pair in pairs)
    with pytest.raises(ValueError, match="subject: expected a name like 'train_00017', got 'patient001'"):
        split_of("patient001")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "training"}, "split: expected one of .*all.*got 'training'. Did you mean 'train'"),
        ({"style": "outline"}, "style: expected one of .*got 'outline'. Did you mean 'outlines'"),
        ({"shapes": ["triangle", "circles"]}, "shapes: expected one of .*got 'circles'. Did you mean 'circle'"),
        ({"shapes": []}, "at least one name in shapes"),
        ({"seed": -1}, "seed of 0 or more.*got .*-1"),
        ({"count": 0}, "count: expected whole numbers of at least 1, got 0"),
        ({"count": 2.5}, "count: expected whole numbers of at least 1, got 2.5"),
        ({"count": {"test": -1}}, "count: expected whole numbers of at least 1, got -1 for 'test'"),
        ({"count": {"tests": 3}}, "count: expected one of .*got 'tests'. Did you mean 'test'"),
        ({"spatial_size": (64, 15)}, r"spatial_size: expected 2 or 3 numbers of at least 16 voxels, got \(64, 15\)"),
        ({"spatial_size": (64,)}, "spatial_size: expected 2 or 3 numbers"),
        ({"spatial_size": (16, 16, 16, 16)}, "spatial_size: expected 2 or 3 numbers"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_pairs(**{"count": 1, "spatial_size": (16, 16), **arguments})


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind: expected one of .*got 'square'"):
        draw_shape("square", (16, 16), np.random.default_rng(0))
