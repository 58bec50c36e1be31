# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from common.metrics.folding import LEARN2REG_OFFSET, foldings_percent, sd_log_jacobian
from common.spatial.jacobian import jacobian_determinant


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
