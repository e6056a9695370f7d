"""What goes wrong while batches are read: records whose image does not open, and loader workers that die."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import get_worker_info

from bita.errors import UserError


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
    """

    def __init__(self, workers: int, name: Callable[[int], str]) -> None:
        self._name = name
        self._reading = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_() if workers else None

    def note(self, record: int) -> None:
        """This worker reads `record` now."""
        worker = get_worker_info()
        if self._reading is not None and worker is not None:
            self._reading[worker.id, 0] = os.getpid()
            self._reading[worker.id, 1] = record

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Turn torch's error about a worker that died into a UserError that names the record.

        torch raises it wherever the main process happens to be, so a whole training loop goes inside.
        """
        try:
            yield
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else ""
            if "DataLoader worker" not in reason or self._reading is None:
                raise
            records = [record for pid, record in self._reading.tolist() if str(pid) in reason and record >= 0]
            where = ", ".join(map(self._name, records)) or "its first record"
            raise UserError(
                f"{reason.rstrip('. ')}, at {where}; if that image is sound, memory ran out: lower run.num_workers"
            ) from error
