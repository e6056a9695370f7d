"""Whether the other processes of a run still live, and what all do when one does not.

Each shows signs of life through the store that all met at (`Peers`); whoever fails says how, and all end with that.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from bita.errors import TransientError, UserError, exit_code_of, one_line

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


class OthersError(UserError):
    """What another process of the run has ended with; this one ends with the same exit code."""

    def __init__(self, end: dict[str, Any]) -> None:
        super().__init__(f"rank {end['rank']} on {end['host']}: {end['message']}")
        self.exit_code = end["code"]
        self.restart = end["restart"]
        self.said = end["host"] == platform.node() or os.environ.get("LOCAL_RANK", "0") != "0"


class Peers:
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
        """Return the thread's own one there, since the other may wait for an answer."""
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
                    say(f"warning: {in_words(missing)} did not come to an end together with rank {self.rank}")
                self._store.set(f"gone/{self.rank}", "")
                if self.rank == 0:
                    self._missing("gone", deadline)
        self._left.set()
        self._thread.join(GRACE)

    def _missing(self, mark: str, deadline: float) -> set[int]:
        """Return the ranks without a mark at the deadline."""
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
                            f"{in_words(lost)} showed no sign of life for {SILENCE * LOOK:.0f} s: the process "
                            "hangs, or its machine is gone; see its output, and start again to go on from the "
                            "last checkpoint"
                        )
                    )
                )

    def _follow(self, end: dict[str, Any]) -> None:
        """End this process after another's announcement, unless it does so by itself in time."""
        if end["rank"] != self.rank and not self._left.wait(GRACE):
            self._stop(OthersError(end))

    def _stop(self, error: BaseException) -> NoReturn:
        if isinstance(error, UserError) and not error.said:
            say(f"error: {error}")
        with suppress(RuntimeError):
            self._own.set(f"left/{self.rank}", "")
            if self.rank == 0:
                self._missing("left", time.monotonic() + 2 * GRACE)
        os._exit(exit_code_of(error))


def _is_of_others(error: BaseException) -> bool:
    """Return whether a collective failed since another process did not take part to its end."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def in_words(ranks: set[int]) -> str:
    """Ranks, such as `ranks 1, 3`."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, sorted(ranks)))}"


def say(text: str) -> None:
    """Print a line to the user at once."""
    print(text, file=sys.stderr, flush=True)


def end_after(seconds: int, message: str, code: int) -> None:
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
