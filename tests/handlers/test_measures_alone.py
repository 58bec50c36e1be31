# SPDX-License-Identifier: Apache-2.0
"""Values recorded from an earlier version, single measures, and their errors."""

import csv
import json
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine

from common.handlers.measures import CaseMeasures
from common.metrics.folding import FieldMeasures
from common.metrics.image import ImageMeasures
from common.metrics.inverse_consistency import InverseConsistencyMeasures
from common.metrics.labels import LabelMeasures
from common.metrics.landmarks import LandmarkMeasures
from tests.handlers.synthetic import LABELS, measures_of, registered_pairs, run_batch

NAN = float("nan")
RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())


@pytest.mark.parametrize("dims", RECORDED)
def test_columns_and_values_are_those_recorded(dims, tmp_path):
    """From version 0.3.0, before each measure became an object of its own; only new columns stand beside."""
    batch, output = registered_pairs(dims)
    handler = measures_of(LABELS, ["myocardium", "lv"], InverseConsistencyMeasures(), output_dir=tmp_path)
    run_batch(handler, batch, output)
    for name, recorded in RECORDED[dims].items():
        with open(tmp_path / f"{name}.csv", newline="") as stream:
            rows = list(csv.DictReader(stream))
        new = [column for column in rows[0] if column not in recorded]
        assert [column for column in rows[0] if column in recorded] == list(recorded)
        assert all(column.startswith(("jaccard", "thickness")) or column == "fold_count" for column in new)
        for column, expected in recorded.items():
            values = [row[column] for row in rows]
            if column not in ("case", "subject"):
                values = [float(value) if value else NAN for value in values]
                expected = pytest.approx([NAN if x is None else x for x in expected], rel=2e-5, abs=1e-6, nan_ok=True)
            assert values == expected, column


def test_images_alone_are_enough(tmp_path, caplog):
    batch, output = registered_pairs("2d")
    batch = {key: batch[key] for key in ("moving_image", "fixed_image", "subject", "case")}
    handler = CaseMeasures([ImageMeasures(), FieldMeasures()], tmp_path)
    with caplog.at_level("INFO"):
        run_batch(handler, batch, output)
    assert "3 cases of 2 subjects: 3 scored, 0 not scorable" in caplog.text
    assert "| method | mse | foldings_percent |" in caplog.text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["mse"]["n"] == 3 and "dice" not in summary
    with open(tmp_path / "subjects.csv", newline="") as stream:
        assert list(csv.DictReader(stream)) == [
            {"subject": "one", "slices": "1"},
            {"subject": "two", "slices": "2"},
        ]


def test_a_measure_whose_data_are_absent_is_named():
    batch, output = registered_pairs("2d")
    del batch["moving_label"]
    with pytest.raises(ValueError, match=r"labels: the data hold no moving_label, but case, fixed_image.*leave the"):
        run_batch(CaseMeasures([LabelMeasures({"lv": 3})]), batch, output)


def test_a_column_has_one_measure():
    batch, output = registered_pairs("2d")
    with pytest.raises(ValueError, match=r"ImageMeasures gives the columns \['mse', 'mse_before'\], which an earlier"):
        run_batch(CaseMeasures([ImageMeasures(), ImageMeasures()]), batch, output)


def test_a_measure_is_needed():
    with pytest.raises(ValueError, match="measures: expected at least one, got none"):
        CaseMeasures([])


def test_own_measure_needs_no_base_class(tmp_path):
    class Largest:
        headlines = ("largest",)

        def __call__(self, cases):
            return {"largest": cases.ddf.abs().flatten(1).amax(1)}

    batch, output = registered_pairs("3d")
    engine = run_batch(CaseMeasures([Largest()]), batch, output)
    assert engine.state.metrics == {"largest": pytest.approx(float(output["ddf"].abs().flatten(1).amax(1).mean()))}


def test_landmarks_of_all_cases_are_put_together_in_a_table(tmp_path):
    fixed = torch.full((3, 2), 4.0)
    pairs = [
        {
            "moving_image": torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(n)),
            "fixed_points": fixed,
            "moving_points": fixed + torch.tensor([[offset], [offset], [float("nan")]]) * torch.tensor([[1.0, 0.0]]),
        }
        for n, offset in enumerate((1.0, 3.0))
    ]

    def register(engine, number):
        batch = {key: value[None] for key, value in pairs[number].items()} | {"subject": [f"case{number}"]}
        batch["fixed_image"], batch["spacing"] = batch["moving_image"], torch.full((1, 2), 2.0)
        engine.state.batch = batch
        return {"ddf": torch.zeros(1, 2, 9, 9), "warped_image": batch["moving_image"], "seconds": 0.1}

    engine = Engine(register)
    measures = CaseMeasures([LandmarkMeasures([0.5])], tmp_path)
    measures.attach(engine)
    for _ in range(2):  # a second run starts afresh
        engine.run([0, 1], max_epochs=1)
    with (tmp_path / "landmarks.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert float(row["points"]) == 4 and float(row["tre_mm"]) == 4 and float(row["tre_mm_q50"]) == 4
    assert [case["tre_mm"] for case in measures.rows] == [2.0, 6.0]
