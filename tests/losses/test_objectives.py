# SPDX-License-Identifier: Apache-2.0
import math
from types import SimpleNamespace

import pytest
import torch

from common.engines.step import RegistrationStep
from common.losses.inverse_consistency import InverseConsistencyPenalty
from common.losses.objectives import (
    SMOOTHNESS,
    WEIGHTS,
    AdaFrameWeight,
    AdaptiveSmoothness,
    DisplacementObjective,
    InverseConsistencyObjective,
    PlainSmoothness,
    ScoreObjective,
    ScoreWeight,
    UnitWeight,
    momentum_activation,
)
from common.losses.similarity import SquaredError
from common.losses.weighting import AdaRegSmoothness, adaframe_weight
from common.networks.unet import PixelEstimator
from common.networks.voxelmorph import Estimate, VoxelMorph
from common.spatial.warp import warp

SHAPES = [(8, 12), (4, 8, 6)]
TINY = {"encoder": (4,), "decoder": (4, 4)}


def fake_step(shape, active=("displacement", "score"), seed=0):
    generator = torch.Generator().manual_seed(seed)

    def image():
        return torch.rand(2, 1, *shape, generator=generator, dtype=torch.float64)

    warped, fixed = image(), image()
    return SimpleNamespace(
        warped=warped,
        fixed=fixed,
        residual=(warped - fixed).square(),
        estimated=image(),
        velocity=torch.randn(2, len(shape), *(n // 2 for n in shape), generator=generator, dtype=torch.float64),
        active=frozenset(active),
        mask=None,
    )


def diffusion(field):
    """Plain re-statement: forward differences, mean over axes."""
    axes = range(2, field.dim())
    return sum(((field.roll(-1, a) - field) ** 2).narrow(a, 0, field.shape[a] - 1).mean() for a in axes) / len(axes)


def real_step(network, estimator, differentiable, estimator_input="fixed", size=(12, 16)):
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (torch.rand(2, 1, *size, generator=generator) for _ in range(2))
    return RegistrationStep(
        moving,
        fixed,
        network.estimate,
        SquaredError(),
        estimator,
        estimator_input,
        frozenset({"displacement", "score"}),
        frozenset(differentiable),
    )


def tiny_networks(in_channels=1):
    torch.manual_seed(0)
    network = VoxelMorph(2, **TINY)
    torch.nn.init.normal_(network.flow.weight, std=0.3)
    return network, PixelEstimator(2, in_channels, **TINY)


def moved(module):
    return [key for key, p in module.named_parameters() if p.grad is not None and p.grad.any()]


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_objective_is_the_mean_residual_and_twice_lambda_the_diffusion(shape):
    step = fake_step(shape)
    terms = DisplacementObjective(smoothness_weight=0.05)(step)
    assert set(terms) == {"total", "similarity", "smoothness"}
    torch.testing.assert_close(terms["similarity"], step.residual.mean())
    torch.testing.assert_close(terms["smoothness"], diffusion(step.velocity))
    torch.testing.assert_close(terms["total"], step.residual.mean() + 0.1 * diffusion(step.velocity))


def test_multiplier_scales_lambda_and_zero_lambda_leaves_the_similarity():
    step = fake_step((8, 12))
    smoothness = diffusion(step.velocity)
    total = DisplacementObjective(smoothness_weight=0.2, multiplier=0.5)(step)["total"]
    torch.testing.assert_close(total, step.residual.mean() + 0.1 * smoothness)
    torch.testing.assert_close(DisplacementObjective(smoothness_weight=0.0)(step)["total"], step.residual.mean())


@pytest.mark.parametrize("shape", SHAPES)
def test_score_weights_the_residual_once_it_is_trained(shape):
    step = fake_step(shape)
    terms = DisplacementObjective(weight=ScoreWeight())(step)
    torch.testing.assert_close(terms["similarity"], (step.estimated * step.residual).mean())


def test_score_does_not_weigh_before_it_is_trained():
    step = fake_step((8, 12), active=("displacement",))
    del step.estimated  # asking for it would be a wasted forward
    assert ScoreWeight()(step) is None
    torch.testing.assert_close(DisplacementObjective(weight=ScoreWeight())(step)["similarity"], step.residual.mean())


def test_score_weight_follows_the_update_it_is_told():
    assert ScoreWeight(update="variance")(fake_step((8, 12))) is None
    assert ScoreWeight(update="variance")(fake_step((8, 12), active=("variance",))) is not None


@pytest.mark.parametrize("shape", SHAPES)
def test_score_objective_has_the_closed_form_of_the_paper(shape):
    step = fake_step(shape)
    objective = ScoreObjective(alpha=0.04, beta=1.5)
    objective.momentum.fill_(0.25)
    terms = objective(step)
    score = step.estimated
    ucs, reg = (score * step.residual).mean(), ((1 - score) ** 2).mean()
    smooth = 0.25 * diffusion(score)
    for name, expected in {"ucs": ucs, "reg": reg, "smooth": smooth, "mu": step.residual.mean()}.items():
        torch.testing.assert_close(terms[name], expected)
    torch.testing.assert_close(terms["total"], ucs + 0.04 * reg + 1.5 * smooth)
    assert float(terms["momentum"]) == 0.25


@pytest.mark.parametrize("shape", SHAPES)
def test_mask_takes_pixels_from_the_weighted_residual_and_the_regulariser_but_not_from_the_smoothness(shape):
    """As published: the means stay those over all pixels."""
    step, plain = fake_step(shape), ScoreObjective(alpha=0.04)(fake_step(shape))
    step.mask = (torch.rand_like(step.residual) > 0.4).double()
    terms, score = ScoreObjective(alpha=0.04)(step), step.estimated
    torch.testing.assert_close(terms["ucs"], (step.mask * score * step.residual).mean())
    torch.testing.assert_close(terms["reg"], (step.mask * (1 - score) ** 2).mean())
    assert torch.equal(terms["smooth"], plain["smooth"])
    similarity = DisplacementObjective(weight=ScoreWeight())(step)["similarity"]
    torch.testing.assert_close(similarity, (step.mask * score * step.residual).mean())


def test_best_constant_score_is_one_minus_residual_over_twice_alpha():
    # d/dS [S r + alpha (1 - S)^2] = 0
    residual, alpha = 0.01, 0.02
    score = torch.full((1, 1, 6, 6), 1 - residual / (2 * alpha), dtype=torch.float64, requires_grad=True)
    step = SimpleNamespace(residual=torch.full_like(score, residual), estimated=score, mask=None)
    ScoreObjective(alpha=alpha)(step)["total"].backward()
    torch.testing.assert_close(score.grad, torch.zeros_like(score), atol=1e-12, rtol=0)


def test_momentum_term_is_a_snapshot_and_the_buffer_is_in_the_state_dict():
    objective = ScoreObjective()
    assert float(objective.momentum) == 1.0 and "momentum" in objective.state_dict()
    terms = objective(fake_step((8, 12)))
    objective.momentum.fill_(0.0)
    assert float(terms["momentum"]) == 1.0


@pytest.mark.parametrize("arguments", [{"alpha": 0.0}, {"alpha": -1.0}, {"beta": -0.5}, {"alpha": float("nan")}])
def test_score_that_would_collapse_is_refused(arguments):
    with pytest.raises(ValueError, match="alpha must be above 0"):
        ScoreObjective(**arguments)


@pytest.mark.parametrize("weight", [-0.01, float("nan")])
def test_negative_smoothness_weight_is_refused(weight):
    with pytest.raises(ValueError, match="smoothness_weight must be at least 0"):
        DisplacementObjective(smoothness_weight=weight)


@pytest.mark.parametrize("mu", [0.0, 0.01, 0.3])
def test_momentum_activation_is_the_cosine_of_each_form(mu):
    value = torch.tensor(mu, dtype=torch.float64)
    assert float(momentum_activation(value)) == pytest.approx(math.cos(math.pi / 2 * mu), abs=1e-12)
    assert float(momentum_activation(value, "official")) == pytest.approx(math.cos(3.14 * 50 * mu), abs=1e-12)


def test_displacement_objective_does_not_train_the_score():
    network, estimator = tiny_networks()
    step = real_step(network, estimator, {"displacement", "estimator"})
    DisplacementObjective(weight=ScoreWeight())(step)["total"].backward()
    assert moved(network) and not moved(estimator)


@pytest.mark.parametrize("estimator_input", ["fixed", "fixed_warped"])
def test_score_objective_does_not_train_the_displacement(estimator_input):
    network, estimator = tiny_networks(1 if estimator_input == "fixed" else 2)
    step = real_step(network, estimator, {"displacement", "estimator"}, estimator_input)
    ScoreObjective()(step)["total"].backward()
    assert moved(estimator) and not moved(network)


def test_leaking_score_objective_trains_the_displacement_by_the_weighted_residual():
    network, estimator = tiny_networks()
    step = real_step(network, estimator, {"displacement", "estimator"})
    ScoreObjective(leak=True)(step)["total"].backward()
    assert moved(estimator) and moved(network)
    leaked = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    step = real_step(network, estimator, {"displacement"})
    DisplacementObjective(smoothness_weight=0.0, weight=ScoreWeight())(step)["total"].backward()
    for one, other in zip(leaked, network.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, atol=1e-8, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_adaframe_weighs_by_the_absolute_residual(shape):
    step = fake_step(shape)
    weight = adaframe_weight((step.warped - step.fixed).abs())
    torch.testing.assert_close(AdaFrameWeight()(step), weight)
    terms = DisplacementObjective(weight=AdaFrameWeight())(step)
    torch.testing.assert_close(terms["similarity"], (weight * step.residual).mean())


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("shape", SHAPES)
def test_adareg_replaces_the_smoothness(shape, preset):
    step = fake_step(shape)
    terms = DisplacementObjective(smoothness=AdaptiveSmoothness(preset))(step)
    expected = AdaRegSmoothness(preset=preset)(step.velocity, (step.warped - step.fixed).abs())
    torch.testing.assert_close(terms["smoothness"], expected)
    assert not torch.isclose(terms["smoothness"], diffusion(step.velocity))
    torch.testing.assert_close(terms["total"], step.residual.mean() + 0.02 * expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight", sorted(WEIGHTS))
@pytest.mark.parametrize("smoothness", sorted(SMOOTHNESS))
def test_every_combination_gives_finite_scalars_that_add_up(shape, weight, smoothness):
    objective = DisplacementObjective(weight=WEIGHTS[weight](), smoothness=SMOOTHNESS[smoothness]())
    terms = objective(fake_step(shape))
    assert all(value.dim() == 0 and value.isfinite() for value in terms.values())
    torch.testing.assert_close(terms["total"], terms["similarity"] + 0.02 * terms["smoothness"])


def constant_maps(shape, forth, back):
    """A step of two pairs, whose displacements are one constant forth and another back."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 1, *shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def displacement(image):
        fields = [torch.full((2, len(shape), *shape), value, dtype=torch.float64) for value in (forth, back)]
        return Estimate(torch.cat(fields), torch.cat(fields))

    names = frozenset(["displacement"])
    step = RegistrationStep(
        torch.cat([a, b]), torch.cat([b, a]), displacement, SquaredError(), None, "fixed", names, names, True
    )
    return step, a, b


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_consistency_objective_has_its_closed_form(shape):
    """Constant maps u and v: (id + u) ∘ (id + v) - id = u + v, whose gradient is 0."""
    step, a, b = constant_maps(shape, 1.0, -0.4)
    field = torch.ones(2, len(shape), *shape, dtype=torch.float64)
    # means of A -> B and of B -> A, by themselves
    similarity = (warp(a, field) - b).square().mean() + (warp(b, -0.4 * field) - a).square().mean()
    # two orders of composition, mean over axes of (0.6 / (n - 1))^2
    penalty = 2 * sum((0.6 / (n - 1)) ** 2 for n in shape) / len(shape)
    terms = InverseConsistencyObjective(1024.0, InverseConsistencyPenalty("icon"))(step)
    assert set(terms) == {"total", "similarity", "inverse_consistency"}
    torch.testing.assert_close(terms["similarity"], similarity)
    assert float(terms["inverse_consistency"]) == pytest.approx(penalty, rel=1e-9)
    assert float(terms["total"]) == pytest.approx(float(similarity) + 1024 * penalty, rel=1e-9)
    gradicon = InverseConsistencyObjective(0.2, InverseConsistencyPenalty())(step)
    assert float(gradicon["inverse_consistency"]) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(gradicon["total"], similarity)


def test_inverse_consistency_penalty_sees_the_map_forth_first():
    step, _, _ = constant_maps((8, 12), 1.0, -0.4)
    terms = InverseConsistencyObjective(2.0, lambda forth, back: (3 * forth + back).mean())(step)
    assert float(terms["inverse_consistency"]) == pytest.approx(2.6)
    assert float(terms["total"] - terms["similarity"]) == pytest.approx(5.2)


def test_inverse_consistency_of_one_direction_is_an_error():
    network, _ = tiny_networks()
    with pytest.raises(ValueError, match="bidirectional must be true"):
        InverseConsistencyObjective(0.2, InverseConsistencyPenalty())(real_step(network, None, {"displacement"}))


@pytest.mark.parametrize("weight", [-0.2, float("nan")])
def test_negative_weight_of_inverse_consistency_is_refused(weight):
    with pytest.raises(ValueError, match="weight must be at least 0"):
        InverseConsistencyObjective(weight, InverseConsistencyPenalty())


def test_tables_name_the_forms():
    assert WEIGHTS == {"none": UnitWeight, "adaframe": AdaFrameWeight, "score": ScoreWeight}
    assert SMOOTHNESS == {"diffusion": PlainSmoothness, "adareg": AdaptiveSmoothness}
