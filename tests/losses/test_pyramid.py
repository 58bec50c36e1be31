# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common.losses.lncc import LNCC
from common.losses.pyramid import CodeWeight, PyramidSimilarity, with_window
from common.losses.similarity import SquaredError, build_similarity
from common.networks.contract import Estimate
from common.spatial.pyramid import halved, warp_onto
from common.spatial.warp import warp

SIZES = [(16, 24), (9, 12, 10)]
each_size = pytest.mark.parametrize("size", SIZES)


class Recorder(nn.Module):
    """A similarity that is the same everywhere, and remembers what it compared."""

    def __init__(self, value):
        super().__init__()
        self.value, self.seen = value, []

    def forward(self, warped, fixed):
        self.seen.append((warped, fixed))
        return torch.full_like(warped, self.value)


def step_of(size, running, residual=None, foreground=False):
    """What a network of whose levels so many run leaves to the terms."""
    generator = torch.Generator().manual_seed(0)
    grids = [tuple(-(-n // factor) for n in size) for factor in (4, 2, 1)]
    fields = [torch.randn(2, len(size), *grid, generator=generator) for grid in grids[:running]]
    moving, fixed = (torch.rand(2, 1, *size, generator=generator) for _ in range(2))
    moving[:, :, : size[0] // 2] = fixed[:, :, : size[0] // 2] = 0
    ddf = fields[-1] if running == 3 else torch.zeros(2, len(size), *size)
    warped = warp(moving, ddf, padding="border")
    return SimpleNamespace(
        moving=moving, fixed=fixed, warped=warped, condition=None, active=frozenset(),
        mask=((moving != 0) | (fixed != 0)).float() if foreground else None,
        residual=torch.full_like(warped, 16.0) if residual is None else residual(warped, fixed),
        estimate=Estimate(ddf, fields[-1], coarser=fields[:2]),
    )  # fmt: skip


@each_size
@pytest.mark.parametrize(("running", "expected"), [(1, 1.0), (2, 2 + 1 / 2), (3, 16 + 2 / 2 + 1 / 4)])
def test_each_grid_has_its_own_similarity_and_half_the_weight_of_the_finer_one(size, running, expected):
    recorders, step = [Recorder(1.0), Recorder(2.0), Recorder(4.0)], step_of(size, running)
    assert float(PyramidSimilarity(recorders)(step)) == pytest.approx(expected)  # the finest one's is the residual
    assert [len(recorder.seen) for recorder in recorders] == [running >= 1, running >= 2, 0]
    warped, fixed = step.warped, step.fixed
    if running < 3:
        for _ in range(3 - running):
            fixed = halved(fixed)
        warped = warp_onto(step.moving, step.estimate.velocity)
        compared = recorders[running - 1].seen[0]
        assert torch.equal(compared[0], warped) and torch.equal(compared[1], fixed)
    for recorder in reversed(recorders[: min(running, 2)]):
        if running == 3 or recorder is not recorders[running - 1]:
            warped, fixed = halved(warped), halved(fixed)
        torch.testing.assert_close(recorder.seen[0], (warped, fixed))


@each_size
def test_data_weight_multiplies_the_finest_residual_alone(size):
    step, squared = step_of(size, 3, SquaredError()), SquaredError()
    weight = torch.rand_like(step.residual)
    halves = halved(step.warped), halved(step.fixed)
    quarters = halved(halves[0]), halved(halves[1])
    expected = (weight * step.residual).mean() + squared(*halves).mean() / 2 + squared(*quarters).mean() / 4
    constant = nn.Module()
    constant.forward = lambda _: weight
    ours = PyramidSimilarity([squared] * 3, constant)(step)
    torch.testing.assert_close(ours, expected)


@each_size
@pytest.mark.parametrize("running", [1, 2, 3])
def test_foreground_is_what_one_of_the_images_has_on_the_levels_grid(size, running):
    recorders, step = [Recorder(1.0), Recorder(2.0), Recorder(4.0)], step_of(size, running, foreground=True)
    PyramidSimilarity(recorders)(step)
    warped, fixed = recorders[min(running, 2) - 1].seen[0]
    background = size[0] // 2 // 4 - 1  # of the coarsest grid: no mean there reaches the foreground
    assert not warped[:, :, :background].any() and not fixed[:, :, :background].any()
    assert warped[:, :, -1].any() and fixed[:, :, -1].any()


def test_weight_where_the_finest_level_does_not_run_is_refused():
    constant = nn.Module()
    constant.forward = lambda step: step.fixed
    with pytest.raises(ValueError, match="a score weighs the finest level, and 2 of 3 levels run"):
        PyramidSimilarity([SquaredError()] * 3, constant)(step_of((16, 24), 2))


def test_windows_are_those_of_all_local_nccs_and_nothing_else_changes():
    plain, summed = LNCC(9, 1e-3), build_similarity({"mse": 1.0, "lncc": {"weight": 0.5, "window": 9}})
    changed = with_window(plain, 5)
    assert (changed.window, changed.variance_floor, plain.window) == (5, 1e-3, 9)
    images = torch.rand(2, 1, 12, 13), torch.rand(2, 1, 12, 13)
    expected = SquaredError()(*images) + 0.5 * LNCC(3)(*images)
    torch.testing.assert_close(with_window(summed, 3)(*images), expected)
    assert isinstance(with_window(SquaredError(), 3), SquaredError)


@pytest.mark.parametrize(("condition", "expected"), [(None, 2.0), (torch.tensor([[0.5], [0.5]]), 10.0)])
def test_code_is_the_share_of_the_largest_weight_and_the_networks_default_where_there_is_none(condition, expected):
    network = SimpleNamespace(default_condition=torch.tensor([[0.1]]))
    weight = CodeWeight(network, 20.0)(SimpleNamespace(condition=condition))
    assert weight.shape == () and float(weight) == pytest.approx(expected)
