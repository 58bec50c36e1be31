# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch

from common.metrics import folding
from common.metrics.folding import LEARN2REG_OFFSET, FieldMeasures, fold_count, foldings_percent, sd_log_jacobian
from common.spatial.jacobian import jacobian_determinant
from tests.metrics.synthetic import shifted


def scaling_field(shape: tuple[int, ...], factors: tuple[float, ...]) -> torch.Tensor:
    grid = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    return torch.stack([(factor - 1) * axis for factor, axis in zip(factors, grid, strict=True)])[None]


@pytest.mark.parametrize(("shape", "factors"), [((9, 14), (1.5, 0.8)), ((7, 10, 6), (1.2, 0.5, 2.0))])
def test_a_linear_scaling_does_not_fold_and_has_no_spread(shape, factors):
    determinant = jacobian_determinant(scaling_field(shape, factors))
    assert foldings_percent(determinant).tolist() == [0.0]
    assert sd_log_jacobian(determinant).item() == pytest.approx(0.0, abs=1e-6)


def test_a_reflection_folds_everywhere():
    determinant = jacobian_determinant(scaling_field((6, 8, 5), (1.0, -1.0, 1.0)))
    assert foldings_percent(determinant).tolist() == [100.0]


def test_foldings_of_a_folded_field_are_those_of_its_fold():
    ddf = torch.zeros(1, 2, 8, 20)
    # along axis 1, x + u runs 0 1 2 3 4 5 6 2 8 …: its central difference is −1.5 at column 6, 3.5 at column 8, else 1
    ddf[:, 1, :, 7] = -5.0
    determinant = jacobian_determinant(ddf)
    assert foldings_percent(determinant).item() == pytest.approx(100.0 / 20, abs=1e-5)


def test_foldings_count_zero_as_folded_and_each_case_alone():
    determinant = torch.ones(3, 4, 5, 10)
    determinant[1, 0, 0, :4] = torch.tensor([0.0, -1.0, -1e-3, 1e-3])
    determinant[2] = -1.0
    assert foldings_percent(determinant).tolist() == pytest.approx([0.0, 1.5, 100.0], abs=1e-5)


def test_mask_restricts_both_measures():
    determinant = torch.ones(2, 4, 6)
    determinant[:, 0] = -1.0
    determinant[:, 1, :3] = 4.0
    inside = torch.zeros(2, 4, 6, dtype=torch.bool)
    inside[0, 1] = True
    inside[1, :2] = True
    assert foldings_percent(determinant, inside).tolist() == [0.0, 50.0]
    # half of the voxels log 4, half log 1: standard deviation log(4) / 2
    assert sd_log_jacobian(determinant, inside)[0].item() == pytest.approx(np.log(4) / 2, abs=1e-6)
    assert torch.isnan(foldings_percent(determinant, torch.zeros_like(inside))).all()
    assert torch.isnan(sd_log_jacobian(determinant, torch.zeros_like(inside))).all()


def test_a_diverged_field_is_nan_not_free_of_foldings():
    determinant = torch.ones(2, 4, 6)
    determinant[1, 2, 2] = float("nan")
    assert foldings_percent(determinant)[0] == 0.0
    assert torch.isnan(foldings_percent(determinant)[1])
    assert torch.isnan(sd_log_jacobian(determinant)[1])


@pytest.mark.parametrize("offset", [0.0, LEARN2REG_OFFSET])
def test_sd_log_jacobian_agrees_with_numpy(offset):
    rng = np.random.default_rng(0)
    field = rng.normal(size=(3, 9, 12, 8))
    rows = [np.stack(np.gradient(component)) for component in field]
    matrix = np.moveaxis(np.stack(rows), (0, 1), (-2, -1)) + np.eye(3)
    inner = (slice(2, -2),) * 3
    expected = np.std(np.log(np.clip(np.linalg.det(matrix)[inner] + offset, 1e-9, 1e9)))
    determinant = jacobian_determinant(torch.from_numpy(field)[None])[(slice(None), *inner)]
    assert sd_log_jacobian(determinant, offset=offset).item() == pytest.approx(expected, rel=1e-9)


def test_offset_of_learn2reg_quarters_small_spreads():
    determinant = 1 + 0.01 * torch.randn(1, 40, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ratio = sd_log_jacobian(determinant) / sd_log_jacobian(determinant, offset=LEARN2REG_OFFSET)
    assert ratio.item() == pytest.approx(4.0, rel=1e-2)


@pytest.mark.parametrize("measure", [foldings_percent, sd_log_jacobian])
def test_folding_refuses_bad_input(measure):
    with pytest.raises(ValueError, match=r"mask: expected .* \(2, 4, 6\), got \(2, 1, 4, 6\); drop the channel"):
        measure(torch.ones(2, 4, 6), torch.ones(2, 1, 4, 6))
    with pytest.raises(ValueError, match=r"determinant: expected the shape \(B, H, W\[, D\]\), got \(4, 6\)"):
        measure(torch.ones(4, 6))


def test_fold_count_of_a_reflection_and_of_a_scaling():
    """Every voxel that has a neighbour along every axis, or none."""
    for shape in ((6, 8), (6, 8, 5)):
        last = [1.0] * (len(shape) - 1)
        assert fold_count(scaling_field(shape, (*last, -1.0))).item() == np.prod([n - 1 for n in shape])
        assert fold_count(scaling_field(shape, (*last, 0.5))).item() == 0
        # collapsed: a folding to foldings_percent, no fold here
        assert fold_count(scaling_field(shape, (*last, 0.0))).item() == 0
        assert foldings_percent(jacobian_determinant(scaling_field(shape, (*last, 0.0)))).item() == 100


def test_fold_count_takes_one_sided_differences():
    ddf = torch.zeros(1, 2, 8, 20)
    ddf[:, 1, :, 7] = -5.0  # along axis 1, x + u runs ... 5 6 2 8 ...: backwards from column 6 to 7 alone
    assert fold_count(ddf).item() == 7
    ddf[:, 1, :, 7] = -1.5  # ... 5 6 5.5 8 ...: the central differences see no fold
    assert fold_count(ddf).item() == 7 and foldings_percent(jacobian_determinant(ddf)).item() == 0


@pytest.mark.parametrize("shape", [(9, 12), (7, 9, 8)])
def test_fold_count_agrees_with_numpy(shape, monkeypatch):
    monkeypatch.setattr(folding, "VOXELS", 4 * math.prod(shape[1:]))  # several parts, the last one smaller
    """The neighbour ahead along every axis in 2D, the one behind in 3D, as the published code."""
    dims = len(shape)
    ddf = 0.7 * torch.randn(2, dims, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = []
    for field in ddf.numpy():
        position, count = field + np.indices(shape), 0
        for voxel in np.ndindex(*(n - 1 for n in shape)):
            here = np.array(voxel) + (dims == 3)
            step = 1 if dims == 2 else -1
            rows = [step * (position[(slice(None), *(here + step * e))] - position[(slice(None), *here)])
                    for e in np.eye(dims, dtype=int)]  # fmt: skip
            count += np.linalg.det(np.stack(rows)) < 0
        expected.append(count)
    assert min(expected) > 5 and fold_count(ddf).tolist() == expected


def test_fold_count_of_a_diverged_field_is_nan_and_bad_shapes_are_refused():
    ddf = torch.zeros(2, 2, 5, 6)
    ddf[1, 0, 2, 2] = float("nan")
    assert fold_count(ddf)[0] == 0 and fold_count(ddf)[1].isnan()
    with pytest.raises(ValueError, match=r"ddf: expected the shape \(B, d, \*S\).*got \(1, 3, 5, 6\)"):
        fold_count(torch.zeros(1, 3, 5, 6))


def test_quick_field_measures_are_the_foldings_alone():
    assert set(FieldMeasures()(shifted((14, 17), (1.0, 0.5), thorough=False))) == {"foldings_percent"}
    columns = FieldMeasures()(shifted((8, 11, 9), (1.0, 0.5, 0.0)))
    assert set(columns) == {"foldings_percent", "sd_log_jacobian", "fold_count"}
    assert all(values.tolist() == pytest.approx([0.0, 0.0], abs=1e-6) for values in columns.values())
