# SPDX-License-Identifier: Apache-2.0
import csv
import json
import math

import pytest
import torch
from ignite.engine import Engine

from common.metrics.inverse_consistency import InverseConsistencyMeasures
from common.spatial.warp import warp
from tests.handlers.synthetic import measures_of

NAN = float("nan")
LABELS = {"myocardium": 2, "lv": 3}
ONE = ["myocardium"]


def slice_of(moving, fixed, subject="patient001", number=0, spacing=(NAN, NAN), **more):
    """One pair from label maps given as {label: (slice, slice)} on a (10, 12) grid."""

    def draw(parts):
        label = torch.zeros(1, 10, 12, dtype=torch.uint8)
        for value, (rows, columns) in parts.items():
            label[0, slice(*rows), slice(*columns)] = value
        return label

    pair = {"moving_label": draw(moving), "fixed_label": draw(fixed), "subject": subject, "slice": number}
    return pair | {"spacing": torch.tensor(spacing)} | more


def run(metrics, batches, ddf=0.0, shape=(10, 12), first_axis=0.0, reverse=None):
    """Run an engine whose registration returns this displacement along the last (and first) axis for every batch, and
    with ``reverse`` one the other way."""

    def collate(pairs):
        tensors = {key for key, value in pairs[0].items() if isinstance(value, torch.Tensor)}
        return {k: torch.stack([p[k] for p in pairs]) if k in tensors else [p[k] for p in pairs] for k in pairs[0]}

    def register(engine, batch):
        engine.state.batch = batch
        field = torch.zeros(len(batch["subject"]), len(shape), *shape)
        field[:, 0], field[:, -1] = first_axis, ddf
        batch["moving_image"], batch["fixed_image"] = (batch[f"{role}_label"] / 2.0 for role in ("moving", "fixed"))
        output = {"ddf": field, "warped_image": warp(batch["moving_image"], field), "seconds": 0.5}
        if reverse is None:
            return output
        back = torch.zeros_like(field)
        back[:, -1] = reverse
        return output | {"reverse_ddf": back}

    engine = Engine(register)
    metrics.attach(engine)
    engine.run([collate(batch) for batch in batches], max_epochs=1)
    return engine


# 4 x 4 = 16 pixels; the fixed one two columns to the left: 8 shared
MOVING = {2: ((2, 6), (4, 8)), 3: ((7, 9), (4, 8))}
FIXED = {2: ((2, 6), (2, 6)), 3: ((7, 9), (2, 6))}


def test_hand_made_shift_has_its_known_dice_before_and_after():
    metrics = measures_of(LABELS, ONE)
    run(metrics, [[slice_of(MOVING, FIXED)]], ddf=2.0)
    (row,) = metrics.rows
    assert row["dice"] == row["dice_myocardium"] == row["dice_lv"] == pytest.approx(1.0)
    assert row["dice_before"] == row["dice_myocardium_before"] == row["dice_lv_before"] == pytest.approx(0.5)
    assert row["hd"] == row["hd95"] == row["asd"] == row["hd_myocardium"] == 0
    assert "hd_lv" not in row  # reported, not scored
    assert row["hd_before"] == pytest.approx(2.0)
    assert row["foldings_percent"] == 0 and row["sd_log_jacobian"] == pytest.approx(0, abs=1e-6)
    assert row["case"] == "patient001_slice00" and row["subject"] == "patient001" and row["slice"] == 0
    assert row["scorable"] == 1 and row["seconds"] == pytest.approx(0.5)
    # Images of half the label: 16 pixels of 1 and 8 of 1.5, of which half moved away and half come new.
    assert row["mse"] == pytest.approx(0, abs=1e-10)
    assert row["mse_before"] == pytest.approx((16 * 1.0**2 + 8 * 1.5**2) / 120)


def test_measures_without_a_name_are_means_of_the_scored_labels(tmp_path):
    """The second label is moved by two columns as well, the first one not at all."""
    moving, fixed = MOVING | {2: FIXED[2]}, FIXED
    rows = {}
    for scored in (None, ["myocardium", "lv"], ["lv"], "lv"):
        metrics = measures_of(LABELS, scored, output_dir=tmp_path / str(scored))
        run(metrics, [[slice_of(moving, fixed, spacing=(1.0, 3.0))]])
        (rows[str(scored)],) = metrics.rows
    both, lv = rows["None"], rows["['lv']"]
    assert rows["lv"] == lv and rows["['myocardium', 'lv']"] == both
    assert (both["dice_myocardium"], both["dice_lv"], both["dice"]) == (1.0, 0.5, 0.75)
    assert (both["hd_myocardium"], both["hd_lv"], both["hd"]) == (0.0, 2.0, 1.0)
    assert (both["hd_lv_mm"], both["hd_mm"], both["hd_lv_mm_before"], both["hd_mm_before"]) == (6.0, 3.0, 6.0, 3.0)
    assert both["asd"] == (both["asd_myocardium"] + both["asd_lv"]) / 2 and both["dice_before"] == 0.75
    assert both["dice_official"] == 0.75 and lv["dice_official"] == 0.5
    assert lv["dice"] == lv["dice_lv"] == 0.5 and lv["dice_myocardium"] == 1.0 and lv["hd"] == 2.0
    with open(tmp_path / "None" / "subjects.csv", newline="") as stream:
        (subject,) = csv.DictReader(stream)
    assert float(subject["dice_3d"]) == pytest.approx(0.75) and float(subject["dice_3d_before"]) == pytest.approx(0.75)


def test_mean_is_empty_where_one_of_the_scored_labels_is_missing(tmp_path):
    """A mean over some labels would stand beside means over all of them; what is there keeps its own column."""
    metrics = measures_of(LABELS, output_dir=tmp_path)
    pairs = [slice_of(MOVING, FIXED), slice_of({3: MOVING[3]}, FIXED, number=1)]
    engine = run(metrics, [pairs], ddf=2.0)
    first, second = metrics.rows
    assert (first["scorable"], second["scorable"]) == (1, 0)
    for name in ("dice", "dice_before", "dice_myocardium", "hd", "hd_before", "asd_myocardium", "dice_official"):
        assert math.isfinite(first[name]) and math.isnan(second[name]), name
    assert second["dice_lv"] == pytest.approx(1.0) and second["hd_lv"] == 0.0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["dice"]["n"], summary["dice"]["not_scorable"], summary["dice_lv"]["n"]) == (1, 1, 2)
    assert engine.state.metrics["dice"] == pytest.approx(1.0)


def test_mask_counts_from_one_half_and_officially_from_above_zero():
    metrics = measures_of(LABELS, ONE)
    # A quarter of a pixel off the exact shift on both axes: one more row and column hold 1/4 or less.
    run(metrics, [[slice_of(MOVING, FIXED)]], ddf=1.75, first_axis=0.25)
    (row,) = metrics.rows
    assert row["dice"] == pytest.approx(1.0) and row["asd"] == 0
    assert row["dice_official"] == pytest.approx(2 * 16 / (25 + 16))
    # Of the fixed block's 12 edge pixels, the five at the two widened sides are one off; only fixed -> warped counts.
    assert row["asd_official"] == pytest.approx(5 / 12)


def test_case_without_the_label_is_kept_empty_and_counted(tmp_path):
    metrics = measures_of(LABELS, ONE, output_dir=tmp_path)
    batches = [
        [slice_of(MOVING, FIXED, number=0), slice_of({3: MOVING[3]}, FIXED, number=1)],
        [slice_of(MOVING, {3: FIXED[3]}, number=2)],
    ]
    engine = run(metrics, batches, ddf=2.0)
    rows = metrics.rows
    assert [row["scorable"] for row in rows] == [1, 0, 0]
    for name in ("dice", "dice_before", "hd", "hd_before", "asd", "hd95", "dice_official", "asd_official"):
        assert [math.isnan(row[name]) for row in rows] == [False, True, True], name
    assert [row["dice_lv"] for row in rows] == pytest.approx([1.0] * 3)
    assert all(row["foldings_percent"] == 0 for row in rows)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["dice"]["n"] == 1 and summary["dice"]["not_scorable"] == 2
    assert summary["dice_lv"]["n"] == 3
    assert engine.state.metrics["dice"] == pytest.approx(1.0)
    with open(tmp_path / "metrics.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["dice"] for row in table] == ["1.0", "", ""] and [row["scorable"] for row in table] == ["1", "0", "0"]


def test_millimetres_only_where_the_spacing_is_known():
    metrics = measures_of(LABELS)
    known = slice_of(MOVING, FIXED, number=1, spacing=(1.5, 2.5))
    run(metrics, [[slice_of(MOVING, FIXED), known], [slice_of(MOVING, FIXED, number=2)]])
    first, second, third = metrics.rows
    assert math.isnan(first["hd_mm"]) and second["hd_mm"] == pytest.approx(5.0) and "hd_mm" not in third
    assert second["hd"] == pytest.approx(2.0) and second["hd_mm_before"] == pytest.approx(5.0)


def test_no_millimetre_column_where_no_spacing_is_known():
    metrics = measures_of(LABELS)
    run(metrics, [[slice_of(MOVING, FIXED)]])
    assert not [name for name in metrics.rows[0] if "_mm" in name]


def test_validation_leaves_surfaces_out():
    metrics = measures_of(LABELS, thorough=False)
    engine = run(metrics, [[slice_of(MOVING, FIXED)]])
    assert not {"hd", "asd", "dice_official"} & set(metrics.rows[0])
    half = pytest.approx(0.5)
    dice = {"dice": half, "dice_myocardium": half, "dice_lv": half}
    assert engine.state.metrics == dice | {"foldings_percent": 0.0, "mse": metrics.rows[0]["mse"]}


def test_mean_without_any_scorable_case_is_nan():
    metrics = measures_of(LABELS, thorough=False)
    engine = run(metrics, [[slice_of({}, FIXED)]])
    assert math.isnan(engine.state.metrics["dice"])


def test_volume_dice_sums_over_the_slices_of_a_subject(tmp_path):
    metrics = measures_of(LABELS, output_dir=tmp_path)
    only_fixed = slice_of({}, {2: ((2, 6), (2, 6))}, number=1)
    other = slice_of(MOVING, FIXED, subject="patient002")
    run(metrics, [[slice_of(MOVING, FIXED), only_fixed], [other]], ddf=2.0)
    with open(tmp_path / "subjects.csv", newline="") as stream:
        one, two = csv.DictReader(stream)
    assert (one["subject"], one["slices"], two["subject"], two["slices"]) == ("patient001", "2", "patient002", "1")
    # 2 * 16 / (16 + 32): the slice that is not scorable counts in the volume
    assert float(one["dice_3d_myocardium"]) == pytest.approx(32 / 48)
    assert float(one["dice_3d_before_myocardium"]) == pytest.approx(16 / 48)
    assert float(two["dice_3d_myocardium"]) == pytest.approx(1.0)
    assert float(two["dice_3d_before_lv"]) == pytest.approx(0.5)


def test_subject_without_the_label_has_an_empty_volume_dice(tmp_path):
    metrics = measures_of(LABELS, output_dir=tmp_path)
    run(metrics, [[slice_of(MOVING, FIXED), slice_of({3: MOVING[3]}, FIXED, subject="patient002")]])
    with open(tmp_path / "subjects.csv", newline="") as stream:
        _, two = csv.DictReader(stream)
    assert two["dice_3d_myocardium"] == "" and float(two["dice_3d_lv"]) == pytest.approx(0.5)


def test_known_displacement_gives_the_end_point_error_over_the_labels():
    truth = torch.zeros(2, 10, 12)
    truth[1] = 2.0
    truth[:, 9:] = 50.0  # outside the labels
    metrics = measures_of(LABELS)
    run(metrics, [[slice_of(MOVING, FIXED, true_ddf=truth)]], ddf=1.5)
    assert metrics.rows[0]["epe"] == pytest.approx(0.5)
    assert metrics.rows[0]["epe_before"] == pytest.approx(2.0)


def test_folding_field_is_found():
    metrics = measures_of(LABELS, thorough=False)
    mirror = 2 * (5.5 - torch.arange(12.0)).expand(10, 12)
    run(metrics, [[slice_of(MOVING, FIXED)]], ddf=mirror)
    assert metrics.rows[0]["foldings_percent"] == 100


def test_volumes_are_cases_without_a_slice():
    shape = (6, 8, 7)
    moving, fixed = (torch.zeros(1, *shape, dtype=torch.uint8) for _ in range(2))
    moving[0, 1:5, 2:6, 3:6], fixed[0, 1:5, 2:6, 1:4] = 2, 2
    pair = {"moving_label": moving, "fixed_label": fixed, "subject": "s", "spacing": torch.tensor([1.0, 2.0, 3.0])}
    metrics = measures_of({"myocardium": 2})
    run(metrics, [[pair]], ddf=2.0, shape=shape)
    (row,) = metrics.rows
    assert row["case"] == "s" and "slice" not in row
    assert row["dice"] == pytest.approx(1.0) and row["dice_before"] == pytest.approx(1 / 3)
    assert row["hd_before"] == pytest.approx(2.0) and row["hd_mm_before"] == pytest.approx(6.0)


def test_inverse_consistency_is_measured_where_both_directions_are_there(tmp_path, caplog):
    metrics = measures_of(LABELS, None, InverseConsistencyMeasures(), output_dir=tmp_path)
    batches = [[slice_of(MOVING, FIXED, number=n) for n in range(2)], [slice_of(MOVING, FIXED, number=2)]]
    with caplog.at_level("INFO"):
        engine = run(metrics, batches, ddf=2.0, first_axis=0.3, reverse=-1.6)
    # (0.3, 2) forth and (0, -1.6) back
    assert [row["inverse_consistency_error"] for row in metrics.rows] == pytest.approx([0.5] * 3, abs=1e-5)
    assert engine.state.metrics["inverse_consistency_error"] == pytest.approx(0.5, abs=1e-5)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["inverse_consistency_error"]["n"] == 3
    with open(tmp_path / "metrics.csv", newline="") as stream:
        assert float(next(csv.DictReader(stream))["inverse_consistency_error"]) == pytest.approx(0.5, abs=1e-5)
    assert "| inverse_consistency_error |" in caplog.text and "0.500 ± 0.000 (3)" in caplog.text


def test_pairs_of_two_subjects_are_named_by_their_case():
    pairs = [slice_of(MOVING, FIXED, subject="b", case=f"a{n}_to_b") for n in range(3)]
    for pair in pairs:
        del pair["slice"]
    metrics = measures_of(LABELS)
    run(metrics, [pairs[:2], pairs[2:]], ddf=2.0)
    assert [row["case"] for row in metrics.rows] == ["a0_to_b", "a1_to_b", "a2_to_b"]
    assert {row["subject"] for row in metrics.rows} == {"b"} and next(iter(metrics.rows[0])) == "case"


def test_second_run_starts_afresh():
    metrics = measures_of(LABELS)
    for _ in range(2):
        run(metrics, [[slice_of(MOVING, FIXED)]])
    assert len(metrics.rows) == 1 and len(metrics.sums) == 1
