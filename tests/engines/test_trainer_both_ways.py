# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from ignite.engine import Events
from monai.handlers import ValidationHandler
from torch import nn
from torch.utils.data import DataLoader

from common.engines.evaluator import RegistrationEvaluator
from common.engines.trainer import RegistrationTrainer
from common.networks.composition import build_icon
from common.spatial.jacobian import jacobian_determinant
from tests.engines.synthetic import (
    adam,
    baseline,
    gradicon_objective,
    loader_of,
    method_of,
    networks,
    record_similarity,
)


def test_bidirectional_registers_both_ways_in_one_batch_and_halves_each():
    size = (24, 32)
    loader = loader_of(size, batch_size=4)
    seen, losses = [], {}
    for both in (False, True):
        network, _ = networks(2)
        nn.init.normal_(network.flow.weight, std=0.1)
        trainer = baseline(network, loader, bidirectional=both)
        trainer._displacement.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0]))
        trainer.run()
        losses[both] = float(trainer.state.output["displacement"]["similarity"])
    one, two = seen
    assert len(two) == 2 * len(one)
    torch.testing.assert_close(two[:4], one, atol=0, rtol=0)
    torch.testing.assert_close(two[4:], one.flip(1), atol=0, rtol=0)
    network, _ = networks(2)
    nn.init.normal_(network.flow.weight, std=0.1)
    swapped = DataLoader(
        [{"moving_image": p["fixed_image"], "fixed_image": p["moving_image"]} for p in loader.dataset], 4
    )
    back = baseline(network, swapped)
    back.run()
    back_loss = float(back.state.output["displacement"]["similarity"])
    assert losses[True] == pytest.approx(0.5 * (losses[False] + back_loss), rel=1e-5)


@pytest.mark.parametrize("batched", [True, False])
def test_directions_go_through_the_network_together_or_one_after_the_other(batched):
    network, _ = networks(2)
    nn.init.normal_(network.flow.weight, std=0.1)
    loader, seen = loader_of((24, 32), batch_size=4), []
    trainer = baseline(network, loader, bidirectional=True, batched_directions=batched)
    trainer._displacement.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0]))
    trainer.run()
    batch = next(iter(loader))
    image = torch.cat([batch["moving_image"], batch["fixed_image"]], dim=1)
    assert len(seen) == (1 if batched else 2)
    torch.testing.assert_close(torch.cat(seen), torch.cat([image, image.flip(1)]), atol=0, rtol=0)


def gradicon(network, loader, epochs, lr=1e-3, handlers=None, **form):
    method = method_of(network, gradicon_objective(), adam(lr), bidirectional=True, **form)
    return RegistrationTrainer("cpu", epochs, loader, method, train_handlers=handlers)


@pytest.mark.parametrize(("size", "batched"), [((24, 32), True), ((24, 32), False), ((12, 16, 10), True)])
def test_gradicon_learns_a_shift_with_consistent_maps_that_do_not_fold(size, batched):
    torch.manual_seed(0)
    network, losses = build_icon(len(size), (2, 1), (2, 8, 8), (8, 8)), []
    trainer = gradicon(network, loader_of(size), 15, lr=1e-2, batched_directions=batched)
    record_similarity(trainer, losses)
    trainer.run()
    assert set(trainer.state.output["displacement"]) == {"total", "similarity", "inverse_consistency"}
    assert losses[-1] < 0.5 * losses[0]
    batch = next(iter(loader_of(size)))
    with torch.no_grad():
        ddf = network(torch.cat([batch["moving_image"], batch["fixed_image"]], dim=1))
    assert (jacobian_determinant(ddf) <= 0).float().mean() < 0.01
    assert float(trainer.state.output["displacement"]["inverse_consistency"]) < 0.1


def test_batch_norm_trains_on_after_a_validation():
    """A validation puts the networks that it shares with the trainer in evaluation mode."""
    torch.manual_seed(0)
    network = build_icon(2, (2, 1), (2, 4, 4), (4, 4))
    norm, modes, counts = network.step.second.up[0].norm, [], []
    norm.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    loader = loader_of((16, 24))  # two batches
    evaluator = RegistrationEvaluator("cpu", loader, network)
    trainer = gradicon(network, loader, epochs=3, handlers=[ValidationHandler(1, evaluator)])
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: counts.append(int(norm.num_batches_tracked)))
    trainer.run()
    assert modes == [True, True, False, False] * 3
    assert counts == [2, 4, 6]
