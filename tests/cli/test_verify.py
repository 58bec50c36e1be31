# SPDX-License-Identifier: Apache-2.0
import json
import logging
from pathlib import Path

import fire
import pytest
import torch
from torch import nn

from common.__main__ import COMMANDS
from common.cli import verify as module
from common.cli.bundles import find_bundles
from common.cli.verify import CHECKS, LARGEST_BYTES, REQUIRED_FILES, requirements, verify, verify_bundle


def image_of(metadata):
    return metadata["network_data_format"]["inputs"]["image"]


def test_a_sound_bundle_passes_every_check(bundle, capsys):
    disabled = logging.root.manager.disable
    assert verify_bundle(bundle) == dict.fromkeys(CHECKS, "")
    assert logging.root.manager.disable == disabled
    assert len(CHECKS) == 11


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_every_required_file_is_missed(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(ValueError, match=f"missing {name}"):
        CHECKS["files"](bundle)


@pytest.mark.parametrize(("folder", "refused"), [("models", True), ("runs", False)])
def test_large_files_are_refused_outside_runs(bundle, folder, refused):
    (bundle / folder).mkdir(exist_ok=True)
    with open(bundle / folder / "large.bin", "wb") as stream:
        stream.truncate(LARGEST_BYTES + 1)
    if refused:
        with pytest.raises(ValueError, match=r"larger than 25 MB: large\.bin"):
            CHECKS["files"](bundle)
    else:
        CHECKS["files"](bundle)


def test_readme_without_a_section_fails(bundle):
    readme = bundle / "docs" / "README.md"
    readme.write_text(readme.read_text().replace("## Performance", "## Performances"))
    with pytest.raises(ValueError, match="lacks the sections Performance"):
        CHECKS["readme"](bundle)


def test_readme_must_say_that_there_are_no_weights(bundle):
    readme = bundle / "docs" / "README.md"
    readme.write_text(readme.read_text().replace("No weights", "Weights"))
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


def test_train_json_of_141_lines_fails(bundle):
    path = bundle / "configs" / "train.json"
    text = path.read_text().strip()
    path.write_text(text + "\n" * 140)
    CHECKS["length"](bundle)
    path.write_text(text + "\n" * 141)
    with pytest.raises(ValueError, match="has 141 lines, at most 140"):
        CHECKS["length"](bundle)


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


class DriftingScript(nn.Module):
    """Returns something else once it is scripted."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + 1e-4 if torch.jit.is_scripting() else image


def test_an_export_that_drifts_fails(bundle, monkeypatch):
    monkeypatch.setattr(module, "build_network", lambda bundle: DriftingScript())
    with pytest.raises(ValueError, match="TorchScript's ddf differs by 0.0001 voxels"):
        CHECKS["torchscript"](bundle)


def test_an_untrained_network_is_checked_on_a_visible_displacement(bundle):
    network = module.build_network(bundle)
    with torch.no_grad():
        ddf = network(torch.rand(1, 2, 33, 47, generator=torch.Generator().manual_seed(1)))
    assert ddf.shape == (1, 2, 33, 47)
    assert ddf.abs().max() > 1e-2


def test_command_prints_a_line_a_check_and_exits_with_one(bundle, capsys):
    (bundle / "LICENSE").unlink()
    with pytest.raises(SystemExit) as stopped:
        verify(str(bundle))
    lines = capsys.readouterr().out.splitlines()
    assert stopped.value.code == 1
    assert lines[0] == "made_up"
    assert lines[1].startswith("  FAILED: files - missing LICENSE. Add")
    assert lines[2 : len(CHECKS) + 1] == [f"  ok: {name}" for name in CHECKS if name != "files"]
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
    assert lines == ["made_up"] + [f"  ok: {name}" for name in CHECKS]
