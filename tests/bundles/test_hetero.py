# SPDX-License-Identifier: Apache-2.0
"""What is particular to hetero_*: its ablations and the published preset, by configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.handlers.log import read_history
from common.losses.likelihood import NegativeLogLikelihood
from tests.bundles.suite import BUNDLES_DIR, causes, config, small, train_only

HETERO = BUNDLES_DIR / "hetero_acdc"


def trained_on(data_dirs: dict[str, str], folder: Path, *files: str, **options: Any) -> tuple[Any, list[Any]]:
    workflow = train_only(
        HETERO, "train.json", *files, dataset_dir=data_dirs[HETERO.name], output_dir=str(folder),
        **small(HETERO, **options),
    )  # fmt: skip
    return workflow.parser.get_parsed_content("method"), read_history(folder / "history.csv")


@pytest.mark.parametrize(
    "ablation",
    [
        {"gamma": 0.0}, {"gamma": 1.0}, {"weight_control": "mean"}, {"weight_control": "shuffled"},
        {"weight_control": "other"}, {"noise": "laplace"}, {"variance_beta": 0.0}, {"bidirectional": "true"},
        {"foreground": "true"}, {"weight_form": "official"}, {"variance_leak": "true"}, {"warmup_epochs": 0},
    ],
    ids=lambda ablation: "-".join(f"{key}-{value}" for key, value in ablation.items()),
)  # fmt: skip
def test_every_ablation_is_reached_by_configuration(
    ablation: dict[str, Any], data_dirs: dict[str, str], tmp_path: Path
) -> None:
    method, history = trained_on(data_dirs, tmp_path, **ablation)
    row = history[-1]
    assert row["active"] == "displacement+variance"
    assert all(np.isfinite(float(row[f"{name}/total"])) for name in ("displacement", "variance"))
    assert (0 if "foreground" in ablation else 0.5) <= float(row["variance/weight"]) <= 1
    if ablation == {"gamma": 0.0}:
        assert float(row["variance/weight"]) == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)
    if ablation == {"variance_leak": "true"}:
        assert method.second_forward and method.updates[1].gradients == {"model", "model_variance"}
        assert method.through_estimator and not method.updates[1].objective.terms["nll"].detached
    if ablation == {"warmup_epochs": 0}:
        assert history[0]["active"] == "displacement+variance"


def test_official_training_is_the_published_one_part_by_part(data_dirs: dict[str, str], tmp_path: Path) -> None:
    method, history = trained_on(data_dirs, tmp_path, "official.json", crop_jitter=0)
    weight = method.updates[0].objective.terms["similarity"].weight
    assert weight.form == "official" and method.estimator_input == "warped_fixed" and method.foreground
    assert method.through_estimator and method.second_forward
    assert [row["active"] for row in history] == ["displacement", "variance", "displacement+variance"]
    official = config(HETERO, "official.json")
    assert (official["epochs"], official["warmup_epochs"], official["batch_size"]) == (150, 10, 1)


def test_paper_has_no_leak_and_beta_a_half(data_dirs: dict[str, str], tmp_path: Path) -> None:
    method, _ = trained_on(data_dirs, tmp_path, epochs=1)
    likelihood = method.updates[1].objective.terms["nll"]
    assert isinstance(likelihood, NegativeLogLikelihood) and likelihood.detached and likelihood.beta == 0.5
    assert not method.through_estimator and method.estimator_input == "fixed_warped"
    assert [update.gradients for update in method.updates] == [{"model"}, {"model_variance"}]


def test_another_similarity_has_no_variance(data_dirs: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        trained_on(data_dirs, tmp_path, similarity="lncc")
    assert any("similarity: expected mse, got LNCC" in cause for cause in causes(caught.value))
