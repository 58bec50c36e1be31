# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that resume a run exactly, and the bare weights for inference."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from ..atomic import atomic_path
from ..engines.method import MODEL
from ..networks.composition import lengthened
from ..runs.outputs import STATE_FILE

logger = logging.getLogger(__name__)
STATE_KEYS = {
    "epoch", "iteration", "best_metric", "modules", "gradients", "optimizers", "objectives", "stages", "random",
}  # fmt: skip
REMEDY = "Leave --resume out to start anew: what is there moves to previous_<k>."


def save_weights(module: nn.Module, path: str | Path) -> None:
    """Write a module's state dict atomically, on the CPU.

    Args:
        module: whose weights.
        path: of the file.
    """
    with atomic_path(path) as temporary:
        torch.save({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}, temporary)


def load_weights(module: nn.Module, path: str | Path, argument: str = "ckpt_path", lengthen: bool = False) -> nn.Module:
    """Load a bare state dict with ``weights_only=True`` and say clearly what does not fit.

    Args:
        module: receives the weights.
        path: a file that ``save_weights`` wrote.
        argument: what errors call ``path``.
        lengthen: the file may be of a chain of fewer steps, see ``networks.composition.lengthened``.

    Returns:
        ``module``.

    Raises:
        FileNotFoundError: naming the file, where it is absent.
        ValueError: for a checkpoint of another network, or a training state.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{argument}: expected a file of weights at {path}, there is none. Train the bundle first and pass its "
            f"--{argument} OUTPUT_DIR/model.pt."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{argument}: {path} is no file of torch weights, or it is damaged ({_line(error)}). Pass one that a "
            "training wrote."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{argument}: {path} holds no bare state dict (a training state?). Pass model.pt instead.")
    if lengthen:
        state = lengthened(state, module)
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if missing or unexpected or wrong:
        shapes = [f"{key}: expected {tuple(own[key].shape)}, got {tuple(state[key].shape)}" for key in sorted(wrong)]
        raise ValueError(
            f"{argument}: {path} is a checkpoint of another network than {type(module).__name__}: "
            f"missing {missing[:3]}, unexpected {unexpected[:3]}, other shapes {shapes[:3]}. "
            "Use the architecture and network size that it was trained with."
        )
    module.load_state_dict(state)
    return module


def load_modules(
    modules: Mapping[str, nn.Module], path: str | Path, argument: str = "ckpt_path", to_start_from: bool = False
) -> None:
    """Load the weights of several networks, those beside "model" from the files of their names in the same folder.

    Args:
        modules: by the names of their files, see ``engines.method.Method``.
        path: file of "model".
        argument: what errors call ``path``.
        to_start_from: a training starts from them: "model" may be of a chain of fewer steps, and modules without a
            file stay as they are, which is said.

    Raises:
        FileNotFoundError, ValueError: as ``load_weights``.
    """
    for name, module in modules.items():
        file = Path(path) if name == MODEL else Path(path).with_name(f"{name}.pt")
        if to_start_from and name != MODEL and not file.is_file():
            logger.info("%s: no %s beside %s; this network starts untrained.", argument, file.name, Path(path).name)
            continue
        load_weights(module, file, argument, lengthen=to_start_from and name == MODEL)


def _line(error: BaseException) -> str:
    """The beginning of a library's message, which may have many lines."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


class TrainingState:
    """Saves after every epoch all that a run needs to continue to the same numbers, and restores it.

    Kept in ``output_dir/last.pt``: epoch and iteration, the method's modules, optimisers (and gradients another update
    left), the objectives' buffers (the score's momentum), the stage, the torch random states as tensors, the settings.
    The order of samples needs no state: it is a function of (seed, epoch). A changed learning rate takes effect on
    resume, and the log says so; other settings than those the training was started with are refused. Files are written
    atomically; parameters that are not finite are never written. Of several processes the first writes and all
    restore. At the end the bare weights go to ``output_dir/<name>.pt``.

    Args:
        output_dir: where to write.
        resume: continue from ``last.pt`` if it is there.
        interval: epochs between saves; the last epoch is always saved.
        settings: what must be the same when the training is resumed, as JSON holds it.
    """

    def __init__(
        self,
        output_dir: str | Path,
        resume: bool = False,
        interval: int = 1,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.settings = dict(settings or {})
        self.path = self.output_dir / STATE_FILE
        self.resume, self.interval = bool(resume), int(interval)

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationTrainer``.

        Args:
            engine: the trainer.
        """
        if self.resume:
            engine.add_event_handler(Events.STARTED, self._restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)
        engine.add_event_handler(Events.COMPLETED, self._export)

    @staticmethod
    def _objectives(engine: Engine) -> dict[str, nn.Module]:
        return {
            update.name: update.objective for update in engine.method.updates if isinstance(update.objective, nn.Module)
        }

    def _save(self, engine: Engine) -> None:
        skipped = engine.state.epoch % self.interval and engine.state.epoch != engine.state.max_epochs
        if engine.state.rank > 0 or skipped:
            return
        modules = engine.method.modules
        for name, module in modules.items():
            if not all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters()):
                raise FloatingPointError(
                    f"Parameters of '{name}' are not finite; {self.path} keeps the last good epoch."
                )
        state = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "best_metric": float(engine.state.best_metric),
            "modules": {name: module.state_dict() for name, module in modules.items()},
            "gradients": {
                name: {key: p.grad for key, p in module.named_parameters() if p.grad is not None}
                for name, module in modules.items()
            },
            "optimizers": {name: optimizer.state_dict() for name, optimizer in engine.optimizers.items()},
            "objectives": {name: objective.state_dict() for name, objective in self._objectives(engine).items()},
            "stages": {} if engine.stages is None else engine.stages.state_dict(),
            "random": _random_state(engine.state.device),
            "settings": self.settings,
        }
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)

    def _restore(self, engine: Engine) -> None:
        if not self.path.is_file():
            logger.warning("resume: there is no %s yet, the run starts from the beginning.", self.path)
            return
        state = self._read(engine)
        try:
            self._apply(engine, state)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"resume: {self.path} does not hold the state of this training, or is damaged ({_line(error)}). "
                f"{REMEDY}"
            ) from error
        logger.info("Resumed after epoch %d of %d from %s.", state["epoch"], engine.state.max_epochs, self.path)

    def _read(self, engine: Engine) -> dict[str, Any]:
        """The stored state, of the same settings.

        Raises:
            ValueError: naming what is wrong with the file, or the settings that differ.
        """
        try:
            state = torch.load(self.path, map_location=engine.state.device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise ValueError(f"resume: {self.path} cannot be read, it is damaged ({_line(error)}). {REMEDY}") from error
        missing = STATE_KEYS - set(state) if isinstance(state, dict) else STATE_KEYS
        if missing:
            raise ValueError(f"resume: {self.path} is no state of a training, it lacks {sorted(missing)}. {REMEDY}")
        then = state.get("settings")
        if then is None:
            logger.warning("resume: %s is of an earlier version; its settings cannot be checked.", self.path)
            then = self.settings
        different = [
            f"{key} was {then.get(key, 'not set')!r} and is now {self.settings.get(key, 'not set')!r}"
            for key in sorted(then.keys() | self.settings.keys())
            if then.get(key) != self.settings.get(key)
        ]
        if different:
            raise ValueError(
                f"resume: {self.path} is of a training with other settings: {'; '.join(different)}. Pass those, or "
                "choose another --output_dir, or leave --resume out to start anew."
            )
        if not isinstance(state["epoch"], int) or not 0 < state["epoch"] <= engine.state.max_epochs:
            raise ValueError(
                f"epochs: expected at least {state['epoch']}, which {self.path} has already, got "
                f"{engine.state.max_epochs}. Pass more --epochs, or leave --resume out to start anew."
            )
        return state

    def _apply(self, engine: Engine, state: dict[str, Any]) -> None:
        for what, now in (("modules", engine.method.modules), ("objectives", self._objectives(engine))):
            if state[what].keys() != now.keys():
                raise ValueError(f"{what} were {sorted(state[what])} and are now {sorted(now)}")
        if bool(state["stages"]) != (engine.stages is not None):
            raise ValueError(f"stages were {state['stages'] or 'not set'}")
        if engine.stages is not None:
            engine.stages.restore(engine, state["stages"])
        for name, module in engine.method.modules.items():
            module.load_state_dict(state["modules"][name])
            for key, parameter in module.named_parameters():
                parameter.grad = state["gradients"][name].get(key)
        updates = {update.name: update for update in engine.method.updates}
        for name, optimizer_state in state["optimizers"].items():
            optimizer = engine.optimizer(updates[name])
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(optimizer_state)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                if group["lr"] != rate:
                    logger.warning("The learning rate of '%s' changes from %g to %g.", name, group["lr"], rate)
                group["lr"] = rate
        for name, objective in self._objectives(engine).items():
            objective.load_state_dict(state["objectives"][name])
        torch.set_rng_state(state["random"]["cpu"].cpu())
        if "cuda" in state["random"] and engine.state.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"].cpu(), engine.state.device)
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        engine.state.best_metric = state["best_metric"]

    def _export(self, engine: Engine) -> None:
        for name, module in engine.method.modules.items() if engine.state.rank == 0 else ():
            save_weights(module, self.output_dir / f"{name}.pt")
