"""Records that were left out since their image does not open: counted, listed, and too many of them stop the run.

bad_records.jsonl   one line an image: {"dataset", "split", "record", "image", "problem"}
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bita import distributed
from bita.config.run import RunConfig
from bita.datasets.captions import Split
from bita.datasets.faults import BadRecord
from bita.datasets.loaders import Loader
from bita.errors import UserError

FILE = "bad_records.jsonl"


class BadRecords:
    """What `run.on_bad_image: skip` left out of a run, each image once; the same on every process.

    Args:
        folder: the run's folder.
        run: reads on_bad_image, max_bad_fraction.
        warn: is told of each.
    """

    def __init__(self, folder: Path, run: RunConfig, warn: Callable[[str], None]) -> None:
        self._path, self._run, self._warn = folder / FILE, run, warn
        self._seen: set[tuple[str, str, str]] | None = None

    def take(self, loader: Loader, datasets: dict[str, list[Split]]) -> None:
        """Add what a loader left out since it was asked last; all processes call this at the same step.

        Raises:
            UserError: more than `run.max_bad_fraction` of a split is bad.
        """
        if self._run.on_bad_image == "error":
            return
        if self._seen is None:
            self._seen = distributed.on_main(self._read)
        for bad in (record for part in distributed.gather_objects(loader.take_bad()) for record in part):
            key = (bad.dataset, bad.split, bad.image)
            if key not in self._seen:
                self._seen.add(key)
                self._write(bad)
                self._warn(f"{bad.dataset} {bad.split}: record {bad.record} left out: {bad.problem}")
        self._judge(datasets)

    def _judge(self, datasets: dict[str, list[Split]]) -> None:
        sizes = {(data.name, data.split): data.image_count for split in datasets.values() for data in split}
        for (dataset, split), count in Counter(key[:2] for key in self._seen or ()).items():
            total = sizes.get((dataset, split), 0)
            if total and count > self._run.max_bad_fraction * total:
                raise UserError(
                    f"run.max_bad_fraction: {count} of {total} images of {dataset} {split} do not open, more than "
                    f"{self._run.max_bad_fraction:g} of them; see {self._path}"
                )

    def _read(self) -> set[tuple[str, str, str]]:
        """Return what an earlier part of this run left out; a line that a fault cut off is passed over."""
        seen = set()
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []:
            try:
                entry = json.loads(line)
                seen.add((str(entry["dataset"]), str(entry["split"]), str(entry["image"])))
            except (ValueError, KeyError, TypeError):
                continue
        return seen

    def _write(self, bad: BadRecord) -> None:
        if not distributed.is_main():
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(bad), ensure_ascii=False) + "\n")
        except OSError as error:
            self._warn(f"{FILE} cannot be written ({error.strerror})")
