# SPDX-License-Identifier: Apache-2.0
"""Sparsification curves: closed forms, all orders of tied pixels, and the published rule written plainly."""

import itertools

import numpy as np
import pytest
import torch

from common.metrics.sparsification import official_ause, sparsification

SHAPES = [(13, 9), (7, 5, 6)]
NAN = float("nan")


def maps(shape, seed=0, levels=None):
    """Squared residuals and an uncertainty of two cases; of few ``levels`` many pixels are tied."""
    generator = torch.Generator().manual_seed(seed)
    error = torch.rand(2, *shape, generator=generator).square()
    uncertainty = 0.5 * error + torch.rand(2, *shape, generator=generator)
    return error, uncertainty if levels is None else (levels * uncertainty).round()


@pytest.mark.parametrize("shape", [(2, 2), (1, 2, 2)])
def test_a_reversed_ranking_has_its_known_area(shape):
    """Of errors 1 to 4 the smallest go first: means 2.5, 3, 3.5, 4; the oracle's are 2.5, 2, 1.5, 1."""
    error = torch.arange(1.0, 5.0).reshape(1, *shape)
    curves = sparsification(error, -error, count=4)
    assert curves.fractions.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert curves.curve.tolist() == [[2.5, 3.0, 3.5, 4.0]] and curves.oracle.tolist() == [[2.5, 2.0, 1.5, 1.0]]
    assert curves.random.tolist() == [2.5] and curves.ause.tolist() == [(0 + 1 + 2 + 3) / 4 / 2.5]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_perfect_ranking_has_no_area_whatever_its_scale(shape):
    error, _ = maps(shape)
    for uncertainty in (error, error.sqrt(), torch.exp(3 * error) - 7):
        curves = sparsification(error, uncertainty)
        assert curves.ause.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
        assert torch.allclose(curves.curve, curves.oracle, atol=1e-12)
        assert (curves.curve.diff(dim=1) <= 0).all()
        assert official_ause(error, uncertainty).tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_uncertainty_gives_the_random_curve(shape):
    error, _ = maps(shape)
    curves = sparsification(error, torch.full_like(error, 0.3), count=7)
    mean = error.double().flatten(1).mean(1)
    assert torch.allclose(curves.curve, mean[:, None].expand(2, 7)) and torch.allclose(curves.random, mean)
    # the published curve keeps all tied pixels at every threshold, and falls to 0 in its last interval
    oracle = [published_area(e, e) for e in error.numpy()]
    expected = [float(m) * (1 - 1 / 100) - area for m, area in zip(mean, oracle, strict=True)]
    assert official_ause(error, torch.full_like(error, 0.3)).tolist() == pytest.approx(expected, rel=1e-6)


def test_tied_pixels_go_in_the_mean_over_all_their_orders():
    error, uncertainty = np.array([4.0, 1.0, 9.0, 0.25, 2.0, 6.0]), np.array([1, 2, 2, 0, 2, 1])
    orders = [o for o in itertools.permutations(range(6)) if all(np.diff(uncertainty[list(o)]) <= 0)]
    assert len(orders) == 3 * 2 * 2
    plain = np.mean([[error[list(order[k:])].mean() for k in range(6)] for order in orders], axis=0)
    oracle = [np.sort(error)[: 6 - k].mean() for k in range(6)]
    curves = sparsification(*(torch.from_numpy(a).reshape(1, 2, 3) for a in (error, uncertainty)), count=6)
    assert curves.curve[0].numpy() == pytest.approx(plain) and curves.oracle[0].numpy() == pytest.approx(oracle)
    assert curves.ause.item() == pytest.approx(np.mean(plain - oracle) / error.mean())


@pytest.mark.parametrize("shape", SHAPES)
def test_curves_are_those_of_pixels_removed_one_at_a_time(shape):
    error, uncertainty = maps(shape, 3)
    curves = sparsification(error, uncertainty, count=10)
    for case in range(2):
        e, u = error[case].double().flatten(), uncertainty[case].flatten()
        for ranked, found in ((u, curves.curve[case]), (e, curves.oracle[case])):
            for k in range(10):
                left = ranked.argsort(descending=True)[int(k / 10 * len(e) + 1e-9) :]
                assert found[k].item() == pytest.approx(e[left].mean().item(), rel=1e-9)
        means = [[e[by.argsort(descending=True)[k:]].mean().item() for k in range(len(e))] for by in (u, e)]
        assert curves.ause[case].item() == pytest.approx(np.subtract(*means).mean() / e.mean().item(), rel=1e-9)


def published_area(error, uncertainty, intervals=50):
    """Area under the published curve: what reaches a percentile of −uncertainty remains, then a 0; trapezoids."""
    means = []
    for t in range(intervals):
        threshold = np.percentile(-uncertainty, 100.0 / intervals * t)
        means.append(error[-uncertainty >= threshold].mean())
    means.append(0.0)
    return sum((a + b) / 2 / intervals for a, b in itertools.pairwise(means))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [None, 4])
def test_official_area_is_the_published_one(shape, levels):
    error, uncertainty = (values.double() for values in maps(shape, 5, levels))
    expected = [
        published_area(e, u) - published_area(e, e) for e, u in zip(error.numpy(), uncertainty.numpy(), strict=True)
    ]
    assert official_ause(error, uncertainty).tolist() == pytest.approx(expected, rel=1e-9)
    assert official_ause(4 * error, uncertainty).tolist() == pytest.approx([4 * value for value in expected], rel=1e-9)
    assert torch.allclose(sparsification(4 * error, uncertainty).ause, sparsification(error, uncertainty).ause)


@pytest.mark.parametrize("shape", SHAPES)
def test_only_the_masks_pixels_count(shape):
    error, uncertainty = maps(shape)
    mask = torch.zeros(2, *shape)
    mask[0, :3] = 2.0
    curves = sparsification(error, uncertainty, mask, count=5)
    alone = sparsification(error[:1, :3], uncertainty[:1, :3], count=5)
    for found, expected in zip(curves[1:], alone[1:], strict=True):
        assert torch.equal(found[:1], expected) and found[1].isnan().all()


def test_what_cannot_be_ranked_is_nan_and_leaves_the_other_cases():
    error, uncertainty = (torch.cat([part, part]) for part in maps((5, 4)))
    error[1], uncertainty[2, 0, 0], error[3, 0, 0] = 0.0, NAN, NAN
    for found in sparsification(error, uncertainty)[1:]:
        assert [bool(row.isnan().any()) for row in found] == [False, True, True, True]
    assert official_ause(error, uncertainty).isnan().tolist() == [False, False, True, True]
    assert official_ause(error, uncertainty)[1] == 0


def test_bad_input():
    with pytest.raises(ValueError, match=r"error and uncertainty: expected maps of one shape .* got \(1, 4, 6\) and"):
        sparsification(torch.zeros(1, 4, 6), torch.zeros(1, 1, 4, 6))
    with pytest.raises(ValueError, match=r"drop the channel with map\[:, 0\]"):
        official_ause(torch.zeros(4, 6), torch.zeros(4, 6))
    with pytest.raises(ValueError, match=r"mask: expected the shape \(B, \*S\) of the maps"):
        sparsification(torch.zeros(1, 4, 6), torch.zeros(1, 4, 6), torch.ones(1, 1, 4, 6))
