# SPDX-License-Identifier: Apache-2.0
"""Output on terminals and in files that cannot hold every sign. Imports nothing of ours."""

from __future__ import annotations

import sys


def forgive_signs() -> None:
    """Print "?" for a sign that the encoding of standard output lacks, instead of failing.

    Redirected output on Windows is cp1252 and in bare containers ASCII; tables hold "±", "−" and "→".
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
