"""How a process uses its machine."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest
import torch

from bita.machine import Others, cores, keep_memory, threads_beside


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
def test_large_blocks_are_used_again_without_asking_the_kernel() -> None:
    """40 MiB are 10,240 pages; they are filled anew in a round or two, not in every one.

    A block of 64 MiB and more comes from the kernel in any case where another arena than the first has to give it.
    """
    assert keep_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10 * 2**20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 10 * 10240


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_what_other_programs_use_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        others = Others()
        try:
            assert 0.1 < others.busy_cores() <= cores() + 0.2
        finally:
            other.kill()


def test_a_thread_for_every_free_core_and_for_half_of_them_at_least() -> None:
    assert 1 <= cores() <= 4096
    assert threads_beside(0.0) == threads_beside(0.4) == cores()
    assert threads_beside(1.0) == max(1, cores() - 1)
    assert threads_beside(float(cores())) == threads_beside(99.0) == max(1, cores() // 2)
