# SPDX-License-Identifier: Apache-2.0
"""A bundle's network registers here as its own inference does, and its options are checked."""

from __future__ import annotations

import json
from pathlib import Path

import monai.bundle
import pytest
import torch

from common.cli.options import options as listed
from common.cli.pack import dump, pack, packed_configurations
from common.cli.register import register
from common.cli.verify import verify
from common.data import acdc
from common.io.fields import load_ddf
from common.io.images import load_image

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "adacs_acdc"


@pytest.fixture
def files(acdc_dir: Path) -> dict[str, str]:
    return {role: str(path) for role, path in zip(("moving", "fixed"), acdc.example_pair(acdc_dir), strict=True)}


def test_a_bundle_registers_as_its_inference_does(files: dict[str, str], tmp_path: Path) -> None:
    inferred = tmp_path / "inferred"
    monai.bundle.run(
        "inferring", config_file=str(BUNDLE / "configs" / "inference.json"), output_dir=str(inferred), maps=True,
        device="cpu", **files,
    )  # fmt: skip
    register(str(tmp_path / "registered"), bundle="adacs_acdc", **files)
    for ours, theirs in (("forward", "ddf"), ("warped", "warped"), ("score", "score"), ("jacobian", "jacobian")):
        read = load_ddf if ours == "forward" else load_image
        first, second = (read(folder / f"{name}.nii.gz")[0] for folder, name in
                         ((tmp_path / "registered", ours), (inferred, theirs)))  # fmt: skip
        torch.testing.assert_close(first, second, atol=1e-4, rtol=0)
    record = json.loads((tmp_path / "registered" / "provenance.json").read_text())
    assert {Path(path).name for path in record["weights"]} == {"model.pt", "model_score.pt"}


def test_a_packed_bundle_registers_with_the_code_that_runs_and_is_packed_by_its_own(
    files: dict[str, str], tmp_path: Path
) -> None:
    packed = tmp_path / BUNDLE.name
    (packed / "configs").mkdir(parents=True)
    for name, config in packed_configurations(BUNDLE).items():
        (packed / name).write_bytes(dump(config))
    (packed / "models").symlink_to(BUNDLE / "models", target_is_directory=True)
    said = [
        register(str(tmp_path / f"out{i}"), bundle=str(bundle), **files) for i, bundle in enumerate((BUNDLE, packed))
    ]
    assert said[0].partition(": ")[2] == said[1].partition(": ")[2]
    assert f"--config_file {packed}/configs/inference.json" in listed(str(packed), "inference")
    for command in (pack, verify):
        with pytest.raises(ValueError, match=r"runs the code of 'scripts\.common'.*python -m scripts\.common COMMAND"):
            command(str(packed))


def test_options_of_the_bundle_are_taken_and_checked(files: dict[str, str], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    said = register(out, bundle=str(BUNDLE), architecture="identity", **files)
    assert "foldings 0 %" in said and not (tmp_path / "out" / "score.nii.gz").exists()
    for options, message in (
        ({"architectur": "pairwise"}, "Unknown override '--architectur'.*--architecture"),
        ({"instance_iterations": "many"}, "instance_iterations: expected"),
        ({"preset": "fast"}, "Unknown override '--preset'"),
        ({"fixed_mask": files["fixed"]}, "fixed_mask: "),
    ):
        with pytest.raises(ValueError, match=message):
            register(out, bundle="adacs_acdc", **files, **options)
