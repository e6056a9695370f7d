"""Requests that come one by one, worked on together: whoever comes first waits a moment for others."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, Self, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class QueueFull(Exception):
    """As many items as are allowed are waiting already."""


class Closed(Exception):
    """Nothing is taken any more."""


class Batcher(Generic[A, B]):
    """Items from any thread, handed to `work` by one thread in batches, first come first served.

    A batch starts when it is full, or when its first item has waited for `wait`; while `work` is busy items gather for
    the next one. Where `work` fails on a batch it is asked again for each item alone, so that only the one fails that
    makes it fail.

    Args:
        work: gives one result for each item, in their order.
        size: most items of a batch.
        wait: seconds that an item waits for others at most, while `work` is idle.
        limit: items that may wait; those of the batch under way do not count.
    """

    def __init__(
        self, work: Callable[[list[A]], Sequence[B]], *, size: int = 16, wait: float = 0.005, limit: int = 256
    ) -> None:
        self.work, self.size, self.wait, self.limit = work, size, wait, limit
        self._waiting: deque[tuple[A, Future[B], float]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._waiting)

    def submit(self, item: A) -> Future[B]:
        """Let an item wait for its turn; what comes back holds its result, or the error of `work`.

        Raises:
            QueueFull: too many wait already.
            Closed: after `close`.
        """
        future: Future[B] = Future()
        with self._changed:
            if self._closed:
                raise Closed
            if len(self._waiting) >= self.limit:
                raise QueueFull
            self._waiting.append((item, future, time.monotonic()))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Finish the batch under way; what waits ends with `Closed`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for _, future, _ in self._waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(Closed())
        self._waiting.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            running = [(item, future) for item, future, _ in batch if future.set_running_or_notify_cancel()]
            self._do(running)

    def _next(self) -> list[tuple[A, Future[B], float]] | None:
        """Return the next batch, as soon as it is due; None after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            while not self._closed and len(self._waiting) < self.size:
                left = self._waiting[0][2] + self.wait - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            if self._closed:
                return None
            return [self._waiting.popleft() for _ in range(min(self.size, len(self._waiting)))]

    def _do(self, batch: list[tuple[A, Future[B]]]) -> None:
        if not batch:
            return
        try:
            results = list(zip(batch, self.work([item for item, _ in batch]), strict=True))
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:
                for one in batch:
                    self._do([one])
        else:
            for (_, future), result in results:
                future.set_result(result)
