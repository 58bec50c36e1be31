# SPDX-License-Identifier: Apache-2.0
"""The configuration of a run: where MONAI keeps it, how it differs from the bundle's files, and keys nobody reads."""

from __future__ import annotations

import difflib
import inspect
import json
import pydoc
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.config_item import ConfigComponent, ConfigItem
from monai.bundle.reference_resolver import ReferenceResolver

from .options import EVALUATE, INFERENCE, OPTIONS, TRAIN, is_expression
from .package import read_files

FILES = {
    TRAIN: ("train.json",),
    EVALUATE: ("train.json", "evaluate.json"),
    INFERENCE: ("inference.json",),
}
MONAI_ARGUMENTS = {
    "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
    "workflow", "workflow_type", "workflow_name", "properties_path",
}  # fmt: skip
ALWAYS_KNOWN = {"debug", "condition"}  # options of every bundle, which few need
TRACKING = {"tracking_uri", "experiment_name", "run_name", "is_not_rank0", "save_execute_config"}
# Tables whose entries are chosen by another key, and what is passed on to a builder that knows its own arguments.
CHOSEN_BY: dict[tuple[str, ...], str] = {("objectives",): "objective", ("architectures",): "architecture"}


def current_parser() -> ConfigParser | None:
    """The parser that is evaluating the expression we are called from; None outside of one.

    MONAI gives an expression no name for it, but it stands on the call stack.

    Returns:
        The parser.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ConfigParser):
            return frame.f_locals["self"]
        frame = frame.f_back  # type: ignore[assignment]
    return None


def stage_of(config: Mapping[str, Any]) -> str:
    """Which kind of run a configuration is for.

    Args:
        config: parsed JSON.

    Returns:
        "train", "evaluate" or "inference".
    """
    return INFERENCE if "inferring" in config else EVALUATE if "evaluating" in config else TRAIN


def put(parser: ConfigParser, key: str, value: Any) -> None:
    """Set a top-level key in the midst of a run, keeping what has been built already.

    Args:
        parser: of the run.
        key: name of the entry.
        value: its new value.
    """
    parser.config[key] = value
    parser.ref_resolver.items[key] = ConfigItem(config=value, id=key)
    parser.ref_resolver.resolved_content.pop(key, None)


def shipped(parser: ConfigParser) -> dict[str, Any]:
    """The configuration as the bundle's own files have it, without any override; {} where there are no such files.

    Args:
        parser: of the run.

    Returns:
        The configuration.
    """
    folder = Path(parser.get_parsed_content("bundle_root")) / "configs" if "bundle_root" in parser else Path("configs")
    files = [folder / name for name in FILES[stage_of(parser.config)]]
    if not all(file.is_file() for file in files):
        return {}
    own = read_files(files)
    own.resolve_macro_and_relative_ids()
    return own.config


def differences(base: Any, config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and value of every leaf that ``config`` has otherwise than ``base``.

    Args:
        base: parsed JSON.
        config: parsed JSON.
        path: of the two in their files.

    Yields:
        Path and value of a leaf.
    """
    if isinstance(base, dict) and isinstance(config, dict):
        for key in config:
            yield from differences(base.get(key, differences), config[key], (*path, str(key)))
    elif isinstance(base, list) and isinstance(config, list) and len(base) == len(config):
        for index, (old, new) in enumerate(zip(base, config, strict=True)):
            yield from differences(old, new, (*path, str(index)))
    elif type(base) is not type(config) or base != config:
        yield path, config


def check_keys(config: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """Refuse a key that nothing reads: MONAI accepts a misspelt one silently, at every depth.

    A key is known where the bundle's files have it, where another value refers to it, or where it is an argument of the
    callable that the ``_target_`` beside it names. Entries of ``objectives`` and ``architectures`` may be added.

    Args:
        config: what runs.
        base: what the bundle's own files hold.

    Raises:
        ValueError: naming the key and the nearest known one.
    """
    referred = {reference.split("::")[0] for reference in references(config)}
    for key, value in config.items():
        if key.startswith("_"):
            continue
        used = key in referred or not _plain(value)
        if key in base:
            _check_below((key,), value, base[key], config)
        elif not (key in TRACKING | ALWAYS_KNOWN or used):
            near = difflib.get_close_matches(key, sorted({*base, *MONAI_ARGUMENTS, *ALWAYS_KNOWN}), n=1)
            hint = f"Did you mean '--{near[0]}'?" if near else f"Known options: {', '.join(_options(base))}."
            raise ValueError(f"Unknown override '--{key}': nothing in this bundle's run reads it. {hint}")


def _options(base: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in base if key in OPTIONS)


def _check_below(path: tuple[str, ...], value: Any, base: Any, config: Mapping[str, Any]) -> None:
    if isinstance(value, list) and isinstance(base, list):
        for index, (new, old) in enumerate(zip(value, base, strict=False)):
            _check_below((*path, str(index)), new, old, config)
    if not (isinstance(value, dict) and isinstance(base, dict)) or path == ("labels",):
        return
    for key, new in value.items():
        if key in base:
            _check_below((*path, key), new, base[key], config)
            _check_number((*path, key), new, base[key])
            continue
        known = _known_below(path, value, base, config, key)
        if known is not None:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Known there: {', '.join(sorted(known))}."
            raise ValueError(f"Unknown override '--{'#'.join((*path, key))}': nothing reads it. {hint}")


def _known_below(
    path: tuple[str, ...], value: dict[str, Any], base: dict[str, Any], config: Mapping[str, Any], key: str
) -> set[str] | None:
    """The keys that may stand at a path, where ``key`` is none of them; None where it is."""
    if "_target_" in value:
        known = _arguments(value["_target_"])
        return None if known is None or key in known else known - ConfigComponent.non_arg_keys
    table = CHOSEN_BY.get(path)
    if table is not None:
        needed = set.intersection(*(set(entry) for entry in base.values())) if base else set()
        complete = isinstance(value[key], dict) and needed <= set(value[key])
        return None if config.get(table) == key or (complete and table == "objective") else set(base)
    if len(path) > 1 and path[:1] in CHOSEN_BY:
        if path[0] == "architectures" or len(path) > 2:  # arguments of a builder, which refuses others itself
            return None
        siblings = {name for entry in config[path[0]].values() if isinstance(entry, dict) for name in entry}
        siblings -= set(value) - set(base)
        return None if key in siblings else siblings | set(base)
    return set(base)


def _check_number(path: tuple[str, ...], value: Any, default: Any) -> None:
    wrong = isinstance(value, (str, bool)) and not is_expression(value)
    if wrong and isinstance(default, (int, float)) and not isinstance(default, bool):
        raise ValueError(f"{'#'.join(path)}: expected a number like {default}, got {value!r}.")


def _arguments(target: Any) -> set[str] | None:
    """Names that a ``_target_`` takes; None where it takes any or cannot be found."""
    try:
        found = pydoc.locate(target) if isinstance(target, str) and not is_expression(target) else None
        parameters = inspect.signature(found).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError, pydoc.ErrorDuringImport):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters} | ConfigComponent.non_arg_keys


def _plain(value: Any) -> bool:
    """Whether a value is mere data: no expression, reference or component at any depth."""
    if isinstance(value, dict):
        return "_target_" not in value and all(_plain(item) for item in value.values())
    return all(_plain(item) for item in value) if isinstance(value, list) else not is_expression(value)


def references(value: Any) -> Iterator[str]:
    """Keys that a value refers to with "@", at any depth.

    Args:
        value: of a configuration.

    Yields:
        "network_def", "train::dataset".
    """
    if isinstance(value, str):
        yield from ReferenceResolver.match_refs_pattern(value)
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from references(item)


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object; {} where the file is none.

    Args:
        path: of the file.

    Returns:
        The object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
