# SPDX-License-Identifier: Apache-2.0
"""A page on an evaluation: what came out, which cases to look at, and how they look."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from ..figures.page import Verdict, details, grid, paragraph, picture, section, table, verdict_box, write_page
from ..io.results import spread_text, undeformed
from ..metrics.verdict import doubtful
from .figures import FigurePanels, Rank, draw_case, ranked_rows
from .measures import CaseMeasures

logger = logging.getLogger(__name__)
FILE = "report.html"
NAMED = 8  # doubtful cases that the verdict names; the table has all
PICTURES = {
    "registration.png": "The case of median quality",
    "scores.png": "Maps of the score",
    "deviations.png": "Maps of the estimated noise",
    "weights.png": "Weights of the data",
    "weight_volumes.png": "Weight of the smoothness",
    "sparsification.png": "Sparsification of the estimated uncertainty",
    "sparsification_displacement.png": "Sparsification of the displacement's uncertainty",
    "reliability.png": "Reliability of the estimated noise",
    "ejection_fraction.png": "Ejection fraction, registered against labelled",
}
COLUMNS = (
    "dice",
    "hd95",
    "asd",
    "mse",
    "tre_mm",
    "tre_voxels",
    "epe",
    "dice_vessels",
    "foldings_percent",
    "ndv_percent",
)


class EvaluationReport:
    """Writes ``report.html``: one file, with the summary, all cases with the worst first, and pictures of the worst.

    A case is doubtful where it folds, or fits no better than before; see ``metrics.verdict``. Runs after
    ``FigurePanels``, whose pictures it shows.

    Args:
        figures: the handler that draws the pictures.
        worst: cases whose registration is shown, from the worst on.
    """

    def __init__(self, figures: FigurePanels, worst: int = 4) -> None:
        self.figures, self.worst = figures, int(worst)

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationEvaluator``, after ``FigurePanels``.

        Args:
            engine: the evaluator.
        """
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        measures, folder = self.figures.measures, self.figures.output_dir
        rank, order = ranked_rows(measures.rows)
        summary = measures.summary
        found = doubtful(measures.rows)
        parts = [
            verdict_box(_verdict(measures, found)),
            section("Summary", _summary_table(summary)),
            *self._worst(engine, rank, order, found),
            section("Cases, the worst first", paragraph(_legend(rank)), _case_table(measures.rows, order, found)),
            section("Pictures", grid(
                picture(folder / name, text) for name, text in PICTURES.items() if (folder / name).is_file()
            )),
            section("Provenance", *_provenance(summary)),
        ]  # fmt: skip
        write_page(folder / FILE, f"Evaluation of {folder.name}", parts)
        logger.info("Report: %s", folder / FILE)

    def _worst(
        self, engine: Engine, rank: Rank | None, order: Sequence[int], found: Mapping[str, Sequence[str]]
    ) -> list[str]:
        if rank is None or not self.worst:
            return []
        shown = []
        with tempfile.TemporaryDirectory() as folder:
            for place, index in enumerate(order[: self.worst]):
                case = self.figures.case(engine, index, rank)
                path = Path(folder) / f"{place}.png"
                draw_case(path, case, self.figures.label_names())
                name = str(self.figures.measures.rows[index]["case"])
                shown.append(picture(path, " ".join([f"{case['title']}.", *found.get(name, [])])))
        return [section("The worst cases", grid(shown))]


def _verdict(measures: CaseMeasures, found: Mapping[str, Sequence[str]]) -> Verdict:
    rows = measures.rows
    lost = sum(not row.get("scorable", 1) for row in rows)
    reasons = [f"{len(found)} of {len(rows)} cases should be looked at, first those named here."] if found else []
    reasons += [f"{case}: {' '.join(sentences)}" for case, sentences in list(found.items())[:NAMED]]
    reasons += [f"{lost} of {len(rows)} cases could not be scored."] if lost else []
    return Verdict(not found, reasons or [f"All {len(rows)} cases fit better than before, and none folds much."])


def _summary_table(summary: Mapping[str, Any]) -> str:
    before = undeformed(summary)
    shown = [name for name in COLUMNS if name in summary]
    rows = [[name, spread_text(before.get(name)), spread_text(summary[name])] for name in shown]
    return table(["measure", "before", "after: mean ± SD (cases)"], rows)


def _legend(rank: Rank | None) -> str:
    order = "as they came" if rank is None else f"by {rank.title}"
    return f"Sorted {order}; the columns are those of metrics.csv, before → after."


def _case_table(rows: Sequence[Mapping[str, Any]], order: Sequence[int], found: Mapping[str, Sequence[str]]) -> str:
    present = [name for name in COLUMNS if any(name in row for row in rows)]
    ranked = [*order, *sorted(set(range(len(rows))) - set(order))]
    lines = []
    for index in ranked:
        row = rows[index]
        cells = [_cell(row, name) for name in present]
        lines.append([str(row["case"]), *cells, " ".join(found.get(str(row["case"]), []))])
    return table(["case", *present, "look again"], lines)


def _cell(row: Mapping[str, Any], name: str) -> str:
    values = [row.get(f"{name}_before"), row.get(name)]
    texts = ["–" if value is None or value != value else f"{value:.3g}" for value in values]
    return " → ".join(texts if values[0] is not None else texts[1:])


def _provenance(summary: Mapping[str, Any]) -> list[str]:
    folded = {name: json.dumps(summary.get(name, {}), indent=2) for name in ("versions", "cost", "settings")}
    return [details(name, text) for name, text in folded.items()]
