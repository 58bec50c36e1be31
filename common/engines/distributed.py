# SPDX-License-Identifier: Apache-2.0
"""Numbers that all processes must agree on."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def all_mean(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes; the tensor itself where there is one process.

    Args:
        value: of one shape in every process, floating point.

    Returns:
        The mean, of the same shape.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value


def all_least(value: Tensor) -> Tensor:
    """The smallest of each entry of a tensor over all processes; the tensor itself where there is one process.

    Args:
        value: of one shape in every process.

    Returns:
        The smallest entries, of the same shape.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value, dist.ReduceOp.MIN)
    return value
