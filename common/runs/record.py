# SPDX-License-Identifier: Apache-2.0
"""What a run was: its settings, derived from the configuration that MONAI runs, and the weights it read and wrote."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from .configuration import current_parser, differences, read_json, shipped, stage_of
from .options import EVALUATE, FIT, OPTIONS, SOLVERS, TRAIN
from .outputs import SETS, TRAINING

# Of the parts, those that are plain and follow from options.
DERIVED = {"chosen": (TRAIN, FIT), "data_root": (TRAIN, EVALUATE)}
LEFT_OUT = {"resume", "debug"}


def settings(parser: ConfigParser | None = None) -> dict[str, Any]:
    """Every option that the run uses, with its value, and every nested override ("train#trainer#…").

    An evaluation says nothing of how its weights were trained, unless it optimises each pair by the same objective.

    Args:
        parser: of the run; by default the one that evaluates the expression we are called from.

    Returns:
        Value by option or path of an override.

    Raises:
        RuntimeError: outside of a configuration.
    """
    parser = parser or current_parser()
    if parser is None:
        raise RuntimeError("settings: expected to be called from a bundle's JSON, or with its parser.")
    stage = stage_of(parser.config)
    solver = parser.config.get("architecture") in SOLVERS
    used = {stage, FIT} if stage == EVALUATE and (solver or _optimises(parser)) else {stage}
    left_out = LEFT_OUT | {"ckpt_path"} if solver else LEFT_OUT
    result = {}
    for key in parser.config:
        stages = DERIVED.get(key) or (OPTIONS[key].stages if key in OPTIONS else ())
        if used.intersection(stages) and key not in left_out:
            result[key] = _text(parser.get_parsed_content(key))
    base = shipped(parser)
    for path, value in differences(base, parser.config) if base else ():
        top = path[0]
        if top not in OPTIONS and top not in DERIVED and not top.startswith("_"):
            result["#".join(path)] = _text(value)
    return result


def complete(output_dir: str | Path, parser: ConfigParser | None = None) -> Callable[[], dict[str, Any]]:
    """A function that returns ``settings`` and what else a summary says of a run.

    That is the ``commit`` of a clone, as ``weights`` the SHA-256 of their files (those that are read are summed now,
    those that a training writes when the function is called), and ``labels_in_training`` (see there).

    Args:
        output_dir: of the run.
        parser: as in ``settings``.

    Returns:
        The function.
    """
    parser = parser or current_parser()
    found = settings(parser)
    read = {str(path): sha256(path) for path in weights_read(found).values() if Path(path).is_file()}
    revision = commit(Path(__file__).resolve().parents[2])
    labels = None if parser is None else labels_in_training(parser)
    training = parser is not None and stage_of(parser.config) == TRAIN

    def finished() -> dict[str, Any]:
        names = [name for name in SETS[TRAINING] if name.endswith(".pt") and name != "last.pt"] if training else []
        written = [Path(output_dir) / name for name in names]
        return found | {
            "commit": revision,
            "labels_in_training": labels,
            "weights": read | {str(path): sha256(path) for path in written if path.is_file()},
        }

    return finished


def labels_in_training(parser: ConfigParser) -> bool | None:
    """Whether the training of what registers was given labels, so that its Dice is no measure of unsupervised methods.

    Of weights that are read, the ``summary.json`` beside them says it; of those that a bundle ships, its train.json.

    Args:
        parser: of the run.

    Returns:
        True or False; None where the weights' training left no record of it.
    """
    config = parser.config
    if config.get("architecture") in SOLVERS:
        return False
    training = stage_of(config) == TRAIN
    own = _gives_labels(parser) if training else False
    name = "initial_weights" if training else "ckpt_path"
    path = parser.get_parsed_content(name) if name in config else None
    if own or path is None:
        return own
    beside = Path(path).with_name("summary.json")
    if beside.is_file():
        return read_json(beside).get("settings", {}).get("labels_in_training")
    ours = "bundle_root" in parser and Path(path).parent == Path(parser.get_parsed_content("bundle_root")) / "models"
    return _gives_labels(parser) if ours else None


def _gives_labels(parser: ConfigParser) -> bool:
    key = "train::dataset::with_labels"
    return key in parser and bool(parser.get_parsed_content(key))


def weights_read(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``settings`` that name a file of weights, where one is given.

    Args:
        values: what ``settings`` returns.

    Returns:
        Path by option.
    """
    names = ("initial_weights", "ckpt_path")
    return {name: values[name] for name in names if values.get(name) is not None}


def fixed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that a resumed training must have as it was started with.

    Args:
        values: what ``settings`` returns.

    Returns:
        Part of them.
    """
    return {key: value for key, value in values.items() if "#" in key or (key in OPTIONS and OPTIONS[key].fixed)}


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's content.

    Args:
        path: of the file.

    Returns:
        In hexadecimal digits.
    """
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def commit(repository: Path) -> str | None:
    """The commit of a clone; "…-dirty" where a tracked file differs from it.

    Args:
        repository: its folder.

    Returns:
        Forty digits; None outside of a clone, or without git.
    """
    if not (repository / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _optimises(parser: ConfigParser) -> bool:
    key = "instance_iterations"
    return key in parser.config and int(parser.get_parsed_content(key)) > 0


def _text(value: Any) -> Any:
    """What JSON holds; anything else as text."""
    if isinstance(value, Mapping):
        return {str(key): _text(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_text(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
