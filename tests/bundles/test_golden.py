# SPDX-License-Identifier: Apache-2.0
"""The shipped weights give the recorded numbers on synthetic data.

After new weights or a changed phantom: ``python tests/bundles/test_golden.py`` records them anew.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow

from common.data.acdc_phantom import make_acdc_phantom
from common.data.camus_phantom import make_camus_phantom
from common.data.drive_phantom import make_drive_phantom
from common.data.hippocampus_phantom import make_hippocampus_phantom

HERE = Path(__file__).resolve().parent
BUNDLES_DIR = HERE.parents[1] / "bundles"
RECORD = HERE / "golden.json"
MEASURES = {
    "acdc": ("dice", "dice_lv", "dice_rv", "asd", "epe", "foldings_percent"),
    "camus": ("dice", "dice_lv", "dice_atrium", "asd", "epe", "foldings_percent"),
    "hippocampus": ("dice", "dice_anterior", "dice_posterior", "asd", "foldings_percent", "inverse_consistency_error"),
    "drive": ("dice", "dice_vessels", "epe", "foldings_percent", "inverse_consistency_error"),
    "triangles": ("dice", "asd", "foldings_percent", "inverse_consistency_error"),
}


def synthetic(data: str, folder: Path) -> dict[str, Any]:
    """Make a data set's phantom and return what the evaluation needs to read it."""
    if data == "acdc":
        made = make_acdc_phantom(folder / "phantom", n_train=2, n_test=0, n_slices=4)
        return {"dataset_dir": str(made), "split": "all"}
    if data == "camus":
        made = make_camus_phantom(folder / "phantom", n_train=3)
        return {"dataset_dir": str(made), "split": "all"}
    if data == "hippocampus":
        made = make_hippocampus_phantom(folder / "phantom", n_train=1, n_validation=3)
        return {"dataset_dir": str(made), "split": "validation"}
    if data == "drive":
        made = make_drive_phantom(folder / "phantom", n_training=4, n_test=0, shape=(188, 195))
        return {"dataset_dir": str(made), "split": "all"}
    return {"count": {"test": 8}, "split": "test"}


def measure(bundle: Path, folder: Path) -> dict[str, float]:
    """Evaluate a bundle's own weights on synthetic data."""
    configs, data = bundle / "configs", bundle.name.partition("_")[2]
    workflow = ConfigWorkflow(
        config_file=[str(configs / "train.json"), str(configs / "evaluate.json")],
        meta_file=str(configs / "metadata.json"), logging_file=False, workflow_type="train", run_id="evaluating",
        output_dir=str(folder / "out"), device="cpu", **synthetic(data, folder),
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    summary = json.loads((folder / "out" / "summary.json").read_text())
    return {name: summary[name]["mean"] for name in MEASURES[data]}


@pytest.mark.parametrize("name", sorted(json.loads(RECORD.read_text())) if RECORD.exists() else [])
def test_shipped_weights_give_the_recorded_numbers(name: str, tmp_path: Path) -> None:
    recorded = json.loads(RECORD.read_text())[name]
    assert measure(BUNDLES_DIR / name, tmp_path) == pytest.approx(recorded, abs=1e-4)


def test_every_bundle_with_weights_is_recorded() -> None:
    shipped = {path.parents[1].name for path in BUNDLES_DIR.glob("*/models/model.pt")}
    assert shipped and shipped == set(json.loads(RECORD.read_text()))


if __name__ == "__main__":
    record = {}
    for weights in sorted(BUNDLES_DIR.glob("*/models/model.pt")):
        with tempfile.TemporaryDirectory() as folder:
            record[weights.parents[1].name] = measure(weights.parents[1], Path(folder))
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    sys.stdout.write(RECORD.read_text())
