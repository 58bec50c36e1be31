# SPDX-License-Identifier: Apache-2.0
"""A made-up bundle that passes every check, for tests to damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.cli.verify import SECTIONS

NETWORK = {"_target_": "common.networks.registry.build", "name": "voxelmorph", "spatial_dims": 2}
COMMON_KEYS: dict[str, Any] = {
    "imports": ["$import common.bundle as bundle"],
    "bundle_root": ".",
    "dataset_dir": "phantom",
    "device": "$bundle.select_device('cpu')",
    "network_def": NETWORK,
}
DATASET = {"_target_": "monai.data.Dataset", "data": []}
INFERER = {"_target_": "monai.inferers.SimpleInferer"}
TENSOR = {
    "type": "array", "format": "raw", "num_channels": 2, "spatial_shape": ["16*n", "16*n"], "dtype": "float32",
    "value_range": [], "is_patch_data": False, "channel_def": {"0": "first", "1": "second"},
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "metadata.json": {
        "schema": "https://example.org/meta_schema.json",
        "version": "0.3.0",
        "changelog": {"0.3.0": "made up"},
        "monai_version": "1.6.0",
        "pytorch_version": "2.7.0",
        "numpy_version": "1.26.4",
        "required_packages_version": {"nibabel": "5.2.0", "pytorch-ignite": "0.5.1"},
        "task": "registration",
        "description": "made up",
        "authors": "nobody",
        "copyright": "nobody",
        "weights": [],
        "network_data_format": {"inputs": {"image": TENSOR}, "outputs": {"pred": TENSOR}},
    },
    "train.json": COMMON_KEYS
    | {
        "batch_size": 4,
        "train": {"dataset": DATASET, "inferer": INFERER, "trainer": {"_target_": "builtins.dict", "max_epochs": 1}},
    },
    "inference.json": COMMON_KEYS
    | {"dataset": DATASET, "inferer": INFERER, "evaluator": {"_target_": "builtins.dict"}},
    "evaluate.json": {"evaluating": []},
    "multi_gpu_train.json": {"batch_size": 2},
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Folder of a bundle without weights."""
    folder = tmp_path / "made_up"
    for part in ("configs", "docs", "models"):
        (folder / part).mkdir(parents=True)
    for name, config in CONFIGS.items():
        (folder / "configs" / name).write_text(json.dumps(config))
    (folder / "configs" / "logging.conf").write_text("[loggers]\nkeys=root\n")
    (folder / "docs" / "README.md").write_text("".join(f"## {s}\n\n" for s in SECTIONS) + "No weights are shipped.\n")
    (folder / "docs" / "data_license.txt").write_text("none\n")
    (folder / "LICENSE").write_text("none\n")
    return folder


@pytest.fixture
def edit() -> Callable[[Path, Callable[[dict[str, Any]], Any]], None]:
    """Change a JSON file in place."""

    def apply(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return apply
