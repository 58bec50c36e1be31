# SPDX-License-Identifier: Apache-2.0
"""What all bundles share: loaders, validation, logging, checkpoints, figures, their order, and the course of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.engines.evaluator import Evaluator
from monai.handlers import ValidationHandler
from torch import nn

from .bundle import claim, finish, rank, select_device
from .data.pairs import PairDataset, evaluation_loader, training_loader
from .engines.adaptation import adapt
from .engines.evaluator import RegistrationEvaluator
from .engines.instance import InstanceOptimisation
from .engines.maps import evaluated_maps
from .engines.memory import keep_freed_memory
from .engines.method import MODEL, Method
from .engines.solvers import is_solver, refuse_solver
from .engines.trainer import RegistrationTrainer
from .handlers.decay import PolynomialDecay
from .handlers.evaluation import evaluation_handlers, validation_handlers
from .handlers.log import TrainingLog
from .handlers.stages import Stages
from .handlers.state import TrainingState, load_modules
from .metrics.inverse_consistency import InverseConsistencyMeasures
from .runs import record
from .runs.configuration import current_parser
from .runs.options import checked


@dataclass(frozen=True)
class Options:
    """How a run goes, whatever the method; values may be text of the command line.

    Attributes:
        output_dir: folder for the results.
        device: where to compute.
        seed: of weights, order of samples and random draws.
        amp: bfloat16 autocast of the networks.
        compile: torch.compile the networks, in training.
        batch_size: pairs a step and process.
        num_workers: processes that load training data.
        updates_per_epoch: batches drawn with replacement in an epoch; None takes every pair once.
        val_interval: epochs between validations.
        learning_rate_decay: power of the polynomial decay, or a table of it by update; 0 for none.
        initial_weights: file of weights that a training starts from.
        resume: continue the training that ``output_dir`` holds.
        condition: number or numbers that every forward of a conditional network is given; None is its default.
        instance_iterations: steps of optimising each pair; 0 for none.
        instance_target: what these steps change: "weights" or "field".
        instance_learning_rate: of these steps.
        maps: an inference also writes maps, see ``engines.maps.PixelMaps``.

    Raises:
        ValueError: naming the option, what was expected and what came.
    """

    output_dir: str | Path
    device: str | torch.device = "cpu"
    seed: int = 0
    amp: bool = False
    compile: bool = False
    batch_size: int = 1
    num_workers: int = 0
    updates_per_epoch: int | None = None
    val_interval: int = 1
    learning_rate_decay: Any = 0.0
    initial_weights: str | Path | None = None
    resume: bool = False
    condition: Any = None
    instance_iterations: int = 0
    instance_target: str = "weights"
    instance_learning_rate: float = 2e-5
    maps: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field.name, getattr(self, field.name), field.default))
        object.__setattr__(self, "device", select_device(self.device))


def options() -> Options:
    """The options of the configuration that this is called from: its top-level keys of the names of ``Options``.

    Returns:
        The options.

    Raises:
        RuntimeError: outside of a configuration.
        ValueError: as ``Options``.
    """
    parser = current_parser()
    if parser is None:
        raise RuntimeError("options: expected to be called from a bundle's JSON; elsewhere build Options yourself.")
    names = [field.name for field in dataclasses.fields(Options) if field.name in parser.config]
    return Options(**{name: parser.get_parsed_content(name) for name in names})


def registration(method: Method, options: Options) -> nn.Module:
    """What registers a pair: the network or solver, fitted to each pair where ``instance_iterations`` says so.

    Args:
        method: what registers.
        options: of the run.

    Returns:
        A network: cat(moving, fixed), (B, 2, *S), to ddf, (B, d, *S).
    """
    if not options.instance_iterations:
        return method.network
    return InstanceOptimisation(
        adapt(method).method, options.instance_iterations, options.instance_target, options.instance_learning_rate
    )


def trainer(
    method: Method,
    dataset: PairDataset,
    max_epochs: int,
    options: Options,
    validator: RegistrationEvaluator | None = None,
    train_handlers: Sequence[Any] = (),
) -> RegistrationTrainer:
    """Build the engine that trains a method.

    Args:
        method: what is trained.
        dataset: of the training pairs.
        max_epochs: number of epochs.
        options: of the run.
        validator: runs every ``val_interval`` epochs in the first process, while others wait.
        train_handlers: those of the method and of the user; validation, log, decay and checkpoints come after them.

    Returns:
        The engine; ``run`` starts it.

    Raises:
        ValueError: where a solver takes the place of the network.
    """
    refuse_solver(method.network, "training")
    method, stages = adapt(method)
    own = any(isinstance(handler, Stages) for handler in train_handlers)
    train_handlers = [Stages(stages), *train_handlers] if stages and not own else train_handlers

    def loaders(batch_size: int, updates: int | None) -> Any:
        return training_loader(dataset, batch_size, options.seed, options.num_workers, updates)

    loader = loaders(options.batch_size, options.updates_per_epoch)
    shared: list[Any] = []
    if validator is not None and rank() == 0:
        shared.append(ValidationHandler(options.val_interval, validator))
    shared.append(TrainingLog(options.output_dir, validator))
    if options.learning_rate_decay:
        shared.append(PolynomialDecay(options.learning_rate_decay))
    settings = record.fixed(record.settings()) if current_parser() is not None else {}
    shared.append(TrainingState(options.output_dir, options.resume, settings=settings))
    return RegistrationTrainer(
        options.device,
        max_epochs,
        loader,
        method,
        amp=options.amp,
        compile=options.compile,
        seed=options.seed,
        loaders=lambda batch_size: loaders(batch_size, len(loader)),
        train_handlers=[*train_handlers, *shared],
    )


def validator(
    method: Method, dataset: PairDataset, measures: Sequence[Any], options: Options, val_handlers: Sequence[Any] = ()
) -> RegistrationEvaluator:
    """Build the engine that watches a training: the quick measures, nothing written.

    Args:
        method: what is trained.
        dataset: of the validation pairs, with labels.
        measures: see ``handlers.measures``.
        options: of the run.
        val_handlers: of the user; they run after the measures.

    Returns:
        The engine.
    """
    return RegistrationEvaluator(
        options.device,
        evaluation_loader(dataset, options.batch_size),
        method.network,
        amp=options.amp,
        condition=options.condition,
        val_handlers=[*validation_handlers(measures), *val_handlers],
    )


def evaluator(
    method: Method, dataset: PairDataset, measures: Sequence[Any], options: Options, val_handlers: Sequence[Any] = ()
) -> RegistrationEvaluator:
    """Build the engine of a full evaluation: all measures, tables, records and figures in ``output_dir``.

    Args:
        method: what is evaluated.
        dataset: of the pairs, with labels.
        measures: see ``handlers.measures``.
        options: of the run.
        val_handlers: of the user; they run after the shared ones.

    Returns:
        The engine.
    """
    shared = evaluation_handlers(measures, options.output_dir, record.complete(options.output_dir))
    return RegistrationEvaluator(
        options.device,
        evaluation_loader(dataset, options.batch_size),
        registration(method, options),
        amp=options.amp,
        both_ways=any(isinstance(measure, InverseConsistencyMeasures) for measure in measures),
        condition=options.condition,
        maps=evaluated_maps(method),
        val_handlers=[*shared, *val_handlers],
    )


def load(method: Method, ckpt_path: str | Path, all_modules: bool = True) -> None:
    """Give a method its trained weights.

    Args:
        method: whose networks receive them; a solver needs none.
        ckpt_path: file of the displacement network. Other modules are read from the files of their names beside it.
        all_modules: False reads the displacement network alone.

    Raises:
        FileNotFoundError, ValueError: as ``handlers.state.load_weights``.
    """
    if not is_solver(method.network):
        load_modules(method.modules if all_modules else {MODEL: method.network}, ckpt_path)


def train(method: Method, trainer: RegistrationTrainer, evaluator: RegistrationEvaluator, options: Options) -> None:
    """Run a training, and evaluate the result in the first process.

    Args:
        method: whose networks start from ``initial_weights`` and the files beside it, where there are some.
        trainer: see ``trainer``.
        evaluator: see ``evaluator``.
        options: of the run.

    Raises:
        ValueError: for an output folder in use, or with files that are not ours; weights that do not fit.
    """
    if options.initial_weights is not None:
        load_modules(method.modules, options.initial_weights, "initial_weights", to_start_from=True)
    claim(options.output_dir, resume=options.resume)
    if torch.device(options.device).type == "cpu":
        keep_freed_memory()
    trainer.run()
    if rank() == 0:
        evaluator.run()
    finish()


def evaluate(method: Method, evaluator: RegistrationEvaluator, ckpt_path: str | Path, options: Options) -> None:
    """Evaluate trained weights, or a solver.

    Args:
        method: what is evaluated.
        evaluator: see ``evaluator``.
        ckpt_path: see ``load``.
        options: of the run.

    Raises:
        FileNotFoundError, ValueError: as ``load``, and as ``train`` for the output folder.
    """
    load(method, ckpt_path)
    claim(options.output_dir)
    evaluator.run()
    finish()


def infer(method: Method, evaluator: Evaluator, ckpt_path: str | Path, options: Options) -> None:
    """Register the pair of an inference.

    Args:
        method: what registers.
        ckpt_path: see ``load``.
        options: of the run.
        evaluator: see ``engines.inferers.InferenceEvaluator``.

    Raises:
        FileNotFoundError, ValueError: as ``load``, and as ``train`` for the output folder.
    """
    load(method, ckpt_path, all_modules=options.maps or bool(options.instance_iterations))
    claim(options.output_dir)
    evaluator.run()
