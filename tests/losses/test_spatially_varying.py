# SPDX-License-Identifier: Apache-2.0
"""Smoothness weighted by ω, and the log loss: closed forms, gradients, the published loops, bad input."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common.losses.objective import Objective
from common.losses.pyramid import CodeWeight
from common.losses.smoothness import Bending, Diffusion
from common.losses.spatially_varying import LogLoss, WeightedSmoothness
from common.networks.contract import Estimate

SHAPES = [(7, 10), (5, 6, 9)]
ENERGIES = {"diffusion": Diffusion, "bending": Bending}
each_shape = pytest.mark.parametrize("shape", SHAPES)
each_energy = pytest.mark.parametrize("energy", sorted(ENERGIES))


def random(shape, channels, seed=0, normal=True):
    draw = torch.randn if normal else torch.rand
    return draw(2, channels, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step_of(field, weight, condition=None):
    return SimpleNamespace(estimate=Estimate(field, field, weight), condition=condition)


def step_with(shape, weight):
    return step_of(random(shape, len(shape)), torch.full((2, 1, *shape), float(weight), dtype=torch.float64))


@each_energy
@each_shape
def test_weight_of_one_gives_the_plain_energy_and_no_log_loss(shape, energy):
    step = step_with(shape, 1.0)
    plain = ENERGIES[energy]()(step.estimate.velocity)
    torch.testing.assert_close(WeightedSmoothness(energy)(step), plain)
    assert float(LogLoss()(step)) == 0


@each_energy
@each_shape
@pytest.mark.parametrize("epsilon", [1e-4, 1e-6, 0.3])
def test_weight_of_epsilon_or_less_gives_epsilon_of_the_energy_and_the_largest_log_loss(shape, energy, epsilon):
    for weight in (epsilon, 0.0):
        step = step_with(shape, weight)
        plain = ENERGIES[energy]()(step.estimate.velocity)
        torch.testing.assert_close(WeightedSmoothness(energy, epsilon)(step), epsilon * plain)
        assert float(LogLoss(epsilon)(step)) == pytest.approx(1, abs=1e-12)


@each_shape
def test_log_loss_lies_between_and_falls_with_the_weight(shape):
    values = [float(LogLoss()(step_with(shape, weight))) for weight in (1e-3, 1e-2, 0.1, 0.5, 0.9)]
    assert values == pytest.approx([0.75, 0.5, 0.25, -math.log(0.5) / math.log(1e4), -math.log(0.9) / math.log(1e4)])


def published(field, weight):
    """The mean over axes of ω at the later voxel times the squared difference, voxel by voxel."""
    sums, shape = [], field.shape[2:]
    for axis in range(len(shape)):
        values = []
        for index in torch.cartesian_prod(*(torch.arange(n) for n in shape)).tolist():
            if index[axis] > 0:
                before = list(index)
                before[axis] -= 1
                here, there = ((slice(None), slice(None), *place) for place in (index, before))
                values.append(weight[here] * (field[here] - field[there]) ** 2)
        sums.append(torch.stack(values).mean())
    return sum(sums) / len(sums)


@each_shape
def test_official_form_is_the_published_one(shape):
    field, weight = random(shape, len(shape)), random(shape, 1, 1, normal=False)
    value = WeightedSmoothness(form="official")(step_of(field, weight))
    assert float(value) == pytest.approx(float(published(field, weight.clamp(1e-4, 1))), rel=1e-9)
    paper = WeightedSmoothness()(step_of(field, weight))
    assert not torch.isclose(value, paper)
    mirrored = step_of(field.flip(tuple(range(2, field.dim()))), weight.flip(tuple(range(2, field.dim()))))
    torch.testing.assert_close(WeightedSmoothness()(mirrored), value)  # seen from the other side they are the same


@each_shape
def test_weighted_bending_energy_sees_the_weight_where_the_field_bends(shape):
    """u_0 = |x_0 - 3|: the one second difference is 2, at x_0 = 3."""
    axis = torch.arange(shape[0], dtype=torch.float64)
    field = torch.zeros(1, len(shape), *shape, dtype=torch.float64)
    field[:, 0] = (axis - 3).abs().view(-1, *[1] * (len(shape) - 1))
    for row in range(shape[0]):
        weight = torch.full((1, 1, *shape), 1e-4, dtype=torch.float64)
        weight[:, :, row] = 0.5
        expected = 4 * (0.5 if row == 3 else 1e-4) / (shape[0] - 2) / len(shape) / len(shape) ** 2
        assert float(WeightedSmoothness("bending")(step_of(field, weight))) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("form", ["paper", "official", "bending"])
@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 3)])
def test_gradients_of_field_and_weight_are_exact(shape, form):
    term = WeightedSmoothness("bending") if form == "bending" else WeightedSmoothness(form=form)
    field = random(shape, len(shape)).requires_grad_()
    weight = (0.1 + 0.8 * random(shape, 1, 1, normal=False)).requires_grad_()
    assert torch.autograd.gradcheck(lambda u, w: term(step_of(u, w)), (field, weight))
    assert torch.autograd.gradcheck(lambda w: LogLoss()(step_of(field.detach(), w)), (weight,))


@each_energy
@each_shape
def test_the_two_terms_pull_the_weight_to_opposite_sides(shape, energy):
    field, weight = random(shape, len(shape)), (0.1 + 0.8 * random(shape, 1, 1, normal=False)).requires_grad_()
    step = step_of(field, weight)
    (smooth,) = torch.autograd.grad(WeightedSmoothness(energy)(step), weight)
    (log,) = torch.autograd.grad(LogLoss()(step), weight)
    assert (smooth >= 0).all() and float(smooth.sum()) > 0 and (log < 0).all()


def best_weight(eta, energy=4.0, smoothness=5.0, epsilon=1e-4):
    """min_ω λ ω E − η log ω / |log ε|: ω = η / (λ E |log ε|), within [ε, 1]."""
    return min(max(eta / (smoothness * energy * -math.log(epsilon)), epsilon), 1.0)


@pytest.mark.parametrize("eta", [2.0, 8.0, 400.0])
def test_descent_finds_the_weight_of_the_closed_form(eta):
    """A field of slope 2 along all axes: the larger η, the larger ω."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(5, dtype=torch.float64)] * 2, indexing="ij"))
    field = 2 * grid.sum(0, keepdim=True).expand(1, 2, 5, 5)
    logit = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logit], lr=0.1)
    for _ in range(600):
        step = step_of(field, logit.sigmoid().expand(1, 1, 5, 5))
        (5 * WeightedSmoothness()(step) + eta * LogLoss()(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(logit.detach().sigmoid()) == pytest.approx(best_weight(eta), rel=2e-2)


class Default(nn.Module):
    def __init__(self, share):
        super().__init__()
        self.register_buffer("default_condition", torch.tensor([[share]]))


@each_shape
def test_each_pair_has_its_own_weight_of_the_log_loss(shape):
    weight = random(shape, 1, normal=False).clamp(0.01)
    step = step_of(random(shape, len(shape)), weight, torch.tensor([[0.25], [0.75]]))
    objective = Objective({"log_loss": (CodeWeight(Default(0.5), 4.0), LogLoss())})
    losses = [LogLoss()(step_of(step.estimate.ddf[i : i + 1], weight[i : i + 1])) for i in range(2)]
    torch.testing.assert_close(objective(step)["total"], (1.0 * losses[0] + 3.0 * losses[1]) / 2)
    shared = step_of(step.estimate.ddf, weight, torch.tensor([[0.5], [0.5]]))
    torch.testing.assert_close(objective(shared)["log_loss"], sum(losses) / 2)
    torch.testing.assert_close(objective(shared)["total"], 2.0 * sum(losses) / 2)
    absent = step_of(step.estimate.ddf, weight)  # the default that is stored with the weights
    torch.testing.assert_close(objective(absent)["total"], objective(shared)["total"])
    none = step_of(step.estimate.ddf, weight, torch.zeros(2, 1))
    assert float(objective(none)["total"]) == 0


def test_eta_is_missed_where_there_is_no_default():
    step = step_with((6, 7), 0.5)
    with pytest.raises(ValueError, match="condition: expected one, or a network that stores a default"):
        CodeWeight(nn.Identity(), 4.0)(step)


def test_half_precision_is_computed_in_float32():
    field, weight = random((6, 7), 2).bfloat16(), random((6, 7), 1, normal=False).bfloat16()
    for term in (WeightedSmoothness(), WeightedSmoothness("bending"), LogLoss()):
        value = term(step_of(field, weight))
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, term(step_of(field.float(), weight.float())))


@pytest.mark.parametrize("epsilon", [0, 1, -1e-4, 1.5, "1e-4", True, math.nan])
def test_epsilon_outside_of_0_and_1_is_refused(epsilon):
    for term in (LogLoss, lambda e: WeightedSmoothness(epsilon=e)):
        with pytest.raises(ValueError, match="epsilon: expected a number between 0 and 1.*1e-4 is the paper's"):
            term(epsilon)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="energy: expected one of diffusion, bending, got 'elastic'"):
        WeightedSmoothness("elastic")
    with pytest.raises(ValueError, match="weight_form: expected one of paper, official, got 'printed'"):
        WeightedSmoothness(form="printed")
    with pytest.raises(ValueError, match="weight_form: expected 'paper' with energy 'bending'"):
        WeightedSmoothness("bending", form="official")
    for term in (WeightedSmoothness(), LogLoss()):
        with pytest.raises(ValueError, match="a network that predicts the weight volume.*Take tmspr"):
            term(step_of(random((6, 7), 2), None))
    with pytest.raises(ValueError, match=r"weight: expected \(2, 1, 6, 7\), got \(2, 1, 3, 7\).*resample_weight"):
        WeightedSmoothness()(step_of(random((6, 7), 2), random((3, 7), 1)))
