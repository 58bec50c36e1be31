# SPDX-License-Identifier: Apache-2.0
"""``python -m common options bundles/NAME [train|evaluate|inference]``: every option, default, type and meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..checks import known_name
from ..runs.configuration import FILES
from ..runs.options import FIT, KINDS, OPTIONS, TRAIN, is_expression, kind_of
from ..runs.package import read_bundle
from .bundles import find_bundles

RUN_IDS = {"train": "training", "evaluate": "evaluating", "inference": "inferring"}
ELSEWHERE = {"condition": None, "debug": False}  # known to every run, in no JSON


def options(bundle: str, stage: str = TRAIN) -> str:
    """List what may be given as ``--name value`` after ``python -m monai.bundle run``.

    Args:
        bundle: path or name of one bundle.
        stage: train, evaluate or inference.

    Returns:
        The command, and a table with a row an option.

    Raises:
        FileNotFoundError: for an unknown bundle.
        ValueError: for an unknown stage.
    """
    stage = known_name("stage", stage, FILES)
    (folder,) = find_bundles((str(bundle),))
    place = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
    files = [f"{place}/configs/{name}" for name in FILES[stage]]
    parser = read_bundle(folder, FILES[stage])
    stages = {stage} if stage == TRAIN else {stage, FIT}
    rows = [("option", "default", "type", "meaning")]
    for name, default in {**parser.config, **ELSEWHERE}.items():
        if name in OPTIONS and stages.intersection(OPTIONS[name].stages):
            shown = _shown(parser.get_parsed_content(name) if is_expression(default) else default).replace(
                str(folder), place
            )
            rows.append((f"--{name}", shown, _type(name, default), OPTIONS[name].meaning))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    named = files[0] if len(files) == 1 else '"' + str(files).replace(" ", "") + '"'
    command = f"python -m monai.bundle run {RUN_IDS[stage]} --config_file {named} [--option value ...]"
    nested = "Parts of the JSON are reached with '#': --optimizer#weight_decay 0.01"
    return "\n".join([command, "", *lines, "", nested])


def _type(name: str, default: Any) -> str:
    option = OPTIONS[name]
    bound = f", {option.least:g} or more" if option.least is not None else ""
    bound = f", above {option.above:g}" if option.above is not None else bound
    return KINDS[kind_of(name, default)][0] + bound + (", or None" if option.optional or default is None else "")


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 or value == text else text[:57] + "..."
