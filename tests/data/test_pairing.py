# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from common.data.layout import DatasetLayoutError
from common.data.pairing import pair_names, read_pairs


def _names(*numbers: int) -> list[str]:
    return [f"hippocampus_{number:03d}" for number in numbers]


@pytest.mark.parametrize("count", [2, 3, 6, 7, 40])
def test_with_one_partner_every_subject_is_fixed_once_and_moving_once(count: int) -> None:
    names = _names(*range(1, count + 1))
    pairs = pair_names(names, 1)
    assert [fixed for _, fixed in pairs] == names
    assert sorted(moving for moving, _ in pairs) == names
    assert all(moving != fixed for moving, fixed in pairs)


def test_partners_lie_at_the_documented_distances() -> None:
    names = _names(*range(10))
    distances = [[(int(m[-3:]) - int(f[-3:])) % 10 for m, f in pair_names(names, k)][::10] for k in (1, 6, 9)]
    assert distances == [[5], [5, 6, 7, 8, 9, 1], [5, 6, 7, 8, 9, 1, 2, 3, 4]]
    every = pair_names(names, 9)
    assert len(set(every)) == 90 and every[:60] == pair_names(names, 6)
    assert pair_names(names, 1)[3] == ("hippocampus_008", "hippocampus_003")


def test_impossible_partners_are_errors() -> None:
    with pytest.raises(ValueError, match="at least two subjects"):
        pair_names(["hippocampus_001"], 1)
    with pytest.raises(ValueError, match="partners: expected at least 1, got 0"):
        pair_names(_names(1, 2, 3, 5, 6), 0)


def test_more_partners_than_there_are_is_all_of_them() -> None:
    names = _names(1, 2, 3, 5, 6)
    assert pair_names(names, 99) == pair_names(names, 4)
    assert len(set(pair_names(names, 4))) == 20


def test_a_list_that_names_absent_subjects_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(
        "moving,fixed\nhippocampus_001,hippocampus_004\n hippocampus_001,hippocampus_002\nfoo,hippocampus_002\n"
    )
    message = r"pairs: .*pairs.csv names \['foo', 'hippocampus_002'\].*2 subjects, hippocampus_001 … hippocampus_004"
    with pytest.raises(DatasetLayoutError, match=message):
        read_pairs(path, _names(1, 4))


@pytest.mark.parametrize(
    "content", ["", "moving,fixed\n", "1,4\n4,1\n", "moving;fixed\n1;4\n", "moving,fixed\n1,4\n1\n"]
)
def test_a_list_without_both_columns_filled_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(content)
    with pytest.raises(DatasetLayoutError, match="pairs: expected the columns moving and fixed"):
        read_pairs(path, _names(1, 4))
