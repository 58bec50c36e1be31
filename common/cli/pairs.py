# SPDX-License-Identifier: Apache-2.0
"""Many pairs in one call: progress, errors that stop nothing, restarts, and shards across processes."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..atomic import atomic_path
from ..bundle import rank, world_size
from ..checks import check_writable
from ..engines.provenance import described
from ..runs.record import sha256

logger = logging.getLogger(__name__)

FILES = ("moving", "fixed", "moving_label", "fixed_label", "moving_points", "fixed_points", "fixed_mask",
         "initial_transform")  # fmt: skip
COLUMNS = ("name", *FILES)
DONE = "metrics.json"
ERRORS = re.compile(r"errors(_\d+)?\.csv", re.IGNORECASE)  # files that stand beside the pairs' folders
Register = Callable[[dict[str, Any], Path, dict[str, Any], str], str]


def read_pairs(path: str | Path) -> list[dict[str, str]]:
    """Read a list of pairs.

    Args:
        path: CSV with the columns moving and fixed, and optionally others of ``COLUMNS``. Paths that are not absolute
            count from the file's folder. name is the pair's folder in output_dir; without it MOVING_to_FIXED.

    Returns:
        A dictionary a row; absent files are left out.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for other columns, missing cells, or a name that occurs twice or is no name of a folder.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"pairs: expected a CSV file with columns moving,fixed; there is no {path}.")
    header, rows = _cells(path)
    unknown = [name for name in header if name not in COLUMNS]
    if unknown or not {"moving", "fixed"} <= set(header) or not rows:
        raise ValueError(
            f"pairs: expected a row a pair and columns of {', '.join(COLUMNS)}, moving and fixed among them; {path} "
            f"has {header} and {len(rows)} rows."
        )
    pairs: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, 2):
        files = {key: str(path.parent / value) for key, value in row.items() if key != "name" and value}
        if not {"moving", "fixed"} <= set(files):
            raise ValueError(f"pairs: line {number} of {path} lacks moving or fixed.")
        name = row.get("name") or f"{_stem(files['moving'])}_to_{_stem(files['fixed'])}"
        if name in pairs or Path(name).name != name or name.startswith(".") or ERRORS.fullmatch(name):
            raise ValueError(f"pairs: line {number} of {path}: expected another name than {name!r}, one a pair.")
        pairs[name] = {"name": name, **files}
    return list(pairs.values())


def _cells(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            return header, [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"pairs: expected a CSV file in UTF-8, {path} is not one: {error}. Save it as such."
        ) from error


def register_pairs(
    pairs: str | Path, output_dir: str | Path, settings: dict[str, Any], interpolation: str, register: Register
) -> str:
    """Register all pairs of a list that are not done yet; under torchrun each process takes its share.

    Done is a pair whose folder holds the result of these very files, settings and weights, whatever the device. Of
    other ones the result is replaced, and the log says so.

    Args:
        pairs: the list, see ``read_pairs``.
        output_dir: each pair has a folder in it. Of those that failed ``errors.csv`` says why; under torchrun each
            process writes its own, ``errors_1.csv`` the second's.
        settings: of the registration, the same for all.
        interpolation: of warped labels.
        register: registers one pair.

    Returns:
        How many were registered, had been before, and failed.

    Raises:
        FileNotFoundError, ValueError: as ``read_pairs``, and for a folder that cannot be written to.
        RuntimeError: where every pair failed.
    """
    folder = Path(output_dir).expanduser()
    check_writable(folder)
    own = read_pairs(pairs)[rank() :: world_size()]
    errors: list[dict[str, str]] = []
    done = earlier = 0
    for pair in tqdm(own, "pairs", disable=None):
        target = folder / pair["name"]
        other = _difference(target, pair, settings, interpolation)
        if other is None:
            earlier += 1
            continue
        if other:
            logger.info("%s: registered again, since its result is of other %s.", pair["name"], other)
        try:
            said = register(
                {key: value for key, value in pair.items() if key != "name"}, target, settings, interpolation
            )
        except Exception as error:  # one pair that fails must not stop the others
            errors.append({"name": pair["name"], "error": f"{type(error).__name__}: {' '.join(str(error).split())}"})
            logger.error("%s failed: %s", pair["name"], errors[-1]["error"])
        else:
            done += 1
            logger.info("%s", said)
    _write_errors(folder / ("errors.csv" if rank() == 0 else f"errors_{rank()}.csv"), errors)
    if errors and not done and not earlier:
        raise RuntimeError(f"pairs: all {len(errors)} failed, the first so: {errors[0]['error']}")
    return f"{folder}: {done} pairs registered, {earlier} had been before, {len(errors)} failed" + (
        " (errors.csv)." if errors else "."
    )


def request(settings: Mapping[str, Any], interpolation: str) -> dict[str, Any]:
    """What a pair's record keeps of the command, to tell whether another one asks for the same.

    Args:
        settings: of the registration; the device and the files among them do not count.
        interpolation: of warped labels.

    Returns:
        As JSON gives it back.
    """
    asked = {key: value for key, value in settings.items() if key not in ("device", "affine")}
    return dict(json.loads(json.dumps({**asked, "interpolation": interpolation}, default=str)))


def _difference(target: Path, pair: dict[str, str], settings: dict[str, Any], interpolation: str) -> str | None:
    """In what a folder's result differs from what is asked: "" where there is none, None where it is the same."""
    try:
        record = json.loads((target / "provenance.json").read_text(encoding="utf-8"))
        inputs, asked, weights = dict(record["inputs"]), record.get("request"), dict(record["weights"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if not (target / DONE).is_file():
        return ""
    if asked != request(settings, interpolation):
        return "settings"
    files = {key: value for key, value in pair.items() if key != "name"}
    now = described({**files, "affine": settings.get("affine", "auto")})
    if {name: _content(found) for name, found in now.items()} != {name: _content(had) for name, had in inputs.items()}:
        return "files"
    same = all(Path(path).is_file() and sha256(path) == had for path, had in weights.items())
    return None if same else "weights"


def _content(found: Any) -> Any:
    return found["sha256"] if isinstance(found, dict) else found


def _write_errors(path: Path, errors: list[dict[str, str]]) -> None:
    if not errors:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["name", "error"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(errors)


def _stem(path: str) -> str:
    return Path(path).name.split(".")[0]
