"""One process or many: what `torchrun` started, and the few collectives that training needs.

Every function works on a single process too, where it does nothing or gives back what it was handed, so that
callers never ask. Tensors travel over NCCL on GPUs and gloo on CPUs; Python objects always travel over gloo.

How long one process waits for another: while that one works by itself (`on_main`, `barrier`), as long as it shows signs
of life; inside a collective, `TIMEOUT`. A process that shows none is named, and all end; so do all, with one message,
when one of them fails (`together`, `bita.liveness`).
"""

from __future__ import annotations

import ctypes
import gc
import os
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from bita import liveness
from bita.errors import ConfigError, TransientError, UserError, exit_code_of, one_line
from bita.liveness import Peers

T = TypeVar("T")

_alone = False
_peers: Peers | None = None


def together(action: Callable[[], T]) -> T:
    """Run a program's work as one of the processes that `torchrun` started: when one fails, all end with its message.

    The group of processes is left when nothing of the work is alive any more. A model in DistributedDataParallel holds
    the group, and if it were the last to do so, the group would end while Python's lock is held, and wait for threads
    that want that lock. So `action` must keep what it builds in variables of its own. The process must end soon after.

    Raises:
        OthersError: another process failed first.
    """
    code = 0
    try:
        return action()
    except BaseException as error:
        end = error if _peers is None else _peers.end(error)
        code = exit_code_of(end)
        if _peers is None:
            raise
        if not isinstance(end, UserError | OSError | KeyboardInterrupt | SystemExit):
            traceback.print_exception(error)
            end = TransientError(one_line(error))
            end.said = True
        _forget_traceback(error)
        raise end from None
    finally:
        if dist.is_initialized():
            seconds, who = liveness.LEAVING, f"rank {rank()} of {world_size()}"
            text = f"warning: {who} did not end within {seconds} s of its work; it is ended now"
            liveness.end_after(seconds, text, code)
            shutdown(wait=code == 0)


def _forget_traceback(error: BaseException | None) -> None:
    """Let go of the functions that an error came through, whose variables hold model and loaders."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def setup(device: str = "auto") -> torch.device:
    """Join the processes that `torchrun` started (if it did) and returns this process's device.

    `device` is `auto`, `cpu` or `cuda`; `auto` takes CUDA when there is one.

    Raises:
        ConfigError: CUDA is asked for and absent, or there are more processes than GPUs.
        UserError: the others did not come within `TIMEOUT`.
    """
    global _peers
    chosen = _device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        _end_with_launcher()
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        try:
            store, rank, world_size = _meet()
            dist.init_process_group(
                backend,
                store=store,
                rank=rank,
                world_size=world_size,
                timeout=liveness.TIMEOUT,
                device_id=chosen if chosen.type == "cuda" else None,
            )
        except dist.DistError as error:
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise TransientError(
                f"rank {os.environ['RANK']} did not meet the others at {place} within {liveness.TIMEOUT}; see what "
                f"the others said, and whether that address can be reached ({str(error).partition(chr(10))[0]})"
            ) from error
        if world_size > 1:
            _peers = Peers(store, rank, world_size)
    return chosen


def _device(device: str) -> torch.device:
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"run.device: {device!r} is none of auto, cpu, cuda")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device cuda (run.device, --device): torch sees no GPU here; take cpu or auto")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        error = ConfigError(
            f"torchrun started more processes here than the {torch.cuda.device_count()} GPUs of this machine;"
            " lower --nproc-per-node"
        )
        error.said = local_rank > torch.cuda.device_count()
        raise error
    return torch.device("cuda", local_rank)


def _meet() -> tuple[Any, int, int]:
    """Return a store that only the processes of this start share, this process's rank, and how many there are.

    torchrun keeps one store for all restarts (torch 2.11, issue 135712 of PyTorch), where the addresses of dead
    processes lie under the names that the next ones use: who reads before they are overwritten waits for a process that
    is gone. Nothing that torchrun hands out tells one start from the next on every machine; TORCHELASTIC_RESTART_COUNT
    is counted by each machine for itself. So rank 0 chooses a fresh name, and hands it to each of the others in answer
    to a question that nobody asked before.
    """
    store, rank, world_size = next(rendezvous("env://", timeout=liveness.TIMEOUT))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store, rank, world_size  # rank 0 has just made it
    name = secrets.token_hex(8)
    if rank > 0:
        store.set(f"bita/question/{rank}", name)
        name = store.get(f"bita/answer/{name}").decode()
        store.set(f"bita/thanks/{name}/{rank}", "")
    waiting = set(range(1, world_size)) if rank == 0 else set()
    deadline = time.monotonic() + liveness.TIMEOUT.total_seconds()
    while waiting:
        if time.monotonic() > deadline:
            raise TransientError(
                f"{liveness.in_words(waiting)} did not come within {liveness.TIMEOUT}; see what they "
                "said, or start fewer"
            )
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


def shutdown(wait: bool = True) -> None:
    """Leave the process group, if there is one; with `wait` when all have come here."""
    global _peers
    gc.collect()
    if _peers is not None:
        _peers.leave(wait)
        _peers = None
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process among all, from 0."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def world_size() -> int:
    """Number of processes on all machines together."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def is_main() -> bool:
    """Return whether this process is the one that writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Return once every process has come here; each is waited for as long as it shows signs of life."""
    if world_size() > 1 and _peers is not None:
        _peers.barrier()


def gather_objects(value: T) -> list[T]:
    """Hand each process's `value` to every process, in the order of ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: T) -> T:
    """Hand the main process's `value` to every process."""
    if world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    answer: T = box[0]
    return answer


def on_main(action: Callable[[], T]) -> T:
    """Run `action` on the main process only and hands its result to every process.

    The others wait as long as the main process shows signs of life, with no collective pending. A UserError or OSError
    that `action` raises is raised on every process.
    """
    if world_size() == 1:
        return action()
    result: T | None = None
    problem: UserError | OSError | None = None
    if is_main():
        try:
            result = action()
        except (UserError, OSError) as error:
            problem = error
    if _peers is not None:
        _peers.main_has_finished()
    result, problem = from_main((result, problem))
    if problem is not None:
        raise problem
    return result  # type: ignore[return-value]


def highest(value: int) -> int:
    """Return the largest of the processes' values, on every process; a host number, no accelerator waits for it."""
    if world_size() == 1:
        return value
    box = torch.tensor(value, dtype=torch.int64)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return int(box)


def highest_later(value: int) -> Callable[[], int]:
    """Begin to find the largest of the processes' values, beside whatever comes next; the result waits for it."""
    if world_size() == 1:
        return lambda: value
    box = torch.tensor(value, dtype=torch.int64)
    work = dist.all_reduce(box, op=dist.ReduceOp.MAX, async_op=True)

    def found() -> int:
        assert work is not None  # this process is one of the group
        work.wait()
        return int(box)

    return found


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
