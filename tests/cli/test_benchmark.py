# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs and says every ratio; how large they are is for a quiet machine to say."""

from __future__ import annotations

import re

from common.cli.benchmark import benchmark


def test_every_variant_and_ratio_is_reported() -> None:
    table = benchmark(size=16, batch_size=2, repeats=1, steps=2, lncc_size=16, compiled=False)
    for name in ("bare loop", "baseline", "AdaCS", "AdaCS, second forward", "baseline, amp"):
        assert re.search(rf"^\| {name} \| \d+\.\d \|", table, flags=re.MULTILINE), name
    monai, ours = (
        float(re.search(rf"^\| {name} \|.*\| (-\d\.\d+) \|$", table, flags=re.MULTILINE)[1])
        for name in ("MONAI", "ours")
    )
    assert abs(monai - ours) < 1e-5
    kept = float(re.search(r"^\| ratio ours / MONAI \| \d+\.\d+ \| (\d\.\d+) \|", table, flags=re.MULTILINE)[1])
    assert kept < 1
