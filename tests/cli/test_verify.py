# SPDX-License-Identifier: Apache-2.0
import json
import logging
import re
from pathlib import Path

import fire
import pytest

from common.__main__ import COMMANDS
from common.cli import verify as module
from common.cli.bundles import find_bundles
from common.cli.verify import CHECKS, REQUIRED_FILES, requirements, verify, verify_bundle


def image_of(metadata):
    return metadata["network_data_format"]["inputs"]["image"]


def test_a_sound_bundle_passes_every_check(bundle, capsys):
    disabled = logging.root.manager.disable
    assert verify_bundle(bundle) == dict.fromkeys(CHECKS, "")
    assert logging.root.manager.disable == disabled


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_every_required_file_is_missed(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(ValueError, match=f"missing {name}"):
        CHECKS["files"](bundle)


def test_readme_without_a_section_fails(bundle):
    readme = bundle / "docs" / "README.md"
    readme.write_text(readme.read_text().replace("## Performance", "## Performances"))
    with pytest.raises(ValueError, match="lacks the sections Performance"):
        CHECKS["readme"](bundle)


def test_readme_must_say_that_there_are_no_weights(bundle):
    readme = bundle / "docs" / "README.md"
    readme.write_text(re.sub("(?i)no weights", "Weights", readme.read_text()))
    with pytest.raises(ValueError, match="no weights"):
        CHECKS["readme"](bundle)


def test_weights_and_metadata_must_agree(bundle, edit):
    metadata = bundle / "configs" / "metadata.json"
    edit(metadata, lambda config: config.update(weights=["model.pt", "score.pt"]))
    (bundle / "models" / "model.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"lacks score\.pt of metadata's weights"):
        CHECKS["weights"](bundle)
    edit(metadata, lambda config: config.update(weights=[]))
    with pytest.raises(ValueError, match=r"holds model\.pt, not listed"):
        CHECKS["weights"](bundle)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.pop("task"), "'task' is a required property"),
        (lambda m: m.pop("required_packages_version"), "'required_packages_version' is a required property"),
        (lambda m: m.update(version=1), r"\$\.version: 1 is not of type 'string'"),
        (lambda m: m.update(version="0.3.1"), r"no entry for version 0\.3\.1"),
        (lambda m: m["network_data_format"].pop("outputs"), "'outputs' is a required property"),
        (lambda m: image_of(m).pop("channel_def"), "'channel_def' is a required property"),
        (lambda m: image_of(m).update(num_channels=0), "num_channels: 0 is less than the minimum"),
        (lambda m: image_of(m).update(spatial_shape=["16*m", 16]), r"spatial_shape\[0\]"),
        (lambda m: image_of(m).update(dtype="float"), "dtype: 'float' is not one of"),
    ],
)
def test_metadata_outside_the_schema_fail(bundle, edit, change, reason):
    edit(bundle / "configs" / "metadata.json", change)
    with pytest.raises(ValueError, match=reason):
        CHECKS["metadata"](bundle)


def test_broken_json_is_named(bundle):
    (bundle / "configs" / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match=r"metadata\.json is no JSON"):
        CHECKS["metadata"](bundle)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.update(pytorch_version="2.5.1"), r"torch 2\.5\.1 is outside 'torch"),
        (lambda m: m.update(numpy_version="99.0"), r"numpy 99\.0 is outside"),
        (lambda m: m["required_packages_version"].pop("h5py"), r"required_packages_version lacks \['h5py'\]"),
        (lambda m: m["required_packages_version"].update(nibabel="4.0"), r"nibabel 4\.0 is outside"),
        (lambda m: m["required_packages_version"].update(simpleitk="2.0"), r"requires simpleitk 2\.0, setup\.cfg does"),
    ],
)
def test_versions_must_satisfy_setup_cfg(bundle, edit, change, reason):
    edit(bundle / "configs" / "metadata.json", change)
    with pytest.raises(ValueError, match=reason):
        CHECKS["versions"](bundle)


def test_requirements_are_read_by_normalised_name(tmp_path):
    (tmp_path / "setup.cfg").write_text("[options]\ninstall_requires =\n    A_b>=1,<2\n    torch>=2.6\n")
    found = requirements(tmp_path / "setup.cfg")
    assert list(found) == ["a-b", "torch"]
    assert "1.5" in found["a-b"].specifier and "2.0" not in found["a-b"].specifier
    with pytest.raises(FileNotFoundError, match=r"setup\.cfg: expected at"):
        requirements(tmp_path / "absent.cfg")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", "$common.bundle.root('x')"),
        ("_doc_", "python -m common verify"),
        ("imports", ["$import common"]),
        ("imports", ["$from common.bundle import root; import os"]),
        ("loss", {"_target_": "$common.losses.lncc.LNCC"}),
        ("common", 1),
    ],
)
def test_the_package_may_stand_only_where_packing_rewrites_it(bundle, edit, key, value):
    edit(bundle / "configs" / "evaluate.json", lambda config: config.update({key: value}))
    with pytest.raises(ValueError, match=r"evaluate\.json: 'common' in '.*common"):
        CHECKS["names"](bundle)


def test_words_that_only_contain_the_name_pass(bundle, edit):
    edit(bundle / "configs" / "evaluate.json", lambda config: config.update(note="uncommonly long", common_key=1))
    CHECKS["names"](bundle)


def test_train_json_of_101_lines_or_a_line_of_161_characters_fails(bundle):
    path = bundle / "configs" / "train.json"
    path.write_text("{\n" * 99 + "x" * 160)
    CHECKS["length"](bundle)
    path.write_text("{\n" * 100 + "}")
    with pytest.raises(ValueError, match="has 101 lines, at most 100"):
        CHECKS["length"](bundle)
    path.write_text("x" * 161)
    with pytest.raises(ValueError, match="a line of 161 characters, at most 160"):
        CHECKS["length"](bundle)


@pytest.mark.parametrize("name", ["configs/inference.json", "configs/logging.conf", "LICENSE"])
def test_what_templates_give_may_not_be_changed_by_hand(bundle, name):
    CHECKS["rendered"](bundle)
    (bundle / name).write_text((bundle / name).read_text() + "\n")
    with pytest.raises(ValueError, match=rf"{name}: not what the templates give.*common render baseline_acdc"):
        CHECKS["rendered"](bundle)


def test_network_def_must_be_the_same_in_both(bundle, edit):
    edit(bundle / "configs" / "inference.json", lambda config: config["network_def"].update(spatial_dims=3))
    with pytest.raises(ValueError, match="network_def differs"):
        CHECKS["copies"](bundle)


@pytest.mark.parametrize("name", ["multi_gpu_train.json", "official.json"])
@pytest.mark.parametrize("key", ["batch_sise", "train#trainer#max_epoch"])
def test_overlays_with_a_misspelt_key_fail(bundle, edit, name, key):
    (bundle / "configs" / "official.json").write_text('{"train#trainer#max_epochs": 3, "_doc_": "nested keys exist"}')
    CHECKS["copies"](bundle)
    edit(bundle / "configs" / name, lambda config: config.update({key: 3}))
    with pytest.raises(ValueError, match=f"{name} overrides '{key}', which train.json does not have"):
        CHECKS["copies"](bundle)


@pytest.mark.parametrize(("name", "key"), [("train.json", "dataset_dir"), ("inference.json", "evaluator")])
def test_a_property_that_monai_requires_is_missed(bundle, edit, name, key):
    edit(bundle / "configs" / name, lambda config: config.pop(key))
    assert key in verify_bundle(bundle)["properties"]


def test_an_output_of_another_form_fails(bundle, edit):
    edit(
        bundle / "configs" / "metadata.json",
        lambda config: config["network_data_format"]["outputs"]["pred"].update(num_channels=3),
    )
    with pytest.raises(ValueError, match="output channel number"):
        CHECKS["network"](bundle)


def test_command_prints_a_line_a_check_and_exits_with_one(bundle, capsys):
    (bundle / "models" / "model_extra.pt").touch()
    with pytest.raises(SystemExit) as stopped:
        verify(str(bundle))
    lines = capsys.readouterr().out.splitlines()
    assert stopped.value.code == 1
    assert lines[0] == bundle.name
    expected = [f"  {'FAILED' if name == 'weights' else 'ok'}: {name}" for name in CHECKS]
    assert [line.partition(" - ")[0] for line in lines[1:-1]] == expected
    assert "models/ holds model_extra.pt, not listed" in lines[1 + list(CHECKS).index("weights")]
    assert lines[-1] == "1 check failed."


def test_bundles_are_found_by_path_and_by_name(bundle):
    repository = Path(module.__file__).resolve().parents[2]
    every = sorted(path.parent.parent for path in repository.glob("bundles/*/configs/metadata.json"))
    assert len(every) >= 2
    assert find_bundles() == every
    assert find_bundles((str(bundle), "adacs_acdc")) == [bundle, repository / "bundles" / "adacs_acdc"]
    with pytest.raises(FileNotFoundError, match=r"got 'adacs_acd'\. Did you mean 'adacs_acdc'"):
        find_bundles(("adacs_acd",))


def test_shipped_metadata_satisfy_the_schema_and_setup_cfg():
    for folder in find_bundles():
        CHECKS["metadata"](folder)
        CHECKS["versions"](folder)
        image = image_of(json.loads((folder / "configs" / "metadata.json").read_text()))
        assert image["channel_def"] == {"0": "moving", "1": "fixed"}


def test_verify_is_a_command(bundle, capsys):
    fire.Fire(COMMANDS, command=["verify", str(bundle)])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [bundle.name] + [f"  ok: {name}" for name in CHECKS]
