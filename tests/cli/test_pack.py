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

from common.cli.bundles import REPOSITORY
from common.cli.export import export_inference
from common.cli.pack import LARGE_FILES, LARGEST_COMMIT, collect, dump, pack, smoke_run
from common.cli.torchscript import build_network, clean_torchscript, write_zip
from common.networks.registry import build
from common.runs.package import PACKED_PACKAGE, rename_package

METADATA = json.loads((REPOSITORY / "bundles" / "baseline_acdc" / "configs" / "metadata.json").read_text())
ZIP = f"baseline_acdc_v{METADATA['version']}.zip"
IMPORT_ALL = """
import importlib, importlib.util, pkgutil, sys
spec = importlib.util.spec_from_file_location("smoke", sys.argv[1])
smoke = importlib.util.module_from_spec(spec)
spec.loader.exec_module(smoke)
sys.meta_path.insert(0, smoke.Blocked("common"))
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
    pack(str(bundle), output=str(tmp_path / "dist"), smoke="false")
    files = unzipped(tmp_path / "dist" / ZIP)
    said = capsys.readouterr().out
    assert "WITHOUT WEIGHTS: baseline_acdc has no models/model.pt" in said and "smoke-run" not in said
    assert all(name.startswith("baseline_acdc/") for name in files)
    assert not [
        name for name in files if name.startswith("baseline_acdc/runs/") or "hidden" in name or "__pycache__" in name
    ]
    assert not [name for name in files if "/models/" in name or "/tests/" in name]
    expected = {"LICENSE", "SHA256SUMS", "docs/README.md", "configs/logging.conf", "scripts/__init__.py"}
    assert {f"baseline_acdc/{name}" for name in expected | {"scripts/common/bundle.py"}} <= files.keys()
    assert json.loads(files["baseline_acdc/configs/metadata.json"])["weights"] == []
    train = json.loads(files["baseline_acdc/configs/train.json"])
    assert train["network_def"]["_target_"] == "scripts.common.engines.architectures.build"
    assert train["imports"][0] == "$import scripts.common.bundle as bundle"
    assert b"../../../" not in files["baseline_acdc/docs/README.md"]


def test_checksums_cover_every_file(bundle, tmp_path):
    pack(str(bundle), output=str(tmp_path), smoke=False)
    files = unzipped(tmp_path / ZIP)
    lines = files.pop("baseline_acdc/SHA256SUMS").decode().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert sums == {
        name.removeprefix("baseline_acdc/"): hashlib.sha256(content).hexdigest() for name, content in files.items()
    }


def test_packing_again_gives_the_same_bytes(bundle, tmp_path):
    pack(str(bundle), output=str(tmp_path / "first"), smoke=False)
    for path in bundle.rglob("*"):
        os.utime(path, (10**9, 10**9))
    (bundle / "LICENSE").chmod(0o600)
    pack(str(bundle), output=str(tmp_path / "second"), smoke=False)
    first, second = (tmp_path / name / ZIP for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_incomplete_or_unknown_bundles_are_refused(bundle, tmp_path):
    with pytest.raises(FileNotFoundError, match="Did you mean 'baseline_acdc'"):
        pack("baseline_acdcs", output=str(tmp_path), smoke=False)
    (bundle / "configs" / "inference.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"baseline_acdc has no configs/inference\.json"):
        pack(str(bundle), output=str(tmp_path), smoke=False)
    with pytest.raises(ValueError, match="smoke: expected true or false"):
        pack(str(bundle), output=str(tmp_path), smoke="perhaps")
    assert not list(tmp_path.glob("*.zip"))


def test_every_packed_module_imports_with_the_repository_blocked(bundle, tmp_path):
    pack(str(bundle), output=str(tmp_path), smoke=False)
    with zipfile.ZipFile(tmp_path / ZIP) as archive:
        archive.extractall(tmp_path / "unpacked")
    command = [sys.executable, "-c", IMPORT_ALL, str(REPOSITORY / "common" / "cli" / "smoke.py")]
    done = subprocess.run(command, cwd=tmp_path / "unpacked" / "baseline_acdc", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = list((REPOSITORY / "common").rglob("*.py"))
    assert int(done.stdout.split()[-1]) == len(modules) - 1  # a package counts by its __init__.py, the outermost not


@pytest.mark.parametrize("name", ["identity", "pairwise"])
def test_a_solver_is_refused(bundle, edit, tmp_path, name):
    edit(bundle / "configs" / "inference.json", lambda config: config.update(architecture=name))
    with pytest.raises(ValueError, match=f"packing needs a network with weights, and '{name}' is a solver"):
        collect(bundle)


def test_large_files_are_carried_or_named(bundle, tmp_path, capsys):
    with open(bundle / "docs" / "large.bin", "wb") as stream:
        stream.truncate(LARGEST_COMMIT + 1)
    pack(str(bundle), output=str(tmp_path), smoke=False)
    assert "over 1 MB: docs/large.bin; the model zoo takes them by link" in capsys.readouterr().out
    (bundle / LARGE_FILES).write_text('{"large_files": []}')
    pack(str(bundle), output=str(tmp_path), smoke=False)
    assert "over 1 MB" not in capsys.readouterr().out
    assert unzipped(tmp_path / ZIP)[f"baseline_acdc/{LARGE_FILES}"] == b'{"large_files": []}'


@pytest.mark.slow
def test_a_packed_bundle_that_cannot_run_fails_its_smoke_run(bundle, edit, tmp_path):
    def widen(metadata):
        metadata["network_data_format"]["outputs"]["pred"]["num_channels"] = 3

    edit(bundle / "configs" / "metadata.json", widen)
    with pytest.raises(RuntimeError, match=r"(?s)does not run by itself.*smoke-run failed:.*output channel number"):
        pack(str(bundle), output=str(tmp_path))


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
    pack(str(folder), output=str(tmp_path / "first"))
    assert "smoke-run ok, registered a pair" in capsys.readouterr().out
    assert os.environ["PYTHONHASHSEED"] == "1"
    pack(str(folder), output=str(tmp_path / "second"), smoke=False)
    first, second = (next((tmp_path / name).glob("*.zip")) for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    files = unzipped(first)
    extra = {"metadata.json": "", "inference.json": ""}
    exported = torch.jit.load(io.BytesIO(files[f"{name}/models/model.ts"]), _extra_files=extra)
    assert extra["metadata.json"] == files[f"{name}/configs/metadata.json"]
    assert extra["inference.json"] == dump(export_inference(folder))
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
    pack(str(bundle), output=str(tmp_path), smoke=False)
    with pytest.raises(RuntimeError, match=r"ran, but did not write warped\.nii\.gz, ddf\.nii\.gz"):
        smoke_run([tmp_path / ZIP])
