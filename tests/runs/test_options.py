# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from common.runs.options import KINDS, OPTIONS, checked, is_part, kind_of

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in ROOT.glob("bundles/*/configs/*.json") if path.name != "metadata.json")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_every_top_level_key_has_an_entry(path):
    content = {key.lstrip("+").split("#")[0]: value for key, value in json.loads(path.read_text()).items()}
    keys = {key for key, value in content.items() if not is_part(key, value)}
    assert not keys - set(OPTIONS), "add an Option to common/runs/options.py"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_every_default_is_of_its_own_kind(path):
    for key, value in json.loads(path.read_text()).items():
        if key in OPTIONS and not str(value).startswith(("$", "@")):
            assert kind_of(key, value) in KINDS
            assert checked(key, value, value) == value


@pytest.mark.parametrize(
    ("name", "value", "default", "message"),
    [
        ("epochs", "ten", 16, "epochs: expected a whole number, 1 or more, got 'ten'.*--epochs 16"),
        ("epochs", 0, 16, "epochs: expected a whole number, 1 or more, got 0"),
        ("epochs", 1.5, 16, "epochs: .*got 1.5"),
        ("epochs", True, 16, "epochs: .*got no value"),
        ("epochs", None, 16, "epochs: .*got None"),
        ("batch_size", "many", 8, "batch_size: expected a whole number"),
        ("val_interval", 0, 20, "val_interval: .*1 or more, got 0"),
        ("learning_rate", -1, 1e-4, "learning_rate: expected a number, 0 or more, got -1"),
        ("learning_rate", "nan", 1e-4, "learning_rate: expected a number"),
        ("spatial_size", 128, [128, 128], r"spatial_size: expected a list of whole numbers.*\(2 of them\)"),
        ("spatial_size", [64, 64, 64], [128, 128], r"spatial_size: .*2 of them.*got \[64, 64, 64\]"),
        ("spatial_size", [64, 0], [128, 128], "spatial_size"),
        ("amp", "maybe", False, "amp: expected true or false, got 'maybe'"),
        ("moving", True, None, "moving: expected a path, got no value"),
        ("output_dir", 123, "$x", "output_dir: expected a path, got 123"),
        ("crop_center", 3, "auto", "crop_center: expected a name, or a list of numbers"),
        ("labels", 3, {"a": 1}, "labels: expected a table"),
        ("architecture", 5, "icon", "architecture: expected a name, got 5"),
        ("device", 1, "$x", "device: expected a device like cpu"),
        ("score_initial", "low", 0.88, "score_initial: expected a number"),
        ("score_alpha", "aut", 0.02, "score_alpha: expected a number, or auto, above 0, got 'aut'.*--score_alpha 0.02"),
        ("score_alpha", 0, 0.02, "score_alpha: .*got 0"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_option_expectation_value_and_default(name, value, default, message):
    with pytest.raises(ValueError, match=message):
        checked(name, value, default)


@pytest.mark.parametrize(
    ("name", "value", "default", "expected"),
    [
        ("epochs", "10", 16, 10), ("epochs", 10.0, 16, 10), ("learning_rate", "1e-3", 1e-4, 1e-3),
        ("learning_rate", 0, 1e-4, 0.0),
        ("amp", "true", False, True), ("spatial_size", (64, 48), [128, 128], [64, 48]),
        ("spatial_size", "[64,48]", [128, 128], [64, 48]), ("score_initial", None, 0.88, None),
        ("count", 3, {"train": 2}, 3), ("count", {"train": 1}, {"train": 2}, {"train": 1}),
        ("crop_center", [60, 61.5], "auto", [60, 61.5]), ("pairs", None, None, None),
    ],
)  # fmt: skip
def test_text_becomes_the_type_of_the_default(name, value, default, expected):
    result = checked(name, value, default)
    assert result == expected and type(result) is type(expected)
