"""One process or many: what `torchrun` started, and the few collectives that training needs.

Every function works on a single process too, where it does nothing or gives back what it was handed, so that
callers never ask. Tensors travel over NCCL on GPUs and gloo on CPUs; Python objects always travel over gloo.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from bita.errors import ConfigError, UserError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others: longer than scoring on the main process takes."""

_alone = False


def setup(device: str = "auto") -> torch.device:
    """Joins the processes that `torchrun` started (if it did) and returns this process's device.

    `device` is `auto`, `cpu` or `cuda`; `auto` takes CUDA when there is one.
    Raises ConfigError when CUDA is asked for and absent, or when there are more processes than GPUs.
    """
    chosen = _device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        _end_with_launcher()
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        store, rank, world_size = _meet()
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=TIMEOUT,
            device_id=chosen if chosen.type == "cuda" else None,
        )
    return chosen


def _device(device: str) -> torch.device:
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"run.device: {device!r} is none of auto, cpu, cuda")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("run.device: cuda was asked for, but torch sees no GPU; set run.device=cpu or auto")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"torchrun started more processes here than the {torch.cuda.device_count()} GPUs of this machine;"
            " lower --nproc-per-node"
        )
    return torch.device("cuda", local_rank)


def _meet() -> tuple[Any, int, int]:
    """A store that only the processes of this start share, this process's rank, and how many there are.

    torchrun keeps one store for all restarts (torch 2.11, issue 135712 of PyTorch), where the addresses of dead
    processes lie under the names that the next ones use: who reads before they are overwritten waits for a process that
    is gone. Nothing that torchrun hands out tells one start from the next on every machine; TORCHELASTIC_RESTART_COUNT
    is counted by each machine for itself. So rank 0 chooses a fresh name, and hands it to each of the others in answer
    to a question that nobody asked before.
    """
    store, rank, world_size = next(rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store, rank, world_size  # rank 0 has just made it
    name = secrets.token_hex(8)
    if rank > 0:
        store.set(f"bita/question/{rank}", name)
        name = store.get(f"bita/answer/{name}").decode()
        store.set(f"bita/thanks/{name}/{rank}", "")
    waiting = set(range(1, world_size)) if rank == 0 else set()
    while waiting:
        for other in sorted(waiting):
            if store.check([f"bita/question/{other}"]):
                store.set(f"bita/answer/{store.get(f'bita/question/{other}').decode()}", name)
            if store.check([f"bita/thanks/{name}/{other}"]):
                waiting.remove(other)
        time.sleep(0.01)
    return PrefixStore(name, store), rank, world_size


def _end_with_launcher() -> None:
    """Let the system send SIGTERM here when torchrun is killed, so that no orphan trains on (Linux only)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def shutdown() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process among all, from 0."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def world_size() -> int:
    """Number of processes on all machines together."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def is_main() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Returns once every process has come here."""
    if world_size() > 1:
        dist.barrier()


def gather_objects(value: T) -> list[T]:
    """Hands each process's `value` to every process, in the order of ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: T) -> T:
    """Hands the main process's `value` to every process."""
    if world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    answer: T = box[0]
    return answer


def on_main(action: Callable[[], T]) -> T:
    """Runs `action` on the main process only and hands its result to every process.

    A UserError that it raises is raised on every process, so that all end with the same message.
    """
    result: T | None = None
    problem: UserError | None = None
    if is_main():
        try:
            result = action()
        except UserError as error:
            problem = error
    result, problem = from_main((result, problem))
    if problem is not None:
        raise problem
    return result  # type: ignore[return-value]


def highest(value: int) -> int:
    """The largest of the processes' values, on every process; a host number, no accelerator waits for it."""
    if world_size() == 1:
        return value
    box = torch.tensor(value, dtype=torch.int64)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return int(box)


class _GatherWithGrad(torch.autograd.Function):
    """All-gather whose backward sums what every process wants from this one's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        return _all_gather(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        start = rank() * ctx.rows
        return total[start : start + ctx.rows]


def _all_gather(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def gather_features(x: Tensor, with_grad: bool = False) -> Tensor:
    """(B, …) on each of W processes → (W·B, …) on all, by rank; B must be the same everywhere.

    Without `with_grad` the result is a constant, on one process too. With it, each row's gradient is the sum
    over all processes, so that gradients averaged over processes (as DDP does) equal those of one process
    that sees the whole batch.
    """
    if world_size() == 1:
        return x if with_grad else x.detach()
    if not with_grad:
        return _all_gather(x.detach())
    gathered: Tensor = _GatherWithGrad.apply(x)  # type: ignore[no-untyped-call]
    return gathered


@contextmanager
def alone() -> Iterator[None]:
    """Inside it this process acts as the only one: for work that the processes do not share evenly."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before
