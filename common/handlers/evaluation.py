# SPDX-License-Identifier: Apache-2.0
"""The handlers of validation and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.handlers.tqdm_logger import ProgressBar

from ..metrics.cases import Measure
from .figures import FigurePanels
from .measures import CaseMeasures
from .report import EvaluationReport


def validation_handlers(measures: Sequence[Measure]) -> list[Any]:
    """The handlers of a validation while training: the measures' quick variants, whose means the training logs.

    Args:
        measures: those of the evaluation.

    Returns:
        The handlers in order.
    """
    return [CaseMeasures(measures, thorough=False)]


def evaluation_handlers(
    measures: Sequence[Measure],
    output_dir: str | Path,
    settings: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
) -> list[Any]:
    """The handlers of a full evaluation: progress, measures with tables, figures, report.

    Args:
        measures: see ``handlers.measures``.
        output_dir: where tables and figures go.
        settings: what ``summary.json`` says of the run, or a function that returns it at the end.

    Returns:
        The handlers in order.
    """
    cases = CaseMeasures(measures, output_dir, settings)
    figures = FigurePanels(cases, output_dir)
    return [
        ProgressBar(desc="registering", mininterval=1.0),
        cases,
        figures,
        EvaluationReport(figures),
    ]
