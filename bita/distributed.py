"""One process or many: what `torchrun` started, and the few collectives that training needs.

Every function works on a single process too, where it does nothing or gives back what it was handed, so that
callers never ask. Tensors travel over NCCL on GPUs and gloo on CPUs; Python objects always travel over gloo.

How long one process waits for another: while that one works by itself (`on_main`, `barrier`), as long as it shows signs
of life; inside a collective, `TIMEOUT`. A process that shows none is named, and all end; so do all, with one message,
when one of them fails (`together`).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import secrets
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from bita.errors import ConfigError, TransientError, UserError, exit_code_of, one_line

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others to start, and inside a collective."""
LOOK = 2.0
"""Seconds between two signs of life of a process, and between its looks at the others."""
SILENCE = 60
"""Looks without a sign of life after which a process counts as hung; its own, so that a pause of all is no silence."""
GRACE = 8.0
"""Seconds that a process has for ending by itself when another has failed."""
LEAVING = 60
"""Seconds that a process has for ending when its work is done."""

_alone = False
_circle: _Circle | None = None


class OthersError(UserError):
    """What another process of the run has ended with; this one ends with the same exit code."""

    def __init__(self, end: dict[str, Any]) -> None:
        super().__init__(f"rank {end['rank']} on {end['host']}: {end['message']}")
        self.exit_code = end["code"]
        self.restart = end["restart"]
        self.said = end["host"] == platform.node() or os.environ.get("LOCAL_RANK", "0") != "0"


class _Circle:
    """The other processes, seen through the store that all met at.

    alive/RANK   a number that grows while the process lives; a thread's work, over a connection of its own
    end          how the first process that failed has ended: {"rank", "host", "code", "restart", "message"}
    done/N       the main process has finished its N-th piece of work that the others wait for (`on_main`)
    here/N       how many processes have come to the N-th barrier
    left/RANK    the process has finished; gone/RANK: and has seen that all have
    """

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._store, self._own = PrefixStore("bita", store), PrefixStore("bita", store.clone())
        self._pieces, self._barriers = 0, 0
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._look_around, daemon=True)
        self._thread.start()

    def _connection(self) -> Any:
        """The thread's own one there, since the other may wait for an answer."""
        return self._own if threading.current_thread() is self._thread else self._store

    def end(self, error: BaseException) -> BaseException:
        """Announce how this process ends; what to raise: its own error, or the one that was announced before."""
        if _is_of_others(error):
            self._wait_for_announcement()
            reason = str(error).partition("\n")[0]
            error = TransientError(
                f"another process ended without a word (out of memory? see dmesg), or hung in a collective for "
                f"{TIMEOUT}: {reason}"
            )
        own = {"rank": self.rank, "host": platform.node(), "code": exit_code_of(error)}
        own |= {"restart": getattr(error, "restart", True), "message": one_line(error)}
        try:
            first = json.loads(self._connection().compare_set("end", "", json.dumps(own)))
        except RuntimeError:  # the store has gone with its process
            first = own
        if first["rank"] != self.rank:
            return OthersError(first)
        if isinstance(error, UserError):
            error.said = False
        return error

    def _wait_for_announcement(self) -> None:
        with suppress(RuntimeError):
            deadline = time.monotonic() + GRACE / 4
            while time.monotonic() < deadline and not self._store.check(["end"]):
                time.sleep(0.05)

    def main_has_finished(self) -> None:
        """On the main process: say so. On another: wait for that, as long as the main process lives."""
        self._pieces += 1
        key = f"done/{self._pieces}"
        if self.rank == 0:
            self._store.set(key, "")
        else:
            self._wait(lambda: self._store.check([key]))

    def barrier(self) -> None:
        """Wait for all processes, as long as they live."""
        self._barriers += 1
        key = f"here/{self._barriers}"
        self._store.add(key, 1)
        self._wait(lambda: self._store.add(key, 0) >= self.world_size)

    def _wait(self, done: Callable[[], bool]) -> None:
        pause = 0.001
        while not done():
            if self._store.check(["end"]):
                raise OthersError(json.loads(self._store.get("end")))
            time.sleep(pause)
            pause = min(2 * pause, 0.2)

    def leave(self, wait: bool) -> None:
        """End the thread; with `wait` once all processes have come here, or half of `LEAVING` is over.

        The main process, which may hold the store, always waits until the others have read there what they need.
        """
        deadline = time.monotonic() + LEAVING / 2
        with suppress(RuntimeError):  # the store has gone with its process: all have left
            self._store.set(f"left/{self.rank}", "")
            if not wait and self.rank == 0:
                self._missing("left", time.monotonic() + 2 * GRACE)
            if wait:
                missing = self._missing("left", deadline)
                if missing:
                    _say(f"warning: {_ranks(missing)} did not come to an end together with rank {self.rank}")
                self._store.set(f"gone/{self.rank}", "")
                if self.rank == 0:
                    self._missing("gone", deadline)
        self._left.set()
        self._thread.join(GRACE)

    def _missing(self, mark: str, deadline: float) -> set[int]:
        """The ranks without a mark at the deadline."""
        store, missing = self._connection(), set(range(self.world_size))
        while missing := {other for other in missing if not store.check([f"{mark}/{other}"])}:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        return missing

    def _look_around(self) -> None:
        beat, silent, seen = 0, Counter[int](), dict[int, bytes]()
        others = range(1, self.world_size) if self.rank == 0 else range(1)
        while not self._left.wait(LOOK):
            beat += 1
            try:
                self._own.set(f"alive/{self.rank}", str(beat))
                if self._own.check(["end"]):
                    self._follow(json.loads(self._own.get("end")))
                for other in others:
                    key = f"alive/{other}"
                    now = self._own.get(key) if self._own.check([key]) else b""
                    silent[other] = silent[other] + 1 if seen.get(other, b"") == now else 0
                    seen[other] = now
            except RuntimeError:
                silent[0] += 1  # the store is gone, and with it the process that held it
            lost = {other for other, looks in silent.items() if looks > SILENCE}
            if lost and not self._left.is_set():
                self._stop(
                    self.end(
                        TransientError(
                            f"{_ranks(lost)} showed no sign of life for {SILENCE * LOOK:.0f} s: the process hangs, or "
                            "its machine is gone; see its output, and start again to go on from the last checkpoint"
                        )
                    )
                )

    def _follow(self, end: dict[str, Any]) -> None:
        """End this process after another's announcement, unless it does so by itself in time."""
        if end["rank"] != self.rank and not self._left.wait(GRACE):
            self._stop(OthersError(end))

    def _stop(self, error: BaseException) -> NoReturn:
        if isinstance(error, UserError) and not error.said:
            _say(f"error: {error}")
        with suppress(RuntimeError):
            self._own.set(f"left/{self.rank}", "")
            if self.rank == 0:
                self._missing("left", time.monotonic() + 2 * GRACE)
        os._exit(exit_code_of(error))


def _is_of_others(error: BaseException) -> bool:
    """Whether a collective failed since another process did not take part to its end."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def _ranks(ranks: set[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, sorted(ranks)))}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
        end = error if _circle is None else _circle.end(error)
        code = exit_code_of(end)
        if _circle is None:
            raise
        if not isinstance(end, UserError | OSError | KeyboardInterrupt | SystemExit):
            traceback.print_exception(error)
            end = TransientError(one_line(error))
            end.said = True
        _forget_traceback(error)
        raise end from None
    finally:
        if dist.is_initialized():
            _end_after(
                LEAVING,
                f"warning: rank {rank()} of {world_size()} did not end within {LEAVING} s of its work; it is ended now",
                code,
            )
            shutdown(wait=code == 0)


def _forget_traceback(error: BaseException | None) -> None:
    """Let go of the functions that an error came through, whose variables hold model and loaders."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def _end_after(seconds: int, message: str, code: int) -> None:
    """Say `message` and end this process with `code` after so many seconds, unless it has ended before (Linux only).

    A timer of the C library that calls the C library: a thread of Python's would wait for Python's lock, which what
    hangs may hold.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    _keep.append(text := ctypes.create_string_buffer(message.replace("%", "").encode()))
    for delay, function, value in (
        (seconds, libc.warnx, ctypes.addressof(text)),
        (seconds + 1, libc._exit, code),
    ):
        event = _TimerEvent(value, 0, 2, ctypes.cast(function, ctypes.c_void_p))  # SIGEV_THREAD
        timer, when = ctypes.c_void_p(), (ctypes.c_long * 4)(0, 0, delay, 0)
        if libc.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)) == 0:
            libc.timer_settime(timer, 0, when, None)


class _TimerEvent(ctypes.Structure):
    """What a timer does when it is due: `struct sigevent`."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("rest", ctypes.c_char * 32),
    )


_keep: list[Any] = []
"""What a timer of the C library will read."""


def setup(device: str = "auto") -> torch.device:
    """Joins the processes that `torchrun` started (if it did) and returns this process's device.

    `device` is `auto`, `cpu` or `cuda`; `auto` takes CUDA when there is one.

    Raises:
        ConfigError: CUDA is asked for and absent, or there are more processes than GPUs.
        UserError: the others did not come within `TIMEOUT`.
    """
    global _circle
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
                timeout=TIMEOUT,
                device_id=chosen if chosen.type == "cuda" else None,
            )
        except dist.DistError as error:
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise TransientError(
                f"rank {os.environ['RANK']} did not meet the others at {place} within {TIMEOUT}; see what the others "
                f"said, and whether that address can be reached ({str(error).partition(chr(10))[0]})"
            ) from error
        if world_size > 1:
            _circle = _Circle(store, rank, world_size)
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
        error = ConfigError(
            f"torchrun started more processes here than the {torch.cuda.device_count()} GPUs of this machine;"
            " lower --nproc-per-node"
        )
        error.said = local_rank > torch.cuda.device_count()
        raise error
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
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while waiting:
        if time.monotonic() > deadline:
            raise TransientError(
                f"{_ranks(waiting)} did not come within {TIMEOUT}; see what they said, or start fewer"
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
    """Leaves the process group, if there is one; with `wait` when all have come here."""
    global _circle
    gc.collect()
    if _circle is not None:
        _circle.leave(wait)
        _circle = None
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
    """Returns once every process has come here; each is waited for as long as it shows signs of life."""
    if world_size() > 1 and _circle is not None:
        _circle.barrier()


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
    if _circle is not None:
        _circle.main_has_finished()
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
