# SPDX-License-Identifier: Apache-2.0
"""``python -m common eta BUNDLE``: what the weight of the log loss does to a trained network, and which is best."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ignite.handlers.tqdm_logger import ProgressBar
from monai.bundle import ConfigParser
from torch import nn

from ..atomic import atomic_path
from ..bundle import eta_condition, start
from ..data.pairs import evaluation_loader
from ..engines.evaluator import RegistrationEvaluator
from ..engines.solvers import is_solver
from ..figures.eta_curves import eta_curves
from ..handlers.measures import CaseMeasures
from ..io.results import read_metrics, spread, write_rows
from ..io.tables import Cell, Table, spread_cell, write_tables
from ..metrics.inverse_consistency import InverseConsistencyMeasures
from ..metrics.labels import LabelMeasures
from ..runs import arguments
from ..runs.command_line import Words
from ..runs.record import settings as settings_of
from ..runs.record import sha256
from ..workflow import Options, load, registration
from .bundles import evaluation_config, find_bundles, read_json

STEP = 0.05
SETTINGS_FILE, CASES = "settings.json", "cases"
FILES_WRITTEN = ("eta.csv", "eta.md", "eta.png")
NOT_SETTINGS = ("device", "output_dir", "bundle_root", "ckpt_path", "eta", "condition")
DICE = "dice"
# Of each the first that is measured.
FOLDINGS = {"ndv_percent": "%NDV", "foldings_percent": "foldings, %"}
ROUGHNESS = {"sd_log_jacobian_l2r": "SDlogJ as Learn2Reg", "sd_log_jacobian": "SDlogJ"}
logger = logging.getLogger(__name__)


class Search(NamedTuple):
    """What is evaluated: a network over a data set, and the values of η."""

    parser: ConfigParser
    network: nn.Module
    options: Options
    etas: list[float]
    eta_max: float


def eta(
    bundle: str,
    ckpt_path: str | None = None,
    dataset_dir: str | None = None,
    etas: Sequence[float] | float | None = None,
    output_dir: str | None = None,
    **overrides: Any,
) -> str:
    """Evaluate one training at many weights η of the log loss; ``python -m common eta tmspr_hippocampus …``.

    As in ``eta tmspr_oasis --dataset_dir DIR --ckpt_path model.pt --etas "[0, 0.05, 0.1]" --output_dir results/eta``:
    every further option is one of the bundle's evaluation, ``--split test`` or ``--device cuda``. Each pair of the
    split is registered once with each η. ``eta.csv`` and ``eta.md`` hold a row an η, mean ± standard deviation over the
    pairs, with the best η by Dice marked (of equal ones the largest, which is the smoothest); ``eta.png`` the curves;
    ``cases/eta_<η>.csv`` the pairs. Killed and started again, or with other values besides, the command repeats no η
    that is finished. The best η is chosen on the split that is evaluated, by default the validation's: what it is worth
    must be measured on another.

    Args:
        bundle: name or path of a bundle with an option eta.
        ckpt_path: weights of the network; by default the bundle's.
        dataset_dir: folder of the data set; by default the bundle's, the phantom.
        etas: values of η; by default from 0 to eta_max in steps of 0.05.
        output_dir: receives the files; by default ``runs/eta`` in the bundle.
        overrides: further options of the evaluation.

    Returns:
        The table, Markdown, and the best η.

    Raises:
        ValueError: for a bundle without eta, values that are none, a solver, an evaluation without Dice, or an
            ``output_dir`` with values of other weights or settings, naming them.
        FileNotFoundError: for weights that are not there.

    Reference:
        Chen et al., Spatially-varying regularization with conditional transformer, arXiv 2023, Fig. 4.
    """
    given = {"ckpt_path": ckpt_path, "dataset_dir": dataset_dir, "output_dir": output_dir}
    search = _search(bundle, etas, {key: value for key, value in given.items() if value is not None} | overrides)
    output = Path(search.options.output_dir)
    _check_settings(output, search.parser)
    found = {value: _measured(search, value, number, output) for number, value in enumerate(search.etas, 1)}
    return _report(output, found)


def _search(bundle: str, etas: Any, overrides: Mapping[str, Any]) -> Search:
    (folder,) = find_bundles((str(bundle),))
    parser = evaluation_config(folder)
    if "eta" not in parser or "eta" in overrides or "condition" in overrides:
        raise ValueError(
            f"bundle: expected one with an option eta (tmspr_*), got {folder.name}."
            if "eta" not in parser
            else "eta: all values of --etas are evaluated; leave --eta and --condition out."
        )
    own = {"bundle_root": str(folder), "output_dir": str(folder / "runs" / "eta")}
    parser.update(own | dict(overrides))
    arguments.check(parser, Words([], {}), "evaluating")
    options, method = (parser.get_parsed_content(key) for key in ("options", "method"))
    start(options.seed, options.device)
    if is_solver(method.network):
        raise ValueError(f"architecture: expected a network, got the solver '{method.network.name}', which has no eta.")
    load(method, parser.get_parsed_content("ckpt_path"), all_modules=bool(options.instance_iterations))
    eta_max = float(parser.get_parsed_content("eta_max"))
    return Search(parser, registration(method, options), options, _values(etas, eta_max), eta_max)


def _values(etas: Any, eta_max: float) -> list[float]:
    if etas is None:
        return [round(STEP * number, 10) for number in range(math.floor(eta_max / STEP + 1e-9) + 1)]
    given = list(etas) if isinstance(etas, (list, tuple)) else [etas]
    for value in given:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f'etas: expected numbers from 0, as in --etas "[0, 0.5, 1]", got {etas!r}.')
    if not given:
        raise ValueError('etas: expected at least one number, as in --etas "[0, 0.5, 1]", got none.')
    return sorted({float(value) for value in given})


def _check_settings(output: Path, parser: ConfigParser) -> None:
    """Refuse to add to values of another network or data, and record what these are of."""
    path, weights = output / SETTINGS_FILE, parser.get_parsed_content("ckpt_path")
    now = {key: value for key, value in settings_of(parser).items() if key not in NOT_SETTINGS}
    now = json.loads(json.dumps(now | {"weights": sha256(weights)}, default=str))
    then = read_json(path) if path.is_file() else None
    if then is None and any((output / name).exists() for name in FILES_WRITTEN):
        raise ValueError(
            f"output_dir: {output} holds files that this command did not write ({', '.join(FILES_WRITTEN)}). Choose "
            "another folder."
        )
    changed = [] if then is None else sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
    if then is not None and changed:
        words = [f"{key} was {then.get(key)!r} and is now {now.get(key)!r}" for key in changed]
        raise ValueError(
            f"output_dir: {output} holds values of other settings: {'; '.join(words)}. Choose another folder, or "
            "remove it to start anew."
        )
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")


def _measured(search: Search, value: float, number: int, output: Path) -> list[dict[str, Any]]:
    """A row a pair under one η, read where an earlier run has finished it."""
    path = output / CASES / f"eta_{value:.10g}.csv"
    if path.is_file():
        logger.info("η = %g (%d of %d): read from %s.", value, number, len(search.etas), path)
        return read_metrics(path)
    measures = search.parser.get_parsed_content("measures")
    overlap = [measure for measure in measures if isinstance(measure, LabelMeasures)]
    others = [m for m in measures if not isinstance(m, (LabelMeasures, InverseConsistencyMeasures))]
    # Of the labels the Dice alone, without distances of surfaces; of the field all.
    handlers = [CaseMeasures(part, thorough=part is others) for part in (overlap, others) if part]
    engine = RegistrationEvaluator(
        search.options.device,
        evaluation_loader(search.parser.get_parsed_content("validate#dataset"), search.options.batch_size),
        search.network,
        amp=search.options.amp,
        condition=eta_condition(value, search.eta_max),
        val_handlers=[ProgressBar(desc=f"η = {value:g} ({number} of {len(search.etas)})", mininterval=1.0), *handlers],
    )
    engine.run()
    tables = [handler.rows for handler in handlers]
    rows = [{key: entry for row in parts for key, entry in row.items()} for parts in zip(*tables, strict=True)]
    write_rows(rows, path)
    return rows


def _report(output: Path, found: Mapping[float, Sequence[Mapping[str, Any]]]) -> str:
    first = next(iter(found.values()))[0]
    if DICE not in first:
        raise ValueError(
            "measures: expected common.metrics.labels.LabelMeasures among the bundle's, by whose Dice the best eta is "
            "chosen, got none."
        )
    shown = {DICE: "Dice"}
    for titles in (FOLDINGS, ROUGHNESS):
        shown |= dict([(key, title) for key, title in titles.items() if key in first][:1])
    spreads = {value: {key: spread([row[key] for row in rows]) for key in shown} for value, rows in found.items()}
    dice = {value: columns[DICE]["mean"] for value, columns in spreads.items()}
    scored = [value for value in dice if dice[value] is not None]
    best = max(scored, key=lambda value: (dice[value], value)) if scored else None
    rows = [[_eta_cell(value, value == best), *(spread_cell(columns[key]) for key in shown)]
            for value, columns in spreads.items()]  # fmt: skip
    table = Table("eta", ["η", *shown.values()], rows, columns=["eta", *shown])
    notes = f"{len(next(iter(found.values())))} pairs; " + (
        "no pair has a Dice." if best is None else f"best by Dice: η = {best:g}, register with --eta {best:g}."
    )
    for name in FILES_WRITTEN[:2]:
        write_tables([table], output / name, notes)
    means = {title: [columns[key]["mean"] for columns in spreads.values()] for key, title in shown.items()}
    eta_curves(output / FILES_WRITTEN[2], list(spreads), means, best)
    return f"{notes}\n\n{table.markdown()}"


def _eta_cell(value: float, best: bool) -> Cell:
    return Cell(f"**{value:g}**" if best else f"{value:g}", {"": value, "_best": int(best)})
