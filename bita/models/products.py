"""Matrix products on a CPU: by the library whose kernels are made for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

FEW, MANY = 10, 48
"""Between so many rows, oneDNN's threads lay the weights out anew at every call; parts of few rows are faster."""


@cache
def _onednn() -> Callable[..., Tensor] | None:
    """oneDNN's linear layer, where torch's own takes the slow kernels that MKL has for CPUs that are not Intel's."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return None
    with contextlib.suppress(OSError):
        if "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
            return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


class _OneDnn(TorchFunctionMode):
    """Linear layers in float32 on the CPU, without gradient, are oneDNN's."""

    def __init__(self, linear: Callable[..., Tensor]) -> None:
        super().__init__()
        self.linear = linear

    def __torch_function__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        """See `TorchFunctionMode`."""
        if func is not F.linear or kwargs or not _plain(*args):
            return func(*args, **(kwargs or {}))
        inputs, weight, bias = (*args, None)[:3]
        rows = inputs.numel() // inputs.shape[-1]
        if FEW < rows < MANY and torch.get_num_threads() > 1:
            parts = [
                self.linear(part, weight, bias, "none", [], "")
                for part in inputs.reshape(rows, -1).split(FEW)
            ]
            return torch.cat(parts).unflatten(0, inputs.shape[:-1])
        return self.linear(inputs, weight, bias, "none", [], "")


def _plain(*tensors: Tensor | None) -> bool:
    return not torch.is_grad_enabled() and all(
        x is None
        or (type(x) in (Tensor, torch.nn.Parameter) and x.dtype == torch.float32 and x.device.type == "cpu")
        for x in tensors
    )


def fast_products(wanted: bool = True) -> AbstractContextManager[Any]:
    """Inside it, where `wanted`, linear layers without gradient in float32 are oneDNN's on a CPU that is not Intel's.

    They are up to twice as fast there; sums are rounded in another order, as they are between batch sizes.
    """
    linear = _onednn() if wanted else None
    return contextlib.nullcontext() if linear is None else _OneDnn(linear)
