# SPDX-License-Identifier: Apache-2.0
"""``python -m common pack bundles/NAME``: one zip that MONAI downloads and runs without this repository."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..atomic import atomic_path
from ..bundle import switch
from .bundles import PACKAGE, configurations, find_bundles, read_json, rename_package

PACKED_PACKAGE = "scripts.common"
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold
OUTPUTS = ("warped.nii.gz", "ddf.nii.gz", "jacobian.nii.gz", "registration.png")
BLOCKER = '''import sys


class Blocked:
    """Refuses the repository's package, however it is installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "common":
            raise ModuleNotFoundError(f"No module named {name!r}: blocked, a packed bundle must not need it", name=name)


sys.meta_path.insert(0, Blocked())
'''


def write_zip(stream: Any, files: Mapping[str, bytes], compression: int) -> None:
    """Write files in the order of their names, with fixed times and permissions: same content, same bytes.

    Args:
        stream: a path or a binary stream.
        files: content by name inside the archive.
        compression: ``zipfile.ZIP_STORED`` or ``zipfile.ZIP_DEFLATED``.
    """
    with zipfile.ZipFile(stream, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, ZIP_TIME)
            entry.create_system = 3  # Unix, also where it is packed on Windows
            entry.external_attr = 0o100644 << 16
            entry.compress_type = compression
            archive.writestr(entry, files[name])


def dump(config: Any) -> bytes:
    """JSON as it is written into a packed bundle."""
    return (json.dumps(config, indent=4, ensure_ascii=False) + "\n").encode()


def clean_torchscript(content: bytes, extra: Mapping[str, bytes]) -> bytes:
    """A TorchScript archive without its debug records, which hold paths of this machine, and with other extra files.

    Args:
        content: of the .ts file.
        extra: replaces files of the archive's extra folder.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".debug_pkl")}
    top = next(iter(files)).partition("/")[0]
    files |= {f"{top}/extra/{name}": text for name, text in extra.items()}
    stream = io.BytesIO()
    write_zip(stream, files, zipfile.ZIP_STORED)  # torch reads stored records only
    return stream.getvalue()


def run(arguments: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    """Run a Python command of MONAI in its own process.

    Raises:
        RuntimeError: with the end of its output, where it fails.
    """
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"'python -m {' '.join(arguments)}' failed:\n{(done.stdout + done.stderr)[-3000:]}")


def export_torchscript(bundle: Path, extra: Mapping[str, bytes]) -> bytes:
    """The bundle's network with its weights, exported by MONAI's ``ckpt_export``.

    In a process of its own with a fixed hash seed: TorchScript numbers its classes by what was compiled before.

    Args:
        bundle: its folder in the repository.
        extra: the packed metadata.json and inference.json, to be embedded.
    """
    configs = bundle / "configs"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model.ts"
        arguments = ["monai.bundle", "ckpt_export", "--net_id", "network_def", "--filepath", str(target)]
        arguments += ["--ckpt_file", str(bundle / "models" / "model.pt"), "--meta_file", str(configs / "metadata.json")]
        arguments += ["--config_file", str(configs / "inference.json"), "--bundle_root", str(bundle)]
        repository = str(Path(__file__).resolve().parents[2])
        run(arguments, Path(folder), {"PYTHONHASHSEED": "0", "PYTHONPATH": repository})
        return clean_torchscript(target.read_bytes(), extra)


def _tree(folder: Path, pattern: str = "**/*") -> Iterable[Path]:
    for path in sorted(folder.glob(pattern)):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
            yield path


def collect(bundle: Path) -> dict[str, bytes]:
    """Everything of the packed bundle by its path inside it, the checksums last.

    The metadata's ``weights`` become those that are there.
    """
    metadata = read_json(bundle / "configs" / "metadata.json")
    weights = [path.name for path in _tree(bundle / "models", "*.pt")]
    configs = configurations(bundle) | {"metadata.json": metadata | {"weights": weights}}
    if "inference.json" not in configs:
        raise FileNotFoundError(f"{bundle.name} has no configs/inference.json, which a packed bundle runs. Write it.")
    packed = {name: dump(rename_package(config, PACKED_PACKAGE)) for name, config in configs.items()}
    files = {f"configs/{name}": text for name, text in packed.items()}
    for folder in ("configs", "docs"):
        for path in _tree(bundle / folder):
            files.setdefault(path.relative_to(bundle).as_posix(), path.read_bytes())
    files["LICENSE"] = (bundle / "LICENSE").read_bytes()
    files |= {f"models/{name}": (bundle / "models" / name).read_bytes() for name in weights}
    if "model.pt" in weights:
        extra = {name: packed[name] for name in ("metadata.json", "inference.json")}
        files["models/model.ts"] = export_torchscript(bundle, extra)
    package = Path(__file__).resolve().parents[1]
    vendored = PACKED_PACKAGE.replace(".", "/")
    files["scripts/__init__.py"] = b""
    files |= {f"{vendored}/{path.relative_to(package).as_posix()}": path.read_bytes() for path in _tree(package)}
    sums = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return files | {"SHA256SUMS": "".join(sums).encode()}


def _write_pair(folder: Path, spatial_dims: int) -> None:
    """A bright ball, off centre in the fixed image, as moving.nii.gz and fixed.nii.gz."""
    shape = (96, 80, 48)[:spatial_dims]
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    for name, shift in (("moving", 0.0), ("fixed", 3.0)):
        centre = np.array([n / 2 + shift for n in shape]).reshape(-1, *[1] * spatial_dims)
        image = np.exp(-(((grid - centre) / 12.0) ** 2).sum(0)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.diag([1.5, 1.5, 1.5, 1.0])), folder / f"{name}.nii.gz")


def smoke_run(archive: Path, name: str) -> None:
    """Download the packed bundle into an empty folder and use it there, with the repository's package blocked.

    With weights it registers a small synthetic pair; without, its network is built and run on a random image.

    Args:
        archive: the zip.
        name: of the bundle.

    Raises:
        RuntimeError: where a command fails or an output is missing.
    """
    with tempfile.TemporaryDirectory() as temporary:
        work, blocker = Path(temporary) / "work", Path(temporary) / "blocker"
        work.mkdir()
        blocker.mkdir()
        (blocker / "sitecustomize.py").write_text(BLOCKER)
        environment = {"PYTHONPATH": str(blocker)}
        url = archive.resolve().as_uri()
        run(["monai.bundle", "download", "--name", name, "--url", url, "--bundle_dir", "."], work, environment)
        configs = work / name / "configs"
        if not (work / name / "models" / "model.pt").is_file():
            arguments = ["monai.bundle", "verify_net_in_out", "network_def", "--device", "cpu"]
            arguments += ["--meta_file", str(configs / "metadata.json")]
            arguments += ["--config_file", str(configs / "inference.json")]
            run(arguments, work / name, environment)
            return
        metadata = read_json(configs / "metadata.json")
        _write_pair(work, len(metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]))
        arguments = ["monai.bundle", "run", "inferring", "--config_file", f"{name}/configs/inference.json"]
        arguments += ["--moving", "moving.nii.gz", "--fixed", "fixed.nii.gz", "--output_dir", "out", "--device", "cpu"]
        run(arguments, work, environment)
        missing = [file for file in OUTPUTS if not (work / "out" / file).is_file()]
        if missing:
            raise RuntimeError(f"the packed {name} ran, but did not write {', '.join(missing)}: see inference.json.")


def pack(bundle: str, output: str = "dist", smoke: bool = True) -> None:
    """Write ``NAME_v<version>.zip``: configurations, documents, weights, TorchScript, the code as ``scripts/common``.

    The same sources, weights and versions of torch and Python give the same bytes. ``SHA256SUMS`` inside lists every
    file (``sha256sum -c SHA256SUMS``).

    Args:
        bundle: path or name of one bundle.
        output: folder for the zip.
        smoke: try the zip in an empty folder, without this repository.

    Raises:
        FileNotFoundError: for an unknown or incomplete bundle.
        RuntimeError: where the export or the smoke-run fails.
    """
    smoke = switch(smoke, "smoke")
    (folder,) = find_bundles((str(bundle),))
    files = collect(folder)
    metadata = json.loads(files["configs/metadata.json"])
    target = Path(output) / f"{folder.name}_v{metadata['version']}.zip"
    with atomic_path(target) as temporary:
        write_zip(temporary, {f"{folder.name}/{name}": text for name, text in files.items()}, zipfile.ZIP_DEFLATED)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    print(f"{target}: {len(files)} files, {target.stat().st_size / 2**20:.2f} MB, sha256 {digest}")
    if "model.pt" in metadata["weights"]:
        print(f"with weights: {', '.join(metadata['weights'])}, and model.ts")
    else:
        print(f"WITHOUT WEIGHTS: {folder.name} has no models/model.pt; train it before it can register.")
    if smoke:
        smoke_run(target, folder.name)
        done = "registered a pair" if "model.pt" in metadata["weights"] else "built the network"
        print(f"smoke-run: ok, downloaded and {done} with the repository's '{PACKAGE}' blocked")
