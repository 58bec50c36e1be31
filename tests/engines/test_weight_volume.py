# SPDX-License-Identifier: Apache-2.0
"""A smoothness weight that the network predicts: training over eta, its map, and the condition in every forward."""

from functools import partial

import numpy as np
import pytest
import torch
from ignite.engine import Events
from torch.utils.data import DataLoader

from common.engines.adaptation import uniform_code
from common.engines.evaluator import RegistrationEvaluator
from common.engines.inferers import InferenceEvaluator, StackInferer
from common.engines.instance import InstanceOptimisation
from common.engines.maps import PixelMaps, evaluated_maps, pixel_maps
from common.engines.solvers import Identity
from common.engines.trainer import RegistrationTrainer
from common.handlers import figures
from common.handlers.evaluation import evaluation_handlers
from common.handlers.figures import SHARES
from common.metrics.image import ImageMeasures
from tests.engines.synthetic import SIZES, blob, estimating_method, loader_of
from tests.engines.weighing import DEFAULT, Weighing, weighing_method

each_size = pytest.mark.parametrize("size", SIZES)


def network_of(dims, **options):
    torch.manual_seed(0)
    return Weighing(dims, **options)


def pairs_of(size, count=2):
    return [pair | {"subject": f"s{n}", "case": f"c{n}"} for n, pair in enumerate(blob(size, 2.0, count))]


@each_size
@pytest.mark.parametrize("per_direction", [False, True])
def test_every_step_draws_eta_and_weighs_the_log_loss_by_it(size, per_direction):
    network = network_of(len(size))
    method = weighing_method(network, condition=partial(uniform_code, per_direction=per_direction))
    trainer = RegistrationTrainer("cpu", 2, loader_of(size), method)
    steps = []

    def record(engine):
        steps.append({name: float(value) for name, value in engine.state.output["displacement"].items()})

    trainer.add_event_handler(Events.ITERATION_COMPLETED, record)
    trainer.run()
    assert len(steps) == len(network.seen) == 4
    for step, seen in zip(steps, network.seen, strict=True):
        assert seen.shape == (4, 1) and ((0 <= seen) & (seen <= 1)).all()
        assert (seen[:2] == seen[0]).all() and (seen[2:] == seen[2]).all()
        assert bool(seen[0] == seen[2]) != per_direction
        rest = step["total"] - step["similarity"] - 5 * step["smoothness"]
        assert rest == pytest.approx(4 * float(seen.mean()) * step["log_loss"], abs=1e-5)
    assert len({float(seen[0]) for seen in network.seen}) == 4


def test_a_larger_eta_gives_larger_weights_and_smoother_fields_after_training():
    """What the condition is for: one training, and the trade-off afterwards (Fig. 2 and Fig. 4)."""
    size = SIZES[0]
    network = network_of(len(size), width=8)
    method = weighing_method(network, eta_max=0.02, smoothness=0.5, lr=2e-2)
    RegistrationTrainer("cpu", 60, loader_of(size), method).run()
    batch = next(iter(loader_of(size)))
    image = torch.cat([batch["moving_image"], batch["fixed_image"]], dim=1)
    network.eval()
    with torch.no_grad():
        found = [network.estimate(image, torch.full((2, 1), share)) for share in (0.02, 0.5, 1.0)]
    means = [float(estimate.weight_volume.mean()) for estimate in found]
    assert means[0] + 0.1 < means[1] < means[2] - 0.1
    assert float(found[0].ddf.diff(dim=2).square().mean()) > float(found[2].ddf.diff(dim=2).square().mean())


@each_size
def test_map_is_the_weight_volume_under_the_condition_on_the_images_grid(size):
    network = network_of(len(size))
    maps = pixel_maps(weighing_method(network), True)
    image = torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(0))
    registered = torch.cat([image, torch.zeros(2, len(size), *size)], dim=1)
    for condition in (None, torch.full((2, 1), 0.75)):
        found = maps(registered, condition)
        assert list(found) == ["weight_volume"] and not found["weight_volume"].requires_grad
        torch.testing.assert_close(found["weight_volume"], network.estimate(image, condition).weight_volume)
    assert not torch.equal(maps(registered)["weight_volume"], found["weight_volume"])
    assert maps.weighs_smoothness and maps.eta_max == 4.0


def test_map_of_a_coarser_grid_is_interpolated():
    network = network_of(2)
    fine = network.estimate

    def coarse(image, condition=None):
        estimate = fine(image, condition)
        ramp = torch.linspace(0, 1, 5).view(1, 1, 5, 1).expand(len(image), 1, 5, 4)
        return estimate._replace(weight_volume=ramp)

    network.estimate = coarse
    found = PixelMaps(weighing_method(network))(torch.rand(1, 4, 9, 7))["weight_volume"]
    torch.testing.assert_close(found, torch.linspace(0, 1, 9).view(1, 1, 9, 1).expand(1, 1, 9, 7))


def test_networks_without_a_weight_volume_and_solvers_have_no_map():
    network = network_of(2)
    fine = network.estimate
    network.estimate = lambda image, condition=None: fine(image, condition)._replace(weight_volume=None)
    assert PixelMaps(weighing_method(network))(torch.rand(1, 4, 9, 7)) == {}
    assert evaluated_maps(weighing_method(Identity())) is None
    with pytest.raises(ValueError, match="maps: the solver 'identity'"):
        pixel_maps(weighing_method(Identity()), True)
    with pytest.raises(ValueError, match="a deviation or a weight volume, got Weighing alone.*tmspr_"):
        pixel_maps(estimating_method(network), True)


@pytest.mark.parametrize("condition", [None, 0.5])
def test_inference_gives_the_condition_to_the_field_and_to_the_map(condition):
    network = network_of(2)
    item = {"image": torch.rand(2, 12, 9, 5, generator=torch.Generator().manual_seed(0))}
    maps = pixel_maps(weighing_method(network), True)
    engine = InferenceEvaluator("cpu", [item], network, StackInferer(2), condition=condition, maps=maps)
    engine.run()
    assert engine.state.output["window_maps"]["weight_volume"].shape == (1, 12, 9, 5)
    assert len(network.seen) == 6  # three chunks of slices, twice
    assert all((seen == (DEFAULT if condition is None else condition)).all() for seen in network.seen)


@each_size
def test_a_fit_to_the_pair_weighs_by_the_condition_or_the_stored_default(size):
    network = network_of(len(size))
    batch = next(iter(loader_of(size)))
    image = torch.cat([batch["moving_image"], batch["fixed_image"]], dim=1)
    fit = InstanceOptimisation(weighing_method(network), 2, "weights", 1e-3)
    before = network(image, None, None).detach()
    network.seen.clear()
    fitted = fit(image, None, torch.full((2, 1), 0.5))
    assert all((seen == 0.5).all() for seen in network.seen) and not torch.equal(fitted, before)
    network.seen.clear()
    fit(image)
    assert all((seen == DEFAULT).all() for seen in network.seen)


@pytest.fixture
def drawn(monkeypatch):
    calls = {}
    monkeypatch.setattr(figures, "weight_volume_panel", lambda path, cases: calls.update({path.name: cases}))
    return calls


def evaluated(size, folder, network, method, condition=0.1):
    engine = RegistrationEvaluator(
        "cpu", DataLoader(pairs_of(size), batch_size=1), network, condition=condition, maps=evaluated_maps(method),
        val_handlers=evaluation_handlers([ImageMeasures()], folder, {}),
    )  # fmt: skip
    engine.run()
    return engine


@each_size
def test_evaluation_draws_the_median_case_over_eta_and_keeps_its_own_condition(size, tmp_path, drawn):
    network = network_of(len(size))
    engine = evaluated(size, tmp_path, network, weighing_method(network))
    cases = drawn["weight_volumes.png"]
    assert list(cases) == ["η = 0", "η = 1", "η = 2", "η = 3", "η = 4"] and engine.condition == 0.1
    item = pairs_of(size)[1]
    image = torch.cat([item["moving_image"], item["fixed_image"]])[None]
    for share, case in zip(SHARES, cases.values(), strict=True):
        expected = network.estimate(image, torch.tensor([[share]])).weight_volume[0, 0].detach()
        middle = expected if len(size) == 2 else expected[..., size[-1] // 2]
        np.testing.assert_allclose(case["weight_volume"], middle.numpy(), atol=1e-6)
    assert (network.seen[0] == 0.1).all()


def test_the_figure_is_written_and_left_out_where_weights_are_fitted(tmp_path):
    network = network_of(2)
    method = weighing_method(network)
    evaluated(SIZES[0], tmp_path / "plain", network, method)
    assert (tmp_path / "plain" / "weight_volumes.png").stat().st_size > 10_000
    evaluated(SIZES[0], tmp_path / "fitted", InstanceOptimisation(method, 1, "weights", 1e-4), method)
    assert not (tmp_path / "fitted" / "weight_volumes.png").exists()
