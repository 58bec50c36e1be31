# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from common.metrics import digital
from common.metrics.digital import (
    DigitalMeasures,
    digital_maps,
    half_resolution_float16,
    ndv_percent,
    one_sided_determinants,
    sd_log_jacobian_l2r,
    star_determinants,
)
from common.metrics.folding import foldings_percent
from common.spatial.jacobian import jacobian_determinant
from tests.metrics.synthetic import shifted

SHAPES = [(9, 12), (7, 9, 8)]


def linear_field(shape: tuple[int, ...], factors: tuple[float, ...]) -> torch.Tensor:
    grid = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    return torch.stack([(factor - 1) * axis for factor, axis in zip(factors, grid, strict=True)])[None]


def random_field(shape: tuple[int, ...], size: float = 0.7, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return size * torch.randn(count, len(shape), *shape, generator=generator, dtype=torch.float64)


def simplices(dims: int) -> list[list[tuple[int, ...]]]:
    """Edges of the simplices around a voxel, from the definition: its corners, and in 3D two of the cubes' middles."""
    unit = np.eye(dims, dtype=int)
    corners = [[s * e for s, e in zip(signs, unit, strict=True)] for signs in itertools.product((1, -1), repeat=dims)]
    if dims == 2:
        return corners
    x, y, z = unit
    return [*corners, [-x - y, -x - z, -y - z], [x + y, y + z, x + z]]


def reference(field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Determinants (K, *(S - 2)) and folded volume by loops over voxels and simplices, (*(S - 2))."""
    dims, shape = field.shape[0], field.shape[1:]
    position = field + np.indices(shape)
    edges = simplices(dims)
    values = np.empty((len(edges), *(n - 2 for n in shape)))
    for voxel in np.ndindex(*values.shape[1:]):
        here = np.array(voxel) + 1
        for k, simplex in enumerate(edges):
            moved = [position[(slice(None), *(here + e))] - position[(slice(None), *here)] for e in simplex]
            undeformed = np.linalg.det(np.stack(simplex).astype(float))
            values[(k, *voxel)] = np.linalg.det(np.stack(moved)) * np.sign(undeformed)
    return values, (np.maximum(-values, 0) / 2 / math.factorial(dims)).sum(0)


def test_the_published_example() -> None:
    """The identity of 3 x 3 pixels with the centre moved to (0, 2)."""
    ddf = torch.zeros(1, 2, 3, 3)
    ddf[0, :, 1, 1] = torch.tensor([-1.0, 1.0])
    assert jacobian_determinant(ddf)[0, 1, 1] == 1
    values = dict(zip(("++", "+-", "-+", "--"), one_sided_determinants(ddf).flatten().tolist(), strict=True))
    assert values == {"++": 1, "+-": 3, "-+": -1, "--": 1}
    volume, least = digital_maps(ddf)
    assert volume.item() == 0.25 and least.item() == -1 and ndv_percent(volume).item() == 25


@pytest.mark.parametrize("shape", SHAPES)
def test_the_identity_and_a_translation_fold_nowhere(shape: tuple[int, ...]) -> None:
    for shift in (0.0, -3.25):
        ddf = torch.full((2, len(shape), *shape), shift)
        assert (one_sided_determinants(ddf) == 1).all()
        volume, least = digital_maps(ddf)
        assert (volume == 0).all() and (least == 1).all() and volume.shape == (2, *(n - 2 for n in shape))
    if len(shape) == 3:
        assert (star_determinants(torch.zeros(1, 3, *shape)) == 2).all()


@pytest.mark.parametrize(("shape", "factors"), [((9, 14), (1.5, 0.8)), ((7, 10, 6), (1.2, 0.5, 2.0))])
def test_a_scaling_has_one_determinant_and_a_reflection_folds_all_its_volume(shape, factors) -> None:
    product = math.prod(factors)
    torch.testing.assert_close(
        one_sided_determinants(linear_field(shape, factors)), torch.full_like(torch.empty(1), product).double().expand(
            1, 2 ** len(shape), *(n - 2 for n in shape))
    )  # fmt: skip
    ddf = linear_field(shape, (-factors[0], *factors[1:]))
    volume, least = digital_maps(ddf)
    torch.testing.assert_close(volume, torch.full_like(volume, product))  # the simplices of a voxel fill its volume
    assert foldings_percent(least).item() == 100 and ndv_percent(volume).item() == pytest.approx(100 * product)


def test_a_fold_of_one_plane_in_closed_form() -> None:
    """Along the last axis x + u runs … 5 6 5.5 8 …: the step from 6 to 7 is -½ in one of two directions at each end."""
    ddf = torch.zeros(1, 3, 6, 7, 12)
    ddf[:, 2, :, :, 7] = -1.5
    assert foldings_percent(jacobian_determinant(ddf)).item() == 0  # central differences see nothing
    volume, least = digital_maps(ddf)
    columns = volume[0].flatten(0, 1).unique(dim=0)
    assert len(columns) == 1
    folded = columns[0].nonzero().flatten().tolist()
    assert folded == [5, 6]  # voxels 6 and 7: the border's is not in the map
    assert foldings_percent(least).item() == pytest.approx(100 * 2 / 10)
    # four of eight corners of ½ a voxel's sixth at each end; the edges of J* cross the plane in two of three
    corners = 4 * 0.5 * 0.5 / 6
    assert columns[0, 5].item() == pytest.approx(corners + 0.5 * 1.0 / 6)
    assert columns[0, 6].item() == pytest.approx(corners + 0.5 * 1.0 / 6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slab", [1, 150, 2**18])
def test_maps_agree_with_loops_over_the_simplices(shape, slab, monkeypatch) -> None:
    monkeypatch.setattr(digital, "SLAB", slab)
    ddf = random_field(shape)
    volume, least = digital_maps(ddf)
    for case in range(2):
        values, folded = reference(ddf[case].numpy())
        corners = 2 ** len(shape)
        np.testing.assert_allclose(one_sided_determinants(ddf)[case], values[:corners], atol=1e-12)
        np.testing.assert_allclose(volume[case], folded, atol=1e-12)
        np.testing.assert_allclose(least[case], values[:corners].min(0), atol=1e-12)
        assert 0.01 < folded.mean() < 2
        if len(shape) == 3:
            np.testing.assert_allclose(star_determinants(ddf)[case], values[corners:], atol=1e-12)


def test_the_mask_restricts_the_volume_and_not_the_foldings() -> None:
    ddf = torch.zeros(2, 2, 6, 12)
    ddf[:, 1, :, 7] = -1.5
    label = torch.zeros(2, 1, 6, 12, dtype=torch.uint8)
    label[0, :, :, :5], label[1, :, :, 4:10] = 3, 1
    cases = shifted((6, 12), (0.0, 0.0), moving_label=label)
    cases.ddf = ddf
    columns = DigitalMeasures()(cases)
    assert set(columns) == {"ndv_percent", "foldings_any_percent", "sd_log_jacobian_l2r"}
    # each of two columns of the mask's six: two of four triangles of ½ pixel, each counted by ½
    assert columns["ndv_percent"].tolist() == pytest.approx([0.0, 100 * 2 / 6 * (2 * 0.5 * 0.5 / 2)])
    assert columns["foldings_any_percent"].tolist() == pytest.approx([20.0, 20.0])
    assert DigitalMeasures(mask=None)(cases)["ndv_percent"].tolist() == pytest.approx([100 * 2 / 10 * 0.25] * 2)
    assert DigitalMeasures()(shifted((6, 12), (0.0, 0.0), thorough=False)) == {}
    label[0] = 0
    assert DigitalMeasures()(cases)["ndv_percent"][0].isnan()
    del cases.batch["moving_label"]
    with pytest.raises(ValueError, match="digital foldings: the data hold no moving_label"):
        DigitalMeasures()(cases)


def test_a_diverged_field_is_nan_not_free_of_foldings() -> None:
    ddf = torch.zeros(2, 3, 6, 7, 8)
    ddf[1, 0, 3, 3, 3] = float("nan")
    volume, least = digital_maps(ddf)
    assert ndv_percent(volume)[0] == 0 and ndv_percent(volume)[1].isnan()
    assert foldings_percent(least)[0] == 0 and foldings_percent(least)[1].isnan()


def learn2reg_sd(field: np.ndarray) -> float:
    """As the challenge words it: correlation with (-½, 0, ½), zeros outside, crop by two, + 3, clip, log."""
    dims = len(field)
    rows = []
    for axis in range(dims):
        kernel = np.array([-0.5, 0, 0.5]).reshape([3 if other == axis else 1 for other in range(dims)])
        rows.append([scipy.ndimage.correlate(part, kernel, mode="constant", cval=0.0) for part in field])
    matrix = np.moveaxis(np.array(rows), (0, 1), (-1, -2)) + np.eye(dims)
    inner = np.linalg.det(matrix)[(slice(2, -2),) * dims]
    return float(np.std(np.log(np.clip(inner + 3, 1e-9, 1e9))))


@pytest.mark.parametrize("shape", [(9, 12), (10, 9, 8)])
def test_sd_log_jacobian_is_that_of_learn2reg(shape: tuple[int, ...]) -> None:
    ddf = random_field(shape, 1.5)
    expected = [learn2reg_sd(field) for field in ddf.numpy()]
    assert min(expected) > 0.1
    assert sd_log_jacobian_l2r(jacobian_determinant(ddf)).tolist() == pytest.approx(expected, rel=1e-9)
    cases = shifted(shape, [0.0] * len(shape))
    cases.ddf = ddf
    measured = DigitalMeasures(mask=None, half_resolution=True)(cases)["sd_log_jacobian_l2r"].tolist()
    halved = half_resolution_float16(ddf).numpy()
    assert measured == pytest.approx([learn2reg_sd(field) for field in halved], rel=1e-6)
    assert measured[0] < 0.9 * expected[0]  # noise does not survive


def test_half_resolution_keeps_a_linear_field_and_rounds_it() -> None:
    ddf = linear_field((22, 26, 25), (1.07, 0.9, 1.2)).float()
    restored = half_resolution_float16(ddf)
    assert restored.shape == ddf.shape and restored.dtype == ddf.dtype
    inner = (..., *[slice(7, -7)] * 3)  # the splines are flat at the border
    assert 0 < (restored - ddf)[inner].abs().max() < 0.01
    steps = torch.full((1, 2, 9, 7), 1000.3)
    assert (half_resolution_float16(steps) - 1000.5).abs().max() < 1e-3  # float16 has halves there


def test_bad_input_is_refused() -> None:
    for function in (one_sided_determinants, digital_maps):
        with pytest.raises(ValueError, match=r"ddf: expected .* at least 3 voxels, got \(1, 3, 5, 6\); move"):
            function(torch.zeros(1, 3, 5, 6))
        with pytest.raises(ValueError, match=r"at least 3 voxels, got \(1, 2, 2, 6\)"):
            function(torch.zeros(1, 2, 2, 6))
    with pytest.raises(ValueError, match=r"ddf: expected three axes, got the shape \(1, 2, 5, 6\)"):
        star_determinants(torch.zeros(1, 2, 5, 6))
    with pytest.raises(ValueError, match=r"mask: expected .* of the field, \(1, 5, 6\), got \(1, 1, 5, 6\)"):
        ndv_percent(torch.zeros(1, 3, 4), torch.ones(1, 1, 5, 6))
    with pytest.raises(ValueError, match=r"at least 5 voxels an axis, .*got the shape \(1, 4, 9\)"):
        sd_log_jacobian_l2r(torch.ones(1, 4, 9))
