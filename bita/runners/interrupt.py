"""Wishes that come from outside a training step: save now, or save and stop; all processes agree on them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from enum import IntEnum
from types import FrameType
from typing import Any, Self

from bita import distributed
from bita.errors import TransientError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupted(TransientError):
    """A signal asked to stop, and everything is saved; the exit code is BSD's EX_TEMPFAIL: try again later."""

    exit_code = 75


class Wish(IntEnum):
    """What is to happen after a step; of several processes' wishes the highest counts."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class Interrupt:
    """Listens to SIGTERM and SIGUSR1 and watches the clock, inside a `with`.

    Args:
        save_every_minutes: wish for a save this long after the last one; None: never.
    """

    def __init__(self, save_every_minutes: float | None) -> None:
        self.signal_name = ""
        self._seconds = None if save_every_minutes is None else save_every_minutes * 60
        self._saved = time.monotonic()
        self._before: dict[int, Any] = {}
        self._asked: Callable[[], int] | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name

    def wish(self, now: bool) -> Wish:
        """Return what all processes together wish for; every process calls it after the same step.

        Of several processes the wishes of a step are known after the next one, so that nobody waits for their exchange;
        with `now`, those of both steps are.
        """
        own = Wish.NOTHING
        if (
            self._seconds is not None
            and distributed.is_main()
            and time.monotonic() - self._saved > self._seconds
        ):
            own = Wish.SAVE
        if self.signal_name:
            own = Wish.STOP
        if distributed.world_size() == 1:
            return own
        before = Wish.NOTHING if self._asked is None else Wish(self._asked())
        if now:
            self._asked = None
            return max(before, Wish(distributed.highest(own)))
        self._asked = distributed.highest_later(own)
        return before

    def stopped(self) -> Interrupted:
        """Return what to raise once everything is saved."""
        return Interrupted(
            f"stopped by {self.signal_name or 'a signal to another process'}; everything is saved, start the same "
            "command with run.resume=auto to go on"
        )

    def saved(self) -> None:
        """A save has just been done: the clock starts again."""
        self._saved = time.monotonic()
