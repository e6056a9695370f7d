"""What goes wrong while batches are read: records whose image does not open, and loader workers that die."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from bita.errors import TransientError, UserError

WORKER_WAIT = 1800
"""Seconds that a batch may take a loader's workers."""
WORKER_LOOK = 5
"""Seconds between two looks at whether the workers live: one that dies at once can be missed when it does."""
SHOWN = 4
"""Records in a message."""
SHARED = "/dev/shm"
ROOM = (
    "make /dev/shm larger (docker run --shm-size=8g, or --ipc=host), or lower run.num_workers or the batch size; "
    "run.num_workers=0 needs none"
)


@dataclass(frozen=True)
class Failure:
    """What a worker hands over in place of a batch, so that its message stays one line."""

    message: str


@dataclass(frozen=True)
class BadRecord:
    """A record that was left out (`run.on_bad_image: skip`)."""

    dataset: str
    split: str
    record: int
    """Number of the record in the split's annotations; of the image, where captions are drawn."""
    image: str
    """The image's file; of a shard, the shard and the record's number in it."""
    problem: str


class Whereabouts:
    """What every loader worker reads just now, in shared memory, so that it is known when one dies.

    Args:
        workers: how many there are; 0 notes nothing.
        name: number of a record → its name, for the message.

    Raises:
        UserError: shared memory is full.
    """

    def __init__(self, workers: int, name: Callable[[int], str]) -> None:
        self._name = name
        self._reading = _into_shared(torch.full((workers, 2), -1, dtype=torch.int64)) if workers else None

    def note(self, record: int) -> None:
        """This worker reads `record` now."""
        worker = get_worker_info()
        if self._reading is not None and worker is not None:
            self._reading[worker.id, 0] = os.getpid()
            self._reading[worker.id, 1] = record

    def watch(self) -> AbstractContextManager[None]:
        """Inside it, a worker that dies or gives nothing is a UserError that names the record; see `watch_workers`."""
        return watch_workers(self._where)

    def _where(self, reason: str) -> str:
        """Return what the worker that `reason` names was reading; where it names none, what each of them was."""
        found = [] if self._reading is None else self._reading.tolist()
        started = [(pid, record) for pid, record in found if record >= 0]
        numbers = re.findall(r"\d+", reason)
        meant = [record for pid, record in started if str(pid) in numbers]
        records = meant or [record for _, record in started if "pid" not in reason]
        return ", ".join(map(self._name, records[:SHOWN])) or "its first record"


@contextlib.contextmanager
def watch_workers(where: Callable[[str], str]) -> Iterator[None]:
    """Turn what torch says of a loader's workers that died, or gave nothing for `WORKER_WAIT`, into a UserError.

    torch raises it wherever the main process happens to be, so a whole loop goes inside.

    Args:
        where: torch's reason → what the worker was reading.
    """
    try:
        yield
    except RuntimeError as error:
        reason = (str(error) or "-").splitlines()[0].partition(". ")[0].rstrip(". ")
        if "DataLoader timed out" in reason:
            remedy = "see whether that file's disk answers, and start again"
        elif "DataLoader worker" not in reason:
            raise
        elif "Bus error" in reason:
            remedy = ROOM
        else:
            remedy = "if that image is sound, memory ran out: lower run.num_workers"
        raise TransientError(f"{reason}, at {where(reason)}; {remedy}") from error


def look_after(workers: int) -> float:
    """Return the `timeout` of a DataLoader that `batches` goes through."""
    return min(WORKER_WAIT, WORKER_LOOK) if workers > 0 else 0


def batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield a loader's batches; torch looks after its workers whenever a wait of its own, `look_after`, is over.

    Raises:
        UserError: shared memory is full.
        RuntimeError: a worker died, or none gave a batch for `WORKER_WAIT`; see `watch_workers`.
    """
    try:
        items = iter(loader)
    except OSError as error:  # the locks of the workers' queues lie in shared memory
        raise no_room() if error.errno == errno.ENOSPC else error from None
    deadline = time.monotonic() + WORKER_WAIT
    while True:
        try:
            batch = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            if time.monotonic() >= deadline:
                raise RuntimeError(f"DataLoader timed out after {WORKER_WAIT} seconds") from error
            continue
        yield batch
        deadline = time.monotonic() + WORKER_WAIT


def share(tensor: Tensor) -> Tensor:
    """In a loader's worker, move a tensor into shared memory, and tell where there is no room.

    torch would do so later, in a thread whose failure reaches nobody: the main process would wait for ever.

    Raises:
        UserError: shared memory is full.
    """
    return tensor if get_worker_info() is None else _into_shared(tensor)


def _into_shared(tensor: Tensor) -> Tensor:
    """Move a tensor into shared memory; raises UserError where that is full.

    Room is asked for first: after torch 2.11 has found none, a descriptor of the worker's queue is gone, and its feeder
    thread ends in a traceback.
    """
    with contextlib.suppress(OSError):
        disk = os.statvfs(SHARED)
        free = disk.f_bavail * disk.f_frsize
        if disk.f_blocks and free < tensor.nbytes + disk.f_frsize:  # no blocks: no limit
            raise no_room()
    try:
        return tensor.share_memory_()
    except RuntimeError as error:
        raise no_room() from error


def no_room() -> UserError:
    """Return the error of shared memory that is full."""
    return TransientError(f"shared memory, which loader workers hand images over in, is full: {ROOM}")
