# SPDX-License-Identifier: Apache-2.0
"""Published comparisons of trainings as one command: train what is not trained yet, then table and curves."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.bundle import ConfigParser, ConfigWorkflow

from ..atomic import atomic_path
from ..bundle import choose, root, switch
from ..figures.convergence import convergence_curves
from ..figures.curves import read_columns
from ..handlers.log import HISTORY_FILE
from ..runs.outputs import STATE_FILE
from ..runs.record import settings as settings_of
from .bundles import read_json


class Run(NamedTuple):
    """One training of a study: its name, the bundle, and what differs from the bundle's train.json."""

    label: str
    bundle: str
    overrides: dict[str, Any]

    @property
    def folder(self) -> str:
        """Name of its folder, "gradicon_one_step"."""
        return re.sub(r"\W+", "_", self.label.lower())


STEPS = "architectures#icon#factors"  # one step at each of these fractions of the resolution
STUDIES: dict[str, tuple[Run, ...]] = {
    # Tian et al., GradICON, CVPR 2023, Fig. 3 and A.1.1
    "gradicon_convergence": (
        Run("ICON, one step", "gradicon_triangles", {"objective": "icon", STEPS: [1], "epochs": 128}),
        Run("ICON, multi-step", "gradicon_triangles", {"objective": "icon", STEPS: [8, 4, 2, 1], "epochs": 128}),
        Run("GradICON, one step", "gradicon_triangles", {"objective": "gradicon", STEPS: [1], "epochs": 64}),
        Run("GradICON, multi-step", "gradicon_triangles", {"objective": "gradicon", STEPS: [8, 4, 2, 1], "epochs": 64}),
    ),
}
SETTINGS_FILE = "settings.json"
SUMMARY_FILE = "summary.json"
NOT_SETTINGS = ("device", "output_dir", "bundle_root")  # a run may be finished on another machine
COLUMNS = {
    "run": "run", "epochs": "epochs", "updates": "updates", "final_similarity": "final similarity",
    "epoch_at_threshold": "first epoch ≤ {threshold:.4g}", "dice": "Dice", "foldings_percent": "foldings %",
    "inverse_consistency_error": "inverse consistency error, voxels", "seconds": "seconds of training",
}  # fmt: skip


def study(
    name: str,
    output_dir: str,
    epochs: int | None = None,
    icon_epochs: int | None = None,
    device: str | None = None,
    amp: bool = False,
    seed: int = 0,
    count: Any = None,
    spatial_size: Sequence[int] | None = None,
) -> str:
    """Run the trainings of a study one after the other; ``python -m common study gradicon_convergence --output_dir …``.

    Each run trains a bundle with its own train.json and the study's overrides, in a folder of its own. Killed and
    started again with the same arguments, the command repeats no finished run (one with a ``summary.json``), and
    resumes the one it was in. At the end ``convergence.png`` (curves of all runs) and ``convergence.csv`` (the table)
    are written. The table's similarity is the mean over the pairs of an epoch while training; its threshold is the
    lowest that all runs reach, the best of the worst run. All else is measured on the validation pairs at the end.

    Args:
        name: of the study: gradicon_convergence.
        output_dir: receives a folder a run, the figure and the table.
        epochs: of every run but those of ICON; by default the published number.
        icon_epochs: of the runs that minimise ICON's penalty; by default the published number.
        device: "cpu", "cuda"; by default the bundle's choice.
        amp: train in bfloat16 autocast.
        seed: of all runs.
        count: pairs of every split, a number or {"train": 256, "validation": 64}; by default the bundle's.
        spatial_size: voxels of the images, "[32,32]"; by default the bundle's.

    Returns:
        The table, Markdown.

    Raises:
        ValueError: for an unknown study, or a run in ``output_dir`` that has other settings, naming them.
    """
    output, runs = Path(output_dir), choose(STUDIES, name, "name")
    given = {"device": device, "amp": switch(amp, "amp"), "seed": seed, "count": count, "spatial_size": spatial_size}
    overrides: dict[str, dict[str, Any]] = {}
    for run in runs:
        changed = given | {"epochs": icon_epochs if run.overrides.get("objective") == "icon" else epochs}
        overrides[run.folder] = run.overrides | {key: value for key, value in changed.items() if value is not None}
        overrides[run.folder] |= {"output_dir": str(output / run.folder)}
    _check_settings(output, {run.folder: _settings(run, overrides[run.folder]) for run in runs})
    for number, run in enumerate(runs, start=1):
        folder = output / run.folder
        finished = (folder / SUMMARY_FILE).is_file()
        resume = (folder / STATE_FILE).is_file()
        what = "finished earlier in" if finished else "resumes in" if resume else "starts in"
        print(f"Run {number} of {len(runs)}, {run.label}: {what} {folder}", flush=True)
        if not finished:
            _train(run, overrides[run.folder] | {"resume": resume})
    convergence_curves({run.label: output / run.folder / HISTORY_FILE for run in runs}, output / "convergence.png")
    return _report(output, runs)


def _train(run: Run, overrides: dict[str, Any]) -> None:
    configs = Path(root(run.bundle)) / "configs"
    workflow = ConfigWorkflow(
        config_file=str(configs / "train.json"), meta_file=str(configs / "metadata.json"), logging_file=False,
        run_id="training", workflow_type="train", **overrides,
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def _settings(run: Run, overrides: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, with what the study changes, as JSON holds them."""
    parser = ConfigParser()
    parser.read_config(str(Path(root(run.bundle)) / "configs" / "train.json"))
    parser.update(overrides)
    settings = settings_of(parser)
    kept = {key: value for key, value in settings.items() if key not in NOT_SETTINGS}
    return json.loads(json.dumps(kept, default=str))


def _check_settings(output: Path, settings: dict[str, dict[str, Any]]) -> None:
    """Refuse to go on with runs that were started otherwise, and record the settings of all."""
    path = output / SETTINGS_FILE
    recorded = read_json(path) if path.is_file() else {}
    for name, now in settings.items():
        folder, then = output / name, recorded.get(name, {})
        if not any((folder / file).is_file() for file in (SUMMARY_FILE, STATE_FILE)) or then == now:
            continue
        different = [
            f"{key} was {then.get(key, 'not recorded')!r} and is now {now.get(key, 'not set')!r}"
            for key in sorted(then.keys() | now.keys())
            if key not in then or key not in now or then[key] != now[key]
        ]
        raise ValueError(
            f"output_dir: {folder} holds a run with other settings: {'; '.join(different)}. Pass those it was started "
            "with, or another --output_dir, or remove that folder to repeat the run."
        )
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _report(output: Path, runs: Sequence[Run]) -> str:
    """Write the table as convergence.csv and return it as Markdown."""
    histories = {run.label: read_columns(output / run.folder / HISTORY_FILE)[0] for run in runs}
    summaries = {run.label: read_json(output / run.folder / SUMMARY_FILE) for run in runs}
    threshold = max(float(np.nanmin(history["displacement/similarity"])) for history in histories.values())
    rows = [_row(label, histories[label], summaries[label], threshold) for label in histories]
    with atomic_path(output / "convergence.csv") as path, path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*COLUMNS, "threshold"])
        writer.writeheader()
        writer.writerows(row | {"threshold": threshold} for row in rows)
    header = [title.format(threshold=threshold) for title in COLUMNS.values()]
    lines = [header, ["---"] * len(header), *([_cell(row[key]) for key in COLUMNS] for row in rows)]
    before = summaries[runs[0].label]["dice_before"]
    first = f"{before['n']} validation pairs, Dice {before['mean']:.4g} before registration."
    return "\n".join([first, "", *("| " + " | ".join(line) + " |" for line in lines)])


def _row(label: str, history: dict[str, np.ndarray], summary: dict[str, Any], threshold: float) -> dict[str, Any]:
    similarity = history["displacement/similarity"]
    row = {
        "run": label,
        "epochs": int(history["epoch"][-1]),
        "updates": int(history["updates"][-1]),
        "final_similarity": float(similarity[-1]),
        "epoch_at_threshold": int(history["epoch"][np.flatnonzero(similarity <= threshold)[0]]),
        "seconds": round(float(np.nansum(history["seconds"])), 1),
    }
    measures = ("dice", "foldings_percent", "inverse_consistency_error")
    return row | {measure: summary.get(measure, {}).get("mean") for measure in measures}


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
