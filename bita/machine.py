"""How a process uses the machine that it runs on."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Numbers of glibc's malloc.h."""
_NEVER = 2**31 - 1


def keep_memory() -> bool:
    """Let the C library keep memory that was freed, for the next activations of the same size.

    glibc gives every large block back to the kernel and gets it anew, page by page, each to be filled with zeros: in a
    convolutional encoder on a CPU that costs more than the arithmetic. Memory then stays at its highest need.

    Returns:
        Whether it could be asked for: with glibc only.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, _NEVER))


def in_threads(work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """Return what `work`, which waits for the disk or leaves Python's lock, gives for each item, several at a time."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))
