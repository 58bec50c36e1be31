# SPDX-License-Identifier: Apache-2.0
"""Everything that can be said about a run's options before anything is loaded, built or written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from .command_line import Words, check_words, exact_path, typed_none
from .configuration import check_keys, put, read_json, shipped, stage_of
from .options import EVALUATE, FIT, OPTIONS, SOLVERS, TRAIN, checked, is_expression

logger = logging.getLogger(__name__)
DEFAULT = "the default"
RUN_IDS = {TRAIN: "training", EVALUATE: "evaluating"}


def check(parser: ConfigParser, words: Words, run_id: str | None = None) -> None:
    """Check every option of a run, and put what it means in place of the text that came.

    Args:
        parser: of the run; its top-level values are converted to their types.
        words: of the command line; empty where there is none.
        run_id: of the list that runs.

    Raises:
        ValueError: naming the option, what was expected, what came, and the remedy.
    """
    config = parser.config
    _check_files(config, run_id)
    check_words(words, config)
    for name in typed_none(words):
        if name in config:
            put(parser, name, None)
    for name in config:
        if name in OPTIONS and OPTIONS[name].kind == "path":
            path = exact_path(name, config[name], words.options.get(name), config)
            if path is not config[name]:
                put(parser, name, path)
    base = shipped(parser)
    if not base:
        return
    check_keys(config, base)
    for name in list(config):
        if name in OPTIONS and name in base and not is_expression(config[name]) and config[name] is not base[name]:
            value = checked(name, config[name], base[name])
            if type(value) is not type(config[name]) or value != config[name]:
                put(parser, name, value)
    _check_unused(config, base)
    _check_trained(parser)


def reads(parser: ConfigParser) -> dict[str, Any]:
    """The files that a run reads, by the option that names them.

    Args:
        parser: of the run.

    Returns:
        Path by option.
    """
    stage = stage_of(parser.config)
    names = [name for name, option in OPTIONS.items() if option.reads and stage in option.stages]
    found = {name: parser.get_parsed_content(name) for name in names if name in parser.config}
    return {name: path for name, path in found.items() if path is not None}


def _check_files(config: Mapping[str, Any], run_id: str | None) -> None:
    """evaluate.json is an overlay of train.json."""
    if "evaluating" not in config:
        return
    form = "--config_file \"['bundles/NAME/configs/train.json','bundles/NAME/configs/evaluate.json']\""
    if "training" not in config:
        raise ValueError(f"config_file: evaluate.json only adds to train.json. Give both, in this order: {form}.")
    if config.get("run") == "@training":
        raise ValueError(f"config_file: evaluate.json must come after train.json, which it changes. Give {form}.")
    if run_id == "training":
        raise ValueError("config_file: a training takes no evaluate.json. Leave it out, or run `evaluating`.")


def _check_trained(parser: ConfigParser) -> None:
    """Weights fit a network whose parameters without weights differ: it would register otherwise than it learnt to."""
    config = parser.config
    if stage_of(config) == TRAIN or config.get("architecture") in SOLVERS or "ckpt_path" not in config:
        return
    weights = Path(parser.get_parsed_content("ckpt_path"))
    beside = read_json(weights.with_name("summary.json")).get("settings", {})
    if "eta_max" in config:  # the network was given eta / eta_max
        then = beside.get("eta_max")
        if then is None:  # weights that a bundle ships
            shipped_with = weights.parent.parent / "docs" / "training" / "summary.json"
            then = read_json(shipped_with).get("settings", {}).get("eta_max")
        if then is not None:
            _same("eta_max", f"{float(then):g}", f"{float(parser.get_parsed_content('eta_max')):g}", weights)
    if not {"architecture", "architectures"} <= beside.keys() or beside["architecture"] in SOLVERS:
        return
    name = parser.get_parsed_content("architecture")
    _same("architecture", beside["architecture"], name, weights)
    trained, given = (
        table.get(name) or {} for table in (beside["architectures"], parser.get_parsed_content("architectures"))
    )
    for key in sorted(trained.keys() | given.keys()):
        _same(f"architectures#{name}#{key}", trained.get(key, DEFAULT), given.get(key, DEFAULT), weights)


def _same(name: str, trained: Any, given: Any, weights: Path) -> None:
    if trained != given:
        remedy = f"Leave --{name} out" if trained == DEFAULT else f'Pass --{name} "{trained}"'
        raise ValueError(
            f"{name}: expected {trained}, with which the weights {weights} were trained (says their summary.json), "
            f"got {given}. {remedy}."
        )


def _check_unused(config: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    stage = stage_of(config)
    unused = {
        name
        for name in config
        if name in OPTIONS and name in base and config[name] != base[name]
        and not {stage, stage if stage == TRAIN else FIT}.intersection(OPTIONS[name].stages)
    }  # fmt: skip
    if stage == TRAIN and "ckpt_path" in unused:
        raise ValueError("ckpt_path: a training does not read it. To start from weights pass --initial_weights FILE.")
    if unused - {"bundle_root"}:
        logger.warning("%s: of no effect in this run.", ", ".join(sorted(unused)))
