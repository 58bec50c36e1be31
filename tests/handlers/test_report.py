# SPDX-License-Identifier: Apache-2.0
"""The page on an evaluation: which cases come first, which are doubted, and what is shown of them."""

import re

import pytest
import torch
from torch.utils.data import DataLoader

from common.engines.evaluator import RegistrationEvaluator
from common.handlers.evaluation import evaluation_handlers
from common.io.results import read_metrics
from common.metrics.folding import FieldMeasures
from common.metrics.image import ImageMeasures
from common.metrics.labels import LabelMeasures
from tests.handlers.synthetic import LABELS, registered_pairs
from tests.handlers.test_figures import Known


def report(dims, folder, measures, change=lambda ddf: ddf):
    batch, output = registered_pairs(dims)
    network = Known(batch, change(output["ddf"]))
    pairs = [{key: batch[key][n] for key in batch} for n in range(3)]
    handlers = evaluation_handlers(measures, folder, {"secret": "<b>"})
    RegistrationEvaluator("cpu", DataLoader(pairs, batch_size=2), network, val_handlers=handlers).run()
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("dims", ["2d", "3d"])
def test_cases_come_with_the_worst_first_and_their_pictures(dims, tmp_path):
    text = report(dims, tmp_path, [LabelMeasures(LABELS), ImageMeasures(), FieldMeasures()])
    rows = sorted(read_metrics(tmp_path / "metrics.csv"), key=lambda row: row["dice"])
    table = text[text.index("Cases, the worst first") : text.index(">Pictures<")]
    places = [table.index(f"<td>{row['case']}</td>") for row in rows]
    assert places == sorted(places)
    assert f"{rows[0]['dice_before']:.3g} → {rows[0]['dice']:.3g}" in table
    worst = text[text.index("The worst cases") : text.index("Cases, the worst first")]
    ranked = sum(row["dice"] == row["dice"] for row in rows)
    assert len(re.findall("<img", worst)) == ranked >= 2 and str(rows[0]["case"]) in worst
    assert "&lt;b&gt;" in text and "versions" in text and "The case of median quality" in text


def test_a_case_that_folds_is_doubted(tmp_path):
    def folded(ddf):
        changed = ddf.clone()
        changed[1] = 3 * torch.randn(changed[1].shape, generator=torch.Generator().manual_seed(0))
        return changed

    text = report("2d", tmp_path, [ImageMeasures(), FieldMeasures()], folded)
    assert "Look again" in text and re.search(r"\d of 3 cases should be looked at", text)
    assert "The map folds at" in text


def test_without_labels_the_images_rank(tmp_path):
    text = report("2d", tmp_path, [ImageMeasures()])
    assert "Sorted by MSE" in text
    report("2d", tmp_path / "bare", [FieldMeasures()])
    assert "Sorted as they came" in (tmp_path / "bare" / "report.html").read_text(encoding="utf-8")
