"""What validation came to, epoch by epoch, kept in `validation.json`: it decides which checkpoint is the best."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bita import distributed
from bita.runners.checkpoint import META_FILE, point

FILE = "validation.json"


@dataclass
class Validations:
    """Epoch (from 0; from 1 in the file and in names) → quality and scores. The same on every process.

    Attributes:
        folder: the run's folder.
        entries: epoch → {"quality", "scores"}.
    """

    folder: Path
    entries: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __contains__(self, epoch: int) -> bool:
        return epoch in self.entries

    def load(self, until: int) -> None:
        """Read the file, leaving out epochs after `until`, which a resumed run trains again."""

        def read() -> dict[int, dict[str, Any]]:
            path = self.folder / FILE
            content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            return {int(epoch) - 1: entry for epoch, entry in content.items() if int(epoch) - 1 <= until}

        self.entries = distributed.on_main(read)
        if distributed.is_main():
            self.point_to_best()

    def add(self, epoch: int, quality: float | None, scores: dict[str, dict[str, float]]) -> None:
        """Keep what an epoch came to."""
        self.entries[epoch] = {"quality": quality, "scores": scores}

    def as_json(self) -> dict[str, Any]:
        """What the file holds."""
        return {str(epoch + 1): entry for epoch, entry in self.entries.items()}

    def best(self) -> int | None:
        """The epoch of the highest quality, the first of equals, whose checkpoint is there."""
        candidates = [epoch for epoch, entry in self.entries.items() if entry["quality"] is not None]
        candidates = [
            epoch for epoch in sorted(candidates) if (self._checkpoint(epoch) / META_FILE).is_file()
        ]
        return max(candidates, key=lambda epoch: self.entries[epoch]["quality"], default=None)

    def best_entry(self) -> dict[str, Any]:
        """The best epoch and its quality, for a checkpoint's meta."""
        epoch = self.best()
        return {} if epoch is None else {"epoch": epoch + 1, "quality": self.entries[epoch]["quality"]}

    def names(self) -> set[str]:
        """Names of the checkpoints that must stay."""
        epoch = self.best()
        return set() if epoch is None else {self._checkpoint(epoch).name}

    def best_folder(self) -> Path | None:
        """The best epoch's checkpoint; the main process decides."""
        epoch = distributed.on_main(self.best)
        return None if epoch is None else self._checkpoint(epoch)

    def _checkpoint(self, epoch: int) -> Path:
        return self.folder / "checkpoints" / f"epoch_{epoch + 1:04d}"

    def point_to_best(self) -> None:
        """Let `best` lead to the best checkpoint; a link that cannot be written is one that stays as it was."""
        epoch = self.best()
        if epoch is not None:
            with contextlib.suppress(OSError):
                point(self.folder / "checkpoints", "best", self._checkpoint(epoch))
