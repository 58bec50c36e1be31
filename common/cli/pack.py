# SPDX-License-Identifier: Apache-2.0
"""``python -m common pack bundles/*``: one zip a bundle, which MONAI downloads and runs without this repository."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ..atomic import atomic_path
from ..bundle import switch
from ..engines.solvers import refuse_solver
from ..runs.package import PACKAGE, PACKED_PACKAGE, rename_package
from .bundles import configurations, find_bundles, read_json
from .documents import packed_readme
from .export import export_inference
from .torchscript import build_network, export_torchscript, write_zip

LARGE_FILES = "large_files.json"
LARGEST_COMMIT = 2**20  # bytes of a file that the model zoo's own check takes into a commit


def dump(config: Any) -> bytes:
    """JSON as it is written into a packed bundle.

    Args:
        config: parsed JSON.

    Returns:
        Its text in UTF-8.
    """
    return (json.dumps(config, indent=4, ensure_ascii=False) + "\n").encode()


def _tree(folder: Path, pattern: str = "**/*") -> Iterable[Path]:
    for path in sorted(folder.glob(pattern)):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
            yield path


def _weights(bundle: Path) -> list[str]:
    return [path.name for path in _tree(bundle / "models", "*.pt")]


def packed_configurations(bundle: Path) -> dict[str, dict[str, Any]]:
    """Every JSON of the packed bundle by its path inside it; the metadata's ``weights`` are those that are there.

    Args:
        bundle: its folder in the repository.

    Returns:
        Parsed JSON by path.

    Raises:
        FileNotFoundError: for a bundle without inference.json.
    """
    metadata = read_json(bundle / "configs" / "metadata.json")
    configs = configurations(bundle) | {"metadata.json": metadata | {"weights": _weights(bundle)}}
    if "inference.json" not in configs:
        raise FileNotFoundError(f"{bundle.name} has no configs/inference.json, which a packed bundle runs. Write it.")
    return {f"configs/{name}": rename_package(config, PACKED_PACKAGE) for name, config in configs.items()}


def packed_files(bundle: Path) -> dict[str, bytes]:
    """Everything of the packed bundle by its path inside it, but for model.ts and the checksums.

    Args:
        bundle: its folder in the repository.

    Returns:
        Content by path.
    """
    files = {name: dump(config) for name, config in packed_configurations(bundle).items()}
    kept = [*_tree(bundle / "configs"), *_tree(bundle / "docs"), bundle / "LICENSE"]
    kept += [bundle / LARGE_FILES] if (bundle / LARGE_FILES).is_file() else []
    for path in kept:
        files.setdefault(path.relative_to(bundle).as_posix(), path.read_bytes())
    files |= {f"models/{name}": (bundle / "models" / name).read_bytes() for name in _weights(bundle)}
    package, vendored = Path(__file__).resolve().parents[1], PACKED_PACKAGE.replace(".", "/")
    files |= {f"{vendored}/{path.relative_to(package).as_posix()}": path.read_bytes() for path in _tree(package)}
    files["scripts/__init__.py"] = b""
    readme = files["docs/README.md"].decode()
    return files | {"docs/README.md": packed_readme(readme, bundle.name, PACKED_PACKAGE).encode()}


def torchscript_of(bundle: Path) -> bytes:
    """Content of the packed model.ts: the network, and what MONAI Deploy reads of the bundle.

    Args:
        bundle: its folder in the repository.

    Returns:
        The content.

    Raises:
        ValueError: where a solver stands in place of the network.
    """
    metadata = packed_configurations(bundle)["configs/metadata.json"]
    extra = {"metadata.json": metadata, "inference.json": export_inference(bundle)}
    network = build_network(bundle)
    refuse_solver(network, "packing")
    return export_torchscript(network, {name: dump(config) for name, config in extra.items()})


def collect(bundle: Path) -> dict[str, bytes]:
    """Everything of the packed bundle by its path inside it, the checksums last.

    Args:
        bundle: its folder in the repository.

    Returns:
        Content by path.
    """
    files, script = packed_files(bundle), torchscript_of(bundle)
    if "models/model.pt" in files:
        files["models/model.ts"] = script
    sums = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return files | {"SHA256SUMS": "".join(sums).encode()}


def write(bundle: Path, output: str) -> tuple[Path, str]:
    """Pack one bundle.

    Args:
        bundle: its folder in the repository.
        output: folder for the zip.

    Returns:
        The zip, and what there is to say of it.
    """
    files = collect(bundle)
    metadata = json.loads(files["configs/metadata.json"])
    target = Path(output) / f"{bundle.name}_v{metadata['version']}.zip"
    with atomic_path(target) as temporary:
        write_zip(temporary, {f"{bundle.name}/{name}": text for name, text in files.items()}, zipfile.ZIP_DEFLATED)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    said = [f"{target}: {len(files)} files, {target.stat().st_size / 2**20:.2f} MB, sha256 {digest}"]
    if "model.pt" in metadata["weights"]:
        said.append(f"  with weights: {', '.join(metadata['weights'])}, and model.ts")
    else:
        said.append(f"  WITHOUT WEIGHTS: {bundle.name} has no models/model.pt; train it before it can register.")
    large = [name for name, content in files.items() if len(content) > LARGEST_COMMIT]
    if large and LARGE_FILES not in files:
        said.append(f"  over 1 MB: {', '.join(large)}; the model zoo takes them by link, in {LARGE_FILES}.")
    return target, "\n".join(said)


def _write_all(bundles: list[Path], output: str) -> list[Path]:
    """Pack each bundle in a fresh process with a fixed hash seed, as equal bytes of model.ts need."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([__name__])  # what takes long to import is imported once
    before, os.environ["PYTHONHASHSEED"] = os.environ.get("PYTHONHASHSEED"), "0"
    zips = []
    try:
        with context.Pool(min(len(bundles), os.cpu_count() or 1, 4), maxtasksperchild=1) as pool:
            for target, said in pool.imap(partial(write, output=output), bundles):
                print(said, flush=True)
                zips.append(target)
    finally:
        os.environ.pop("PYTHONHASHSEED")
        if before is not None:
            os.environ["PYTHONHASHSEED"] = before
    return zips


def smoke_run(zips: list[Path]) -> None:
    """Download every packed bundle into an empty folder and use it there, with the repository's package blocked.

    Args:
        zips: the packed bundles.

    Raises:
        RuntimeError: where one fails, with the end of its output.
    """
    program = Path(__file__).with_name("smoke.py")
    command = [sys.executable, str(program), PACKAGE.partition(".")[0], *map(str, zips)]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise RuntimeError(f"a packed bundle does not run by itself:\n{done.stdout}{done.stderr[-3000:]}")


def pack(*bundles: str, output: str = "dist", smoke: bool = True) -> None:
    """Write ``NAME_v<version>.zip``: configurations, documents, weights, TorchScript, the code as ``scripts/common``.

    The same sources, weights and versions of torch and Python give the same bytes. ``SHA256SUMS`` inside lists every
    file (``sha256sum -c SHA256SUMS``).

    Args:
        bundles: paths or names; none: all under bundles/.
        output: folder for the zips.
        smoke: try each zip in an empty folder, without this repository.

    Raises:
        FileNotFoundError: for an unknown or incomplete bundle.
        RuntimeError: where the export or the smoke-run fails.
    """
    smoke = switch(smoke, "smoke")
    zips = _write_all(find_bundles(tuple(str(name) for name in bundles), own_code=True), str(output))
    if smoke:
        smoke_run(zips)
