# SPDX-License-Identifier: Apache-2.0
"""The types that options have: what each accepts, as text of the command line too."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checks import switch


def _switch(value: Any) -> bool:
    return switch(value, "value")


def _switch_or_name(value: Any) -> bool | str:
    try:
        return switch(value, "value")
    except ValueError:
        return _name(value)


def _whole(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _number_or_auto(value: Any) -> float | str:
    return value if value == "auto" else _number(value)


def _as_it_is(value: Any) -> int | float:
    return value if isinstance(value, int) and _number(value) == value else _number(value)


def _list(value: Any, item: Callable[[Any], Any]) -> list[Any]:
    value = ast.literal_eval(value) if isinstance(value, str) else value
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError
    return [item(entry) for entry in value]


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _path(value: Any) -> str | Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError
    return value


def _table(value: Any) -> dict[str, Any]:
    value = ast.literal_eval(value) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise ValueError
    return dict(value)


def _centre(value: Any) -> str | list[float]:
    return value if isinstance(value, str) and value[:1].isalpha() else _list(value, _as_it_is)


def _count(value: Any) -> int | dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    return _whole(value)


def _similarity(value: Any) -> str | dict[str, Any] | list[Any]:
    value = ast.literal_eval(value) if isinstance(value, str) and value.lstrip()[:1] in ("{", "[") else value
    return value if isinstance(value, (dict, list)) else _name(value)


def _condition(value: Any) -> float | list[float]:
    value = ast.literal_eval(value) if isinstance(value, str) else value
    return _list(value, _number) if isinstance(value, (list, tuple)) else _number(value)


def _powers(value: Any) -> float | dict[str, float]:
    value = ast.literal_eval(value) if isinstance(value, str) else value
    return {name: _number(power) for name, power in value.items()} if isinstance(value, Mapping) else _number(value)


def _device(value: Any) -> Any:
    if isinstance(value, (bool, int, float)):
        raise ValueError
    return value


KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "switch": ("true or false", _switch),
    "switch or name": ("true, false or a name", _switch_or_name),
    "whole": ("a whole number", _whole),
    "number": ("a number", _number),
    "number or auto": ("a number, or auto", _number_or_auto),
    "name": ("a name", _name),
    "names": ('a list of names like ["lv","rv"]', lambda value: _list(value, _name)),
    "path": ("a path", _path),
    "sizes": ("a list of whole numbers like [128,128]", lambda value: _list(value, _whole)),
    "numbers": ("a list of numbers like [1,99]", lambda value: _list(value, _as_it_is)),
    "table": ("a table like \"{'name': 1}\"", _table),
    "centre": ("a name, or a list of numbers like [64,64]", _centre),
    "count": ("a whole number, or a table like \"{'train': 64}\"", _count),
    "similarity": ("a name, or a sum like \"{'mse': 1, 'lncc': {'weight': 0.1, 'window': 9}}\"", _similarity),
    "condition": ("a number, or a list of numbers like [0.5]", _condition),
    "powers": ("a number, or a table like \"{'displacement': 0.9}\"", _powers),
    "device": ("a device like cpu or cuda:1", _device),
}
