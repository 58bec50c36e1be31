# SPDX-License-Identifier: Apache-2.0
"""How LapIRN and c-LapIRN are trained: terms, codes, levels one after the other, and what is refused."""

from functools import partial

import pytest
import torch
from ignite.engine import Events

from common.data.pairs import PairDataset
from common.engines.adaptation import adapt, uniform_code
from common.engines.instance import InstanceOptimisation
from common.engines.step import RegistrationStep
from common.engines.trainer import RegistrationEvents
from common.handlers.stages import Stages
from common.handlers.state import load_weights, save_weights
from common.losses.similarity import build_similarity
from common.losses.terms import ScoreWeight
from common.methods.baselines import adaframe, adareg, plain
from common.networks.lapirn import LapIRN
from common.networks.unet import PixelEstimator
from common.spatial.pyramid import halved
from common.workflow import Options, trainer
from tests.engines.synthetic import TINY, adacs_method, adam, blob, gradicon_objective, method_of

SIZES = [(16, 24), (8, 12, 10)]
each_size = pytest.mark.parametrize("size", SIZES)


def network_of(size, conditional=True, **options):
    torch.manual_seed(0)
    return LapIRN(len(size), 1, blocks=1, conditional=conditional, **options)


def method(size, similarity="lncc", weight=1.0, **options):
    return plain(network_of(size, **options), build_similarity(similarity), adam(1e-3), weight)


def step_of(size, trained, code=None):
    generator = torch.Generator().manual_seed(0)
    batch = {f"{name}_image": torch.rand(2, 1, *size, generator=generator) for name in ("moving", "fixed")}
    condition = None if code is None else torch.full((2, 1), code)
    return RegistrationStep(batch, condition, trained, trained.network.estimate)


def published_smoothness(velocity):
    """Mean square of the differences of the flow in [-1, 1] times n - 1, over the axes, as the released code has it."""
    sizes = torch.tensor(velocity.shape[2:]).view(1, -1, *[1] * (velocity.dim() - 2))
    flow = velocity * 2 / (sizes - 1)
    scaled = flow * (sizes - 1)
    return sum(scaled.diff(dim=axis).square().mean() for axis in range(2, flow.dim())) / (flow.dim() - 2)


@each_size
@pytest.mark.parametrize("running", [1, 2, 3])
@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [({}, 0.3, 3.0), ({}, 1.0, 10.0), ({"conditional": False}, None, 1.0),
     ({"conditional": False, "diffeomorphic": True}, None, 3.5)],
)  # fmt: skip
def test_smoothness_of_local_ncc_weighs_what_is_published(size, running, options, code, expected):
    trained = adapt(method(size, **options)).method
    trained.network.run_levels(running)
    step = step_of(size, trained, code)
    terms = trained.updates[0].objective(step)
    share = terms["total"] - terms["similarity"]
    torch.testing.assert_close(share, expected * published_smoothness(step.estimate.velocity), atol=1e-6, rtol=1e-3)
    assert share > 0


def test_code_without_a_condition_is_the_networks_default():
    trained = adapt(method((16, 24))).method
    objective = trained.updates[0].objective
    alone, given = objective(step_of((16, 24), trained)), objective(step_of((16, 24), trained, 0.1))
    assert alone.keys() == given.keys() and all(torch.equal(alone[key], given[key]) for key in alone)


def test_windows_grow_with_the_level_and_images_go_on_at_their_border():
    plain_method = method((16, 24), {"mse": 1.0, "lncc": {"weight": 0.5, "window": 9}})
    trained = adapt(plain_method).method
    similarities = trained.updates[0].objective.terms["similarity"].similarities
    assert [sum_.similarities[1].window for sum_ in similarities] == [3, 5, 7]
    assert trained.similarity is similarities[-1] and trained.padding == "border"
    assert plain_method.similarity.similarities[1].window == 9 and plain_method.padding == "zeros"


def test_codes_are_uniform_one_a_step_and_of_torchs_random_state():
    torch.manual_seed(3)
    codes = torch.stack([uniform_code(4, torch.device("cpu")) for _ in range(2000)])
    assert codes.shape == (2000, 4, 1) and (codes == codes[:, :1]).all()
    drawn = codes[:, 0, 0].sort().values
    assert (drawn - torch.linspace(0, 1, 2000)).abs().max() < 0.04  # Kolmogorov-Smirnov at 0.4 %
    torch.manual_seed(3)
    assert torch.equal(uniform_code(4, torch.device("cpu")), codes[0])
    each = uniform_code(4, torch.device("cpu"), per_direction=True)
    assert (
        each.shape == (8, 1) and len(each.unique()) == 2 and (each[:4] == each[0]).all() and (each[4:] == each[4]).all()
    )


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [((16, 24), {}, [20001, 3000, 17001, 3000]), ((8, 12, 10), {}, [30001, 3000, 27001, 3000]),
     ((8, 12, 10), {"conditional": False}, [30001, 2000, 28001, 2000])],
)  # fmt: skip
def test_stages_have_the_published_iterations_in_a_training_of_the_published_length(size, options, expected):
    stages = adapt(method(size, **options)).stages
    total = 80_003 if len(size) == 2 else 120_003
    assert [stage["share"] * total for stage in stages[:-1]] == pytest.approx(expected)
    assert "share" not in stages[-1]
    assert [stage["levels"] for stage in stages] == [1, 2, 2, 3, 3]
    below = ["model.levels.0", "model.levels.1"]
    assert [stage.get("freeze", []) for stage in stages] == [[], below[:1], [], below, []]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (partial(adaframe, similarity=build_similarity("mse"), smoothness_weight=0.01), "the weight AdaFrameWeight"),
        (
            partial(adareg, similarity=build_similarity("mse"), smoothness_weight=0.01),
            r"got smoothness \(AdaptiveSmoothness\)",
        ),
        (lambda network, optimizer: method_of(network, gradicon_objective(), bidirectional=True), "InverseConsistency"),
        (lambda network, optimizer: method_of(network, lambda step: {}), "got function"),
    ],
)
def test_objectives_without_a_form_for_several_levels_are_refused(made, message):
    made = made(network_of((16, 24)), optimizer=adam(1e-3))
    with pytest.raises(ValueError, match=f"architecture: c-LapIRN minimises a similarity.*{message}.*Choose another"):
        adapt(made)


def dataset(size, count=4):
    pairs = [pair | {"centre": torch.tensor([(n - 1) / 2 for n in size])} for pair in blob(size, 1.5, count)]
    return PairDataset(pairs, size)


def training(folder, size, epochs=4, resume=False, **options):
    """Four iterations an epoch."""
    trained = method(size, **options)
    if resume:  # what it starts from must not matter
        for parameter in trained.network.parameters():
            parameter.data.zero_()
    return trainer(trained, dataset(size), epochs, Options(folder, batch_size=1, resume=resume))


class Watch:
    """Levels, codes and weights of every iteration."""

    def __init__(self, engine):
        self.levels, self.codes, self.states = [], [], [self.state(engine)]
        engine.add_event_handler(RegistrationEvents.UPDATE_STARTED, self.note)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self.states.append(self.state(e)))

    @staticmethod
    def state(engine):
        return {key: value.clone() for key, value in engine.method.network.state_dict().items()}

    def note(self, engine):
        self.levels.append(engine.method.network.running)
        self.codes.append(engine.state.step.condition)

    def moved(self, start, stop):
        before, after = self.states[start], self.states[stop]
        return {
            int(key.split(".")[1]) for key in before if "levels." in key and not torch.equal(before[key], after[key])
        }


@each_size
def test_levels_are_trained_one_after_the_other_with_a_code_of_their_own_each_step(tmp_path, size):
    engine = training(tmp_path, size)
    watch = Watch(engine)
    engine.run()
    assert watch.levels == [1] * 4 + [2] * 4 + [3] * 8
    codes = [float(code[0, 0]) for code in watch.codes]
    assert len(set(codes)) == 16 and all(0 <= code <= 1 for code in codes)
    # The frozen parts of stages two and four have one iteration or none here.
    assert [watch.moved(*span) for span in ((0, 4), (5, 8), (9, 16))] == [{0}, {0, 1}, {0, 1, 2}]
    frozen = [len(size) == 2] * 2
    assert [watch.moved(4, 5) == {1}, watch.moved(8, 9) == {2}] == frozen
    assert torch.load(tmp_path / "model.pt", weights_only=True)["levels_run"] == 3


@pytest.fixture(scope="module")
def whole_training(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    training(folder, SIZES[0]).run()
    return torch.load(folder / "model.pt", weights_only=True)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_training_killed_at_any_level_ends_with_the_numbers_of_an_uninterrupted_one(tmp_path, whole_training, epochs):
    first = training(tmp_path, SIZES[0])

    def kill(engine):
        if engine.state.iteration == 4 * epochs + 2:
            raise KeyboardInterrupt

    first.add_event_handler(Events.ITERATION_COMPLETED, kill)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = training(tmp_path, SIZES[0], resume=True)
    second.run()
    resumed = torch.load(tmp_path / "model.pt", weights_only=True)
    assert second.state.iteration == 16 and resumed.keys() == whole_training.keys()
    assert all(torch.equal(resumed[key], value) for key, value in whole_training.items())


def test_training_lowers_what_it_minimises_on_every_level(tmp_path):
    engine = training(tmp_path, SIZES[0], epochs=24, similarity="mse", weight=0.0)
    values = []
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: values.append(float(e.state.output["displacement"]["similarity"]))
    )
    engine.run()
    for start, stop in ((0, 24), (24, 48), (48, 96)):
        assert sum(values[stop - 8 : stop]) < sum(values[start : start + 8])


def test_stages_of_the_training_itself_come_before_the_networks(tmp_path):
    own = Stages([{"updates": ["displacement"]}])
    engine = trainer(method(SIZES[0]), dataset(SIZES[0]), 1, Options(tmp_path, batch_size=2), train_handlers=[own])
    watch = Watch(engine)
    engine.run()
    assert engine.stages is own and watch.levels == [3, 3]


def adacs(size):
    torch.manual_seed(1)
    score = PixelEstimator(len(size), 1, **TINY)
    return adacs_method(network_of(size), score)


@each_size
def test_score_of_adacs_weighs_the_finest_residual(size):
    trained = adapt(adacs(size)).method
    trained_step = RegistrationStep(
        step_of(size, trained).batch, torch.full((2, 1), 0.5), trained, trained.network.estimate,
        trained.modules["model_score"],
    )  # fmt: skip
    terms = trained.updates[0].objective(trained_step)
    warped, fixed = trained_step.warped, trained_step.fixed
    expected = (ScoreWeight()(trained_step) * (warped - fixed).square()).mean()
    for share in (2, 4):
        warped, fixed = halved(warped), halved(fixed)
        expected = expected + (warped - fixed).square().mean() / share
    torch.testing.assert_close(terms["similarity"], expected)
    assert trained_step.estimated.std() > 1e-3
    largest = 20 * 2 * 0.01  # of the objective's own weight
    torch.testing.assert_close(terms["total"], expected + 0.5 * largest * terms["smoothness"])


def test_adacs_goes_on_from_a_vanilla_training_with_all_levels(tmp_path):
    size = SIZES[0]
    training(tmp_path, size, epochs=2).run()
    fine = adacs(size)
    load_weights(fine.network, tmp_path / "model.pt", "initial_weights")
    both = ["displacement", "score"]
    course = Stages([*({"updates": [name], "iterations": 2} for name in both), {"updates": both}])
    engine = trainer(fine, dataset(size), 2, Options(tmp_path / "adacs", batch_size=1), train_handlers=[course])
    watch = Watch(engine)
    before = {key: value.clone() for key, value in fine.modules["model_score"].state_dict().items()}
    engine.run()
    assert watch.levels == [3] * 12  # two updates an iteration in the last four
    assert watch.moved(0, 2) == watch.moved(4, 8) == {0, 1, 2} and watch.moved(2, 4) == set()
    after = fine.modules["model_score"].state_dict()
    assert not all(torch.equal(before[key], after[key]) for key in before)


def test_adacs_from_weights_whose_training_never_reached_the_last_level_is_refused(tmp_path):
    size, fine = SIZES[0], adacs(SIZES[0])
    network = network_of(size)
    network.run_levels(1)
    save_weights(network, tmp_path / "model.pt")
    load_weights(fine.network, tmp_path / "model.pt", "initial_weights")
    course = Stages([{"updates": ["displacement", "score"]}])
    engine = trainer(fine, dataset(size), 1, Options(tmp_path / "adacs", batch_size=2), train_handlers=[course])
    with pytest.raises(ValueError, match="a score weighs the finest level, and 1 of 3 levels run"):
        engine.run()


def test_fit_to_a_pair_without_a_condition_takes_the_networks_default():
    trained = adapt(method(SIZES[0])).method
    image = step_of(SIZES[0], trained)
    image = torch.cat([image.moving, image.fixed], dim=1)
    fitted = InstanceOptimisation(trained, 3, learning_rate=1e-3)
    default = fitted(image)
    assert torch.equal(default, fitted(image, None, torch.full((2, 1), 0.1)))
    assert not torch.equal(default, fitted(image, None, torch.full((2, 1), 0.9)))
    with torch.no_grad():
        assert not torch.equal(default, trained.network(image))
