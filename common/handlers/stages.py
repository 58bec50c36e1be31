# SPDX-License-Identifier: Apache-2.0
"""The course of a training: which updates run when, on which images, and from which weights."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from ..checks import known_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A part of a training.

    Attributes:
        updates: names of the updates that run.
        epochs, iterations, share: its length, one of the three, ``share`` of all iterations of the training; none is
            the rest of the training.
        batch_size: pairs a step, from the beginning of the next epoch; an epoch keeps its number of iterations, for
            which pairs are drawn with replacement. None is the training's own.
        image_scale: factor on the size of the images, 0.5 for half of each axis.
        freeze: names of modules or of their parts ("model.step.first") whose parameters stay as they are.
        initial_from: part by part, {"model.step.second": "model.step.first"}: the first receives the weights of the
            second when the stage begins.
        levels: how many levels of the displacement network run, of one that has levels (``LapIRN``, chains of steps,
            ``affine_voxelmorph``), the coarsest first; None leaves that as it is.
        learning_rate: of all optimisers, which are built anew where it changes; None is their own.

    Raises:
        ValueError: for a length that is given twice or not above 0, a batch size, scale or rate not above 0.
    """

    updates: Sequence[str]
    epochs: int | None = None
    iterations: int | None = None
    share: float | None = None
    batch_size: int | None = None
    image_scale: float = 1.0
    freeze: Sequence[str] = ()
    initial_from: Mapping[str, str] = field(default_factory=dict)
    levels: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if sum(length is not None for length in (self.epochs, self.iterations, self.share)) > 1:
            raise ValueError("stages: expected a length in epochs, in iterations or as a share, got more than one.")
        if self.share is not None and not 0 <= self.share < 1:
            raise ValueError(f"stages: expected a share from 0, below 1, got {self.share!r}.")
        for name in ("epochs", "iterations"):
            value = getattr(self, name)
            if value is not None and not (int(value) == value >= 0):
                raise ValueError(f"stages: expected a whole number of {name} from 0, got {value!r}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"stages: expected a batch_size from 1, got {self.batch_size!r}.")
        if not 0 < self.image_scale <= 1:
            raise ValueError(f"stages: expected an image_scale above 0, at most 1, got {self.image_scale!r}.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"stages: expected a learning_rate above 0, got {self.learning_rate!r}.")

    @property
    def is_rest(self) -> bool:
        """Whether the stage lasts to the end."""
        return self.epochs is None and self.iterations is None and self.share is None


class Stages:
    """Runs the stages of a training one after the other.

    AdaCS: [{"updates": ["displacement"], "epochs": N}, {"updates": ["score"], "epochs": N}, {"updates": both}].
    An update's optimiser is built when a stage first runs it, and anew in a stage that freezes or copies parameters;
    otherwise it goes on from stage to stage. ``state_dict`` holds where the training is; ``TrainingState`` saves it.

    Args:
        stages: in order, as keyword arguments of ``Stage``. A stage of length 0 is left out. The last one should have
            no length.

    Raises:
        ValueError: for no stage, one without updates, an unknown key, a stage after one without length, shares that
            add up to more than 1, or (on attaching) a name that is no update, or no part of the modules, and levels of
            a network that has none.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, Algorithm 1; Mok and Chung, Conditional LapIRN, MICCAI 2021 (levels);
        Tian et al., GradICON, CVPR 2023, A.2.1 (resolutions).
    """

    def __init__(self, stages: Sequence[Mapping[str, Any]]) -> None:
        known = [entry.name for entry in dataclasses.fields(Stage)]
        for stage in stages:
            for key in stage:
                known_name("stages", key, known)
            if not stage.get("updates"):
                raise ValueError(f"stages: expected the names of updates in every stage, got {dict(stage)}.")
        listed = [Stage(**stage) for stage in stages]
        self.stages = [stage for stage in listed if 0 not in (stage.epochs, stage.iterations, stage.share)]
        if not self.stages or any(stage.is_rest for stage in listed[:-1]):
            raise ValueError(
                f"stages: expected at least one, and a length of all but the last, got {list(stages)}; give epochs, "
                "iterations or a share."
            )
        shares = [stage.share or 0.0 for stage in self.stages]
        if sum(shares) > 1 + 1e-9:
            raise ValueError(f"stages: expected shares that add up to 1 at most, got {shares}.")
        self._loaders: dict[int, Any] = {}
        self._position, self._epoch, self._iteration = -1, 0, 0

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationTrainer``, before handlers that read which updates are active.

        Args:
            engine: the trainer.
        """
        names = {update.name for update in engine.method.updates}
        for stage in self.stages:
            for name in stage.updates:
                known_name("stages", name, sorted(names))
            for path in stage.freeze:
                _part(engine.method.modules, path, "freeze")
            for path in (*stage.initial_from, *stage.initial_from.values()):
                _part(engine.method.modules, path, "initial_from")
            levels = len(getattr(engine.method.network, "levels", ())) if stage.levels is not None else 0
            if stage.levels is not None and not 1 <= stage.levels <= levels:
                raise ValueError(
                    f"stages: expected no levels, or for a network that has some (lapirn, icon, …) from 1 to their "
                    f"number, got {stage.levels} for {type(engine.method.network).__name__} with {levels}."
                )
        engine.stages = self
        engine.add_event_handler(Events.STARTED, self._announce)
        engine.add_event_handler(Events.EPOCH_STARTED, self._new_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self._new_iteration)

    def state_dict(self) -> dict[str, int]:
        """The stage that runs, and the epochs and iterations that were complete when it began.

        Returns:
            "position", "epoch" and "iteration".
        """
        return {"position": self._position, "epoch": self._epoch, "iteration": self._iteration}

    def restore(self, engine: Engine, state: Mapping[str, int]) -> None:
        """Go on in the stage that ``state_dict`` was taken in; its weights come with the training's state.

        Args:
            engine: the trainer.
            state: what ``state_dict`` returned.
        """
        self._enter(engine, state["position"], copies=False)
        self._epoch, self._iteration = state["epoch"], state["iteration"]

    def _announce(self, engine: Engine) -> None:
        length = engine.state.epoch_length or 1
        self._resolve_shares((engine.state.max_epochs or 0) * length)
        if engine.state.max_epochs is None:
            return
        before = sum((stage.epochs or 0) + (stage.iterations or 0) / length for stage in self.stages[:-1])
        listed = ", ".join(f"{_name(stage)} {_length(stage)}" for stage in self.stages[:-1])
        if engine.state.max_epochs <= before:
            logger.warning(
                "THE LAST STAGE IS NEVER REACHED, which trains %s: %d epochs in all, of which the stages before take "
                "%g (%s). Raise --epochs or shorten those.",
                _name(self.stages[-1]), engine.state.max_epochs, before, listed,
            )  # fmt: skip
        elif any(stage.iterations == 0 for stage in self.stages):
            logger.warning(
                "A STAGE IS LEFT OUT, the training is too short for its share: %d epochs of %d iterations in all (%s). "
                "Raise --epochs.", engine.state.max_epochs, length, listed,
            )  # fmt: skip

    def _resolve_shares(self, total: int) -> None:
        """Shares as iterations. Their ends are rounded, not their lengths, so that no rounding adds up."""
        end = 0.0
        for position, stage in enumerate(self.stages):
            if stage.share is not None:
                start, end = end, end + total * stage.share
                self.stages[position] = dataclasses.replace(stage, share=None, iterations=round(end) - round(start))

    def _new_epoch(self, engine: Engine) -> None:
        self._advance(engine, engine.state.epoch - 1, engine.state.iteration)
        size = self.stages[self._position].batch_size
        if size is None:
            if self._loaders and engine.state.dataloader is not engine.data_loader:
                engine.set_data(engine.data_loader)
            return
        if engine.loaders is None:
            raise ValueError("stages: a batch_size of its own needs a trainer that was given `loaders`.")
        if size not in self._loaders:
            self._loaders[size] = engine.loaders(size)
        loader = self._loaders[size]
        loader.sampler.set_epoch(engine.state.epoch)
        engine.set_data(loader)

    def _new_iteration(self, engine: Engine) -> None:
        self._advance(engine, engine.state.epoch - 1, engine.state.iteration - 1)

    def _advance(self, engine: Engine, epochs: int, iterations: int) -> None:
        """Enter the stages that begin after so many complete epochs and iterations."""
        while self._position < 0 or self._is_over(self.stages[self._position], epochs, iterations):
            if self._position + 1 == len(self.stages):
                return
            self._enter(engine, self._position + 1)
            self._epoch, self._iteration = epochs, iterations

    def _is_over(self, stage: Stage, epochs: int, iterations: int) -> bool:
        if stage.epochs is not None:
            return epochs - self._epoch >= stage.epochs
        return stage.iterations is not None and iterations - self._iteration >= stage.iterations

    def _enter(self, engine: Engine, position: int, copies: bool = True) -> None:
        stage, before = self.stages[position], self.stages[self._position] if self._position >= 0 else None
        self._position = position
        engine.active, engine.image_scale = frozenset(stage.updates), float(stage.image_scale)
        if stage.levels is not None:
            engine.method.network.run_levels(stage.levels)
        if copies:
            for target, source in stage.initial_from.items():
                copy_weights(engine.method.modules, source, target)
        if stage.freeze or stage.initial_from or (before is not None and before.freeze):
            engine.freeze(stage.freeze)
        if stage.learning_rate != engine.learning_rate:
            engine.learning_rate, engine.optimizers = stage.learning_rate, {}
        changed = [f"images at {stage.image_scale:g}" if stage.image_scale != 1 else "", _length(stage)]
        logger.info(
            "Epoch %d: training %s%s.", max(engine.state.epoch, 1), _name(stage),
            "".join(f", {part}" for part in changed if part),
        )  # fmt: skip


def warm_up(updates: Sequence[str], epochs: int) -> Stages:
    """Each update by itself for some epochs, in their order, then all of them to the end.

    Args:
        updates: their names.
        epochs: of each by itself; 0 begins with all.

    Returns:
        The stages.

    Reference:
        Zhang et al., AdaCS, ECCV 2024, Algorithm 1.
    """
    return Stages([*({"updates": [name], "epochs": epochs} for name in updates), {"updates": list(updates)}])


def _name(stage: Stage) -> str:
    levels = "" if stage.levels is None else f" of {stage.levels} level{'s' * (stage.levels > 1)}"
    return " and ".join(sorted(stage.updates)) + levels


def _length(stage: Stage) -> str:
    if stage.is_rest:
        return ""
    return f"{stage.epochs} epochs" if stage.epochs is not None else f"{stage.iterations} iterations"


@torch.no_grad()
def copy_weights(modules: Mapping[str, nn.Module], source: str, target: str) -> None:
    """Give one part of some modules the weights of another of the same shapes.

    Args:
        modules: by name.
        source: a name, or a part's below it, "model.step.first".
        target: likewise.

    Raises:
        ValueError: for a part that does not exist, or parts of unlike shapes.
    """
    parts = [_part(modules, path, "initial_from") for path in (source, target)]
    try:
        parts[1].load_state_dict(parts[0].state_dict())
    except RuntimeError as error:
        raise ValueError(f"initial_from: '{target}' cannot take the weights of '{source}': {error}") from error


def _part(modules: Mapping[str, nn.Module], path: str, argument: str) -> nn.Module:
    name, _, below = path.partition(".")
    try:
        return modules[name].get_submodule(below)
    except (KeyError, AttributeError) as error:
        raise ValueError(f"{argument}: expected a part of the modules {list(modules)}, got '{path}'.") from error
