# SPDX-License-Identifier: Apache-2.0
"""Commands: ``python -m common <command>``; ``python -m common <command> --help`` describes one."""

from __future__ import annotations

import fire

from .cli.benchmark import benchmark
from .cli.compare import compare
from .cli.pack import pack
from .cli.study import study
from .cli.verify import verify
from .console import forgive_signs

COMMANDS = {"benchmark": benchmark, "compare": compare, "pack": pack, "study": study, "verify": verify}

if __name__ == "__main__":
    forgive_signs()
    fire.Fire(COMMANDS, name="common")
