"""`run.compile`: blocks of encoder, bridge and language model as torch.compile makes them, in training.

A block at a time, not the model: blocks of one kind share what is made for the first, and names of weights stay.
Searches are eager, since one gives a block another length at every token.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from bita.errors import first_line

LOG = logging.getLogger(__name__)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the children of every stack of equal modules: encoder blocks, bridge layers, decoder layers."""
    found: list[nn.Module] = []
    for child in model.children():
        alike = isinstance(child, nn.ModuleList | nn.Sequential) and len({type(part) for part in child}) == 1
        found += list(child.children()) if alike else blocks_of(child)
    return found


def compile_blocks(model: nn.Module, device: torch.device) -> int:
    """Compile the blocks in place, where this machine can; how many.

    Without a compiler (g++ for a CPU, Triton for a GPU) one warning says so, and the blocks stay as they are.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device))
    except Exception as error:  # whatever a compiler, or its absence, raises
        LOG.warning("run.compile: goes without, since nothing can be compiled here (%s)", first_line(error))
        return 0
    blocks = blocks_of(model)
    for block in blocks:
        block.compile(options={"fallback_random": True})  # draws as those of eager blocks
    return len(blocks)


def eager(compiled: bool) -> AbstractContextManager[None]:
    """Inside it, blocks are computed as they are written, where some are `compiled`."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
