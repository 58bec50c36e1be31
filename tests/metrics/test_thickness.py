# SPDX-License-Identifier: Apache-2.0
"""Mean thickness of walls whose thickness is known."""

from __future__ import annotations

import pytest
import torch

from common.metrics.cases import Cases
from common.metrics.labels import LabelMeasures
from common.metrics.thickness import mean_thickness


def shell(size: tuple[int, ...], inner: float, outer: float) -> torch.Tensor:
    """Annulus or spherical shell around the middle, (1, 1, *S)."""
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    return ((radius > inner) & (radius <= outer))[None, None]


@pytest.mark.parametrize("inner, outer", [(20.0, 24.0), (15.0, 25.0), (30.0, 50.0), (0.0, 30.0)])
def test_thickness_of_an_annulus_is_the_difference_of_its_radii(inner: float, outer: float) -> None:
    """2 π (R² − r²) / 2 π (R + r) = R − r."""
    assert mean_thickness(shell((120, 111), inner, outer)).item() == pytest.approx(outer - inner, rel=0.03)


def test_thickness_of_a_spherical_shell_and_a_ball() -> None:
    outer, inner = 24.0, 18.0
    expected = 2 / 3 * (outer**3 - inner**3) / (outer**2 + inner**2)
    assert mean_thickness(shell((52, 51, 53), inner, outer)).item() == pytest.approx(expected, rel=0.02)
    assert mean_thickness(shell((52, 51, 53), -1, 24)).item() == pytest.approx(2 / 3 * 24, rel=0.03)


@pytest.mark.parametrize("shift, axes", [((7, -5), (2, 3)), ((0, 0), (3, 2))])
def test_thickness_does_not_depend_on_place_or_axes(shift: tuple[int, int], axes: tuple[int, int]) -> None:
    mask = shell((64, 60), 10, 16)
    moved = mask.roll(shift, (2, 3)).permute(0, 1, *axes)
    assert mean_thickness(torch.cat([mask, mask])).tolist() == [mean_thickness(moved).item()] * 2


def test_border_counts_as_outside_and_nothing_has_no_thickness() -> None:
    full = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    assert mean_thickness(full).item() == pytest.approx(2 * 64 / (torch.pi / 4 * 32))
    assert mean_thickness(~full).isnan().all()


def test_label_measures_give_that_of_the_fixed_labels_that_are_scored() -> None:
    moving, fixed = (shell((48, 44), 8, outer) * 2 for outer in (12, 16))
    batch = {"moving_label": moving.to(torch.uint8), "fixed_label": fixed.to(torch.uint8)}
    image = torch.zeros(1, 1, 48, 44)
    measures = LabelMeasures({"myocardium": 2, "lv": 3}, scored=["myocardium"])
    columns = measures(Cases(batch, torch.zeros(1, 2, 48, 44), image))
    assert columns["thickness_myocardium"].item() == pytest.approx(8, rel=0.05)
    assert columns["thickness"].item() == columns["thickness_myocardium"].item() and "thickness_lv" not in columns
    assert "thickness" not in measures(Cases(batch, torch.zeros(1, 2, 48, 44), image, thorough=False))
