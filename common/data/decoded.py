# SPDX-License-Identifier: Apache-2.0
"""From a list of files to pairs: each file is decoded once, into memory or into a folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from monai.data import CacheDataset, PersistentDataset
from monai.transforms import Transform

from .layout import DatasetLayoutError, Invalid

logger = logging.getLogger(__name__)

MEMORY = "memory"
FORMAT = 1  # raise it whenever the values that are read from the same files change, so that no old cache is taken
THREADS = min(4, os.cpu_count() or 1)

Entry = Mapping[str, Any]


class DecodedPairs(Sequence[dict[str, Any]]):
    """Pairs that are put together when they are asked for, from parts that are decoded once.

    A part is what is decoded at once: a volume, of which many pairs may be made, or all slices of a patient. In memory
    the parts lie in MONAI's ``CacheDataset`` and are decoded at the start. In a folder they lie in its
    ``PersistentDataset``: each is decoded when it is first asked for, and a later run finds it there. The name of a
    part's file depends on all that its values depend on, so that changed files or options are decoded anew.

    Args:
        datalist: a JSON-serialisable dictionary a pair, as the data sets' ``datalist`` returns.
        parts: the parts that a pair needs: JSON-serialisable dictionaries of paths and options.
        read: decodes a part: tensors, numbers and text by name. A function of a module, so that processes can share it.
        join: makes a pair of its entry in ``datalist`` and its decoded parts.
        cache: "memory", or a folder; it is created, and may be deleted at any time that no run uses it.
        lazily: in memory, decode when first asked for.

    Raises:
        DatasetLayoutError: as ``read``, in memory at the start, from a folder when the part is first asked for.
    """

    def __init__(
        self,
        datalist: Iterable[Entry],
        parts: Callable[[Entry], Sequence[Entry]],
        read: Callable[[Entry], dict[str, Any]],
        join: Callable[..., dict[str, Any]],
        cache: str | Path = MEMORY,
        lazily: bool = False,
    ) -> None:
        self.datalist, self.join = list(datalist), join
        numbers: dict[str, int] = {}
        self.needed = [
            [numbers.setdefault(json.dumps(part, sort_keys=True), len(numbers)) for part in parts(entry)]
            for entry in self.datalist
        ]
        unique = [json.loads(part) for part in numbers]
        self.folder = None if str(cache) == MEMORY else Path(cache).expanduser()
        decode, key = _Decode(read), partial(_file_key, read.__qualname__)
        with _layout_errors():
            self.decoded = (
                CacheDataset(unique, decode, num_workers=THREADS, progress=False, runtime_cache=lazily)
                if self.folder is None
                else PersistentDataset(unique, decode, self.folder, hash_func=key)
            )

    def __len__(self) -> int:
        return len(self.datalist)

    def __getitem__(self, index: Any) -> Any:
        """Return a pair, or a list of pairs for a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self.join(self.datalist[index], *(self._part(number) for number in self.needed[index]))

    def drop(self, invalid: Invalid) -> None:
        """Decode every pair, and leave out those of subjects that cannot be.

        Args:
            invalid: notes the subjects that are left out.
        """
        for number, entry in enumerate(self.datalist):
            with invalid.left_out(entry["subject"]):
                self[number]
        kept = [number for number, entry in enumerate(self.datalist) if entry["subject"] not in invalid.subjects]
        self.datalist = [self.datalist[number] for number in kept]
        self.needed = [self.needed[number] for number in kept]

    def finished(self, invalid: Invalid, split: str, dataset_dir: str | Path) -> Sequence[dict[str, Any]]:
        """The pairs of a split as ``load_pairs`` returns them, without subjects that cannot be read where asked for.

        Args:
            invalid: says whether such subjects are left out, and which have been already.
            split: that is read.
            dataset_dir: where it lies.

        Returns:
            In memory a list, else this.

        Raises:
            DatasetLayoutError: where no subject is left.
        """
        if invalid.skip:
            self.drop(invalid)
        invalid.report(split, dataset_dir, len(self))
        return list(self) if self.folder is None else self

    def _part(self, number: int) -> dict[str, Any]:
        with _layout_errors():
            try:
                return self.decoded[number]
            except (RuntimeError, EOFError) as error:
                cut_short = isinstance(error, EOFError) or "PytorchStreamReader" in str(error)
                if self.folder is None or not cut_short:
                    raise
            file = self.folder / f"{self.decoded.hash_func(self.decoded.data[number]).decode()}.pt"
            logger.warning("%s was cut short, perhaps by a run that was killed; it is written anew.", file)
            file.unlink(missing_ok=True)
            return self.decoded[number]


class _Decode(Transform):
    """MONAI caches the results of its own kind of transforms only."""

    def __init__(self, read: Callable[[Entry], dict[str, Any]]) -> None:
        self.read = read

    def __call__(self, part: Entry) -> dict[str, Any]:
        return self.read(part)


@contextmanager
def _layout_errors() -> Iterator[None]:
    """MONAI wraps an error in one that names the transform; ours says what to do."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, DatasetLayoutError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None


def _file_key(reader: str, part: Entry) -> bytes:
    """Name of a part's file in the cache: of its reader, paths, options, and the files' sizes and times."""
    stamps = []
    for value in part.values():
        if isinstance(value, str) and os.path.isfile(value):
            status = os.stat(value)
            stamps.append((status.st_size, status.st_mtime_ns))
    text = json.dumps([FORMAT, reader, part, stamps], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest().encode()
