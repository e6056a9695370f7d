"""Where random numbers come from: every training step has its own seed, so that no state can get lost.

Dropout in step s on rank r is drawn from (seed, r, s) alone. A resumed run therefore draws what the uninterrupted one
would have drawn, whatever happened between: validation, other worker counts, other libraries' draws.
"""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from bita import distributed


def seed_process(seed: int) -> None:
    """Seed python, numpy and torch with seed + rank, as published: for fresh weights."""
    _seed(seed + distributed.rank())


def seed_step(seed: int, step: int) -> None:
    """Seed python, numpy and torch for one training step of this process."""
    _seed(int(np.random.SeedSequence((seed, distributed.rank(), step)).generate_state(1)[0]))


def _seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def make_deterministic() -> None:
    """Let torch use only algorithms that give the same bits twice; slower, most of all in attention's backward.

    Raises RuntimeError in the step where an operation has no such algorithm, naming it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
