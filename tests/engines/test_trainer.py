# SPDX-License-Identifier: Apache-2.0
import copy
from functools import partial

import pytest
import torch
from ignite.engine import Events
from torch import nn
from torch.utils.data import DataLoader

from common.engines.trainer import NonFiniteLoss, RegistrationEvents, RegistrationTrainer
from common.handlers.momentum import ScoreMomentum
from common.handlers.stages import Stages
from common.losses.score import Momentum
from common.spatial.jacobian import jacobian_determinant
from common.spatial.warp import identity_grid
from tests.engines.synthetic import (
    SIZES,
    adacs,
    baseline,
    blob,
    count_forwards,
    displacement_objective,
    loader_of,
    method_of,
    networks,
    record_similarity,
    score_objective,
)

WARM_UPS = [{"updates": ["displacement"], "epochs": 1}, {"updates": ["score"], "epochs": 1},
            {"updates": ["displacement", "score"]}]  # fmt: skip


def snapshot(module):
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def changed(before, module):
    return any(not torch.equal(before[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize("size", SIZES)
def test_baseline_learns_a_shift_without_folding(size):
    network, _ = networks(len(size))
    losses = []
    trainer = baseline(network, loader_of(size), max_epochs=25)
    record_similarity(trainer, losses)
    trainer.run()
    assert losses[-1] < 0.4 * losses[0]
    pair = next(iter(loader_of(size)))
    with torch.no_grad():
        ddf = network(torch.cat([pair["moving_image"], pair["fixed_image"]], dim=1))
    # fixed(x) = moving(x - shift): in the middle the field points back along the first axis.
    centre = (slice(None), slice(None), *(slice(n // 2 - 2, n // 2 + 2) for n in size))
    assert ddf[centre][:, 0].mean() < -1.0
    assert (jacobian_determinant(ddf) <= 0).float().mean() == 0


def test_output_names_every_update_and_term_as_detached_scalars():
    network, score = networks(2)
    trainer = adacs(network, score, loader_of((24, 32)))
    trainer.run()
    assert list(trainer.state.output) == ["displacement", "score"]
    assert set(trainer.state.output["displacement"]) == {"total", "similarity", "smoothness"}
    assert set(trainer.state.output["score"]) == {"total", "ucs", "reg", "smooth", "mu", "momentum"}
    terms = [value for terms in trainer.state.output.values() for value in terms.values()]
    assert all(value.dim() == 0 and not value.requires_grad for value in terms)
    assert trainer.state.step is None


def test_updates_run_in_order_and_announce_themselves():
    network, score = networks(2)
    seen = []
    trainer = adacs(network, score, loader_of((24, 32)), max_epochs=2)
    trainer.add_event_handler(
        RegistrationEvents.UPDATE_STARTED, lambda e: seen.append((e.state.iteration, e.state.update))
    )
    trainer.run()
    assert seen == [(i, name) for i in range(1, 5) for name in ("displacement", "score")]


@pytest.mark.parametrize("size", SIZES)
def test_first_update_is_the_gradient_step_by_hand(size):
    network, _ = networks(len(size))
    # Away from whole voxels, where linear interpolation has a kink.
    nn.init.normal_(network.flow.weight, std=0.1)
    nn.init.constant_(network.flow.bias, 0.3)
    twin = copy.deepcopy(network)
    loader = loader_of(size, batch_size=4)
    method = method_of(network, displacement_objective(0.05), partial(torch.optim.SGD, lr=0.1))
    RegistrationTrainer("cpu", 1, loader, method).run()
    batch = next(iter(loader))
    estimate = twin.estimate(torch.cat([batch["moving_image"], batch["fixed_image"]], dim=1))
    warped = torch.nn.functional.grid_sample(
        batch["moving_image"],
        by_hand_grid(estimate.ddf),
        align_corners=True,
    )
    axes = range(2, 2 + len(size))
    smooth = sum(estimate.velocity.diff(dim=a).square().mean() for a in axes) / len(size)
    ((warped - batch["fixed_image"]).square().mean() + 0.1 * smooth).backward()
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.1 * theirs.grad, atol=1e-6, rtol=1e-4)


def by_hand_grid(ddf):
    size = ddf.shape[2:]
    where = identity_grid(list(size), ddf.device) + ddf
    return torch.stack([2 * where[:, a] / (size[a] - 1) - 1 for a in reversed(range(len(size)))], dim=-1)


@pytest.mark.parametrize(("second_forward", "forwards"), [(False, 1), (True, 2)])
def test_one_forward_serves_all_updates_unless_a_second_is_asked_for(second_forward, forwards):
    network, score = networks(2)
    trainer = adacs(network, score, loader_of((24, 32), batch_size=4), second_forward=second_forward)
    calls = count_forwards(trainer)
    trainer.run()
    assert calls == {"model": forwards, "model_score": 1}


def test_second_forward_shows_the_score_the_residual_after_the_update():
    residuals = {}
    for second_forward in (False, True):
        network, score = networks(2)
        trainer = adacs(network, score, loader_of((24, 32), batch_size=4), lr=1e-2, second_forward=second_forward)
        trainer.run()
        residuals[second_forward] = float(trainer.state.output["score"]["mu"])
        first = float(trainer.state.output["displacement"]["similarity"])
        after = network(torch.cat(list(next(iter(loader_of((24, 32), batch_size=4))).values()), dim=1))
    batch = next(iter(loader_of((24, 32), batch_size=4)))
    warped = torch.nn.functional.grid_sample(batch["moving_image"], by_hand_grid(after), align_corners=True)
    expected = float((warped - batch["fixed_image"]).square().mean().detach())
    assert residuals[True] == pytest.approx(expected, rel=1e-4)
    assert residuals[False] != pytest.approx(expected, rel=1e-4)
    assert first < residuals[False]  # weighted by a score below 1


def test_estimator_trains_on_after_something_put_it_in_evaluation_mode():
    network, score = networks(2)
    modes = []
    score.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    trainer = adacs(network, score, loader_of((24, 32), batch_size=4), max_epochs=2)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: score.eval())
    trainer.run()
    assert modes == [True, True]


def test_warm_up_touches_only_the_network_whose_turn_it_is():
    network, score = networks(2)
    weights = []
    trainer = adacs(network, score, loader_of((24, 32)), max_epochs=3, handlers=[Stages(WARM_UPS)])
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda e: weights.append((snapshot(network), snapshot(score))))
    moves = []
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda e: moves.append((changed(weights[-1][0], network), changed(weights[-1][1], score))),
    )
    trainer.run()
    assert moves == [(True, False), (False, True), (True, True)]
    assert all(p.grad is None for module in (network, score) for p in module.parameters())


def test_score_alone_learns_to_distrust_where_the_residual_is():
    network, score = networks(2)
    trainer = adacs(
        network, score, loader_of((24, 32), batch_size=4), max_epochs=40, lr=1e-2, objective=score_objective(beta=0.0)
    )
    trainer.active = frozenset({"score"})
    trainer.run()
    batch = next(iter(loader_of((24, 32), batch_size=4)))
    with torch.no_grad():
        value, residual = score(batch["fixed_image"]), (batch["moving_image"] - batch["fixed_image"]).square()
    high, low = value[residual > residual.quantile(0.9)].mean(), value[residual < residual.quantile(0.5)].mean()
    assert high < low - 0.05


def test_leak_reaches_the_displacement_when_it_has_its_own_forward():
    gradients = {}
    for leak in (False, True):
        network, score = networks(2)
        nn.init.normal_(network.flow.weight, std=0.1)
        adacs(network, score, loader_of((24, 32), batch_size=4), leak=leak, second_forward=True).run()
        gradients[leak] = [p.grad for p in network.parameters() if p.grad is not None and p.grad.any()]
    assert gradients[True] and not gradients[False]


@pytest.mark.parametrize("form", ["paper", "official"])
@pytest.mark.parametrize("active", [{"score"}, {"displacement", "score"}])
def test_momentum_beside_it_does_not_stop_the_leak(form, active):
    network, score = networks(2)
    nn.init.normal_(network.flow.weight, std=0.1)
    momentum = Momentum()
    loader = loader_of((24, 32), batch_size=4)
    trainer = adacs(network, score, loader, momentum=momentum, leak=True, handlers=[ScoreMomentum(momentum, form)])
    trainer.active = frozenset(active)
    trainer.run()
    assert any(p.grad is not None and p.grad.any() for p in network.parameters())


def test_leaking_update_without_its_own_forward_is_refused():
    network, score = networks(2)
    with pytest.raises(ValueError, match="second_forward"):
        adacs(network, score, loader_of((24, 32)), leak=True, second_forward=False)


@pytest.mark.parametrize("term", ["similarity", "smoothness"])
def test_non_finite_loss_names_the_term_and_leaves_the_weights(term):
    network, _ = networks(2)
    trainer = baseline(network, loader_of((24, 32)), max_epochs=3)
    plain = trainer.method.updates[0].objective

    def poisoned(step):
        terms = plain(step)
        if trainer.state.iteration == 4:
            terms[term] = terms[term] * float("nan")
            terms["total"] = terms["similarity"] + terms["smoothness"]
        return terms

    trainer.method.updates[0].objective = poisoned
    kept = {}
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: kept.update(snapshot(network)))
    with pytest.raises(
        NonFiniteLoss, match=f"update 'displacement': the loss term {term} became nan in epoch 2, iteration 4"
    ):
        trainer.run()
    assert not changed(kept, network)


def test_nan_in_an_image_stops_the_run():
    pairs = blob((24, 32), 2.0, 2)
    pairs[1]["fixed_image"][0, 3, 3] = float("nan")
    network, _ = networks(2)
    before = snapshot(network)
    with pytest.raises(NonFiniteLoss, match="similarity.* became nan"):
        baseline(network, DataLoader(pairs, batch_size=2)).run()
    assert not changed(before, network)


@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_keeps_fields_and_losses_in_float32_and_learns(size):
    network, score = networks(len(size))
    dtypes, losses = set(), []
    trainer = adacs(network, score, loader_of(size), max_epochs=15, lr=1e-2, options={"amp": True})

    def look(engine):
        step = engine.state.step
        dtypes.update(
            {step.estimate.velocity.dtype, step.estimate.ddf.dtype, step.residual.dtype, step.estimated.dtype}
        )

    trainer.add_event_handler(RegistrationEvents.UPDATE_STARTED, look)
    record_similarity(trainer, losses)
    trainer.run()
    assert dtypes == {torch.float32}
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("estimator_input", ["fixed", "fixed_warped"])
def test_both_inputs_of_the_estimator_train(estimator_input):
    network, score = networks(2, in_channels=1 if estimator_input == "fixed" else 2)
    before = snapshot(network), snapshot(score)
    adacs(network, score, loader_of((24, 32)), estimator_input=estimator_input).run()
    assert changed(before[0], network) and changed(before[1], score)


def test_unknown_estimator_input_is_refused():
    network, score = networks(2)
    with pytest.raises(ValueError, match="estimator_input: expected one of .*got 'warped'"):
        adacs(network, score, loader_of((24, 32)), estimator_input="warped")


def test_state_dict_keeps_the_bare_names():
    network, score = networks(2)
    names = list(network.state_dict())
    trainer = adacs(network, score, loader_of((24, 32)))
    trainer.run()
    assert trainer.method.network is network and list(network.state_dict()) == names
