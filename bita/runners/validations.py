"""What validation came to, epoch by epoch, kept in `validation.json`: it decides which checkpoint is the best."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bita import distributed
from bita.checkpoint import META_FILE, copy_checkpoint, point
from bita.errors import UserError
from bita.files import write_json

FILE = "validation.json"
LOG = logging.getLogger(__name__)


@dataclass
class Validations:
    """Epoch (from 0; from 1 in the file and in names) → quality and scores. The same on every process.

    Attributes:
        folder: the run's folder.
        entries: epoch → {"quality", "best_by", "search", "scores"}.
        best_by: the scores that quality is of; epochs that were judged by others are never the best.
        search: how captions were searched for, where they were; the same holds of it, and of the splits.
    """

    folder: Path
    best_by: Sequence[str] = ()
    search: Mapping[str, Any] = field(default_factory=dict)
    entries: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __contains__(self, epoch: int) -> bool:
        return epoch in self.entries

    def load(self, until: int) -> None:
        """Read the file, leaving out epochs after `until`, which a resumed run trains again."""
        entries = distributed.on_main(self._read)
        self.entries = {epoch: entry for epoch, entry in entries.items() if epoch <= until}
        if distributed.is_main():
            self.point_to_best()

    def take_over(self, checkpoint: Path, until: int, warn: Callable[[str], None]) -> None:
        """Make another run's validations up to epoch `until` this run's, with its best checkpoint so far.

        Does nothing where `checkpoint`, which this run goes on from, is its own. Every process calls it.
        """

        def act() -> None:
            run = checkpoint.parents[1]
            if run == self.folder.resolve() or (self.folder / FILE).exists():
                return
            other = Validations(run, self.best_by, self.search)
            other.entries = {epoch: entry for epoch, entry in other._read().items() if epoch <= until}
            best = other.best()
            try:
                if best is not None:
                    copy_checkpoint(other._checkpoint(best), self.folder / "checkpoints")
                if other.entries:
                    write_json(self.folder / FILE, other.as_json())
            except (OSError, UserError) as error:
                warn(
                    f"the best epoch so far of {run} could not be taken over ({error}); the best counts from here"
                )

        distributed.on_main(act)

    def add(self, epoch: int, quality: float | None, scores: dict[str, dict[str, float]]) -> None:
        """Keep what an epoch came to."""
        search = {"search": dict(self.search)} if self.search else {}
        self.entries[epoch] = {"quality": quality, "best_by": list(self.best_by), **search, "scores": scores}

    def as_json(self) -> dict[str, Any]:
        """Return what the file holds."""
        return {str(epoch + 1): entry for epoch, entry in self.entries.items()}

    def best(self) -> int | None:
        """Return the epoch of the highest quality, the first of equals, whose checkpoint is there."""
        candidates = [
            epoch
            for epoch in sorted(self.entries)
            if self._comparable(self.entries[epoch]) and (self._checkpoint(epoch) / META_FILE).is_file()
        ]
        return max(candidates, key=lambda epoch: self.entries[epoch]["quality"], default=None)

    def _comparable(self, entry: dict[str, Any]) -> bool:
        """Whether an epoch was judged as this run judges, on the splits of the newest; older files say less."""
        newest = self.entries[max(self.entries)]
        return (
            entry["quality"] is not None
            and math.isfinite(entry["quality"])  # else the first would stay the best: nothing is above NaN
            and entry.get("best_by", list(self.best_by)) == list(self.best_by)
            and entry.get("search", self.search) == self.search
            and entry["scores"].keys() == newest["scores"].keys()
        )

    def best_entry(self) -> dict[str, Any]:
        """Return the best epoch and its quality, for a checkpoint's meta."""
        epoch = self.best()
        return {} if epoch is None else {"epoch": epoch + 1, "quality": self.entries[epoch]["quality"]}

    def names(self) -> set[str]:
        """Names of the checkpoints that must stay."""
        epoch = self.best()
        return set() if epoch is None else {self._checkpoint(epoch).name}

    def best_folder(self) -> Path | None:
        """Return the best epoch's checkpoint; the main process decides."""
        epoch = distributed.on_main(self.best)
        return None if epoch is None else self._checkpoint(epoch)

    def _read(self) -> dict[int, dict[str, Any]]:
        path = self.folder / FILE
        if not path.is_file():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            entries = {int(epoch) - 1: entry for epoch, entry in content.items()}
            # What is there keeps its place, so that a resumed run's file has the same bytes.
            for entry in entries.values():
                entry.setdefault("quality", None)
                entry.setdefault("scores", {})
        except (ValueError, TypeError, AttributeError):
            LOG.warning("%s: damaged, so what it says is passed over; the best epoch counts from here", path)
            return {}
        return entries

    def _checkpoint(self, epoch: int) -> Path:
        return self.folder / "checkpoints" / f"epoch_{epoch + 1:04d}"

    def point_to_best(self) -> None:
        """Let `best` lead to the best checkpoint; a link that cannot be written is one that stays as it was."""
        epoch = self.best()
        if epoch is not None:
            with contextlib.suppress(OSError):
                point(self.folder / "checkpoints", "best", self._checkpoint(epoch))
