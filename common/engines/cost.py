# SPDX-License-Identifier: Apache-2.0
"""What a registration costs beside its time: memory, parameters, and the device that it ran on."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def cost(network: nn.Module, device: torch.device) -> dict[str, Any]:
    """Cost of what this process has run so far, for ``summary.json``.

    Args:
        network: what registers; a solver has no parameters.
        device: where it registers.

    Returns:
        ``parameters``; ``peak_memory_bytes``, the most that torch held on the GPU, or on the CPU the process's peak
        (None where the system does not say), training included where the process trained; ``memory_of`` ("GPU" or
        "process"); ``device``, the GPU's or processor's name; ``threads`` of the CPU.
    """
    on_gpu = device.type == "cuda"
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "peak_memory_bytes": peak_memory(device),
        "memory_of": "GPU" if on_gpu else "process",
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
    }


def peak_memory(device: torch.device) -> int | None:
    """The most memory that this process has held.

    Args:
        device: a GPU counts what torch allocated on it; otherwise the process's resident memory.

    Returns:
        Bytes; None where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would report the parent's peak where that was higher
        (line,) = [line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def allocated_peak(run: Callable[[], Any], device: torch.device) -> int:
    """The most that tensors hold while something runs, beyond what lay there before; libraries' own memory apart.

    Args:
        run: what runs, once.
        device: where its tensors are.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held = [event["args"] for event in events if event["name"] == "[memory]"]
    totals = [event["Total Allocated"] for event in held]  # counted since the process's first profile
    return max(totals) - (totals[0] - held[0]["Bytes"]) if held else 0


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.processor() or platform.machine() or "CPU"
