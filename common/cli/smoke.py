# SPDX-License-Identifier: Apache-2.0
"""Try packed bundles as a user gets them: ``python smoke.py PACKAGE a_v1.zip b_v1.zip``.

A program of its own: it refuses PACKAGE, the repository's code, however that is installed, so that a packed bundle has
nothing but what it carries. MONAI is imported once; each bundle is tried in a fresh fork of this process.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
import traceback
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

OUTPUTS = ("warped.nii.gz", "ddf.nii.gz", "jacobian.nii.gz", "registration.png")


class Blocked(MetaPathFinder):
    """Refuses a package by name, however it is installed.

    Args:
        package: its name.
    """

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuse the package, leave everything else to the finders behind.

        Args:
            name: of a module.
            path: not read.
            target: not read.

        Raises:
            ModuleNotFoundError: for the package and what lies in it.
        """
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}: blocked, a packed bundle must not need it", name=name)


if __name__ in ("__main__", "__mp_main__"):
    sys.meta_path.insert(0, Blocked(sys.argv[1]))
    sys.path.pop(0)  # the folder of this file

import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402
from monai.bundle import ConfigParser  # noqa: E402


def write_pair(folder: Path, spatial_dims: int) -> None:
    """A dark ball, off centre in the fixed image, as moving.nii.gz and fixed.nii.gz: in HU, air inside a body.

    Args:
        folder: to write to.
        spatial_dims: axes of the images.
    """
    shape = (96, 80, 48)[:spatial_dims]
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    for name, shift in (("moving", 0.0), ("fixed", 3.0)):
        centre = np.array([n / 2 + shift for n in shape]).reshape(-1, *[1] * spatial_dims)
        image = (40 - 900 * np.exp(-(((grid - centre) / 12.0) ** 2).sum(0))).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.diag([1.5, 1.5, 1.5, 1.0])), folder / f"{name}.nii.gz")


def run_monai(*words: str) -> None:
    """``python -m monai.bundle WORDS`` in this process.

    Args:
        words: of the command line.
    """
    sys.argv = ["monai.bundle", *words]
    try:
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        if stopped.code:
            raise RuntimeError(f"'python -m monai.bundle {' '.join(words)}' ended with {stopped.code}") from stopped


def use(archive: Path, work: Path) -> str:
    """Download a packed bundle into an empty folder and use it there.

    With weights it registers a small synthetic pair; without, its network is built and run on a random image.

    Args:
        archive: the zip, NAME_v<version>.zip.
        work: the empty folder, the working directory.

    Returns:
        What was done, in words.

    Raises:
        RuntimeError: where an output is missing.
    """
    name = archive.name.rpartition("_v")[0]
    run_monai("download", "--name", name, "--url", archive.as_uri(), "--bundle_dir", ".")
    bundle = work / name
    configs = bundle / "configs"
    if not (bundle / "models" / "model.pt").is_file():
        files = ["--meta_file", str(configs / "metadata.json"), "--config_file", str(configs / "inference.json")]
        sys.path.insert(0, str(bundle))
        run_monai("verify_net_in_out", "network_def", "--device", "cpu", *files)
        return "built its network"
    metadata = ConfigParser.load_config_file(configs / "metadata.json")
    write_pair(work, len(metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]))
    config = ["--config_file", f"{name}/configs/inference.json", "--device", "cpu"]
    run_monai(
        "run", "inferring", *config, "--moving", "moving.nii.gz", "--fixed", "fixed.nii.gz", "--output_dir", "out"
    )
    missing = [file for file in OUTPUTS if not (work / "out" / file).is_file()]
    if missing:
        raise RuntimeError(f"the packed {name} ran, but did not write {', '.join(missing)}: see inference.json.")
    return "registered a pair"


def attempt(archive: str) -> tuple[str, str]:
    """``use`` in an empty folder, its output caught.

    Args:
        archive: path of a packed bundle.

    Returns:
        What was done, and "" or, where it failed, the end of all output with the error.
    """
    path = Path(archive).resolve()
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        os.chdir(work)
        sys.path.insert(0, work)
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
        try:
            done, failure = use(path, Path(work)), ""
        except BaseException:  # whatever a packed bundle raises, SystemExit too, is its failure
            done, failure = "", traceback.format_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        log.seek(0)
        output = log.read()
        os.chdir(path.parent)
    return done, failure and (output + failure)[-4000:]


def main(archives: list[str]) -> int:
    """Try every archive, two at a time; the exit status is 1 where one fails.

    Args:
        archives: paths of packed bundles.

    Returns:
        The exit status.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    failed = 0
    with context.Pool(min(2, len(archives)), maxtasksperchild=1) as pool:
        for archive, (done, failure) in zip(archives, pool.imap(attempt, archives), strict=True):
            name = Path(archive).name
            print(f"{name}: smoke-run failed:\n{failure}" if failure else f"{name}: smoke-run ok, {done}", flush=True)
            failed += bool(failure)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
