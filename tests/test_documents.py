# SPDX-License-Identifier: Apache-2.0
"""The documents keep what they promise: links, commands, options, versions."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from common.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = sorted(path.parents[1] for path in ROOT.glob("bundles/*/configs/metadata.json"))
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *(bundle / "docs" / "README.md" for bundle in BUNDLES)]
)
# options of MONAI's own command line
MONAI_OPTIONS = {"config_file", "meta_file", "logging_file"}
MONAI_DOWNLOAD_OPTIONS = {"name", "url", "bundle_dir"}
SECTIONS = ["Overview", "Data", "Training configuration", "Performance", "Commands", "References", "License"]
TOP_LEVEL = {"bundles", "common", "tests", "docs", "setup.cfg", "README.md", "LICENSE", "CHANGELOG.md",
             "CONTRIBUTING.md", "pyproject.toml"}  # fmt: skip
TEXT_SUFFIXES = {".py", ".md", ".json", ".cfg", ".toml", ".yaml", ".yml", ".txt", ".conf", ""}
# spelt in parts, so that this file does not hold them
PRIVATE = re.compile("|".join([r"(?<![\w.}])/(?:" + "work|root|home|Users" + r")/\w", r"\." + "library/"]))


def tracked() -> list[Path]:
    """Files that git tracks: outputs of the README's commands may lie beside them."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [file for file in files if file.is_file()]


def fenced(text: str, language: str) -> list[str]:
    """Contents of the fenced code blocks of a language, dedented."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(rf"(?m)^{indent}", "", block) for indent, block in blocks]


def prose(text: str) -> str:
    """The text without its code, where brackets are not links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"(?ms)^ *```.*?^ *```", "", text))


def commands(text: str) -> list[list[str]]:
    """Every single command of the bash blocks, split into words."""
    lines = [line for block in fenced(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    found: list[list[str]] = []
    for line in words:
        start = 0
        for position in [*(i for i, word in enumerate(line) if word == "&&"), len(line)]:
            found.append(line[start:position])
            start = position + 1
    return [command for command in found if command]


def options(words: list[str]) -> dict[str, str]:
    """``--name value`` and ``--name=value`` of a command."""
    given = {}
    for position, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = words[position + 1] if position + 1 < len(words) else ""
            given[name] = value if equals else following
    return given


def anchors(text: str) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ +(.+?) *$", re.sub(r"(?ms)^ *```.*?^ *```", "", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


BUNDLE_COMMANDS = [
    (document, command)
    for document in DOCUMENTS
    for command in commands(document.read_text(encoding="utf-8"))
    if "monai.bundle" in command
]
COMMON_COMMANDS = [
    (document, command[command.index("common") + 1])
    for document in DOCUMENTS
    for command in commands(document.read_text(encoding="utf-8"))
    if command[:3] == ["python", "-m", "common"]
]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_documents_hold_commands_to_check() -> None:
    assert len(BUNDLES) == 25
    assert len(DOCUMENTS) == 13 + len(BUNDLES)
    assert {name(document) for document, _ in BUNDLE_COMMANDS} >= {
        "README.md", *(name(bundle / "docs" / "README.md") for bundle in BUNDLES)
    }  # fmt: skip


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document.read_text(encoding="utf-8"))):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{name(document)} links to {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{name(document)}: no heading for {target}"


@pytest.mark.parametrize(
    "document, command", BUNDLE_COMMANDS, ids=[f"{name(d)}-{i}" for i, (d, _) in enumerate(BUNDLE_COMMANDS)]
)
def test_every_option_of_a_bundle_command_is_known(document: Path, command: list[str]) -> None:
    verb, *words = command[command.index("monai.bundle") + 1 :]
    given = options(words)
    if verb == "download":
        assert set(given) <= MONAI_DOWNLOAD_OPTIONS
        return
    assert verb == "run"
    # a downloaded bundle runs from its own folder
    files = [ROOT / file if file.startswith(("bundles/", "common/")) else ROOT / "bundles" / "adacs_acdc" / file
             for file in given["config_file"].strip("[]").replace("'", "").split(",")]  # fmt: skip
    missing = [name(file) for file in files if not file.is_file()]
    assert not missing
    keys = {key.split("#")[0] for file in files for key in json.loads(file.read_text(encoding="utf-8"))}
    assert words[0] in keys, f"{name(document)}: no run id {words[0]}"
    unknown = {option.split("#")[0] for option in given} - keys - MONAI_OPTIONS
    assert not unknown, f"{name(document)}: {unknown} in none of {[name(file) for file in files]}"


@pytest.mark.parametrize("bundle", BUNDLES, ids=name)
def test_options_named_in_the_text_are_keys(bundle: Path) -> None:
    keys = {key for config in bundle.glob("configs/*.json") for key in json.loads(config.read_text(encoding="utf-8"))}
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    named = {option for code in re.findall(r"`([^`\n]+)`", text) for option in re.findall(r"--(\w+)", code)}
    assert named
    assert named <= keys


@pytest.mark.parametrize("document, command", COMMON_COMMANDS, ids=lambda value: getattr(value, "name", value))
def test_every_command_of_common_exists(document: Path, command: str) -> None:
    assert command in COMMANDS


@pytest.mark.parametrize("bundle", BUNDLES, ids=name)
def test_every_bundle_stands_in_the_table_of_the_readme(bundle: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    row = rf"(?m)^\| \[{bundle.name}\]\(bundles/{bundle.name}/docs/README\.md\) \|"
    assert len(re.findall(row, text)) == 1


@pytest.mark.parametrize("bundle", BUNDLES, ids=name)
def test_bundle_documents_have_the_sections_of_the_model_zoo(bundle: Path) -> None:
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^## (.+)$", text) == SECTIONS


def test_every_bundle_folder_has_metadata() -> None:
    assert [path for path in sorted((ROOT / "bundles").iterdir()) if path.is_dir()] == BUNDLES


def test_nothing_private_is_named() -> None:
    found = [
        f"{name(path)}: {match.group()}"
        for path in tracked()
        if path.suffix in TEXT_SUFFIXES
        for match in PRIVATE.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found


@pytest.mark.parametrize(
    "text", ["see /" + "work/main", "'/" + "root/x'", "(/" + "home/me/data)", "a ." + "library/search"]
)
def test_private_paths_are_recognised(text: str) -> None:
    assert PRIVATE.search(text)


def test_the_top_level_holds_only_what_the_layout_names() -> None:
    parts = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert {part for part in parts if not part.startswith(".")} <= TOP_LEVEL


def test_the_version_is_that_of_the_changelogs_top_entry() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    entries = re.findall(r"(?m)^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert entries[0] == setup["metadata"]["version"]


def test_the_python_example_of_the_readme_registers_a_pair(tmp_path: Path) -> None:
    (example,) = fenced((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    assert len([line for line in example.splitlines() if line]) <= 10
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    measured = """
before, after = ((image.array - load_image(fixed).array).square().mean() for image in (load_image(moving), warped))
assert after < 0.6 * before, (before, after)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", example + measured]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "registered" / "warped.nii.gz").is_file()


def test_ci_ends_with_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    last = script.read_text(encoding="utf-8").rstrip().splitlines()[-1].removeprefix("step ")
    assert last == "python -m pytest -n 2"
    readme = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    installs = [command for command in readme if command[:2] == ["pip", "install"]]
    assert shlex.split(last) in readme
    assert ["pip", "install", "-e", ".[test]"] in installs
