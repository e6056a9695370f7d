"""What a run says: JSON lines, TensorBoard, and a progress bar (or plain lines where there is no terminal)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bita import distributed
from bita.registry import loggers
from bita.runners.loggers import Logger

USUAL = ("jsonl", "tensorboard")
"""The loggers of a run that names none."""


class RunLog:
    """Writes on the main process, is silent on the others.

    Args:
        folder: the run's folder.
        chosen: name of a logger → its own keys; empty: `jsonl` and `tensorboard`.
    """

    def __init__(self, folder: Path, chosen: Mapping[str, Any]) -> None:
        self.console = Console(stderr=False, highlight=False, soft_wrap=True)
        self.loggers: dict[str, Logger] = {}
        for name, config in (chosen or {name: loggers.config(name)() for name in USUAL}).items():
            if distributed.is_main():
                self.loggers[name] = loggers.get(name)(config, folder)
        self._clock = (time.monotonic(), 0)
        self._said: set[str] = set()

    def event(self, kind: str, **values: Any) -> None:
        """Something that happened, for every logger."""
        self._each(lambda logger: logger.event(kind, values))

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Points of curves, for every logger."""
        self._each(lambda logger: logger.scalars(values, step))

    def _each(self, act: Callable[[Logger], None]) -> None:
        """What a logger runs into is said, and does not end the run."""
        for name, logger in self.loggers.items():
            try:
                act(logger)
            except Exception as error:
                said = " ".join(f"{type(error).__name__}: {error}".split())
                reason = getattr(error, "strerror", None) or said
                self.say(f"warning: logger {name}: cannot write ({reason})")

    def say(self, text: str) -> None:
        """One line to the user."""
        if distributed.is_main():
            self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """One line to the user and to the loggers."""
        self.say(f"warning: {text}")
        self.event("warning", text=text)

    def progress(self, title: str, total: int, done: int = 0) -> ProgressBar:
        """Return a bar for `total` steps of which `done` are behind; use it in a `with`."""
        return ProgressBar(self.console, title, total, done)

    def restart_clock(self, step: int) -> None:
        """Time spent until now is no training time."""
        self._clock = (time.monotonic(), step)

    def training(
        self, where: str, step: int, images_per_step: int, values: dict[str, float], bar: ProgressBar | None
    ) -> None:
        """Means of the steps since the last call, with images a second over all processes."""
        (start, first), now = self._clock, time.monotonic()
        speed = (step - first) * images_per_step / max(now - start, 1e-9)
        values = values | {"images_per_second": round(speed, 2)}
        self.event("train", step=step, **values)
        self.scalars({f"train/{name}": value for name, value in values.items()}, step)
        note = f"loss {values['loss']:.4f}  lr {values['lr']:.2e}  {speed:.0f} images/s"
        if bar is not None:
            bar.note(note)
        if bar is None or not bar.visible:
            left = "" if bar is None else f"  {bar.time_left} left in it"
            self.say(f"{where}  step {step}  {note}{left}")
        self.restart_clock(step)

    def scores(self, where: str, key: str, step: int, scores: dict[str, float], notes: list[str]) -> None:
        """What a split came to; a note is shown the first time only."""
        self.event("scores", split=key, step=step, scores=scores, notes=notes)
        for note in notes:
            if note not in self._said:
                self.say(f"note: {note}")
                self._said.add(note)
        self.scalars({f"{key}/{name}": value for name, value in scores.items()}, step)
        self.say(f"{where}  {key}: " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items()))

    def close(self) -> None:
        """Let every logger flush what it holds back."""
        self._each(lambda logger: logger.close())


class ProgressBar:
    """Steps done, time left, and a note beside it; invisible on a pipe and on other processes than the main one."""

    def __init__(self, console: Console, title: str, total: int, done: int) -> None:
        self.total, self.done = total, done
        self._started, self._first = time.monotonic(), done
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not (console.is_terminal and distributed.is_main()),
        )
        self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def advance(self, steps: int = 1) -> None:
        """So many steps further."""
        self.done += steps
        self._bar.update(self._task, advance=steps)

    def note(self, text: str) -> None:
        """What stands beside the bar from now on."""
        self._bar.update(self._task, note=text)

    @property
    def visible(self) -> bool:
        """Whether there is a terminal to draw on."""
        return not self._bar.disable

    @property
    def time_left(self) -> str:
        """Estimate from the pace so far, as h:mm:ss."""
        pace = (time.monotonic() - self._started) / max(self.done - self._first, 1)
        return str(timedelta(seconds=round(pace * (self.total - self.done))))
