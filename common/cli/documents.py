# SPDX-License-Identifier: Apache-2.0
"""A bundle's README as a packed bundle carries it, and the links and commands in it."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Collection, Mapping
from typing import Any

LINK = re.compile(r"(!?)\[([^\]\n]*)\]\(([^)\s]+)\)")
# How a README of the repository says where its commands run; the packed one says PACKED_PLACE instead.
PLACE = re.compile(r"From the root of the repository\b[^.\n]*\.")
PACKED_PLACE = "From this bundle's folder."
MONAI_OPTIONS = {"config_file", "meta_file", "logging_file", "args_file"}


def target_of(link: str, folder: str) -> str | None:
    """Where a relative link of a document leads, from the same root as ``folder``; None for a web page or heading.

    Args:
        link: as the document has it.
        folder: of the document.

    Returns:
        The path.
    """
    path = link.partition("#")[0]
    if not path or re.match(r"[a-z]+:", path):
        return None
    return posixpath.normpath(posixpath.join(folder, path))


def packed_readme(text: str, name: str, package: str) -> str:
    """The README of bundles/NAME with nothing that leads out of the packed bundle.

    Links out of the bundle become their text, with the file's place in the repository. Paths below ``bundles/NAME``
    become relative to the bundle's folder; ``python -m common`` names the packed package.

    Args:
        text: of docs/README.md in the repository.
        name: of the bundle.
        package: the packed package's name.

    Returns:
        The changed text.
    """
    root = f"bundles/{name}/"

    def link(found: re.Match[str]) -> str:
        target = target_of(found[3], f"{root}docs")
        if target is None or target.startswith(root):
            return found[0]
        return f"{found[2]} (`{target}` of the repository)"

    text = PLACE.sub(PACKED_PLACE, LINK.sub(link, text))
    return text.replace(root, "").replace("python -m common ", f"python -m {package} ")


def dead_links(text: str, files: Collection[str]) -> list[str]:
    """Links of docs/README.md that lead to no file of the packed bundle.

    Args:
        text: of the document.
        files: all packed paths, relative to the bundle's folder.

    Returns:
        The links.
    """
    links = [found[3] for found in LINK.finditer(text)]
    return [link for link in links if (target := target_of(link, "docs")) is not None and target not in files]


def bundle_commands(text: str) -> list[list[str]]:
    """Words of every ``monai.bundle run`` command in the bash blocks, from the run's id on.

    Args:
        text: of a document.

    Returns:
        A list of words a command.
    """
    blocks = re.findall(r"(?ms)^ *```bash\n(.*?)^ *```", text)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    starts = [(line, line.index("monai.bundle") + 2) for line in lines if "monai.bundle" in line and "run" in line]
    return [line[start:] for line, start in starts]


def wrong_commands(text: str, configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What keeps the commands of a packed README from running in the bundle's folder, a sentence each.

    Args:
        text: of the packed README.
        configs: parsed configurations by path inside the packed bundle.

    Returns:
        The sentences.
    """
    wrong = []
    for run_id, *words in bundle_commands(text):
        given = dict(zip(words[::2], words[1::2], strict=False))
        names = re.findall(r"[^\[\]',\s]+", given.get("--config_file", ""))
        absent = [name for name in names if name not in configs]
        if absent or not names:
            wrong.append(f"'{run_id}' reads {', '.join(absent) or 'no --config_file'}, which is not packed")
            continue
        keys = {key for name in names for key in configs[name]}
        options = {word.removeprefix("--").split("#")[0] for word in given}
        wrong += [f"'{run_id}' is no key of {', '.join(names)}"] if run_id not in keys else []
        wrong += [f"'{run_id}' is given --{option}, no key of its files" for option in options - keys - MONAI_OPTIONS]
    return wrong
