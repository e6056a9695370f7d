"""Where a run's events and curves go. A logger of your own is one class (docs/extending.md)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Logger:
    """Takes what a run says, on the main process; registered by name (`bita.registry.loggers`).

    Whatever it raises is a warning to the user, and the run goes on.

    Args:
        config: its own keys, of its `Config`.
        folder: the run's folder.
    """

    def __init__(self, config: Any, folder: Path) -> None:
        self.config, self.folder = config, folder

    def event(self, kind: str, values: dict[str, Any]) -> None:
        """Something happened: `train`, `scores`, `checkpoint`, `resumed`, `warning`, …"""

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Points of curves."""

    def close(self) -> None:
        """The run is done; flush what is held back."""


class JsonLines(Logger):
    """A line of `log.jsonl` for each event, with the time."""

    def event(self, kind: str, values: dict[str, Any]) -> None:
        """See `Logger.event`."""
        line = json.dumps({"time": round(time.time(), 3), "event": kind} | values, ensure_ascii=False)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class TensorBoard(Logger):
    """Curves for TensorBoard, in `tensorboard/`."""

    def __init__(self, config: Any, folder: Path) -> None:
        super().__init__(config, folder)
        self._board: Any = None

    def scalars(self, values: dict[str, float], step: int) -> None:
        """See `Logger.scalars`."""
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"), flush_secs=30)
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Logger.close`."""
        if self._board is not None:
            self._board.close()
            self._board = None
