"""How a process uses its machine."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from bita.machine import keep_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
def test_large_blocks_are_used_again_without_asking_the_kernel() -> None:
    """64 MiB are 16,384 pages; they are filled anew in a round or two, not in every one."""
    assert keep_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 10 * 16384
