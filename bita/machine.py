"""How a process uses the machine that it runs on."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Numbers of glibc's malloc.h."""
_NEVER = -1
"""As a threshold of trimming: no memory is too much to keep."""
_SPINS = "30000"
"""Of GNU's OpenMP: looks at the others before a thread sleeps, a tenth of the usual."""
_SAMPLE = 0.3
"""Seconds that the least look at the other programs takes."""
_held: list[bool] = []
"""Not empty while a starting program looks for no garbage."""


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


def ahead(work: Callable[[A], B], items: Iterable[A], most: int) -> Iterator[B]:
    """What `work` gives for each item, in order, up to `most` of them worked out in threads before they are asked for.

    Items are taken by the thread that asks, so that they may come from what only one thread may use.
    """
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(min(8, cores())) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def in_turns(work: Callable[[A], B], items: Iterable[A], most: int) -> Iterator[B]:
    """What `work` gives for each item, in order; worked out by all cores while who asks waits, and not meanwhile.

    For one who needs all cores between two askings, and Python's lock for many short calls: threads beside it would
    cost it more than their own time. Up to `most` items are taken at a time, by the thread that asks: half of them are
    worked out, the others are known by then, so that a disk can be told of them.
    """
    source, threads = iter(items), min(8, cores())
    following = list(islice(source, max(1, most // 2)))
    with ThreadPoolExecutor(threads) as pool:
        while following:
            each = -(-len(following) // threads)
            parts = [following[start : start + each] for start in range(0, len(following), each)]
            done = list(pool.map(lambda part: [work(item) for item in part], parts))
            following = list(islice(source, max(1, most // 2)))
            for part in done:
                yield from part


def fetch(path: Path) -> None:
    """Ask the system to read a file ahead; nothing where it cannot, or it is no plain file."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            if path.is_file():
                with path.open("rb", buffering=0) as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def start_program() -> None:
    """Prepare a program's process, before torch is imported; does nothing after that.

    Threads that wait for each other go to sleep sooner, so that on a busy machine they leave the core; unless the
    environment already says how to wait. Nobody looks for garbage until `model_is_built`: libraries and a model are
    half a million objects that stay, and next to no garbage.
    """
    if "torch" in sys.modules:
        return
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    gc.disable()
    _held.append(True)


def model_is_built() -> None:
    """Say that from here on activations come and go, and that what is there stays.

    Memory is kept (`keep_memory`). In a process of `start_program` garbage is looked for again, among what is newer:
    the rest is never looked at any more, at the process's end neither.
    """
    keep_memory()
    if _held:
        _held.clear()
        gc.freeze()
        gc.enable()


def cores() -> int:
    """Return how many cores this process may use, by its affinity and by its control group's quota; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, int(_quota() or allowed)))


def _quota() -> float | None:
    """Cores that the control group allows, as containers are given them; None without a limit."""
    group = Path("/sys/fs/cgroup")
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = (word for name in files for word in (group / name).read_text().split())
            return float(quota) / float(period) if float(quota) > 0 else None
        except (OSError, ValueError):  # another version's file; or "max"
            continue
    return None


class Others:
    """What other programs use of the cores, from the moment that this is made until it is asked."""

    def __init__(self) -> None:
        self._start = self._look()

    def busy_cores(self) -> float:
        """Return how many of this process's cores they kept busy in the mean; 0 where the system does not say."""
        time.sleep(max(0.0, self._start[0] + _SAMPLE - time.monotonic()))
        seconds, busy, own = (now - then for now, then in zip(self._look(), self._start, strict=True))
        return max(0.0, (busy - own) / seconds)

    @staticmethod
    def _look() -> tuple[float, float, float]:
        """Return the time, what all programs have used of this process's cores, and what it has itself, in seconds."""
        own = sum(os.times()[:4])
        try:
            lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
            mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        except (OSError, AttributeError):
            return time.monotonic(), own, own
        # user, nice, system, (idle, waiting for the disk), interrupts, their rest, stolen by other virtual machines
        ticks = sum(int(line[field]) for line in lines if line[0] in mine for field in (1, 2, 3, 6, 7, 8))
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), own


def threads_beside(busy_cores: float) -> int:
    """Return how many threads are worth having where others keep so many cores busy: as many as cores are free.

    A thread on a core that another program uses is waited for by all the others. But never less than half of the cores:
    that is the share against as many others as there are cores.
    """
    return max(1, cores() // 2, int(cores() - busy_cores + 0.5))
