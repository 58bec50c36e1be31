# SPDX-License-Identifier: Apache-2.0
import inspect
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common.engines.step import RegistrationStep
from common.losses import displacement_uncertainty, likelihood, overlap, score, spatially_varying, terms
from common.losses.inverse_consistency import InverseConsistencyPenalty
from common.losses.objective import Objective
from common.losses.score import Distrust, MeanResidual, Momentum, ScoredResidual, ScoreSmoothness, ScoreWeight
from common.losses.terms import (
    DATA_WEIGHTS,
    SMOOTHNESS,
    AdaFrameWeight,
    AdaptiveSmoothness,
    InverseConsistency,
    Similarity,
    Smoothness,
)
from common.losses.weighting import AdaRegSmoothness, adaframe_weight
from common.networks.contract import Estimate
from common.networks.diffusemorph import DiffusionEstimate
from common.networks.unet import PixelEstimator
from common.spatial.warp import warp
from tests.engines.synthetic import (
    TINY,
    adacs_method,
    displacement_objective,
    gradicon_objective,
    method_of,
    moving_network,
    score_objective,
)

SHAPES = [(8, 12), (4, 8, 6)]
# Arguments of the terms that need some, {} of all others.
ARGUMENTS = {
    "InverseConsistency": {"penalty": InverseConsistencyPenalty()},
    "LabelOverlap": {"labels": [1, 3]},
    "DiceLoss": {"classes": 4},
}
TERMS = {
    name: member
    for module in (terms, score, likelihood, displacement_uncertainty, overlap, spatially_varying)
    for name, member in vars(module).items()
    if inspect.isclass(member) and issubclass(member, nn.Module) and member.__module__ == module.__name__
}
NUMBERS = ("Momentum", "ScoreAlpha")  # buffers, in float32
LOGGED = (*NUMBERS, "MeanResidual", "MeanLogVariance", "MeanDeviation")
each_shape = pytest.mark.parametrize("shape", SHAPES)


def fake_step(shape, active=("displacement", "score"), seed=0):
    """All that a step may hold, in float64: pairs in both directions, with labels 0 to 3."""
    generator = torch.Generator().manual_seed(seed)

    def image():
        return torch.rand(2, 1, *shape, generator=generator, dtype=torch.float64)

    def field(scale=1):
        size = (n // scale for n in shape)
        return torch.randn(2, len(shape), *size, generator=generator, dtype=torch.float64).requires_grad_()

    moving, warped, fixed, ddf = image(), image().requires_grad_(), image(), field()
    weight = torch.rand(2, 1, *(n // 2 for n in shape), generator=generator, dtype=torch.float64).requires_grad_()
    drawn = {"weight_volume": weight, "log_variance": field(), "mean": field(), "noise_error": image().requires_grad_()}
    return SimpleNamespace(
        moving=moving,
        warped=warped,
        fixed=fixed,
        residual=(warped - fixed).square(),
        estimated=image().requires_grad_(),
        estimate=DiffusionEstimate(ddf, field(2), **drawn),
        both_ways=tuple(ddf.chunk(2)),
        moving_label=torch.randint(0, 4, moving.shape, generator=generator),
        fixed_label=torch.randint(0, 4, moving.shape, generator=generator),
        active=frozenset(active),
        mask=None,
        condition=None,
        bidirectional=True,
    )


def diffusion(field):
    """Plain re-statement: forward differences, mean over axes."""
    axes = range(2, field.dim())
    return sum(((field.roll(-1, a) - field) ** 2).narrow(a, 0, field.shape[a] - 1).mean() for a in axes) / len(axes)


@each_shape
@pytest.mark.parametrize("name", sorted(TERMS))
def test_every_term_is_a_finite_scalar_that_repeats_and_every_weight_a_detached_map(name, shape):
    term, step = TERMS[name](**ARGUMENTS.get(name, {})), fake_step(shape)
    value = term(step)
    assert value.isfinite().all() and torch.equal(value, term(fake_step(shape)))
    if name.endswith("Weight"):
        assert value.shape == step.residual.shape and not value.requires_grad
    else:
        assert value.dim() == 0
        assert value.dtype == (torch.float32 if name in NUMBERS else torch.float64)
        assert value.requires_grad == (name not in LOGGED)


@each_shape
def test_objective_of_all_terms_is_their_weighted_sum(shape):
    every = {name: TERMS[name](**ARGUMENTS.get(name, {})) for name in sorted(TERMS) if not name.endswith("Weight")}
    values = Objective({name: (0.1 * k, term) for k, (name, term) in enumerate(every.items(), 1)})(fake_step(shape))
    expected = sum(0.1 * k * float(values[name].detach()) for k, name in enumerate(every, 1))
    assert float(values["total"].detach()) == pytest.approx(expected, rel=1e-6)


@each_shape
def test_plain_objective_is_the_mean_residual_and_twice_lambda_the_diffusion(shape):
    step = fake_step(shape)
    terms = displacement_objective(0.05)(step)
    assert set(terms) == {"total", "similarity", "smoothness"}
    torch.testing.assert_close(terms["similarity"], step.residual.mean())
    torch.testing.assert_close(terms["smoothness"], diffusion(step.estimate.velocity))
    torch.testing.assert_close(terms["total"], step.residual.mean() + 0.1 * diffusion(step.estimate.velocity))


def test_zero_lambda_leaves_the_similarity_and_logs_the_smoothness():
    step = fake_step((8, 12))
    terms = displacement_objective(0.0)(step)
    torch.testing.assert_close(terms["total"], step.residual.mean())
    torch.testing.assert_close(terms["smoothness"], diffusion(step.estimate.velocity).detach())
    assert not terms["smoothness"].requires_grad


@each_shape
def test_similarity_of_both_ways_is_the_sum_of_the_directions_means(shape):
    step = fake_step(shape)
    first, second = step.residual  # one pair, both ways
    torch.testing.assert_close(Similarity(both_ways=True)(step), first.mean() + second.mean())


@each_shape
def test_score_weights_the_residual_once_it_is_trained(shape):
    step = fake_step(shape)
    torch.testing.assert_close(Similarity(ScoreWeight())(step), (step.estimated * step.residual).mean())


def test_score_does_not_weigh_before_it_is_trained():
    step = fake_step((8, 12), active=("displacement",))
    del step.estimated  # asking for it would be a wasted forward
    assert ScoreWeight()(step) is None
    torch.testing.assert_close(Similarity(ScoreWeight())(step), step.residual.mean())


def test_score_weight_follows_the_update_it_is_told():
    assert ScoreWeight(update="variance")(fake_step((8, 12))) is None
    assert ScoreWeight(update="variance")(fake_step((8, 12), active=("variance",))) is not None


@each_shape
def test_terms_of_the_score_have_the_closed_form_of_the_paper(shape):
    step, momentum = fake_step(shape), Momentum()
    momentum.value.fill_(0.25)
    terms = score_objective(momentum, alpha=0.04, beta=1.5)(step)
    score = step.estimated
    ucs, reg = (score * step.residual).mean(), ((1 - score) ** 2).mean()
    smooth = 0.25 * diffusion(score)
    for name, expected in {"ucs": ucs, "reg": reg, "smooth": smooth, "mu": step.residual.mean()}.items():
        torch.testing.assert_close(terms[name].detach(), expected.detach())
    torch.testing.assert_close(terms["total"], ucs + 0.04 * reg + 1.5 * smooth)
    assert float(terms["momentum"]) == 0.25
    torch.testing.assert_close(ScoreSmoothness()(step), diffusion(score))


@each_shape
def test_mask_takes_pixels_from_the_weighted_residual_and_the_regulariser_but_not_from_the_smoothness(shape):
    """As published: the means stay those over all pixels."""
    step, plain = fake_step(shape), score_objective()(fake_step(shape))
    step.mask = (torch.rand_like(step.residual) > 0.4).double()
    terms, score = score_objective()(step), step.estimated
    torch.testing.assert_close(terms["ucs"], (step.mask * score * step.residual).mean())
    torch.testing.assert_close(terms["reg"], (step.mask * (1 - score) ** 2).mean())
    torch.testing.assert_close(terms["mu"], (step.mask * step.residual).mean().detach())
    assert torch.equal(terms["smooth"], plain["smooth"])
    torch.testing.assert_close(Similarity(ScoreWeight())(step), (step.mask * score * step.residual).mean())


def test_best_constant_score_is_one_minus_residual_over_twice_alpha():
    # d/dS [S r + alpha (1 - S)^2] = 0
    residual, alpha = 0.01, 0.02
    score = torch.full((1, 1, 6, 6), 1 - residual / (2 * alpha), dtype=torch.float64, requires_grad=True)
    step = SimpleNamespace(
        residual=torch.full_like(score, residual), estimated=score, mask=None, fixed=torch.zeros_like(score)
    )
    score_objective(alpha=alpha)(step)["total"].backward()
    torch.testing.assert_close(score.grad, torch.zeros_like(score), atol=1e-12, rtol=0)


def test_momentum_term_is_a_snapshot_and_the_buffer_is_in_the_state_dict():
    momentum = Momentum()
    objective = score_objective(momentum)
    assert float(momentum.value) == 1.0 and "terms.momentum.value" in objective.state_dict()
    terms = objective(fake_step((8, 12)))
    momentum.value.fill_(0.0)
    assert float(terms["momentum"]) == 1.0
    objective.load_state_dict({key: torch.tensor(0.5) for key in objective.state_dict()})
    assert float(momentum.value) == 0.5  # what the handler advances is what a resumed run restores


def real_step(score=None, differentiable=("model", "model_score"), leak=False, **form):
    network = moving_network(2)
    method = method_of(network, **form) if score is None else adacs_method(network, score, leak=leak, **form)
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (torch.rand(2, 1, 12, 16, generator=generator) for _ in range(2))
    batch = {"moving_image": moving, "fixed_image": fixed}
    step = RegistrationStep(batch, None, method, network.estimate, score, differentiable=frozenset(differentiable))
    return step, network


def moved(module):
    return [key for key, p in module.named_parameters() if p.grad is not None and p.grad.any()]


def estimator_of(in_channels=1):
    torch.manual_seed(0)
    return PixelEstimator(2, in_channels, **TINY)


def test_displacement_objective_does_not_train_the_score():
    score = estimator_of()
    step, network = real_step(score)
    displacement_objective(data_weight=ScoreWeight())(step)["total"].backward()
    assert moved(network) and not moved(score)


@pytest.mark.parametrize("estimator_input", ["fixed", "fixed_warped"])
def test_score_objective_does_not_train_the_displacement(estimator_input):
    score = estimator_of(1 if estimator_input == "fixed" else 2)
    step, network = real_step(score, estimator_input=estimator_input)
    score_objective()(step)["total"].backward()
    assert moved(score) and not moved(network)


def test_leaking_score_objective_trains_the_displacement_by_the_weighted_residual():
    score = estimator_of()
    step, network = real_step(score, leak=True)
    score_objective(leak=True)(step)["total"].backward()
    assert moved(score) and moved(network)
    leaked = [parameter.grad.clone() for parameter in network.parameters()]
    step, network = real_step(score, ["model"])
    displacement_objective(0.0, ScoreWeight())(step)["total"].backward()
    for one, other in zip(leaked, network.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, atol=1e-8, rtol=1e-4)


@each_shape
def test_adaframe_weighs_by_the_absolute_residual(shape):
    step = fake_step(shape)
    weight = adaframe_weight((step.warped - step.fixed).abs())
    torch.testing.assert_close(AdaFrameWeight()(step), weight)
    torch.testing.assert_close(Similarity(AdaFrameWeight())(step), (weight * step.residual).mean())


@pytest.mark.parametrize("preset", ["paper", "official"])
@each_shape
def test_adareg_replaces_the_smoothness(shape, preset):
    step = fake_step(shape)
    expected = AdaRegSmoothness(preset=preset)(step.estimate.velocity, (step.warped - step.fixed).abs())
    value = AdaptiveSmoothness(preset)(step)
    torch.testing.assert_close(value, expected)
    assert not torch.isclose(value, diffusion(step.estimate.velocity))


@each_shape
@pytest.mark.parametrize("weight", [None, *sorted(DATA_WEIGHTS)])
@pytest.mark.parametrize("smoothness", sorted(SMOOTHNESS))
def test_every_combination_gives_finite_scalars_that_add_up(shape, weight, smoothness):
    data_weight = None if weight is None else DATA_WEIGHTS[weight]()
    terms = {"similarity": (1.0, Similarity(data_weight)), "smoothness": (0.02, SMOOTHNESS[smoothness]())}
    values = Objective(terms)(fake_step(shape))
    assert all(value.dim() == 0 and value.isfinite() for value in values.values())
    torch.testing.assert_close(values["total"], values["similarity"] + 0.02 * values["smoothness"])


def constant_maps(shape, forth, back):
    """A step of two pairs, whose displacements are one constant forth and another back."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 1, *shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def displacement(image, condition):
        fields = [torch.full((2, len(shape), *shape), value, dtype=torch.float64) for value in (forth, back)]
        return Estimate(torch.cat(fields), torch.cat(fields))

    method = method_of(nn.Identity(), bidirectional=True)
    return RegistrationStep({"moving_image": a, "fixed_image": b}, None, method, displacement), a, b


@each_shape
def test_inverse_consistency_objective_has_its_closed_form(shape):
    """Constant maps u and v: (id + u) ∘ (id + v) - id = u + v, whose gradient is 0."""
    step, a, b = constant_maps(shape, 1.0, -0.4)
    field = torch.ones(2, len(shape), *shape, dtype=torch.float64)
    # means of A -> B and of B -> A, by themselves
    similarity = (warp(a, field) - b).square().mean() + (warp(b, -0.4 * field) - a).square().mean()
    # two orders of composition, mean over axes of (0.6 / (n - 1))^2
    penalty = 2 * sum((0.6 / (n - 1)) ** 2 for n in shape) / len(shape)
    terms = gradicon_objective(1024.0, InverseConsistencyPenalty("icon"))(step)
    assert set(terms) == {"total", "similarity", "inverse_consistency"}
    torch.testing.assert_close(terms["similarity"], similarity)
    assert float(terms["inverse_consistency"]) == pytest.approx(penalty, rel=1e-9)
    assert float(terms["total"]) == pytest.approx(float(similarity) + 1024 * penalty, rel=1e-9)
    gradicon = gradicon_objective()(step)
    assert float(gradicon["inverse_consistency"]) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(gradicon["total"], similarity)


class Slanted(nn.Module):
    def forward(self, forth, back):
        return (3 * forth + back).mean()


def test_inverse_consistency_penalty_sees_the_map_forth_first():
    step, _, _ = constant_maps((8, 12), 1.0, -0.4)
    terms = gradicon_objective(2.0, Slanted())(step)
    assert float(terms["inverse_consistency"]) == pytest.approx(2.6)
    assert float(terms["total"] - terms["similarity"]) == pytest.approx(5.2)


def test_inverse_consistency_of_one_direction_is_an_error():
    with pytest.raises(ValueError, match="bidirectional must be true"):
        InverseConsistency(InverseConsistencyPenalty())(real_step()[0])


def test_tables_name_the_forms():
    assert DATA_WEIGHTS == {"adaframe": AdaFrameWeight, "score": ScoreWeight}
    assert SMOOTHNESS == {"diffusion": Smoothness, "adareg": AdaptiveSmoothness}
    assert {Distrust, MeanResidual, Momentum, ScoredResidual, Similarity} <= set(TERMS.values())
