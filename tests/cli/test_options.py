# SPDX-License-Identifier: Apache-2.0
"""The list of options, and words that reach the commands as they were typed."""

from __future__ import annotations

import json
from pathlib import Path

import fire
import pytest

from common.__main__ import COMMANDS
from common.cli.options import options
from common.runs.options import OPTIONS

BUNDLES = sorted(path.parents[1] for path in Path(__file__).parents[2].glob("bundles/*/configs/metadata.json"))


@pytest.mark.parametrize("stage, files", [("train", ["train"]), ("inference", ["inference"])])
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_option_of_a_run_is_listed(bundle: Path, stage: str, files: list[str]) -> None:
    lines = options(str(bundle), stage).splitlines()
    listed = {line.split()[0].removeprefix("--"): line for line in lines if line.startswith("--")}
    config = json.loads((bundle / "configs" / f"{files[0]}.json").read_text())
    stages = {stage} if stage == "train" else {stage, "fit"}
    expected = {key for key in config if key in OPTIONS and stages.intersection(OPTIONS[key].stages)}
    assert set(listed) == expected | {"condition", "debug"}
    assert all(OPTIONS[name].meaning in line for name, line in listed.items())


def test_an_evaluation_lists_its_command_defaults_and_types() -> None:
    text = options("adacs_acdc", "evaluate")
    assert text.startswith("python -m monai.bundle run evaluating --config_file")
    train, evaluate = text.splitlines()[0].partition("[")[2].partition("]")[0].replace("'", "").split(",")
    assert Path(train).is_file() and Path(evaluate).name == "evaluate.json"
    (line,) = [line for line in text.splitlines() if line.startswith("--instance_iterations")]
    assert " 0 " in line and "a whole number, 0 or more" in line
    assert "--epochs" not in text


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"stage: .*Did you mean 'evaluate'\?"):
        options("adacs_acdc", "evalute")
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'adacs_acdc'\?"):
        options("adacs_adc")


@pytest.mark.parametrize("typed", ["run#1", "2024", "1e5", "a,b"])
def test_paths_of_commands_are_as_typed(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=f"got '{typed}'"):
        fire.Fire(COMMANDS, command=["verify", typed])
    with pytest.raises(FileNotFoundError, match=f"got '{typed}'"):
        fire.Fire(COMMANDS, command=["pack", typed])
    with pytest.raises(FileNotFoundError, match=f"{typed.split(',')[0]}/metrics.csv"):
        fire.Fire(COMMANDS, command=["compare", f"a={typed}"])
    with pytest.raises(FileNotFoundError, match=f"got '{typed}'"):
        fire.Fire(COMMANDS, command=["eta", typed, "--etas", "[0, 0.5]"])
    with pytest.raises(ValueError, match=f"name: .*got '{typed}'"):
        fire.Fire(COMMANDS, command=["study", typed, "--output_dir", typed])
