# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch


@pytest.fixture
def poison():
    """Leaves NaN in freed memory, for the next tensors of the sizes of its arguments to find."""

    def fill(*like):
        kept = [torch.full_like(x, math.nan, dtype=t) for x in like for t in (torch.bfloat16, torch.float32) * 8]
        del kept

    return fill
