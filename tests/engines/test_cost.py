# SPDX-License-Identifier: Apache-2.0
import torch

from common.engines.cost import allocated_peak

MIB = 2**20


def test_the_peak_is_what_lay_there_at_once_and_nothing_of_before():
    before = torch.zeros(5 * MIB, dtype=torch.uint8)

    def run():
        first = torch.zeros(3 * MIB, dtype=torch.uint8)
        del first
        both = [torch.zeros(size * MIB, dtype=torch.uint8) for size in (2, 4)]
        return len(both) + len(before)

    for _ in range(2):  # a second profile of a process counts on
        assert 6 * MIB <= allocated_peak(run, torch.device("cpu")) < 6 * MIB + MIB // 2
    assert allocated_peak(lambda: None, torch.device("cpu")) == 0
