"""Where a device's time goes: kernels by group, and how many are launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bita.errors import UserError

GROUPS = {
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "matrix products": ("gemm", "nvjet", "cutlass", "cublas", "addmm", "matmul", "aten::mm", "aten::bmm"),
    "optimizer": ("multi_tensor", "adam"),
    "Fourier transforms": ("fft",),
    "norms and softmax": ("norm", "softmax"),
    "copies and memory": ("memcpy", "memset", "copy", "cat"),
    "sorting and gathering": ("sort", "topk", "gather", "scatter", "index", "select"),
    "compiled": ("triton",),
    "elementwise and reductions": ("elementwise", "reduce", "gelu", "add", "mul"),
}
"""Group → parts of its kernels' names; the first that fits counts."""
REPEATS = 3


def kernel_groups(run: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Profile a run after two for nothing; milliseconds and launches of each group, a run.

    On a CPU operators stand for kernels.
    """
    for _ in range(2):
        run()
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as found:
        for _ in range(REPEATS):
            run()
        if cuda:
            torch.cuda.synchronize()
    groups: dict[str, list[float]] = {}
    for event in found.key_averages():
        on_device = event.device_type.name == "CUDA"
        if on_device != cuda or (not cuda and not event.key.startswith("aten::")):
            continue
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        group = groups.setdefault(group_of(event.key), [0.0, 0.0])
        group[0] += spent / 1000 / REPEATS
        group[1] += event.count / REPEATS
    if not groups:
        raise UserError("the profiler saw no kernels")
    ordered = sorted(groups.items(), key=lambda item: -item[1][0])
    return {
        "ms": sum(values[0] for values in groups.values()),
        "launches": sum(values[1] for values in groups.values()),
        "groups": {name: {"ms": values[0], "launches": values[1]} for name, values in ordered},
    }


def group_of(kernel: str) -> str:
    """Return the group of a kernel by its name."""
    name = kernel.lower()
    return next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), "other")
