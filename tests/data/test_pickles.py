# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.data.layout import DatasetLayoutError
from common.data.pickles import read_arrays

ARRAYS = (
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.asfortranarray(np.eye(3, dtype=np.int16)),
    np.ones(2, bool),
)


class _Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [tuple, list])
def test_arrays_come_back_whatever_the_protocol(tmp_path: Path, protocol: int, kind: type) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(kind(ARRAYS), protocol=protocol))
    read = read_arrays(tmp_path / "a.pkl")
    assert [array.dtype for array in read] == [array.dtype for array in ARRAYS]
    assert all(np.array_equal(array, own) for array, own in zip(read, ARRAYS, strict=True))


def test_arrays_that_an_older_numpy_wrote_are_read(tmp_path: Path) -> None:
    content = pickle.dumps(ARRAYS, protocol=2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in content and b"_core" not in content
    (tmp_path / "a.pkl").write_bytes(content)
    assert np.array_equal(read_arrays(tmp_path / "a.pkl")[0], ARRAYS[0])


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for content in ((*ARRAYS, _Touch(mark)), [np.array([_Touch(mark)], dtype=object)]):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(
            DatasetLayoutError, match="a.pkl is no pickle of arrays alone: it names .*Nothing in it was run"
        ):
            read_arrays(tmp_path / "a.pkl")
        assert not mark.exists()
    pickle.loads((tmp_path / "a.pkl").read_bytes())
    assert mark.exists()  # it would have run


@pytest.mark.parametrize("name", ["os system", "builtins eval", "numpy load", "numpy.core.multiarray fromfile",
                                  "numpy._core.numeric np.load", "_codecs lookup"])  # fmt: skip
def test_nothing_but_the_parts_of_arrays_is_looked_up(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.pkl").write_bytes("c{}\n{}\n.".format(*name.split()).encode())
    with pytest.raises(DatasetLayoutError, match="it names .*, which is no part of an array"):
        read_arrays(tmp_path / "a.pkl")


@pytest.mark.parametrize("content", [{"a": 1}, (), (ARRAYS[0], 1.0), ARRAYS[0], (np.array(["a"]),)])
def test_a_pickle_of_something_else_is_an_error(tmp_path: Path, content: Any) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DatasetLayoutError, match="expected a tuple of arrays of numbers in .*a.pkl"):
        read_arrays(tmp_path / "a.pkl")


def test_a_missing_or_damaged_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetLayoutError, match="no file .*a.pkl; restore the published file"):
        read_arrays(tmp_path / "a.pkl")
    whole = pickle.dumps(ARRAYS)
    for damaged in (whole[:-40], b"", b"not a pickle", pickle.dumps(collections.OrderedDict())):
        (tmp_path / "a.pkl").write_bytes(damaged)
        with pytest.raises(DatasetLayoutError, match="a.pkl is no pickle of arrays alone"):
            read_arrays(tmp_path / "a.pkl")
