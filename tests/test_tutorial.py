# SPDX-License-Identifier: Apache-2.0
"""The tutorial, run from its first line to its last in an empty folder."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import fire
import pytest

from common.__main__ import COMMANDS
from common.io.images import load_image, load_label

TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"


def blocks() -> list[tuple[str, str]]:
    """Language and content of every block of code, in their order."""
    return re.findall(r"(?ms)^```(\w+)\n(.*?)^```", TUTORIAL.read_text(encoding="utf-8"))


def test_every_command_does_what_the_text_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("SimpleITK")
    monkeypatch.chdir(tmp_path)
    ran = 0
    for language, content in blocks():
        if language == "python":
            exec(compile(content, "tutorial", "exec"), {})
            continue
        for line in content.splitlines():
            words = shlex.split(line)
            assert words[:3] == ["python", "-m", "common"]
            fire.Fire(COMMANDS, command=words[3:], name="common")
            ran += 1
    assert ran == 7
    for folder in ("registered", "quick", "checked", "many/there", "many/back"):
        similarity = json.loads((tmp_path / folder / "metrics.json").read_text())["similarity"]
        assert similarity["after"]["ncc"] > similarity["before"]["ncc"]
    dice = json.loads((tmp_path / "checked" / "metrics.json").read_text())["dice"]
    assert dice["after"]["mean"] > dice["before"]["mean"] + 0.05
    carried, expected = (load_label(tmp_path / name).array for name in
                         ("carried_label.nii.gz", "checked/warped_label.nii.gz"))  # fmt: skip
    assert float((carried == expected).float().mean()) > 0.999
    ours, theirs = (load_image(tmp_path / name).array for name in ("checked/warped.nii.gz", "by_simpleitk.nii.gz"))
    spread = float(ours.max() - ours.min())
    assert float((ours - theirs)[3:-3, 3:-3, 3:-3].abs().mean()) < 0.005 * spread
    assert (tmp_path / "backwards" / "forward.h5").is_file() and not (tmp_path / "many" / "errors.csv").exists()
