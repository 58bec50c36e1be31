# SPDX-License-Identifier: Apache-2.0
"""How a run that was started on the command line ends when something goes wrong: in words, the traceback in a file."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
import traceback
from multiprocessing.dummy import DummyProcess
from pathlib import Path
from types import TracebackType

WRAPPERS = ("Failed to evaluate ", "Failed to instantiate component ", "applying transform ")
IN_WORKER = re.compile(r"Caught \w+ in DataLoader worker process.*\n(\w+: .*)$", flags=re.DOTALL)
READER_SECONDS = 60  # of one item of a data set
_resume_from: list[Path] = []


def install(debug: bool) -> None:
    """Say from here on what ended the process last, and its traceback only where it is wanted.

    Args:
        debug: show the traceback on the screen. So it is wherever the environment has CI.
    """
    verbose = debug or os.environ.get("CI", "").lower() not in ("", "0", "false")

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        _report(error, trace, verbose)
        _await_readers()

    sys.excepthook = end


def training_in(state: Path) -> None:
    """Tell who interrupts the process that it can go on from this file.

    Args:
        state: path of ``last.pt``.
    """
    _resume_from[:] = [state]


def words(error: BaseException) -> str:
    """What to tell a person: the first exception that is not one of MONAI's wrappers, not what caused it in turn.

    Args:
        error: what was raised.

    Returns:
        One or more sentences.
    """
    while str(error).startswith(WRAPPERS) and error.__cause__ is not None:
        error = error.__cause__
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    in_worker = IN_WORKER.search(text)
    return in_worker[1].strip() if in_worker else f"{type(error).__name__}: {text}"


def _report(error: BaseException, trace: TracebackType | None, verbose: bool) -> None:
    sys.stdout.flush()
    if isinstance(error, KeyboardInterrupt):
        print(f"\n{_interrupted()}", file=sys.stderr)
        return
    if verbose:
        sys.__excepthook__(type(error), error, trace)
        print(f"\n{words(error)}", file=sys.stderr)
        return
    print(f"\n{words(error)}\n{_written(error, trace)}", file=sys.stderr)


def _await_readers() -> None:
    """Let the threads that fill MONAI's cache end what they are at: cut off within torch they abort the process."""
    for thread in threading.enumerate():
        if isinstance(thread, DummyProcess):
            thread.join(READER_SECONDS)


def _written(error: BaseException, trace: TracebackType | None) -> str:
    try:
        descriptor, name = tempfile.mkstemp(prefix="registration-error-", suffix=".log")
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.writelines(traceback.format_exception(type(error), error, trace))
    except OSError:
        return "Pass --debug true to see the traceback."
    return f"(Traceback: {name}; --debug true shows it here.)"


def _interrupted() -> str:
    if not _resume_from:
        return "Interrupted. Nothing was left half written."
    if _resume_from[0].is_file():
        return "Interrupted. The same command with --resume true goes on after the last whole epoch."
    return "Interrupted before the first epoch was saved: start the same command again."
