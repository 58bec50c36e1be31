# SPDX-License-Identifier: Apache-2.0
"""What a person typed after ``python -m monai.bundle run``, as she typed it.

MONAI reads the command line with ``fire``, which takes ``run#1`` as ``run``, ``2024`` as a number and ``a,b`` as two
values, then replaces '#' by '::', and drops None. Here the words are read as they are.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle.scripts import run as monai_run

from .configuration import read_json
from .options import OPTIONS

MAIN = "monai.bundle.__main__"
PARAMETERS = [name for name in inspect.signature(monai_run).parameters if name != "override"]
NONE = ("None", "null")


class Words(NamedTuple):
    """The words without an option, and the text of each option (True where it has none)."""

    positional: list[str]
    options: dict[str, Any]


def started_by_monai() -> bool:
    """Whether this process is ``python -m monai.bundle run …`` (or torchrun's).

    Returns:
        True or False.
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == MAIN and sys.argv[1:2] == ["run"]


def read(arguments: Sequence[str]) -> Words:
    """Split the words after ``run`` into options and the rest, as ``fire`` does, values as text.

    Values of ``--args_file`` come first, so that the command line overrides them.

    Args:
        arguments: words of the command line after ``run``.

    Returns:
        Words and options.
    """
    words = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    positional: list[str] = []
    options: dict[str, Any] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not _is_option(word):
            positional.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        given: Any = value
        if not equals:
            has_value = position < len(words) and not _is_option(words[position])
            given = words[position] if has_value else True
            position += has_value
        options[name.replace("-", "_")] = given
    if "args_file" in options:
        options = read_json(str(options["args_file"])) | options
    return Words(positional, options)


def _is_option(word: str) -> bool:
    return word.startswith("--") or re.match("-[a-zA-Z]", word) is not None


def check_words(words: Words, config: Mapping[str, Any]) -> None:
    """Refuse words that no option carries: ``fire`` takes them as ids of MONAI, which ignores those it does not know.

    Args:
        words: of the command line.
        config: the configuration that they act on.

    Raises:
        ValueError: naming the word and how to give it.
    """
    free = [name for name in PARAMETERS if name not in words.options]
    for word, name in zip(words.positional, [*free, *[""] * len(words.positional)], strict=False):
        known = Path(word).is_file() if name.endswith("_file") else bool(name) and word in config
        if not known:
            raise ValueError(
                f"'{word}': expected an option before it, as in --moving {word}; words by themselves are not read. "
                "`python -m common options BUNDLE` lists the options."
            )


def exact_path(name: str, value: Any, typed: Any, config: Mapping[str, Any]) -> Any:
    """The path that was meant by a path option.

    Args:
        name: the option.
        value: what MONAI made of it.
        typed: its text on the command line, or None where it was not given there.
        config: its keys are what "@key" may refer to.

    Returns:
        Text, or ``Path`` where MONAI would change the text: it leaves other types than text alone.

    Raises:
        ValueError: where the text is lost.
    """
    if isinstance(typed, str) and typed not in NONE:
        reference = typed.startswith("$") or (typed.startswith("@") and re.split("#|::", typed[1:])[0] in config)
        if reference:
            return value
        if typed.startswith("~"):  # the shell leaves --output_dir=~/run as it is
            typed = os.path.expanduser(typed)
        return typed if not re.search("#|::|^[@%$]", typed) else Path(typed)
    if isinstance(value, str) and "::" in value and not value.startswith(("$", "@")):
        raise ValueError(
            f"{name}: MONAI replaces '#' in a path by '::', which gave {value!r}. Give it on the command line, or a "
            "pathlib.Path, or choose a name without '#' and '::'."
        )
    return value


def typed_none(words: Words) -> list[str]:
    """Top-level options that were given as None, which MONAI drops.

    Args:
        words: of the command line.

    Returns:
        Names of the options.
    """
    return [name for name, value in words.options.items() if value in NONE and name in OPTIONS]
