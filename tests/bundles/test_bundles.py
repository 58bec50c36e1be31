# SPDX-License-Identifier: Apache-2.0
"""One suite over every bundle, found by itself: it trains, evaluates and registers, on synthetic data of its layout."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest

from common.cli.render import rendered
from common.handlers.log import read_history
from common.io.results import read_metrics
from tests.bundles.suite import BUNDLES, EPOCHS, METHODS, NAMES, config, data_of, run, small, workflow_of

def labels_of(bundle: Path) -> tuple[list[str], list[str]]:
    """Names of the labels that a bundle measures, and of those that it scores."""
    parser = workflow_of(bundle, "train.json", device="cpu").parser
    return list(parser.get_parsed_content("labels")), list(parser.get_parsed_content("scored"))


every_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


def test_the_bundles_are_found() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 5
    assert {bundle.name.partition("_")[0] for bundle in METHODS} == {name.partition("_")[0] for name in NAMES}


@every_bundle
def test_what_follows_from_templates_is_as_rendered(bundle: Path) -> None:
    for path, text in rendered(bundle).items():
        assert (bundle / path).read_text(encoding="utf-8") == text, f"python -m common render {bundle.name}: {path}"


with_clapirn = [path for path in BUNDLES if (path / "configs/clapirn.json").is_file()]


@pytest.mark.parametrize("bundle", with_clapirn, ids=lambda path: path.name)
def test_c_lapirn_has_the_published_smoothness_whatever_lncc_has_elsewhere(bundle: Path) -> None:
    """10 times the code on the energy of the displacement, for LNCC; see docs/methods.md."""
    assert bundle.name.startswith("baseline_")
    parser = workflow_of(bundle, "train.json", "clapirn.json").parser
    assert parser.config["objective"] == "lncc" and parser.config["objectives"]["lncc"]["smoothness_weight"] == 1.0


@every_bundle
def test_train_json_is_short(bundle: Path) -> None:
    lines = (bundle / "configs" / "train.json").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 160


def test_evaluate_json_is_one_text() -> None:
    assert len({(bundle / "configs" / "evaluate.json").read_text() for bundle in BUNDLES}) == 1


@every_bundle
@pytest.mark.parametrize("file", ["train.json", "inference.json"])
def test_every_property_is_there(bundle: Path, file: str) -> None:
    assert workflow_of(bundle, file).check_properties() == []


@every_bundle
def test_handlers_are_a_list_that_a_user_may_add_to(bundle: Path) -> None:
    handlers = config(bundle)["train"]["handlers"]
    assert isinstance(handlers, list) and all("_target_" in handler for handler in handlers)


@every_bundle
def test_every_bundle_names_its_scored_labels(bundle: Path) -> None:
    labels, scored = labels_of(bundle)
    assert scored and set(scored) <= set(labels)


@every_bundle
def test_training_reaches_its_last_phase_and_writes_its_results(bundle: Path, trained: dict[str, Path]) -> None:
    folder = trained[bundle.name]
    history = read_history(folder / "history.csv")
    assert len(history) == EPOCHS
    method = workflow_of(bundle, "train.json", device="cpu").parser.get_parsed_content("method")
    assert history[-1]["active"] == "+".join(sorted(method.update_names))
    names = {"history.csv", "curves.png", "metrics.csv", "subjects.csv", "summary.json", "registration.png"}
    assert names | {f"{name}.pt" for name in method.modules} <= {path.name for path in folder.iterdir()}
    rows, summary = read_metrics(folder / "metrics.csv"), json.loads((folder / "summary.json").read_text())
    assert rows and summary["dice"]["n"] + summary["dice"]["not_scorable"] == len(rows)
    labels, scored = labels_of(bundle)
    assert {f"dice_{name}{when}" for name in labels for when in ("", "_before")} <= set(rows[0])
    assert [name for name in labels if f"hd_{name}" in rows[0]] == scored
    for row in rows:
        for measure in ("dice", "hd", "hd95", "asd", "dice_before", "hd_before"):
            stem, _, before = measure.partition("_")
            parts = [row[f"{stem}_{name}{'_before' if before else ''}"] for name in scored]
            np.testing.assert_allclose(row[measure], np.mean(parts), atol=1e-6)
    validated = [float(row["validation/dice"]) for row in history if row["validation/dice"]]
    assert validated and all(math.isfinite(value) for value in validated)
    # A field that three epochs have barely moved changes little and folds nothing.
    assert summary["foldings_percent"]["mean"] == 0.0
    assert abs(summary["dice"]["mean"] - summary["dice_before"]["mean"]) < 0.05


@every_bundle
def test_evaluation_repeats_what_training_measured(
    bundle: Path, trained: dict[str, Path], data_dirs: dict[str, str], tmp_path: Path
) -> None:
    folder = trained[bundle.name]
    run(
        bundle, "evaluating", "train.json", "evaluate.json", dataset_dir=data_dirs[bundle.name], output_dir=str(tmp_path),
        ckpt_path=str(folder / "model.pt"), **small(bundle),
    )  # fmt: skip
    first, second = (read_metrics(path / "metrics.csv") for path in (folder, tmp_path))
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a["dice"], b["dice"], atol=1e-6)


@every_bundle
def test_inference_registers_two_files(
    bundle: Path, trained: dict[str, Path], data_dirs: dict[str, str], tmp_path: Path
) -> None:
    moving, fixed = data_of(bundle).example_pair(data_dirs[bundle.name])
    run(
        bundle, "inferring", "inference.json", moving=str(moving), fixed=str(fixed), device="cpu",
        output_dir=str(tmp_path), ckpt_path=str(trained[bundle.name] / "model.pt"),
        **{key: value for key, value in small(bundle).items() if key in ("spatial_size", "architectures")},
    )  # fmt: skip
    warped, reference = nibabel.load(tmp_path / "warped.nii.gz"), nibabel.load(fixed)
    assert warped.shape == reference.shape
    np.testing.assert_allclose(warped.affine, reference.affine, atol=1e-5)
    field = (*reference.shape, 1, 3) if reference.ndim == 3 else (*reference.shape, 1, 1, 2)
    assert nibabel.load(tmp_path / "ddf.nii.gz").shape == field
    assert {"jacobian.nii.gz", "registration.png"} <= {path.name for path in tmp_path.iterdir()}
