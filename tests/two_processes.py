"""The same step on one process and on two, which must learn the same."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, multiprocessing, nn

from bita import distributed

Work = Callable[..., dict[str, Tensor]]


def learned(model: nn.Module, output: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Named outputs and, by `output["loss"]`, gradients, averaged over processes as DDP does."""
    output["loss"].backward()
    seen = {name: output[name].detach() for name in names}
    seen |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    everyone = distributed.gather_objects(seen)
    return {name: torch.stack([part[name] for part in everyone]).mean(dim=0) for name in seen}


def _process(rank: int, port: int, work: Work, arguments: tuple[Any, ...], out: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    distributed.setup("cpu")
    torch.save(work(*arguments, rank), out / f"{rank}.pt")
    distributed.shutdown()


def on_two(work: Work, arguments: tuple[Any, ...], out: Path, start_method: str) -> list[dict[str, Tensor]]:
    """What `work(*arguments, rank)` returns in each of two processes; a model among them has computed nothing yet."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(
        _process, (port, work, arguments, out), nprocs=2, start_method=start_method
    )
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


def assert_each_equals(parts: list[dict[str, Tensor]], whole: dict[str, Tensor]) -> None:
    """What each process learned is what one alone did."""
    for part in parts:
        assert part.keys() == whole.keys()
        for name, tensor in whole.items():
            assert torch.allclose(part[name], tensor, rtol=1e-4, atol=1e-6), name
