# SPDX-License-Identifier: Apache-2.0
"""Every named term of every epoch: to history.csv, to TensorBoard, to the console."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers.tqdm_logger import ProgressBar
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ..atomic import atomic_path
from ..engines.distributed import all_mean
from ..figures.curves import training_curves

logger = logging.getLogger(__name__)
HISTORY_FILE = "history.csv"
MANY_LABELS = 8  # above, the screen shows their mean alone


def read_history(path: str | Path) -> list[dict[str, str]]:
    """Rows of a history file as text, none where it is absent.

    Args:
        path: of ``history.csv``.

    Returns:
        A dictionary a row.
    """
    path = Path(path)
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


class TrainingLog:
    """Logs epoch means of all terms as ``update/term``, and the validation's metrics as ``validation/measure``.

    Terms are summed on their device and fetched once an epoch, so that an accelerator never waits; of several
    processes the first writes the means of all. Numbers that handlers before this one leave in ``state.metrics`` at the
    end of an epoch are logged as they are. ``history.csv`` also says which updates were active, their number so
    far, the learning rates and the seconds of training. After a resume, rows of epochs that will be trained again are
    dropped. At the end the curves are drawn to ``curves.png``.

    Args:
        output_dir: where ``history.csv``, ``tensorboard/`` and ``curves.png`` go.
        validator: engine whose ``state.metrics`` to log after it has run.
        progress: show a progress bar.
    """

    def __init__(
        self,
        output_dir: str | Path,
        validator: Engine | None = None,
        progress: bool = True,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.validator, self.progress = validator, progress
        self.rows: list[dict[str, Any]] = []
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._validated: dict[str, float] = {}
        self._started = self._trained = time.monotonic()
        self._writer: SummaryWriter | None = None

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationTrainer``, after the validation and before ``TrainingState``.

        Args:
            engine: the trainer.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self._new_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self._validation)
        if self.progress and getattr(engine.state, "rank", 0) == 0:
            ProgressBar(desc="training", mininterval=1.0).attach(engine)

    def _start(self, engine: Engine) -> None:
        """At the first epoch that is trained, when a resumed run knows where it is."""
        kept = read_history(self.output_dir / HISTORY_FILE)
        self.rows = [dict(row) for row in kept if int(row["epoch"]) < engine.state.epoch]
        self._writer = SummaryWriter(str(self.output_dir / "tensorboard"), purge_step=engine.state.epoch)

    def _new_epoch(self, engine: Engine) -> None:
        if self._writer is None and getattr(engine.state, "rank", 0) == 0:
            self._start(engine)
        self._sums, self._counts, self._validated = {}, {}, {}
        self._started = time.monotonic()

    @torch.no_grad()
    def _add(self, engine: Engine) -> None:
        for update, terms in engine.state.output.items():
            for term, value in terms.items():
                key = f"{update}/{term}"
                self._sums[key] = self._sums[key] + value if key in self._sums else value.clone()
                self._counts[key] = self._counts.get(key, 0) + 1
        self._trained = time.monotonic()

    def _validation(self, validator: Engine) -> None:
        self._validated = {f"validation/{name}": float(value) for name, value in validator.state.metrics.items()}

    def _means(self) -> dict[str, float]:
        """Means of the epoch over iterations and processes, fetched from their device in one go."""
        if not self._sums:
            return {}
        means = torch.stack([self._sums[key].float() / self._counts[key] for key in self._sums])
        return dict(zip(self._sums, all_mean(means).tolist(), strict=True))

    def _write(self, engine: Engine) -> None:
        means = self._means() | {name: float(value) for name, value in engine.state.metrics.items()}
        if self._writer is None:
            return
        row: dict[str, Any] = {
            "epoch": engine.state.epoch,
            "updates": engine.state.iteration,
            "active": "+".join(sorted(engine.active)),
            "seconds": round(self._trained - self._started, 3),
        }
        row |= {f"{name}/learning_rate": o.param_groups[0]["lr"] for name, o in engine.optimizers.items()}
        row |= means | self._validated
        self.rows.append(row)
        columns = list(dict.fromkeys(key for entry in self.rows for key in entry))
        with atomic_path(self.output_dir / HISTORY_FILE) as temporary, temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        for key, value in (means | self._validated).items():
            self._writer.add_scalar(key, value, engine.state.epoch)
        shown = {key: value for key, value in (means | self._validated).items() if not key.endswith("/total")}
        labels = [key for key in shown if key.startswith("validation/dice_")]
        if len(labels) > MANY_LABELS:  # they stand in history.csv
            shown = {key: value for key, value in shown.items() if key not in labels}
        logger.info(
            "Epoch %d/%d (%.1f s): %s", engine.state.epoch, engine.state.max_epochs, row["seconds"],
            ", ".join(f"{key} {value:.4g}" for key, value in shown.items()),
        )  # fmt: skip

    def _finish(self, engine: Engine) -> None:
        if self._writer is not None:
            self._writer.close()
        if self.rows:  # none where a finished run was resumed
            training_curves(self.output_dir / HISTORY_FILE, self.output_dir / "curves.png")
            logger.info("Curves: %s", self.output_dir / "curves.png")
