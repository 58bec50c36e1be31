# SPDX-License-Identifier: Apache-2.0
"""No sign in a table or a log ends a program, whatever the encoding of its output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUN = """
import logging
import common.bundle as bundle
bundle.start(0)
logging.getLogger("here").info("0.5 \\u2192 0.8 \\u00b1 0.1 \\u2212")
print("0.5 \\u2192 0.8")
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_logs_and_prints_of_a_run_reach_any_output(encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, env=environment, cwd=ROOT, check=True)
    log, printed = done.stderr.decode(encoding), done.stdout.decode(encoding)
    arrow, minus = ("→", "−") if encoding == "utf-8" else ("?", "?")
    spread = "?" if encoding == "ascii" else "±"
    assert f"0.5 {arrow} 0.8 {spread} 0.1 {minus}" in log and "Logging error" not in log
    assert printed.strip() == f"0.5 {arrow} 0.8"
