# SPDX-License-Identifier: Apache-2.0
"""Measures of every case of an evaluation, and their tables."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from ..engines.cost import cost
from ..io.results import BEFORE, results_table, undeformed, write_results, write_rows
from ..metrics.cases import Cases, EvaluationMeasure, Measure, PooledMeasure, SubjectMeasure

logger = logging.getLogger(__name__)


class CaseMeasures:
    """Measures every case; at the end writes ``metrics.csv``, ``subjects.csv``, ``summary.json`` and says a table.

    Measures of the whole evaluation (``metrics.cases.EvaluationMeasure``, ``PooledMeasure``) have a file each,
    ``sparsification.csv``, ``landmarks.csv``.

    ``state.metrics`` receives the means over cases: of all that was written, or, where nothing is, of the measures
    after registration.

    Args:
        measures: each gives some columns, see ``metrics.cases.Measure``.
        output_dir: where to write; None writes nothing.
        settings: configuration to record in ``summary.json``, or a function that returns it at the end.
        thorough: False leaves out what is slow, for validation while training.

    Raises:
        ValueError: for no measure.
    """

    def __init__(
        self,
        measures: Sequence[Measure],
        output_dir: str | Path | None = None,
        settings: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        thorough: bool = True,
    ) -> None:
        if not measures:
            raise ValueError(
                "measures: expected at least one, got none; common.metrics.image.ImageMeasures needs images alone."
            )
        self.measures, self.thorough = list(measures), bool(thorough)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.settings = settings
        self.rows: list[dict[str, Any]] = []
        self.sums: dict[str, dict[str, Tensor]] = {}
        self.subjects: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.pools: dict[str, list[Tensor]] = {}
        self.tables: dict[str, list[dict[str, float]]] = {}

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationEvaluator``, before handlers that read ``state.metrics``.

        Args:
            engine: the evaluator.
        """
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _reset(self, engine: Engine) -> None:
        self.rows, self.sums, self.pools, self.subjects, self.tables = [], {}, {}, [], {}

    @torch.no_grad()
    def _measure(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        cases = Cases(
            batch,
            output["ddf"],
            output["warped_image"],
            output.get("reverse_ddf"),
            self.thorough,
            output.get("estimate", dict),
        )
        columns: dict[str, Tensor] = {}
        for measure in self.measures:
            columns |= _without_double(columns, measure(cases), measure)
        for name, value in cases.pools.items():
            self.pools.setdefault(name, []).append(value[value.isfinite()].cpu())
        values = {name: value.cpu().tolist() for name, value in columns.items()}
        seconds = output["seconds"] / len(cases.ddf)
        for index, subject in enumerate(batch["subject"]):
            row = identified(batch, index) | {name: value[index] for name, value in values.items()}
            self.rows.append(row | {"seconds": seconds})
            sums = self.sums.setdefault(subject, {})
            for name, value in cases.sums.items():
                added = value[index].cpu()
                sums[name] = sums[name] + added if name in sums else added

    def _subject_rows(self) -> list[dict[str, Any]]:
        rows = []
        for subject, sums in self.sums.items():
            row: dict[str, Any] = {"subject": subject, "slices": sum(r["subject"] == subject for r in self.rows)}
            for measure in self.measures:
                if isinstance(measure, SubjectMeasure):
                    row |= measure.of_subject(sums)
            rows.append(row)
        return rows

    def _tables(self) -> dict[str, list[dict[str, float]]]:
        names = {name for sums in self.sums.values() for name in sums}
        totals = {name: torch.stack([sums[name] for sums in self.sums.values()]).sum(0) for name in names}
        pools = {name: torch.cat(parts) for name, parts in self.pools.items()}
        tables: dict[str, list[dict[str, float]]] = {}
        for measure in self.measures:
            if isinstance(measure, EvaluationMeasure):
                tables |= measure.of_evaluation(totals)
            if isinstance(measure, PooledMeasure):
                tables |= measure.of_pool(pools)
        return tables

    def _finish(self, engine: Engine) -> None:
        if self.output_dir is None:
            engine.state.metrics.update(_means(self.rows))
            return
        settings = self.settings() if callable(self.settings) else self.settings or {}
        network: Any = getattr(engine, "network", None)
        found = {} if network is None else {"cost": cost(network, engine.state.device)}
        self.summary = summary = write_results(self.rows, self.output_dir, dict(settings), found)
        self.subjects = self._subject_rows()
        write_rows(self.subjects, self.output_dir / "subjects.csv")
        self.tables = self._tables()
        for name, rows in self.tables.items():
            write_rows(rows, self.output_dir / f"{name}.csv")
        for name, values in summary.items():
            if isinstance(values, dict) and isinstance(values.get("mean"), float):
                engine.state.metrics[name] = values["mean"]
        self._say(summary)

    def _say(self, summary: Mapping[str, Any]) -> None:
        shown = [name for measure in self.measures for name in measure.headlines if name in summary]
        table = ""
        if shown:
            table = "\n" + results_table({"undeformed": undeformed(summary), "registered": summary}, shown)
        scorable = sum(row.get("scorable", 1) for row in self.rows)
        logger.info(
            "%d cases of %d subjects: %d scored, %d not scorable.%s\nWritten to %s.",
            len(self.rows), len(self.sums), scorable, len(self.rows) - scorable, table, self.output_dir,
        )  # fmt: skip


def identified(batch: Mapping[str, Any], index: int) -> dict[str, Any]:
    """What names a case: ``case``, ``subject``, of a stack ``slice``, and ``group`` where the data give one.

    Args:
        batch: the loader's items.
        index: of the case in it.

    Returns:
        Value by column.
    """
    subject = batch["subject"][index]
    group = batch["group"][index] if "group" in batch else ""
    case: dict[str, Any] = {"case": batch["case"][index] if "case" in batch else subject}
    if "slice" in batch:
        number = int(batch["slice"][index])
        case = {"case": f"{subject}_slice{number:02d}", "slice": number}
    return case | {"subject": subject} | ({"group": group} if group else {})


def _without_double(columns: Mapping[str, Tensor], new: dict[str, Tensor], measure: Measure) -> dict[str, Tensor]:
    double = sorted(columns.keys() & new.keys())
    if double:
        raise ValueError(
            f"measures: {type(measure).__name__} gives the columns {double}, which an earlier measure gives too; list "
            "each measure once."
        )
    return new


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean over the cases of each measure after registration, without those that are NaN; NaN of none."""
    means = {}
    # some columns are those of some cases alone, as those in mm
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if isinstance(row.get(name), float) and not math.isnan(row[name])]
        measured = any(isinstance(row.get(name), float) for row in rows)
        if measured and name != "seconds" and not name.endswith(BEFORE):
            means[name] = sum(values) / len(values) if values else math.nan
    return means
