"""Which precision a device computes in: one decision for frozen parts, autocast and the gradient scaler."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""As configurations spell them."""


def sixteen_bit(device: torch.device) -> str:
    """Return the name of a device's 16-bit precision: bf16 where it has it, else fp16; fp32 on a CPU."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def amp_dtype(device: torch.device, amp: bool = True) -> torch.dtype | None:
    """Precision of autocast on a device; None where nothing is cast: without `amp`, and on a CPU."""
    dtype = PRECISIONS[sixteen_bit(device)] if amp else torch.float32
    return None if dtype is torch.float32 else dtype


def autocast(device: torch.device, amp: bool = True) -> AbstractContextManager[Any]:
    """Autocast in that precision; does nothing where it is None."""
    dtype = amp_dtype(device, amp)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast, whatever stands around: for what is compared, where 16 bit would make ties and swap ranks."""
    if device.type == "meta":  # where nothing is computed, and autocast is not known
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def as_autocast(x: Tensor) -> Tensor:
    """Cast to the precision that autocast would cast it to, where it is on: once, for all that read it."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))
