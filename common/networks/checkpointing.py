# SPDX-License-Identifier: Apache-2.0
"""Memory for time: what lies within a module is computed anew for the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
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


def checkpointed_steps(module: nn.Module, run: Callable[..., Any], *inputs: Any) -> Any:
    """As ``checkpointed``, for a part of a module with batch norms: their running statistics see each batch once.

    ``torch.compile`` chooses itself what it computes anew, and is left to it: it takes no such checkpoint.

    Args:
        module: whose batch norms ``run`` runs.
        run: (*inputs) -> what the part returns.
        inputs: of ``run``.

    Returns:
        What ``run`` returns.
    """
    if not torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return run(*inputs)
    return checkpoint(run, *inputs, use_reentrant=False, context_fn=partial(_contexts, module))


def _contexts(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _without_statistics(module)


@contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms in training mode normalise as ever, and leave their running statistics as they are."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training]
    momenta = [norm.momentum for norm in norms]
    counts = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None:
                norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]
