# SPDX-License-Identifier: Apache-2.0
"""Memory for time: what lies within a module is computed anew for the backward pass."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpointed(wanted: bool, module: nn.Module, *inputs: Any) -> Any:
    """Run a module; where wanted, and where a backward pass may follow, keep only its inputs for it.

    Random numbers that the module draws are drawn again.

    Args:
        wanted: whether to save that memory.
        module: any.
        inputs: of the module.

    Returns:
        What the module returns; gradients are the same either way.
    """
    if wanted and torch.is_grad_enabled() and not torch.jit.is_tracing():
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)
