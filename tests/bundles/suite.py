# SPDX-License-Identifier: Apache-2.0
"""What the suites over all bundles share: the bundles themselves, small synthetic data, and how one is run."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from monai.bundle import ConfigWorkflow

from common.cli.render import dataset_module

BUNDLES_DIR = Path(__file__).resolve().parents[2] / "bundles"
BUNDLES = sorted(path.parents[1] for path in BUNDLES_DIR.rglob("configs/metadata.json"))
NAMES = [bundle.name for bundle in BUNDLES]
# One bundle of every method: what takes long and depends on the method alone is tried there.
BY_METHOD = {bundle.name.partition("_")[0]: bundle for bundle in reversed(BUNDLES)}
METHODS = [BY_METHOD[name] for name in sorted(BY_METHOD)]
EPOCHS = 3
SIZES = {2: [64, 48], 3: [24, 32, 21]}
UNCUT = ("oasis", "ixi")  # data sets whose reader refuses a window that is smaller than the volumes
# Of bundles whose published network takes minutes on the phantom.
NARROW = {"tmspr": {"channels": 12, "depths": [1, 1], "heads": [2, 2], "time_steps": 2}}


def config(bundle: Path, name: str = "train.json") -> dict[str, Any]:
    """A configuration of a bundle as its file has it."""
    return json.loads((bundle / "configs" / name).read_text())


def data_of(bundle: Path) -> ModuleType:
    """The data-set module of a bundle."""
    return dataset_module(bundle)


def small(bundle: Path, **overrides: Any) -> dict[str, Any]:
    """Overrides that make a bundle's training a matter of seconds, whatever its data set."""
    train = config(bundle)
    dims = len(train["spatial_size"])
    chosen = {
        "epochs": EPOCHS, "val_interval": 2, "device": "cpu", "spatial_size": SIZES[dims], "batch_size": {2: 4, 3: 2}[dims],
        "crop_jitter": 4, "partners": 1, "warmup_epochs": 1, "updates_per_epoch": None, "count": {"train": 4, "validation": 3, "test": 1},
    }  # fmt: skip
    if bundle.name.rpartition("_")[2] in UNCUT:
        del chosen["spatial_size"]
        if train["architecture"] in NARROW:
            chosen["architectures"] = NARROW
    return {key: value for key, value in chosen.items() if key in train} | overrides


def run(bundle: Path, run_id: str, *files: str, **overrides: Any) -> ConfigWorkflow:
    """Run one id of a bundle's configuration in this process, as ``python -m monai.bundle run`` would."""
    workflow = workflow_of(bundle, *files, run_id=run_id, **overrides)
    workflow.run()
    workflow.finalize()
    return workflow


def workflow_of(bundle: Path, *files: str, **overrides: Any) -> ConfigWorkflow:
    """A bundle's configuration, read and not run."""
    configs = bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / name) for name in files], meta_file=str(configs / "metadata.json"), logging_file=False,
        workflow_type="infer" if files[0] == "inference.json" else "train", **overrides,
    )  # fmt: skip
    workflow.initialize()
    return workflow


def train_only(bundle: Path, *files: str, **overrides: Any) -> ConfigWorkflow:
    """Train without the evaluation at the end, which costs more than a few small epochs."""
    workflow = workflow_of(bundle, *files, run_id="training", **overrides)
    parser = workflow.parser
    parser.config["training"] = [
        "$bundle.check_arguments('training')", "$bundle.start(@seed, @device)",
        "$bundle.claim(@output_dir)", "$@train#trainer.run()", "$bundle.finish()",
    ]  # fmt: skip
    parser.ref_resolver.reset()
    workflow.run()
    workflow.finalize()
    return workflow


def causes(error: BaseException) -> list[str]:
    """Messages of an error and of what caused it."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return [str(cause) for cause in chain]
