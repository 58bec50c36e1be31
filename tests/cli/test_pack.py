# SPDX-License-Identifier: Apache-2.0
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from common.cli.bundles import REPOSITORY, rename_package
from common.cli.pack import BLOCKER, PACKED_PACKAGE, clean_torchscript, pack, smoke_run, write_zip
from common.cli.verify import build_network
from common.networks.registry import build

IMPORT_ALL = """
import importlib, pkgutil
try:
    importlib.import_module("common")
except ModuleNotFoundError as error:
    assert "blocked" in str(error), error
else:
    raise SystemExit("the repository's package is not blocked")
import scripts.common
names = [found.name for found in pkgutil.walk_packages(scripts.common.__path__, "scripts.common.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def unzipped(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"_target_": "common.data.acdc.Pairs"}, {"_target_": "scripts.common.data.acdc.Pairs"}),
        ({"a#_target_": "common.x.Y"}, {"a#_target_": "scripts.common.x.Y"}),
        ({"imports": ["$import common.bundle as bundle"]}, {"imports": ["$import scripts.common.bundle as bundle"]}),
        (["$from common.bundle import root"], ["$from scripts.common.bundle import root"]),
        ([{"a": [{"_target_": "common.x.Y"}]}], [{"a": [{"_target_": "scripts.common.x.Y"}]}]),
        ({"_target_": "commonplace.x.Y"}, {"_target_": "commonplace.x.Y"}),
        ({"name": "common.x.Y"}, {"name": "common.x.Y"}),
        (["$common.x(1)", 3, None, True], ["$common.x(1)", 3, None, True]),
    ],
)
def test_rename_package_touches_the_anchored_forms_only(config, expected):
    before = json.dumps(config)
    assert rename_package(config, PACKED_PACKAGE) == expected
    assert json.dumps(config) == before


def test_same_content_gives_the_same_zip_whatever_the_order():
    first, second = io.BytesIO(), io.BytesIO()
    write_zip(first, {"b/c": b"1", "a": b"2" * 1000}, zipfile.ZIP_DEFLATED)
    write_zip(second, {"a": b"2" * 1000, "b/c": b"1"}, zipfile.ZIP_DEFLATED)
    assert first.getvalue() == second.getvalue()
    for entry in zipfile.ZipFile(first).infolist():
        assert (entry.date_time, entry.external_attr >> 16, entry.create_system) == ((1980, 1, 1, 0, 0, 0), 0o100644, 3)


def test_clean_torchscript_drops_paths_and_still_returns_the_same(tmp_path):
    network = build("voxelmorph", 2).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    torch.jit.save(torch.jit.script(network), str(tmp_path / "model.ts"), _extra_files={"metadata.json": b"old"})
    content = (tmp_path / "model.ts").read_bytes()
    assert any(name.endswith(".debug_pkl") for name in zipfile.ZipFile(io.BytesIO(content)).namelist())
    (tmp_path / "clean.ts").write_bytes(clean_torchscript(content, {"metadata.json": b"new"}))
    assert not any(name.endswith(".debug_pkl") for name in zipfile.ZipFile(tmp_path / "clean.ts").namelist())
    extra = {"metadata.json": ""}
    image = torch.rand(1, 2, 33, 47, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = network(image), torch.jit.load(str(tmp_path / "clean.ts"), _extra_files=extra)(image)
    assert extra["metadata.json"] == b"new"
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_pack_without_weights(bundle, edit, tmp_path, capsys):
    edit(bundle / "configs" / "metadata.json", lambda config: config.update(weights=["model.pt"]))
    (bundle / "runs").mkdir()
    (bundle / "runs" / "last.pt").write_bytes(b"x")
    (bundle / "docs" / ".hidden").write_text("x")
    pack(str(bundle), str(tmp_path / "dist"), smoke="false")
    files = unzipped(tmp_path / "dist" / "made_up_v0.3.0.zip")
    said = capsys.readouterr().out
    assert "WITHOUT WEIGHTS: made_up has no models/model.pt" in said and "smoke-run" not in said
    assert all(name.startswith("made_up/") for name in files)
    assert not [name for name in files if name.startswith("made_up/runs/") or "hidden" in name or "__pycache__" in name]
    assert not [name for name in files if "/models/" in name or "/tests/" in name]
    expected = {"LICENSE", "SHA256SUMS", "docs/README.md", "configs/logging.conf", "scripts/__init__.py"}
    assert {f"made_up/{name}" for name in expected | {"scripts/common/bundle.py"}} <= files.keys()
    assert json.loads(files["made_up/configs/metadata.json"])["weights"] == []
    train = json.loads(files["made_up/configs/train.json"])
    assert train["network_def"]["_target_"] == "scripts.common.networks.registry.build"
    assert train["imports"] == ["$import scripts.common.bundle as bundle"]


def test_checksums_cover_every_file(bundle, tmp_path):
    pack(str(bundle), str(tmp_path), smoke=False)
    files = unzipped(tmp_path / "made_up_v0.3.0.zip")
    lines = files.pop("made_up/SHA256SUMS").decode().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert sums == {
        name.removeprefix("made_up/"): hashlib.sha256(content).hexdigest() for name, content in files.items()
    }


def test_packing_again_gives_the_same_bytes(bundle, tmp_path):
    pack(str(bundle), str(tmp_path / "first"), smoke=False)
    for path in bundle.rglob("*"):
        os.utime(path, (10**9, 10**9))
    (bundle / "LICENSE").chmod(0o600)
    pack(str(bundle), str(tmp_path / "second"), smoke=False)
    first, second = (tmp_path / name / "made_up_v0.3.0.zip" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_incomplete_or_unknown_bundles_are_refused(bundle, tmp_path):
    with pytest.raises(FileNotFoundError, match="Did you mean 'baseline_acdc'"):
        pack("baseline_acdcs", str(tmp_path), smoke=False)
    (bundle / "configs" / "inference.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"made_up has no configs/inference\.json"):
        pack(str(bundle), str(tmp_path), smoke=False)
    with pytest.raises(ValueError, match="smoke must be true or false"):
        pack(str(bundle), str(tmp_path), smoke="perhaps")
    assert not list(tmp_path.glob("*.zip"))


def test_every_packed_module_imports_with_the_repository_blocked(bundle, tmp_path):
    pack(str(bundle), str(tmp_path), smoke=False)
    with zipfile.ZipFile(tmp_path / "made_up_v0.3.0.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=tmp_path / "unpacked" / "made_up", capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    modules = list((REPOSITORY / "common").rglob("*.py"))
    assert int(done.stdout.split()[-1]) == len(modules) - 1  # a package counts by its __init__.py, the outermost not


@pytest.mark.slow
def test_a_packed_bundle_that_cannot_run_fails_its_smoke_run(bundle, edit, tmp_path):
    for name in ("train.json", "inference.json"):
        edit(bundle / "configs" / name, lambda config: config["network_def"].update(name="voxelmorphs"))
    with pytest.raises(RuntimeError, match=r"(?s)verify_net_in_out.*failed:.*Did you mean 'voxelmorph'"):
        pack(str(bundle), str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adacs_acdc", "baseline_acdc", "gradicon_hippocampus", "gradicon_triangles"])
def test_a_bundle_with_weights_packs_reproducibly_and_runs_elsewhere(name, tmp_path, monkeypatch, capsys):
    folder = tmp_path / name
    for part in ("configs", "docs"):
        shutil.copytree(REPOSITORY / "bundles" / name / part, folder / part)
    shutil.copy(REPOSITORY / "bundles" / name / "LICENSE", folder)
    (folder / "models").mkdir()
    network = build_network(folder)  # random weights, as there are none yet
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    pack(str(folder), str(tmp_path / "first"))
    assert "smoke-run: ok, downloaded and registered a pair" in capsys.readouterr().out
    monkeypatch.setenv("PYTHONHASHSEED", "2")
    pack(str(folder), str(tmp_path / "second"), smoke=False)
    first, second = (next((tmp_path / name).glob("*.zip")) for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    files = unzipped(first)
    extra = {"metadata.json": "", "inference.json": ""}
    exported = torch.jit.load(io.BytesIO(files[f"{name}/models/model.ts"]), _extra_files=extra)
    assert {key: extra[key] for key in extra} == {key: files[f"{name}/configs/{key}"] for key in extra}
    dims = len(json.loads(extra["metadata.json"])["network_data_format"]["inputs"]["image"]["spatial_shape"])
    image = torch.rand(1, 2, *(33, 47, 21)[:dims], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(exported(image), network(image), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_smoke_run_without_outputs_fails(bundle, edit, tmp_path):
    torch.save(build("voxelmorph", 2).state_dict(), bundle / "models" / "model.pt")
    keys = {"moving": None, "fixed": None, "output_dir": None, "inferring": ["$print('nothing written')"]}
    edit(bundle / "configs" / "inference.json", lambda config: config.update(keys))
    (bundle / "configs" / "logging.conf").unlink()
    pack(str(bundle), str(tmp_path), smoke=False)
    with pytest.raises(RuntimeError, match=r"ran, but did not write warped\.nii\.gz, ddf\.nii\.gz"):
        smoke_run(tmp_path / "made_up_v0.3.0.zip", "made_up")
