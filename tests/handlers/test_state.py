# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch
from ignite.engine import Events

from common.data.pairs import PairDataset, training_loader
from common.engines.method import Update
from common.engines.trainer import RegistrationTrainer
from common.handlers.momentum import ScoreMomentum
from common.handlers.stages import Stages
from common.handlers.state import STATE_FILE, TrainingState, load_weights, save_weights
from common.losses.score import Momentum
from common.networks.composition import build_icon
from common.networks.unet import PixelEstimator
from common.networks.voxelmorph import VoxelMorph
from tests.engines.synthetic import adacs_method, adam, displacement_objective

TINY = {"encoder": (4,), "decoder": (4, 4)}
SIZES = [(16, 24), (8, 12, 10)]
BOTH = ["displacement", "score"]
WARM_UPS = [{"updates": ["displacement"], "epochs": 1}, {"updates": ["score"], "epochs": 1}, {"updates": BOTH}]
# Three iterations an epoch: the second stage begins within the second epoch and holds the third, the last within one.
COURSE = [
    {"updates": ["displacement"], "iterations": 4},
    {"updates": BOTH, "epochs": 2, "freeze": ["model.unet"], "batch_size": 3, "image_scale": 0.5},
    {"updates": BOTH, "iterations": 2, "initial_from": {"model_score.unet.bottom": "model.unet.bottom"}},
    {"updates": BOTH},
]


class Run:
    """Everything that one process of a training builds."""

    def __init__(
        self, folder, epochs, size=(16, 24), resume=False, leak=False, interval=1, lr=1e-3, form="paper", settings=None,
        stages=WARM_UPS, method=None,
    ):  # fmt: skip
        torch.manual_seed(1 if not resume else 999)  # a resumed run must not depend on how it was initialised
        self.network, self.score = VoxelMorph(len(size), **TINY), PixelEstimator(len(size), 1, **TINY)
        torch.nn.init.normal_(self.network.flow.weight, std=0.1)
        self.momentum = Momentum()
        self.method = adacs_method(self.network, self.score, self.momentum, lr, leak=leak)
        if method is not None:
            method(self.method)
        self.state = TrainingState(folder, resume=resume, interval=interval, settings=settings)
        handlers = [ScoreMomentum(self.momentum, form), self.state]
        dataset = PairDataset(pairs(size), size, jitter=2)
        self.trainer = RegistrationTrainer(
            "cpu",
            epochs,
            training_loader(dataset, batch_size=2, seed=5),
            self.method,
            loaders=lambda batch_size: training_loader(dataset, batch_size, seed=5, updates_per_epoch=3),
            train_handlers=handlers if stages is None else [Stages(stages), *handlers],
        )

    def everything(self):
        tensors = {f"model.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"score.{k}": v for k, v in self.score.state_dict().items()}
        tensors["momentum"] = self.momentum.value
        for name, optimizer in self.trainer.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{key}": value for key, value in state.items()}
        for name, module in (("model", self.network), ("score", self.score)):
            tensors |= {f"{name}.{k}.grad": p.grad for k, p in module.named_parameters() if p.grad is not None}
        return {key: value.detach().clone() for key, value in tensors.items()}


def pairs(size, count=6):
    generator = torch.Generator().manual_seed(0)
    larger = [n + 4 for n in size]
    return [
        {
            "moving_image": torch.rand(1, *larger, generator=generator),
            "fixed_image": torch.rand(1, *larger, generator=generator),
            "centre": torch.tensor([(n - 1) / 2 for n in larger]),
        }
        for _ in range(count)
    ]


def assert_same(one, other):
    assert one.keys() == other.keys() and len(one) > 10
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("leak", [False, True])
def test_interrupted_run_ends_with_the_numbers_of_an_uninterrupted_one(tmp_path, size, leak):
    whole = Run(tmp_path / "whole", 4, size, leak=leak)
    whole.trainer.run()
    Run(tmp_path / "parts", 2, size, leak=leak).trainer.run()
    second = Run(tmp_path / "parts", 4, size, leak=leak, resume=True)
    second.trainer.run()
    assert second.trainer.state.epoch == 4 and second.trainer.state.iteration == whole.trainer.state.iteration == 12
    assert float(whole.momentum.value) > 0.05
    assert_same(whole.everything(), second.everything())


def test_resume_of_the_official_momentum_is_exact(tmp_path):
    whole = Run(tmp_path / "whole", 4, form="official")
    whole.trainer.run()
    Run(tmp_path / "parts", 3, form="official").trainer.run()
    second = Run(tmp_path / "parts", 4, form="official", resume=True)
    second.trainer.run()
    assert_same(whole.everything(), second.everything())


@pytest.fixture(scope="module")
def whole_course(tmp_path_factory):
    whole = Run(tmp_path_factory.mktemp("whole"), 6, stages=COURSE)
    whole.trainer.run()
    return whole


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5])
def test_run_killed_in_any_stage_ends_with_the_numbers_of_an_uninterrupted_one(tmp_path, whole_course, epochs):
    """Killed in the midst of the epoch after the last that was saved."""
    first = Run(tmp_path, 6, stages=COURSE)

    def kill(engine):
        if engine.state.iteration == 3 * epochs + 2:
            raise KeyboardInterrupt

    first.trainer.add_event_handler(Events.ITERATION_COMPLETED, kill)
    with pytest.raises(KeyboardInterrupt):
        first.trainer.run()
    second = Run(tmp_path, 6, stages=COURSE, resume=True)
    active, batches = [], []
    second.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: active.append(len(e.state.output)))
    second.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: batches.append(len(e.state.batch["moving_image"]))
    )
    second.trainer.run()
    assert active == ([1] * 4 + [2] * 14)[3 * epochs :]
    assert batches == ([2] * 6 + [3] * 3 + [2] * 9)[3 * epochs :]
    assert second.trainer.state.iteration == 18
    assert second.trainer.stages.state_dict() == whole_course.trainer.stages.state_dict()
    assert_same(whole_course.everything(), second.everything())


def another_module(method):
    method.modules = dict(method.modules) | {"model_other": PixelEstimator(2, 1, **TINY)}


def another_update(method):
    method.updates.append(Update("other", ["model_score"], displacement_objective(), adam(1e-3)))


def another_term(method):
    method.updates[0].objective.register_buffer("more", torch.zeros(1))


@pytest.mark.parametrize("change", [another_module, another_update, another_term])
@pytest.mark.parametrize("before", [True, False])
def test_another_method_does_not_continue(tmp_path, change, before):
    """Whether it has more or less than the one before."""
    stages = [{"updates": BOTH}]
    Run(tmp_path, 1, method=change if before else None, stages=stages).trainer.run()
    other = Run(tmp_path, 2, resume=True, method=None if before else change, stages=stages)
    with pytest.raises(ValueError, match="does not hold the state of this training.*--resume"):
        other.trainer.run()


@pytest.mark.parametrize("before", [True, False])
def test_a_course_of_stages_and_none_are_not_continued_as_each_other(tmp_path, before):
    one, other = (WARM_UPS, None) if before else (None, WARM_UPS)
    Run(tmp_path, 1, stages=one).trainer.run()
    with pytest.raises(ValueError, match="does not hold the state of this training.*stages were"):
        Run(tmp_path, 2, resume=True, stages=other).trainer.run()


def test_run_without_stages_resumes_too(tmp_path):
    whole = Run(tmp_path / "whole", 2, stages=None)
    whole.trainer.run()
    Run(tmp_path / "parts", 1, stages=None).trainer.run()
    second = Run(tmp_path / "parts", 2, stages=None, resume=True)
    second.trainer.run()
    assert_same(whole.everything(), second.everything())


def test_random_numbers_continue(tmp_path):
    Run(tmp_path, 1).trainer.run()
    expected = torch.rand(3)
    resumed = Run(tmp_path, 1, resume=True)
    resumed.trainer.run()
    torch.testing.assert_close(torch.rand(3), expected, atol=0, rtol=0)


def test_finished_run_resumes_to_itself(tmp_path):
    first = Run(tmp_path, 2)
    first.trainer.run()
    again = Run(tmp_path, 2, resume=True)
    again.trainer.run()
    assert_same(first.everything(), again.everything())


def test_lower_learning_rate_takes_effect_on_resume(tmp_path):
    """The remedy that NonFiniteLoss names."""
    Run(tmp_path, 1, lr=1e-3).trainer.run()
    resumed = Run(tmp_path, 2, lr=1e-4, resume=True)
    resumed.trainer.run()
    assert [o.param_groups[0]["lr"] for o in resumed.trainer.optimizers.values()] == [1e-4, 1e-4]


def test_another_training_is_not_continued(tmp_path):
    Run(tmp_path, 1, settings={"seed": 0, "objective": "mse", "labels": {"a": 1}}).trainer.run()
    Run(tmp_path, 1, resume=True, settings={"seed": 0, "objective": "mse", "labels": {"a": 1}}).trainer.run()
    other = Run(tmp_path, 2, resume=True, settings={"seed": 1, "objective": "mse", "extra": True})
    with pytest.raises(ValueError, match="extra was 'not set' and is now True; labels was .*; seed was 0 and is now 1"):
        other.trainer.run()
    with pytest.raises(ValueError, match="epochs: expected at least 3, .* got 2"):
        Run(tmp_path / "longer", 3).trainer.run()
        Run(tmp_path / "longer", 2, resume=True).trainer.run()


def test_a_state_of_an_earlier_version_is_continued_and_said(tmp_path, caplog):
    Run(tmp_path, 1).trainer.run()
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    del state["settings"]
    torch.save(state, tmp_path / STATE_FILE)
    run = Run(tmp_path, 2, resume=True, settings={"seed": 1})
    with caplog.at_level(logging.WARNING):
        run.trainer.run()
    assert "its settings cannot be checked" in caplog.text and run.trainer.state.epoch == 2


def truncated(path):
    path.write_bytes(path.read_bytes()[:2000])


def edited(change):
    def edit(path):
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "cannot be read, it is damaged"),
        (lambda path: path.write_text("nonsense"), "cannot be read, it is damaged"),
        (edited(lambda state: state.pop("optimizers")), r"is no state of a training, it lacks \['optimizers'\]"),
        (edited(lambda state: state.update(epoch="x")), "epochs: expected"),
        (edited(lambda state: state["modules"].pop("model_score")), "does not hold the state of this training"),
        (edited(lambda state: state["modules"]["model"].popitem()), "does not hold the state of this training"),
        (edited(lambda state: state.update(random={})), "does not hold the state of this training"),
        (edited(lambda state: state.update(stages={})), "does not hold the state of this training"),
        (edited(lambda state: state["stages"].update(position=7)), "does not hold the state of this training"),
        (edited(lambda state: state["objectives"].pop("score")), "does not hold the state of this training"),
        (edited(lambda state: state["optimizers"].update(x={})), "does not hold the state of this training"),
    ],
)
def test_a_damaged_state_is_refused_by_name(tmp_path, damage, message):
    Run(tmp_path, 1).trainer.run()
    damage(tmp_path / STATE_FILE)
    with pytest.raises(ValueError, match=f"{message}.*--resume"):
        Run(tmp_path, 2, resume=True).trainer.run()


def test_state_loads_with_weights_only_and_says_where_the_run_is(tmp_path):
    run = Run(tmp_path, 2)
    run.trainer.run()
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    assert state["epoch"] == 2 and state["iteration"] == 6
    assert torch.equal(state["modules"]["model"]["flow.weight"], run.network.flow.weight)
    assert set(state["optimizers"]) == {"displacement", "score"}


def test_bare_weights_are_written_at_the_end(tmp_path):
    run = Run(tmp_path, 1)
    run.trainer.run()
    for name, module in (("model", run.network), ("model_score", run.score)):
        weights = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert list(weights) == list(module.state_dict())
        assert all(torch.equal(weights[key], value) for key, value in module.state_dict().items())
    assert {path.name for path in tmp_path.iterdir()} == {STATE_FILE, "model.pt", "model_score.pt"}


def test_resume_without_a_state_starts_from_the_beginning_and_says_so(tmp_path, caplog):
    run = Run(tmp_path, 1, resume=True)
    with caplog.at_level(logging.WARNING):
        run.trainer.run()
    assert "the run starts from the beginning" in caplog.text and run.trainer.state.epoch == 1


def test_interval_saves_every_nth_epoch_and_the_last(tmp_path):
    run = Run(tmp_path, 5, interval=2)
    saved = []

    def look(engine):
        exists = (tmp_path / STATE_FILE).exists()
        saved.append(torch.load(tmp_path / STATE_FILE, weights_only=True)["epoch"] if exists else 0)

    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, look)
    run.trainer.run()
    assert saved == [0, 2, 2, 4, 5]


def test_write_that_fails_half_way_keeps_the_old_state_and_no_rest(tmp_path, monkeypatch):
    Run(tmp_path, 1).trainer.run()
    before = (tmp_path / STATE_FILE).read_bytes()
    names = {path.name for path in tmp_path.iterdir()}

    def full_disk(state, path):
        path.write_bytes(b"half a file")
        raise OSError("No space left on device")

    run = Run(tmp_path, 2, resume=True)
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run.trainer.run()
    assert (tmp_path / STATE_FILE).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == names


def test_parameters_that_are_not_finite_are_never_written(tmp_path):
    Run(tmp_path, 1).trainer.run()
    before = (tmp_path / STATE_FILE).read_bytes()
    run = Run(tmp_path, 2, resume=True)

    def diverge(engine):
        if engine.state.iteration == 6:
            run.network.flow.bias.data.fill_(float("inf"))

    run.trainer.add_event_handler(Events.ITERATION_COMPLETED, diverge)
    with pytest.raises(FloatingPointError, match="Parameters of 'model' are not finite"):
        run.trainer.run()
    assert (tmp_path / STATE_FILE).read_bytes() == before


@pytest.mark.parametrize("dims", [2, 3])
def test_weights_come_back_exactly(tmp_path, dims):
    torch.manual_seed(0)
    saved, fresh = VoxelMorph(dims, **TINY), VoxelMorph(dims, **TINY)
    save_weights(saved, tmp_path / "deep" / "model.pt")
    assert load_weights(fresh, tmp_path / "deep" / "model.pt") is fresh
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in saved.state_dict().items())


def test_weights_of_a_shorter_chain_are_taken_where_that_is_asked_for_alone(tmp_path):
    torch.manual_seed(0)
    widths = {"down": (2, 4), "up": (4,)}
    short, long = build_icon(2, (2,), **widths), build_icon(2, (2, 1), **widths)
    save_weights(short, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="checkpoint of another network than Composition"):
        load_weights(long, tmp_path / "model.pt")
    load_weights(long, tmp_path / "model.pt", "initial_weights", lengthen=True)
    for step in (long.step.first.step, long.step.second):
        assert torch.equal(step.down[0].conv.weight, short.step.step.down[0].conv.weight)
    with pytest.raises(ValueError, match="initial_weights: .*checkpoint of another network than Composition"):
        save_weights(long, tmp_path / "long.pt")
        load_weights(short, tmp_path / "long.pt", "initial_weights", lengthen=True)


def test_training_state_is_not_taken_for_weights(tmp_path):
    run = Run(tmp_path, 1)
    run.trainer.run()
    with pytest.raises(ValueError, match="holds no bare state dict.*Pass model.pt"):
        load_weights(run.network, tmp_path / STATE_FILE)


class _Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    run = Run(tmp_path, 1)
    run.trainer.run()
    for name in (STATE_FILE, "model.pt"):
        stored = torch.load(tmp_path / name, weights_only=True)
        torch.save({**stored, "extra": _Touch(tmp_path / "ran")}, tmp_path / name)
    with pytest.raises(ValueError, match=r"ckpt_path: .*model\.pt is no file of torch weights.*\(.+\)"):
        load_weights(run.network, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"resume: .* cannot be read.*--resume"):
        Run(tmp_path, 2, resume=True).trainer.run()
    assert not (tmp_path / "ran").exists()
