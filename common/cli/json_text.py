# SPDX-License-Identifier: Apache-2.0
"""JSON as the bundles' files have it: a top-level key a line, what lies below packed into lines of limited width."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

WIDTH = 160  # of a line, the limit of the bundles' files
INDENT = 4


def dumps(value: Mapping[str, Any]) -> str:
    """Text of a JSON object, ending with a newline; the same for the same object.

    Args:
        value: what to write.

    Returns:
        The text.
    """
    entries = [" " * INDENT + _entry(key, item, INDENT, 1) for key, item in value.items()]
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _entry(key: str, value: Any, indent: int, after: int) -> str:
    name = f"{json.dumps(key, ensure_ascii=False)}: "
    return name + _text(value, indent, indent + len(name), after)


def _text(value: Any, indent: int, column: int, after: int) -> str:
    """A value that begins at a column of a line, itself indented by ``indent``, with ``after`` characters behind it."""
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or not value or column + len(flat) + after <= WIDTH:
        return flat
    inner = indent + INDENT
    if isinstance(value, dict):
        parts = [_entry(key, item, inner, after + 1) for key, item in value.items()]
    else:
        parts = [_text(item, inner, inner, after + 1) for item in value]
    brackets = "{}" if isinstance(value, dict) else "[]"
    return brackets[0] + _packed(parts, inner, column + 1, after + 1, isinstance(value, dict)) + brackets[1]


def _packed(parts: list[str], indent: int, column: int, after: int, beside: bool) -> str:
    """Parts one after the other, a new line where the next does not fit; one of several lines has its own.

    ``after`` characters stand behind the last part.
    """
    lines: list[str] = []
    line = "" if beside else None  # the first part of an object stands beside its bracket
    start = column
    for number, part in enumerate(parts):
        text = part + ("," if number + 1 < len(parts) else "")
        behind = 0 if number + 1 < len(parts) else after
        width = start + len(line) + 1 + len(text) + behind if line is not None else WIDTH + 1
        if line is not None and "\n" not in part and (not line or width <= WIDTH):
            line = f"{line} {text}" if line else text
            continue
        if line is not None:
            lines.append(line)
        line, start = text, indent
        if "\n" in part:
            lines.append(line)
            line = None
    if line is not None:
        lines.append(line)
    separator = "\n" + " " * indent
    return (separator.join(lines)) if beside else separator + separator.join(lines)
