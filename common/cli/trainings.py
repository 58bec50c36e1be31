# SPDX-License-Identifier: Apache-2.0
"""The trainings of a study: what they are, and how they run: one after the other, in processes, or under Ray Tune."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import random
import re
import threading
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from math import exp, log
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from ..io.results import SUMMARY_FILE
from ..runs import arguments, messages
from ..runs.command_line import Words
from ..runs.outputs import STATE_FILE
from ..runs.record import settings as settings_of
from .bundles import find_bundles

LOG_FILE = "log.txt"
NOT_SETTINGS = ("device", "output_dir", "bundle_root")  # a run may be finished on another machine
DRAWN = ("uniform", "loguniform")


class Run(NamedTuple):
    """One entry of a study: its name, the bundle, and what differs from the bundle's train.json."""

    label: str
    bundle: str
    overrides: dict[str, Any]

    @property
    def folder(self) -> str:
        """Name of its folder without the seed, "gradicon_one_step"."""
        return re.sub(r"(?:[^\w.+-]|-(?!\d))+", "_", self.label.lower()).strip("_")


class Training(NamedTuple):
    """A run with one seed: its folder, and all that is overridden."""

    run: Run
    seed: int
    folder: Path
    overrides: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether it has been trained and evaluated."""
        return (self.folder / SUMMARY_FILE).is_file()

    @property
    def started(self) -> bool:
        """Whether there is a state to resume from."""
        return (self.folder / STATE_FILE).is_file()

    def settings(self) -> dict[str, Any]:
        """All settings of the run, as JSON holds them, checked as those of a training are.

        Returns:
            Value by option.

        Raises:
            ValueError: for an override that the bundle does not know.
        """
        parser = ConfigParser()
        parser.read_config(str(_configs(self.run.bundle) / "train.json"))
        parser.update(dict(self.overrides))
        arguments.check(parser, Words([], {}), "training")
        kept = {key: value for key, value in settings_of(parser).items() if key not in NOT_SETTINGS}
        return json.loads(json.dumps(kept, default=str))

    def train(self) -> None:
        """Train and evaluate, or go on where an earlier process was stopped."""
        configs = _configs(self.run.bundle)
        workflow = ConfigWorkflow(
            config_file=str(configs / "train.json"), meta_file=str(configs / "metadata.json"), logging_file=False,
            run_id="training", workflow_type="train", **self.overrides, resume=self.started,
        )  # fmt: skip
        workflow.initialize()
        workflow.run()
        workflow.finalize()


def grid_runs(bundle: str, grid: Mapping[str, Any], samples: int | None = None, seed: int = 0) -> tuple[Run, ...]:
    """A run for every combination of a grid's values, or for some drawn at random.

    Args:
        bundle: name or path.
        grid: by option the list of its values; with ``samples`` also ``{"uniform": [low, high]}`` and
            ``{"loguniform": [low, high]}``.
        samples: number of combinations to draw; None takes all.
        seed: of the draws.

    Returns:
        The runs.

    Raises:
        ValueError: for an empty grid, values of another form, or more samples than a grid of lists has combinations.
    """
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(
            f"grid: expected values by option, as in --grid \"{{'score_alpha': [0.01, 0.02]}}\", got {grid!r}."
        )
    for name, values in grid.items():
        _check_values(name, values, samples)
    if samples is None:
        points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    else:
        points = _drawn(grid, samples, random.Random(seed))
    return tuple(Run(", ".join(f"{name}={value}" for name, value in p.items()), bundle, p) for p in points)


def _check_values(name: str, values: Any, samples: int | None) -> None:
    if isinstance(values, (list, tuple)) and values:
        return
    drawn = isinstance(values, Mapping) and len(values) == 1 and next(iter(values)) in DRAWN
    ends: Any = next(iter(values.values())) if drawn else ()
    if samples is None or not (len(ends) == 2 and ends[0] < ends[1] and (ends[0] > 0 or "uniform" in values)):
        raise ValueError(
            f"grid: expected a list of values for {name!r}, or with --samples {{'uniform': [low, high]}} or "
            f"{{'loguniform': [low, high]}} above 0, got {values!r}."
        )


def _drawn(grid: Mapping[str, Any], samples: int, generator: random.Random) -> list[dict[str, Any]]:
    if all(isinstance(values, (list, tuple)) for values in grid.values()):
        points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
        if samples > len(points):
            raise ValueError(f"samples: the grid has {len(points)} combinations, got {samples}; leave --samples out.")
        return generator.sample(points, samples)
    return [{name: _draw(values, generator) for name, values in grid.items()} for _ in range(samples)]


def _draw(values: Any, generator: random.Random) -> Any:
    if not isinstance(values, Mapping):
        return generator.choice(values)
    ((kind, (low, high)),) = values.items()
    value = generator.uniform(low, high) if kind == "uniform" else exp(generator.uniform(log(low), log(high)))
    return float(f"{value:.4g}")


def run_in_turn(trainings: Sequence[Training]) -> None:
    """Train one after the other in this process.

    Args:
        trainings: all of a study; those that are finished are not repeated.
    """
    for number, training in enumerate(trainings, start=1):
        _say(training, number, len(trainings))
        if not training.finished:
            training.train()


def run_in_processes(trainings: Sequence[Training], workers: int) -> None:
    """Train in several processes of one thread each, which write to ``log.txt`` in their folders.

    The processes end with this one, however it ends.

    Args:
        trainings: all of a study; those that are finished are not repeated.
        workers: number of processes.

    Raises:
        RuntimeError: naming those that failed, once all others are finished.
    """
    context = multiprocessing.get_context("spawn")
    failed = []
    with ProcessPoolExecutor(workers, context, initializer=_begin) as pool:
        waiting = {}
        for number, training in enumerate(trainings, start=1):
            _say(training, number, len(trainings))
            if not training.finished:
                waiting[pool.submit(_train_logged, training)] = training
        for done in as_completed(waiting):
            training, error = waiting[done], done.exception()
            print(f"{training.folder}: {'finished' if error is None else f'failed: {error}'}", flush=True)
            failed += [] if error is None else [f"{training.folder} ({error}; see {LOG_FILE} there)"]
    if failed:
        raise RuntimeError(f"study: {len(failed)} of {len(trainings)} trainings failed: {'; '.join(failed)}.")


def run_with_ray(trainings: Sequence[Training], workers: int) -> None:
    """Train under Ray Tune, on the machines of the cluster that Ray is connected to, else on this one.

    All machines must see the folders of data and results by the same names.

    Args:
        trainings: all of a study; those that are finished are not repeated.
        workers: number of trainings at a time.

    Raises:
        ImportError: without Ray, with the command that installs it.
        RuntimeError: where one failed.
    """
    try:
        tune: Any = importlib.import_module("ray.tune")
    except ImportError as error:
        raise ImportError("backend: 'ray' needs Ray Tune; pip install 'registration-bundles[sweep]'.") from error
    waiting = [training for training in trainings if not training.finished]
    gpu = 1 if torch.cuda.is_available() else 0

    def train(config: dict[str, int]) -> dict[str, int]:
        torch.set_num_threads(1)
        waiting[config["number"]].train()
        return {"finished": 1}

    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1, "gpu": gpu}),
        param_space={"number": tune.grid_search(list(range(len(waiting))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=workers),
    )
    errors = tuner.fit().errors if waiting else []
    if errors:
        raise RuntimeError(f"study: {len(errors)} of {len(trainings)} trainings failed; the first: {errors[0]}")


def _say(training: Training, number: int, count: int) -> None:
    what = "finished earlier in" if training.finished else "resumes in" if training.started else "starts in"
    print(f"Run {number} of {count}, {training.run.label}, seed {training.seed}: {what} {training.folder}", flush=True)


def _begin() -> None:
    """Of a process of the pool: one thread, and an end as soon as the process that started it is gone."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _train_logged(training: Training) -> None:
    training.folder.mkdir(parents=True, exist_ok=True)
    with (training.folder / LOG_FILE).open("a") as stream:
        for descriptor in (1, 2):  # loggers hold on to the stream that they found first
            os.dup2(stream.fileno(), descriptor)
        try:
            training.train()
        except Exception as error:  # its causes do not reach the other process
            traceback.print_exc()
            raise RuntimeError(messages.words(error)) from None


def _configs(bundle: str) -> Path:
    return find_bundles((bundle,), own_code=True)[0] / "configs"
