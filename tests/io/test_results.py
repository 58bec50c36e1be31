# SPDX-License-Identifier: Apache-2.0
import csv
import json
import math
import platform
from pathlib import Path

import numpy as np
import pytest
import torch

from common.io.results import (
    COLUMNS,
    markdown_table,
    read_metrics,
    results_table,
    undeformed,
    versions,
    write_results,
    write_rows,
)

NAN = math.nan


def make_rows() -> list[dict]:
    return [
        {"case": "001_2", "subject": "001", "slice": 2, "scorable": True, "dice": 0.8, "hd": 4.0, "dice_before": 0.5,
         "view": "2CH", "epe": 1.0, "dice_lv": 0.9},
        {"case": "001_3", "subject": "001", "slice": 3, "scorable": True, "dice": torch.tensor(0.5), "hd": NAN,
         "dice_before": np.float32(0.25), "view": "2CH", "epe": 2.0, "dice_lv": None},
        {"case": "002_1", "subject": "002", "slice": 1, "scorable": False, "dice": NAN, "hd": math.inf,
         "dice_before": NAN, "view": "4CH", "epe": 6.0},
    ]  # fmt: skip


def strict_json(path: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_table_has_the_fixed_columns_first_and_every_row(tmp_path):
    write_results(make_rows(), tmp_path / "new" / "folder", {})
    with open(tmp_path / "new" / "folder" / "metrics.csv", newline="", encoding="utf-8") as stream:
        header, *lines = csv.reader(stream)
    assert header == [*COLUMNS, "dice_lv", "epe", "view"]
    assert [line[:4] for line in lines] == [
        ["001_2", "001", "2", "1"],
        ["001_3", "001", "3", "1"],
        ["002_1", "002", "1", "0"],
    ]
    assert lines[2][header.index("dice")] == ""
    assert {line[header.index("asd")] for line in lines} == {""}


def test_table_reads_back_as_written(tmp_path):
    rows = make_rows()
    rows[0]["dice"] = 1 / 3
    write_results(rows, tmp_path, {})
    read = read_metrics(tmp_path / "metrics.csv")
    assert [row["subject"] for row in read] == ["001", "001", "002"]
    assert [row["view"] for row in read] == ["2CH", "2CH", "4CH"]
    assert [row["slice"] for row in read] == [2.0, 3.0, 1.0]
    assert read[0]["dice"] == 1 / 3
    assert read[1]["dice"] == 0.5
    assert math.isnan(read[2]["dice"])
    assert math.isnan(read[1]["dice_lv"])
    assert math.isnan(read[0]["sd_log_jacobian"])


def test_summary_counts_what_could_not_be_scored(tmp_path):
    summary = write_results(make_rows(), tmp_path, {})
    assert summary == strict_json(tmp_path / "summary.json")
    assert summary["dice"]["mean"] == pytest.approx(0.65, abs=1e-9)
    assert summary["dice"]["std"] == pytest.approx(0.3 / math.sqrt(2), abs=1e-9)
    assert (summary["dice"]["n"], summary["dice"]["not_scorable"]) == (2, 1)
    assert summary["hd"] == {"mean": 4.0, "std": None, "n": 1, "not_scorable": 2}
    assert summary["dice_lv"] == {"mean": 0.9, "std": None, "n": 1, "not_scorable": 2}
    assert summary["epe"]["mean"] == pytest.approx(3.0, abs=1e-9)
    assert summary["subjects"] == 2
    assert set(summary) == {"dice", "hd", "dice_before", "dice_lv", "epe", "settings", "versions", "subjects"}


def test_a_measure_that_no_case_has_is_reported_with_nulls(tmp_path):
    summary = write_results([{"case": "a", "subject": "a", "asd": NAN}], tmp_path, {})
    assert summary["asd"] == {"mean": None, "std": None, "n": 0, "not_scorable": 1}


def test_settings_are_kept_as_strict_json(tmp_path):
    settings = {"seed": 0, "device": torch.device("cpu"), "path": Path("x") / "y", "lr": np.float64(1e-4), "cut": NAN,
                "size": (128, 96), "nested": {"amp": True, "none": None}}  # fmt: skip
    write_results(make_rows(), tmp_path, settings)
    assert strict_json(tmp_path / "summary.json")["settings"] == {
        "seed": 0, "device": "cpu", "path": str(Path("x") / "y"), "lr": 1e-4, "cut": "nan",
        "size": [128, 96], "nested": {"amp": True, "none": None},
    }  # fmt: skip


def test_versions_name_what_the_numbers_depend_on():
    found = versions()
    assert set(found) == {"registration-bundles", "monai", "torch", "numpy", "python"}
    assert found["numpy"] == np.__version__
    assert found["python"] == platform.python_version()


def test_rows_without_scorable_count_as_scorable_and_slices_tell_cases_apart(tmp_path):
    rows = [{"case": "a", "subject": "s", "slice": index, "dice": 0.5} for index in range(3)]
    summary = write_results(rows, tmp_path, {})
    assert [row["scorable"] for row in read_metrics(tmp_path / "metrics.csv")] == [1.0, 1.0, 1.0]
    assert summary["subjects"] == 1


def test_files_are_replaced_as_a_whole_and_left_alone_on_error(tmp_path):
    write_results(make_rows(), tmp_path, {})
    before = (tmp_path / "metrics.csv").read_bytes(), (tmp_path / "summary.json").read_bytes()
    with pytest.raises(ValueError, match="each case once"):
        write_results([*make_rows(), make_rows()[0]], tmp_path, {})
    assert ((tmp_path / "metrics.csv").read_bytes(), (tmp_path / "summary.json").read_bytes()) == before
    write_results(make_rows()[:1], tmp_path, {})
    assert len(read_metrics(tmp_path / "metrics.csv")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "summary.json"]


def test_writer_refuses_bad_rows(tmp_path):
    with pytest.raises(ValueError, match="rows: expected a row a case, got none"):
        write_results([], tmp_path, {})
    with pytest.raises(ValueError, match=r"row 1 lacks \['subject'\]"):
        write_results([make_rows()[0], {"case": "b", "dice": 1.0}], tmp_path, {})
    with pytest.raises(ValueError, match=r"\['versions'\] are reserved"):
        write_results([{"case": "a", "subject": "a", "versions": 1.0}], tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_reader_refuses_other_tables(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("name,dice\na,1\n")
    with pytest.raises(ValueError, match=r"expected the columns \['case', 'subject'\], got \['name', 'dice'\]"):
        read_metrics(path)
    path.write_text("case,subject,dice\na,s\n")
    with pytest.raises(ValueError, match="expected 3 fields, row 1 has another number"):
        read_metrics(path)
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "absent.csv")


def test_subjects_read_back_as_written(tmp_path):
    write_rows(
        [{"subject": "007", "slices": 3, "dice_3d": NAN}, {"subject": "b", "slices": 1, "dice_3d": 0.5}],
        tmp_path / "subjects.csv",
    )
    first, second = read_metrics(tmp_path / "subjects.csv", ("subject",))
    assert first["subject"] == "007" and first["slices"] == 3.0 and math.isnan(first["dice_3d"])
    assert second == {"subject": "b", "slices": 1.0, "dice_3d": 0.5}
    with pytest.raises(ValueError, match=r"expected the columns \['case', 'subject'\], got \['subject', 'slices'"):
        read_metrics(tmp_path / "subjects.csv")


def test_markdown_keeps_a_bar_in_its_cell():
    assert markdown_table(["a", "b"], [["1", "x|y"]]) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |"


def test_table_of_undeformed_and_registered(tmp_path):
    summary = write_results(make_rows(), tmp_path, {})
    text = results_table({"undeformed": undeformed(summary), "ours | b": summary}, ["dice", "epe", "hd"])
    assert text.splitlines() == [
        "| method | dice | epe | hd |",
        "| --- | --- | --- | --- |",
        "| undeformed | 0.375 ± 0.177 (2 of 3) | – | – |",
        "| ours \\| b | 0.650 ± 0.212 (2 of 3) | 3.000 ± 2.646 (3) | 4.000 (1 of 3) |",
    ]


def test_table_does_not_round_small_foldings_to_zero():
    measure = {"mean": 0.00042, "std": 0.0, "n": 5, "not_scorable": 0}
    assert "0.00042 ± 0.000 (5)" in results_table({"m": {"foldings_percent": measure}}, ["foldings_percent"])


def test_table_refuses_unknown_measures():
    summary = {"dice": {"mean": 0.5, "std": 0.1, "n": 5, "not_scorable": 0}, "settings": {}}
    with pytest.raises(ValueError, match=r"measures: expected at least one of \['dice'\], got \['dise'\]"):
        results_table({"m": summary}, ["dise"])
