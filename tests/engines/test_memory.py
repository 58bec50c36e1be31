# SPDX-License-Identifier: Apache-2.0
"""Freed memory is kept between the steps of a training."""

import subprocess
import sys

import pytest

from common.engines import memory

STEPS = """
import resource, sys
import torch
from common.engines.memory import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Conv2d(8, 1, 3, padding=1))
image = torch.rand(4, 1, 256, 256)
for step in range(6):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    net(image).square().mean().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc of glibc")
def test_steps_do_not_fetch_their_memory_anew() -> None:
    if not memory.keep_freed_memory():
        pytest.skip("no mallopt")
    pages = {}
    for how in ("keep", "plain"):
        done = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
        pages[how] = int(done.stdout)
    assert pages["plain"] > 1000 and pages["keep"] < pages["plain"] / 10


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
