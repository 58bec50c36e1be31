# SPDX-License-Identifier: Apache-2.0
"""Single cases of a comparison, registered once more as each evaluation recorded, and drawn side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser

from ..checks import known_name
from ..engines.evaluator import RegistrationEvaluator
from ..engines.maps import evaluated_maps
from ..figures.comparison import comparison_panel
from ..figures.uncertainty import displacement_deviation_panel
from ..handlers.figures import registered_case
from ..handlers.measures import identified
from ..io.results import BEFORE
from ..metrics.labels import LabelMeasures
from ..runs.options import OPTIONS
from ..runs.record import sha256
from ..workflow import load, registration
from .bundles import evaluation_config, find_bundles
from .comparison import Evaluations
from .evaluations import Evaluation, Run
from .failures import worst_cases

WORST = "worst"
# Of the recorded settings those that say where a run took place, or follow from others.
NOT_PASSED = ("bundle_root", "output_dir", "device", "ckpt_path", "initial_weights", "data_root", "chosen")
AGREEMENT = 0.05  # by which the mean squared difference may differ from the recorded one


class Rebuilt(NamedTuple):
    """What an evaluation registered with, and its data."""

    engine: RegistrationEvaluator
    dataset: Any
    labels: dict[str, int]


def draw_cases(evaluations: Evaluations, folder: Path, headline: str, cases: Sequence[str]) -> None:
    """Draw ``case_<name>.png`` for each case: every method's warped image, labels, difference and grid.

    Of a method with several runs the first is shown. Where methods say how uncertain their displacement is,
    ``deviations_<name>.png`` shows these maps.

    Args:
        evaluations: by name.
        folder: to write in.
        headline: the measure in the titles.
        cases: names; "worst" is the worst case of each method.

    Raises:
        ValueError: for an unknown case, or an evaluation that cannot be repeated: it does not say which bundle it was
            of, its weights have changed, or registering anew gives another result than was recorded.
        FileNotFoundError: for weights that are not there any more.
    """
    if not cases:
        return
    names = [row["case"] for row in next(iter(evaluations.values())).rows]
    chosen: dict[int, None] = {}
    for case in cases:
        if case == WORST:
            chosen |= {worst_cases(one, headline, 1)[0]: None for one in evaluations.values()}
        else:
            chosen |= {names.index(known_name("panels", case, [*names, WORST])): None}
    rebuilt = {name: rebuild(one.runs[0]) for name, one in evaluations.items()}
    for index in chosen:
        _draw(evaluations, rebuilt, index, headline, folder)


def rebuild(run: Run) -> Rebuilt:
    """The network or solver of an evaluation, and its cases, from the settings that its summary records.

    Args:
        run: the evaluation.

    Returns:
        What it takes to register one of its cases again.

    Raises:
        ValueError, FileNotFoundError: as ``draw_cases``.
    """
    parser = _parser(run)
    method, options = (parser.get_parsed_content(key) for key in ("method", "options"))
    if run.weights is not None:
        _check_weights(run, run.weights)
        load(method, run.weights)
    engine = RegistrationEvaluator(
        options.device,
        [],
        registration(method, options),
        amp=options.amp,
        condition=options.condition,
        maps=evaluated_maps(method),
    )
    measures = parser.get_parsed_content("measures")
    labelled = [measure for measure in measures if isinstance(measure, LabelMeasures)]
    return Rebuilt(engine, parser.get_parsed_content("validate#dataset"), labelled[0].labels if labelled else {})


def _parser(run: Run) -> ConfigParser:
    if "bundle_root" not in run.settings:
        raise ValueError(
            f"panels: {run.folder} does not record which bundle it is of (bundle_root); evaluate again with this "
            "version."
        )
    root = Path(run.settings["bundle_root"])
    (bundle,) = find_bundles((str(root) if (root / "configs").is_dir() else root.name,))
    parser = evaluation_config(bundle)
    known = {key: value for key, value in run.settings.items() if key not in NOT_PASSED}
    overrides = {key: value for key, value in known.items() if "#" in key or (key in OPTIONS and key in parser)}
    parser.update(overrides | {"bundle_root": str(bundle)})
    return parser


def _check_weights(run: Run, weights: Path) -> None:
    if not weights.is_file():
        raise FileNotFoundError(
            f"panels: {run.folder} was evaluated with the weights {weights}, which are not there any more."
        )
    recorded = {Path(path).name: digest for path, digest in run.settings.get("weights", {}).items()}
    if recorded.get(weights.name, sha256(weights)) != sha256(weights):
        raise ValueError(
            f"panels: {weights} has changed since {run.folder} was evaluated with it; evaluate again, or restore it."
        )


def _draw(evaluations: Evaluations, rebuilt: dict[str, Rebuilt], index: int, headline: str, folder: Path) -> None:
    methods: dict[str, Any] = {}
    shown: dict[str, Any] = {}
    deviations: dict[str, Any] = {}
    for name, one in evaluations.items():
        shown = _registered(one, rebuilt[name], index)
        parts = {"warped": shown["warped_image"], "ddf": shown["ddf"]}
        if "warped_label" in shown:
            parts["warped_label"] = shown["warped_label"]
        methods[f"{name}, {_value(one.runs[0].rows[index], headline)}"] = parts
        if "displacement_deviation" in shown:
            deviations[name] = shown["displacement_deviation"]
    row = next(iter(evaluations.values())).rows[index]
    labels = next(iter(rebuilt.values())).labels
    file = re.sub(r"[^\w.-]+", "_", row["case"]) + ".png"
    comparison_panel(
        folder / f"case_{file}",
        shown["moving_image"],
        shown["fixed_image"],
        methods,
        shown.get("moving_label"),
        shown.get("fixed_label"),
        title=row["case"],
        undeformed=f"undeformed, {_value(row, headline, BEFORE)}",
        label_names={value: name for name, value in labels.items()},
    )
    if deviations:
        images = {name: shown[name] for name in ("moving_image", "fixed_image")}
        case = images | {"deviations": deviations, "title": row["case"]}
        displacement_deviation_panel(folder / f"deviations_{file}", [case])


def _registered(one: Evaluation, rebuilt: Rebuilt, index: int) -> dict[str, Any]:
    """The planes of a case, once it is sure that they are those of the evaluation."""
    run = one.runs[0]
    item, row = rebuilt.dataset[index], run.rows[index]
    case = identified({key: [value] for key, value in item.items()}, 0)["case"]
    shown = registered_case(rebuilt.engine, item, rebuilt.labels)
    recorded = row.get("mse", math.nan)
    if case != row["case"] or (abs(shown["mse"] - recorded) > AGREEMENT * recorded + 1e-6):
        raise ValueError(
            f"panels: registering case {row['case']} again as {run.folder} records gives case {case} with a mean "
            f"squared difference of {shown['mse']:.4g} instead of {recorded:.4g}; the data or the code have changed. "
            "Evaluate again."
        )
    return shown


def _value(row: dict[str, Any], headline: str, ending: str = "") -> str:
    value = row.get(f"{headline}{ending}", math.nan)
    return f"{headline} " + ("–" if math.isnan(value) else f"{value:.3f}")
